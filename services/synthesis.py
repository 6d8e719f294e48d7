"""Generated speech in the layouts of real corpora, for a smoke run where there is no real speech to be had.

A source-filter voice (Fant 1960): a harmonic source with a pitch contour, three formants, syllables. An "emotion" is a
pitch, a range, a rate, a loudness and a spectral tilt. Scores on it say that the machinery works, and nothing else:
whatever is computed from such a folder is labelled synthetic.
"""

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import signal

Array = npt.NDArray[np.float64]

RATE_HZ = 16_000
MARK = "SYNTHETIC.txt"
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))  # formants, Hz


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How something is said, relative to the speaker's neutral voice."""

    pitch: float = 1.0
    range: float = 0.1
    rate: float = 1.0
    loudness: float = 0.3
    tilt: float = 1.5  # harmonics fall as n ** -tilt


MANNERS = {
    "neutral": Manner(),
    "anger": Manner(pitch=1.35, range=0.25, rate=1.2, loudness=0.7, tilt=0.9),
    "happiness": Manner(pitch=1.45, range=0.4, rate=1.15, loudness=0.5, tilt=1.2),
    "sadness": Manner(pitch=0.9, range=0.05, rate=0.75, loudness=0.2, tilt=2.0),
    "fear": Manner(pitch=1.6, range=0.15, rate=1.35, loudness=0.35, tilt=1.4),
    "boredom": Manner(pitch=0.85, range=0.03, rate=0.8, loudness=0.25, tilt=1.7),
    "surprise": Manner(pitch=1.5, range=0.6, rate=0.95, loudness=0.45, tilt=1.3),
}


def speak(manner: Manner, *, pitch_hz: float, tract: float, rng: np.random.Generator) -> Array:
    """One utterance of three to six syllables, `[samples]` at 16 kHz, within ±1.

    Args:
        manner: how it is said.
        pitch_hz: the speaker's neutral pitch.
        tract: the speaker's formants relative to the table's.
        rng: draws syllables and their small irregularities.
    """
    syllables = [_syllable(manner, pitch_hz, tract, rng) for _ in range(rng.integers(3, 7))]
    spoken = np.concatenate(syllables)
    noise = rng.normal(scale=0.002, size=spoken.size)
    scaled: Array = manner.loudness * spoken / np.abs(spoken).max() + noise
    return np.clip(scaled, -1, 1)


def _syllable(manner: Manner, pitch_hz: float, tract: float, rng: np.random.Generator) -> Array:
    seconds = rng.uniform(0.16, 0.26) / manner.rate
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    bend = 1 + manner.range * np.sin(np.pi * time / seconds + rng.uniform(-0.5, 0.5))
    phase = 2 * np.pi * np.cumsum(pitch_hz * manner.pitch * rng.normal(1, 0.04) * bend) / RATE_HZ
    harmonics = range(1, int(4000 / (pitch_hz * manner.pitch)))
    source = sum((np.sin(n * phase) * n**-manner.tilt for n in harmonics), np.zeros_like(time))
    voiced = source + rng.normal(scale=0.03, size=time.size)
    for formant in VOWELS[rng.integers(len(VOWELS))]:
        b, a = signal.iirpeak(min(formant * tract, 7500), Q=6, fs=RATE_HZ)
        voiced = voiced + 4 * signal.lfilter(b, a, voiced)
    shaped: Array = voiced * np.hanning(time.size)
    return np.concatenate([shaped, np.zeros(int(0.03 * RATE_HZ / manner.rate))])


def write(root: Path, *, seed: int = 0) -> None:
    """Writes `corpora/` with three small corpora and the file that marks the folder as synthetic."""
    rng = np.random.default_rng(seed)
    (root / "corpora").mkdir(parents=True, exist_ok=True)
    for name, clips in (("EmoDB", _emodb()), ("RAVDESS", _ravdess()), ("nEMO", _nemo())):
        loudness = rng.uniform(0.6, 1.0)  # each corpus its own channel
        for path, emotion, speaker in clips:
            voice = np.random.default_rng([seed, sum(speaker.encode()), len(name)])
            samples = speak(MANNERS[emotion], pitch_hz=voice.uniform(90, 230), tract=voice.uniform(0.9, 1.2), rng=rng)
            _save(root / "corpora" / name / path, loudness * samples)
    rows = "".join(_nemo_row(path, emotion, speaker) for path, emotion, speaker in _nemo())
    header = "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n"
    (root / "corpora" / "nEMO" / "data.tsv").write_text(header + rows)
    (root / MARK).write_text("Generated speech: no score computed from this folder says anything about real speech.\n")


def _emodb() -> Iterator[tuple[str, str, str]]:
    letters = {"N": "neutral", "W": "anger", "F": "happiness", "T": "sadness", "A": "fear", "L": "boredom"}
    for speaker in ("03", "08", "09", "10", "11", "12"):
        for letter, emotion in letters.items():
            for text in ("a01", "a02", "b01"):
                yield f"wav/{speaker}{text}{letter}a.wav", emotion, speaker


def _ravdess() -> Iterator[tuple[str, str, str]]:
    codes = {"01": "neutral", "03": "happiness", "04": "sadness", "05": "anger", "06": "fear", "08": "surprise"}
    for actor in range(1, 7):
        for code, emotion in codes.items():
            for take in ("01-01", "01-02", "02-01"):
                yield f"Actor_{actor:02d}/03-01-{code}-01-{take}-{actor:02d}.wav", emotion, f"{actor:02d}"


def _nemo() -> Iterator[tuple[str, str, str]]:
    words = ("neutral", "anger", "happiness", "sadness", "fear")
    for speaker in ("EB0", "IC0", "KS0", "MP0", "SM0", "TP0"):
        for emotion in words:
            for sentence in (1, 2, 3):
                yield f"samples/{speaker}_{emotion}_{sentence}.wav", emotion, speaker


def _nemo_row(path: str, emotion: str, speaker: str) -> str:
    gender, age = ("female", 27) if speaker in ("EB0", "IC0") else ("male", 24)
    return f"{path.removeprefix('samples/')}\t{emotion}\t-\t-\t{speaker}\t{gender}\t{age}\n"


def _save(path: Path, samples: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
