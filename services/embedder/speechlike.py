"""Signals with the gross shape of speech, for parity where no real speech is at hand.

A pulse train at a gliding pitch, three formants that change with each syllable, syllable-long envelopes, pauses and a
noise floor. It exercises an encoder's range far better than noise does; figures measured on it say so.
"""

import numpy as np
from numpy.typing import NDArray

FORMANTS_HZ = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [640, 1190, 2390]])
BANDWIDTHS_HZ = np.array([80.0, 100.0, 140.0])
SYLLABLE_S = 0.18


def speechlike(seed: int, *, duration_s: float, rate_hz: int) -> NDArray[np.float32]:
    """Samples [duration_s · rate_hz] with a peak under 1; one `seed` always gives the same."""
    rng = np.random.default_rng(seed)
    total = int(duration_s * rate_hz)
    pitch_hz = rng.uniform(90, 260)
    signal = rng.normal(0, 10 ** rng.uniform(-4.0, -2.5), total)
    length = int(SYLLABLE_S * rate_hz)
    for start in range(0, total - length, length):
        if rng.random() < 0.85:
            signal[start : start + length] += _syllable(rng, length, pitch_hz, rate_hz)
    return np.asarray(signal / np.abs(signal).max() * rng.uniform(0.05, 0.9), np.float32)


def _syllable(rng: np.random.Generator, length: int, pitch_hz: float, rate_hz: int) -> NDArray[np.float64]:
    """Harmonics of a gliding pitch under a spectral envelope of three formants, swelling and fading."""
    time = np.arange(length) / rate_hz
    glide = pitch_hz * (1 + rng.uniform(-0.2, 0.2) + rng.uniform(-0.3, 0.3) * time / time[-1])
    phase = 2 * np.pi * np.cumsum(glide) / rate_hz
    formants = FORMANTS_HZ[rng.integers(len(FORMANTS_HZ))] * rng.uniform(0.85, 1.2)
    voiced = np.zeros(length)
    for harmonic in range(1, int(4000 / pitch_hz)):
        distance = (harmonic * pitch_hz - formants) / BANDWIDTHS_HZ
        voiced += np.sin(harmonic * phase) * (1 / (1 + distance**2)).sum() / np.sqrt(harmonic)
    loudness = rng.uniform(0.2, 1.0)
    return np.asarray(loudness * np.sin(np.pi * time / time[-1]) ** 2 * voiced)
