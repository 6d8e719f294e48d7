"""Speech of one's own: folders and tables, and everything that can be wrong with them."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from services.own_speech import Checked, Finding, check, read
from servox import audio
from servox.errors import BadCorpus

RATE = 16_000
LIMITS = audio.Limits(min_duration_ms=25, max_duration_ms=2000)


def clip(path: Path, seed: int, *, seconds: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(scale=0.1, size=round(seconds * RATE))
    soundfile.write(path, samples.astype(np.float32), RATE, subtype="PCM_16")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two emotions, two speakers, two clips each."""
    root = tmp_path / "speech"
    for number in range(8):
        label, speaker = ("anger", "sadness")[number % 2], ("anna", "ben")[number // 2 % 2]
        clip(root / label / speaker / f"{number}.wav", number)
    return root


def looked_at(source: Path, *, any_label: bool = False, skip_bad: bool = False) -> Checked:
    return check(read(source), rate_hz=RATE, limits=LIMITS, any_label=any_label, skip_bad=skip_bad)


def said(found: Checked, severity: str = "error") -> str:
    return "; ".join(str(each) for each in found.findings if each.severity == severity)


def test_a_folder_names_emotions_and_speakers(folder: Path) -> None:
    found = looked_at(folder)
    assert found.usable
    assert not found.findings
    assert [(clip.label, clip.speaker, clip.path.name) for clip in found.clips[:3]] == [
        ("anger", "anna", "0.wav"),
        ("anger", "anna", "4.wav"),
        ("anger", "ben", "2.wav"),
    ]
    assert len({clip.key for clip in found.clips}) == 8


def table_of(folder: Path, file: Path, **columns: str) -> Path:
    names = {"path": "path", "label": "label", "speaker": "speaker", **columns}
    rows = [
        {
            names["path"]: str(row.path.relative_to(file.parent)),
            names["label"]: row.label.title(),
            names["speaker"]: row.speaker,
        }
        for row in read(folder)
    ]
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    with file.open("w", newline="", encoding="utf-8-sig") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_says_the_same_as_the_folder(folder: Path, suffix: str) -> None:
    found = looked_at(table_of(folder, folder.parent / f"own{suffix}"))
    assert found == looked_at(folder)


def test_speakers_may_be_unknown(tmp_path: Path) -> None:
    for number in range(4):
        clip(tmp_path / ("anger", "sadness")[number % 2] / f"{number}.wav", number)
    found = looked_at(tmp_path)
    assert found.usable
    assert "4 × no speaker is named" in said(found, "warning")


def gone(folder: Path) -> None:
    """A row of the table whose file is not there."""
    (folder / "anger/anna/0.wav").unlink()


def test_every_fault_is_said_at_once(folder: Path) -> None:
    table = table_of(folder, folder.parent / "own.csv")
    gone(folder)
    (folder / "anger/anna/4.wav").write_bytes(b"")
    (folder / "anger/ben/2.wav").write_bytes(b"RIFF no audio at all")
    clip(folder / "sadness/anna/1.wav", 3, seconds=2.5)
    clip(folder / "sadness/anna/5.wav", 3, seconds=0.01)
    soundfile.write(folder / "sadness/ben/3.wav", np.zeros(RATE), RATE)
    with table.open("a") as lines:
        lines.write("speech/anger/ben/6.wav,angerr,ben\nspeech/anger/ben/6.wav,,ben\n")
    found = looked_at(table)
    assert not found.usable
    faults = said(found)
    for words in ("cannot be opened", "No such file", "unknown label 'angerr'", "'anger'?", "no label", "2.wav"):
        assert words in faults
    assert "at least two classes" not in faults, "one clip of each is left"
    assert faults.count("has one clip") == 2
    assert len(found.findings) >= 9
    skipped = looked_at(table, skip_bad=True)
    assert len(said(skipped, "warning")) > 100
    assert said(skipped).count("has one clip") == 2, "what is wrong with the set stays an error"


def same_twice(folder: Path) -> None:
    shutil.copy(folder / "anger/anna/0.wav", folder / "anger/anna/again.wav")


def same_under_two_labels(folder: Path) -> None:
    shutil.copy(folder / "anger/anna/0.wav", folder / "sadness/anna/again.wav")


def one_speaker(folder: Path) -> None:
    for label in ("anger", "sadness"):
        shutil.rmtree(folder / label / "ben")


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "anger")


def class_of_one_speaker(folder: Path) -> None:
    for number in range(2):
        clip(folder / "fear" / "anna" / f"{number}.wav", 50 + number)


def class_of_one_clip(folder: Path) -> None:
    clip(folder / "fear" / "anna" / "x.wav", 50)


def strange_label(folder: Path) -> None:
    for number in range(2):
        clip(folder / "Grumpy" / ("anna", "ben")[number] / "x.wav", 50 + number)


@pytest.mark.parametrize(
    ("damage", "severity", "words"),
    [
        (same_twice, "warning", "1 × a copy of another clip, left out"),
        (same_under_two_labels, "error", "2 × the same audio under different labels"),
        (one_speaker, "error", "one speaker ('anna')"),
        (one_class, "error", "one class ('sadness')"),
        (class_of_one_speaker, "warning", "class 'fear' has one speaker"),
        (class_of_one_clip, "error", "class 'fear' has one clip"),
        (strange_label, "error", "unknown label 'Grumpy'"),
    ],
)
def test_a_set_that_is_wrong_is_told_so(
    folder: Path, damage: Callable[[Path], None], severity: str, words: str
) -> None:
    damage(folder)
    found = looked_at(folder)
    assert words in said(found, severity)
    assert found.usable == (severity == "warning")


def test_any_label_is_taken_where_asked(folder: Path) -> None:
    strange_label(folder)
    found = looked_at(folder, any_label=True)
    assert found.usable
    assert "Grumpy" in {clip.label for clip in found.clips}


def test_a_finding_shows_some_paths_and_counts_the_rest() -> None:
    finding = Finding(severity="error", what="gone", paths=tuple(Path(f"{n}.wav") for n in range(9)))
    assert str(finding) == "9 × gone: 0.wav, 1.wav, 2.wav and 6 more"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent", None, "give a folder"),
        ("x.txt", b"path,label", "give a folder"),
        ("x.csv", b"file,label\na,b\n", "no column path"),
        ("x.csv", b"path\na\n", "no column label"),
        ("x.csv", b"path,label\n", "no clips"),
        ("x.csv", b"path,label\n\xff\xfe,b\n", "UTF-8"),
        ("x.parquet", b"not parquet", "cannot be read as a table"),
    ],
)
def test_a_source_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadCorpus, match=words):
        read(tmp_path / name)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCorpus, match="EMOTION/SPEAKER"):
        read(tmp_path)
