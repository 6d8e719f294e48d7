"""Voice activity: the real detector on real speech, and the level where there is none."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from services.prober.voice import MIN_SPEECH, RATE_HZ, SILENCE, STEP, Voice, heard, lifted
from services.prober.windows import Cut, Samples
from servox.errors import BadSetting


@pytest.fixture(scope="module")
def voice(data_root: Path) -> Voice:
    model = data_root / "models" / "silero-vad" / "silero_vad.onnx"
    if not model.is_file():
        pytest.skip(f"no detector at {model}")
    return Voice(model)


def noise(seconds: float, *, level: float = 0.1, rate_hz: int = RATE_HZ) -> Samples:
    return np.asarray(np.random.default_rng(1).normal(0, level, int(seconds * rate_hz)), dtype=np.float32)


def cut(samples: Samples, rate_hz: int = RATE_HZ) -> Cut:
    return Cut(index=0, start_ms=0, end_ms=round(len(samples) * 1000 / rate_hz), samples=samples)


def speech_of(data_root: Path, corpus: str) -> tuple[Samples, int]:
    samples, rate_hz = soundfile.read(min((data_root / "corpora" / corpus).rglob("*.flac")), dtype="float32")
    return samples if samples.ndim == 1 else samples.mean(axis=1), rate_hz


@pytest.mark.parametrize("corpus", ["EmoDB", "RAVDESS", "nEMO", "URDU"])
def test_speech_is_heard(voice: Voice, data_root: Path, corpus: str) -> None:
    samples, rate_hz = speech_of(data_root, corpus)
    assert voice.speech(samples, rate_hz) > 0.3
    assert heard(cut(samples, rate_hz), rate_hz, voice, every_window=False).abstention is None


@pytest.mark.parametrize("level", [0.001, 0.05, 0.3])
def test_noise_and_tones_are_no_speech(voice: Voice, level: float) -> None:
    hum = np.asarray(level * np.sin(2 * np.pi * 50 * np.arange(2 * RATE_HZ) / RATE_HZ), dtype=np.float32)
    for samples in (noise(2, level=level / 3), hum):
        found = heard(cut(samples), RATE_HZ, voice, every_window=False)
        assert found.abstention == "silence"
        assert found.speech is not None
        assert found.speech < MIN_SPEECH
        every = heard(cut(samples), RATE_HZ, voice, every_window=True)
        assert (every.abstention, every.speech) == (None, found.speech)


def test_the_level_of_speech_matters_little(voice: Voice, data_root: Path) -> None:
    samples, rate_hz = speech_of(data_root, "EmoDB")
    loud = voice.speech(samples, rate_hz)
    assert voice.speech(samples * np.float32(0.02), rate_hz) == pytest.approx(loud, abs=0.05)


def test_the_state_does_not_outlive_a_window(voice: Voice, data_root: Path) -> None:
    samples, rate_hz = speech_of(data_root, "EmoDB")
    first = voice.speech(samples, rate_hz)
    voice.speech(noise(3), RATE_HZ)
    assert voice.speech(samples, rate_hz) == first


def test_every_32_ms_has_its_probability(voice: Voice) -> None:
    for samples, steps in ((0, 0), (1, 1), (STEP, 1), (STEP + 1, 2), (16_000, 32)):
        assert voice.probabilities(np.zeros(samples, dtype=np.float32)).shape == (steps,)


def test_the_level_alone_tells_silence_and_a_moment() -> None:
    for samples, reason in (
        (np.zeros(RATE_HZ, dtype=np.float32), "silence"),
        (np.full(RATE_HZ, SILENCE / 2, dtype=np.float32), "silence"),
        (np.full(RATE_HZ, SILENCE * 2, dtype=np.float32), None),
        (noise(0.099), "too_short"),
        (np.zeros(0, dtype=np.float32), "too_short"),
    ):
        found = heard(cut(samples), RATE_HZ, None, every_window=False)
        assert (found.abstention, found.speech) == (reason, None)
        assert heard(cut(samples), RATE_HZ, None, every_window=True).abstention is None


def test_only_quiet_samples_are_lifted() -> None:
    assert np.abs(lifted(np.array([0.1, -0.2], dtype=np.float32))).max() == pytest.approx(0.5)
    assert np.abs(lifted(np.array([1e-4], dtype=np.float32))).max() == pytest.approx(1e-4 * 10**1.5)
    for samples in (np.array([0.7], dtype=np.float32), np.zeros(3, dtype=np.float32), np.zeros(0, dtype=np.float32)):
        np.testing.assert_array_equal(lifted(samples), samples)


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"none\.onnx: No such file.*silero"):
        Voice(tmp_path / "none.onnx")
    (tmp_path / "other.onnx").write_bytes(b"other")
    with pytest.raises(BadSetting, match="its sha256 is d9298a10d1b0735837dc4bd8"):
        Voice(tmp_path / "other.onnx")
