import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from typer.testing import CliRunner

from services.evaluator.corpora import load_cards
from services.evaluator.corpora.commands import corpora_app

RUN = CliRunner()


def _corpus(root: Path) -> Path:
    (root / "wav").mkdir(parents=True)
    for letter in "WLEAFTN":
        sf.write(root / "wav" / f"03a01{letter}a.flac", np.sin(np.arange(8000) / 9), 16000)
    return root


def test_list_prints_every_corpus_and_one_json_line_last(tmp_path: Path) -> None:
    (tmp_path / "corpora" / "EmoDB").mkdir(parents=True)
    result = RUN.invoke(corpora_app, ["list", "--data", str(tmp_path), "--json"])
    assert result.exit_code == 0
    facts = {entry["key"]: entry for entry in json.loads(result.stdout.splitlines()[-1])}
    assert set(facts) == set(load_cards())
    assert facts["emodb"]["found"] == str(tmp_path / "corpora" / "EmoDB")
    assert facts["mesd"]["found"] is None
    assert facts["emodb"]["classes"][-1] == "boredom"
    assert all(key in result.stdout for key in load_cards())


@pytest.mark.parametrize(
    "key", [key for key, card in load_cards().items() if not card.table_holds_label and key != "pavoque"]
)
def test_parse_reads_real_paths_from_stdin(key: str, real_pairs: Callable[[str], list[tuple[str, str]]]) -> None:
    pairs = real_pairs(key)
    result = RUN.invoke(corpora_app, ["parse", key], input="\n".join(path for path, _ in pairs).encode() + b"\n")
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert [(row[0], row[1]) for row in rows] == pairs
    assert {len(row) for row in rows} == {4}


def test_parse_prints_label_and_speaker_under_a_protocol() -> None:
    for protocol, label in (("sound", "boredom"), ("ser-evals", "sadness")):
        result = RUN.invoke(corpora_app, ["parse", "emodb", "--protocol", protocol], input="wav/08b09Lc.wav\n")
        assert result.stdout == f"wav/08b09Lc.wav\tL\t{label}\t08\n"


def test_parse_gives_an_unreadable_path_an_error_row_and_goes_on() -> None:
    result = RUN.invoke(corpora_app, ["parse", "emodb"], input=b"x.wav\n\xff.wav\n\nwav/03a01Wa.wav\n")
    first, second, third = [line.split("\t") for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert first[:3] == ["x.wav", "", "error"]
    assert "cannot read the name 'x.wav'" in first[3]
    assert second[:3] == ["\\xff.wav", "", "error"]
    assert third == ["wav/03a01Wa.wav", "W", "anger", "03"]


def test_parse_takes_tables_by_file_and_by_root(
    tmp_path: Path, write_tables: Callable[[str, Path, Sequence[tuple[str, str]]], bool]
) -> None:
    path = "dev_splits_complete/dia72_utt0.mp4"
    write_tables("meld", tmp_path, [(path, "anger")])
    for option in (["--root", str(tmp_path)], ["--table", str(tmp_path / "dev_sent_emo.csv")]):
        result = RUN.invoke(corpora_app, ["parse", "meld", *option], input=f"{path}\n")
        assert result.stdout == f"{path}\tanger\tanger\tRoss\n"
    without = RUN.invoke(corpora_app, ["parse", "meld"], input=f"{path}\n")
    assert without.exit_code == 1
    assert "not in its name but in" in without.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["parse", "emodbb"], "Did you mean 'emodb'"),
        (["parse", "emodb", "--protocol", "sonud"], "Did you mean 'sound'"),
        (["parse", "meld", "--table", "none.csv"], "no table none.csv"),
        (["parse", "meld", "--root", "none"], "no folder none"),
        (["check", "none"], "no folder none"),
        (["check", ".", "--key", "nmeo"], "Did you mean 'nemo'"),
        (["list", "--data", "none"], "no folder none"),
        (["download", "iemocap", "--data", "."], "release form"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(arguments: list[str], says: str) -> None:
    result = RUN.invoke(corpora_app, arguments, input="")
    assert result.exit_code == 1
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_check_tells_what_was_found_and_prints_clips_and_json(tmp_path: Path) -> None:
    _corpus(tmp_path / "corpora" / "EmoDB")
    result = RUN.invoke(corpora_app, ["check", str(tmp_path), "--clips", "--json"])
    assert result.exit_code == 0
    assert "7 clips of 535" in result.stdout
    assert "wav/03a01La.flac\tL\tboredom\t03" in result.stdout
    (summary,) = json.loads(result.stdout.splitlines()[-1])
    assert (summary["key"], summary["clips"], summary["decoded"], summary["ok"]) == ("emodb", 7, 7, True)


def test_check_takes_one_corpus_by_name_or_by_key(tmp_path: Path) -> None:
    _corpus(tmp_path / "EmoDB")
    _corpus(tmp_path / "other" / "clips")
    assert RUN.invoke(corpora_app, ["check", str(tmp_path / "EmoDB")]).exit_code == 0
    assert RUN.invoke(corpora_app, ["check", str(tmp_path / "other" / "clips"), "--key", "emodb"]).exit_code == 0
    nothing = RUN.invoke(corpora_app, ["check", str(tmp_path / "other")])
    assert nothing.exit_code == 1
    assert "no corpus in" in nothing.stderr


def test_check_fails_on_a_half_present_corpus_and_names_bad_files(tmp_path: Path) -> None:
    root = _corpus(tmp_path / "EmoDB")
    (root / "wav" / "03a01Wa.flac").unlink()
    (root / "wav" / "03a01Na.flac").write_bytes(b"")
    (root / "wav" / "[odd] name.flac").write_bytes(b"fLaC")
    (root / "wav").joinpath(b"\xff.wav".decode("utf-8", "surrogateescape")).write_bytes(b"RIFF")
    result = RUN.invoke(corpora_app, ["check", str(root)])
    text = " ".join(result.stdout.split())
    assert result.exit_code == 1
    assert "no clip of 'W', 'N'" in text
    assert "'wav/03a01Na.flac' is empty (0 bytes)" in text
    assert "cannot read the name" in text
