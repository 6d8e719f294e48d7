"""Small tables in the corpora's own formats, written for (path, raw label) pairs."""

import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

import pytest

Pairs = Sequence[tuple[str, str]]


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _workbook(file: Path, rows: Sequence[Sequence[str]]) -> None:
    strings = [text for row in rows for text in row]
    items = "".join(f"<si><t>{escape(text)}</t></si>" for text in strings)
    number = iter(range(len(strings)))
    body = "".join(
        f'<row r="{r}">'
        + "".join(f'<c r="{chr(65 + c)}{r}" t="s"><v>{next(number)}</v></c>' for c in range(len(row)))
        + "</row>"
        for r, row in enumerate(rows, start=1)
    )
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/sharedStrings.xml", f"<sst {space}>{items}</sst>")
        archive.writestr("xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{body}</sheetData></worksheet>")


def _baum(root: Path, pairs: Pairs) -> None:
    for part in ("1a", "1s"):
        own = [(_stem(path), raw) for path, raw in pairs if f"BAUM{part}" in path]
        rows = [("Clip Name", "Emotion", "Code"), *((clip, raw, "1") for clip, raw in own)]
        _workbook(root / f"Annotations_BAUM{part}.xlsx", rows)


def _eekk(root: Path, pairs: Pairs) -> None:
    for path, raw in pairs:
        tiers = [("emotion", raw), ("sentence", 'see on ""viha""')]
        text = 'File type = "ooTextFile"\nObject class = "TextGrid"\nxmin = 0\nxmax = 2\nsize = 2\nitem []:\n'
        for number, (name, mark) in enumerate(tiers, start=1):
            text += f'    item [{number}]:\n        class = "IntervalTier"\n        name = "{name}"\n'
            text += f'        intervals [1]:\n            xmin = 0\n            text = "{mark}"\n'
        file = root / PurePosixPath(path).with_suffix(".TextGrid")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-16" if len(_stem(path)) > 4 else "utf-8")


def _emns(root: Path, pairs: Pairs) -> None:
    lines = ["id|utterance|description|emotion|date_created|status|gender|age|level|audio_recording|user"]
    lines += [
        f'{n}|He said "no.|x|{raw}|2022|ok|female|30|5|wavs/{_stem(path)}.wav|3' for n, (path, raw) in enumerate(pairs)
    ]
    (root / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")


def _emozionalmente(root: Path, pairs: Pairs) -> None:
    folder = root / "metadata"
    (folder / "split").mkdir(parents=True)
    samples = ["file_name,sentence,sentence_language,actor,emotion_expressed"]
    samples += [f'{_stem(path)}.wav,"Ciao, come va?",it,actor{n % 5},{raw}' for n, (path, raw) in enumerate(pairs)]
    (folder / "samples.csv").write_text("\n".join(samples), encoding="utf-8")
    users = ["username,gender,age,mother_tongue"] + [f"actor{n},{'fm'[n % 2]},2{n},it" for n in range(5)]
    (folder / "users.csv").write_text("\n".join(users), encoding="utf-8")
    (folder / "split" / "train.csv").write_text("file_name\n" + "\n".join(_stem(p) + ".wav" for p, _ in pairs))


def _iemocap(root: Path, pairs: Pairs) -> None:
    dialogues: dict[Path, list[str]] = defaultdict(list)
    for path, raw in pairs:
        dialogue = PurePosixPath(path).parent.name
        folder = root / path.split("/", 1)[0] / "dialog" / "EmoEvaluation"
        dialogues[folder / f"{dialogue}.txt"].append(
            f"[6.2901 - 8.2357]\t{_stem(path)}\t{raw}\t[2.5000, 2.5000, 2.5000]"
        )
    for file, lines in dialogues.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        head = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        file.write_text(head + "\nC-E2:\tNeutral;\t()\n\n".join(lines) + "\nA-E3:\tval 3;\t()\n")
        (file.parent / f"._{file.name}").write_bytes(b"\x00\x05\x16\x07Mac OS X")


def _meld(root: Path, pairs: Pairs) -> None:
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    tables = {split: [header] for split in ("train", "dev", "test")}
    for path, raw in pairs:
        match = re.search(r"(train|dev|test).*dia(\d+)_utt(\d+)", path)
        assert match
        row = f'1,"Oh, it’s ""you""!",Ross,{raw},neutral,{match[2]},{match[3]},4,7,"00:20:57,256","00:21:00,049"'
        tables[match[1]].append(row)
    for split, lines in tables.items():
        # The train table as older copies have it, the others in UTF-8.
        (root / f"{split}_sent_emo.csv").write_text(
            "\n".join(lines), encoding="cp1252" if split == "train" else "utf-8"
        )


def _msp(root: Path, pairs: Pairs) -> None:
    (root / "Labels").mkdir(parents=True)
    lines = ["FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"]
    for n, (path, raw) in enumerate(pairs):
        lines.append(f"{_stem(path)}.wav,{raw},4.2,4.0,3.9,{'Unknown' if n == 0 else n},Male,Test1")
    (root / "Labels" / "labels_consensus.csv").write_text("\n".join(lines))


def _pavoque(root: Path, pairs: Pairs) -> None:
    files: dict[str, list[str]] = defaultdict(list)
    for path, raw in pairs:
        match = re.fullmatch(r"(pavoque-\w+)\.flac#([^@]+)@([\d.]+)-([\d.]+)", path)
        assert match
        files[match[1]].append(
            f"- prompt: {match[2]}\n  text: 'Das ist: ein Satz.'\n  style: {raw}\n"
            f"  start: {match[3]}\n  end: {match[4]}\n"
            "  segments:\n  - {lab: '?', end: 0.324898}\n"
        )
    for stem, items in files.items():
        (root / f"{stem}.yaml").write_text("".join(items), encoding="utf-8")


_WRITERS: dict[str, Callable[[Path, Pairs], None]] = {
    "baum": _baum,
    "eekk": _eekk,
    "emns": _emns,
    "emozionalmente": _emozionalmente,
    "iemocap": _iemocap,
    "meld": _meld,
    "msp-podcast": _msp,
    "pavoque": _pavoque,
}


@pytest.fixture(scope="session")
def write_tables() -> Callable[[str, Path, Pairs], bool]:
    """Writes the tables of a corpus for pairs of path and raw label; says whether the corpus has any."""

    def write(key: str, root: Path, pairs: Pairs) -> bool:
        if key in _WRITERS:
            _WRITERS[key](root, pairs)
        return key in _WRITERS

    return write


@pytest.fixture(scope="session")
def real_pairs(data_root: Path) -> Callable[[str], list[tuple[str, str]]]:
    """Real (path, raw label) pairs of a corpus; skips where there are none at hand."""

    def read(key: str) -> list[tuple[str, str]]:
        file = data_root / "reference" / "paths" / f"{key}.txt"
        if not file.is_file():
            pytest.skip(f"no list of real paths for {key}")
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line]
        return [(path, raw) for path, raw in lines]

    return read
