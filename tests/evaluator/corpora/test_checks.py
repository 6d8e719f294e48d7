from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from services.evaluator.corpora import load_cards
from services.evaluator.corpora.checks import audio_fault, check

RATE_HZ = 16000


def _tone(file: Path, *, seconds: float = 0.5, scale: float = 0.1, subtype: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    samples = scale * np.sin(np.arange(round(seconds * RATE_HZ)) / 10, dtype=np.float64)
    sf.write(file, samples, RATE_HZ, subtype=subtype)
    return file


def _emodb(root: Path) -> Path:
    for letter in "WLEAFTN":
        _tone(root / "wav" / f"03a01{letter}a.wav")
    return root


def test_sound_files_have_no_fault(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac", "a.ogg"):
        assert audio_fault(_tone(tmp_path / name)) == ""


def test_faults_of_single_files_are_named(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.wav"
    garbage.write_bytes(b"this is no audio at all" * 10)
    text_in_container = tmp_path / "garbage.mp4"
    text_in_container.write_bytes(b"this is no video either" * 10)
    whole = _tone(tmp_path / "whole.flac", seconds=3).read_bytes()
    cut = tmp_path / "cut.flac"
    cut.write_bytes(whole[: len(whole) // 2])
    not_finite = tmp_path / "nan.wav"
    sf.write(not_finite, np.array([0.1, np.nan] * 4000), RATE_HZ, subtype="FLOAT")
    assert "cannot be decoded" in audio_fault(garbage)
    assert "cannot be decoded" in audio_fault(text_in_container)
    assert "truncated" in audio_fault(cut) or "cannot be decoded" in audio_fault(cut)
    assert "not finite" in audio_fault(not_finite)
    assert "silent" in audio_fault(_tone(tmp_path / "silent.wav", scale=0))
    assert "lasts 0.010 s" in audio_fault(_tone(tmp_path / "short.wav", seconds=0.01))
    assert "no samples" in audio_fault(_tone(tmp_path / "none.wav", seconds=0))


def test_a_sound_corpus_passes_with_counts_beside_the_expected_ones(tmp_path: Path) -> None:
    result = check(_emodb(tmp_path), load_cards()["emodb"])
    assert not result.failed
    assert result.decoded == 7
    assert result.classes["boredom"] == (1, 81)
    assert result.speakers == {"03": 7}
    assert [problem.severity for problem in result.problems] == ["note"]


def test_one_bad_file_warns_and_many_lose_the_corpus(tmp_path: Path) -> None:
    _emodb(tmp_path)
    for n in range(10):
        _tone(tmp_path / "wav" / f"08b0{n}Wa.wav")
    bad = tmp_path / "wav" / "08b01Wa.wav"
    bad.write_bytes(b"x" * 2000)
    one = check(tmp_path, load_cards()["emodb"])
    assert not one.failed
    assert any("'wav/08b01Wa.wav' cannot be decoded" in str(problem) for problem in one.problems)
    for n in range(4):
        (tmp_path / "wav" / f"08b0{n}Wa.wav").write_bytes(b"x" * 2000)
    many = check(tmp_path, load_cards()["emodb"])
    assert many.failed
    assert any("4 of 17 files cannot be used" in str(problem) for problem in many.problems)


def test_decoding_can_be_left_out(tmp_path: Path) -> None:
    _emodb(tmp_path)
    (tmp_path / "wav" / "03a01Wa.wav").write_bytes(b"x" * 2000)
    assert check(tmp_path, load_cards()["emodb"], decode=False).decoded == 0


@pytest.mark.parametrize(("folder", "key"), [("URDU", "urdu"), ("TurEV-DB", "turev-db")])
def test_real_copies_decode_whole(data_root: Path, folder: str, key: str) -> None:
    result = check(data_root / "corpora" / folder, load_cards()[key])
    assert {problem.severity for problem in result.problems} <= {"note"}
