"""Whether anybody speaks in a window: Silero's voice activity detector where its model is given, else the level alone.

- The model (https://github.com/snakers4/silero-vad, MIT) hears 16 kHz in steps of 32 ms, each with the 4 ms before it,
  and says how likely speech is in it. Its state starts afresh with every window, and windows are heard one at a time:
  so a window's answer is the same in a file, in a stream and in a resumed stream.
- `onnxruntime` is imported only where a model is given. One session serves all calls; it keeps no state between runs.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from servox import audio
from servox.errors import BadSetting

from .answers import Abstention
from .windows import MIN_WINDOW_MS, Cut, Samples

SHA256 = "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
SOURCE = "https://github.com/snakers4/silero-vad, src/silero_vad/data/silero_vad.onnx"
RATE_HZ = 16_000
STEP, CONTEXT = 512, 64  # samples of one step, and of the one before it that the model wants again
STATE = (2, 1, 128)
SPEECH_PROBABILITY = 0.5  # the detector's own default
LOUD, MOST_GAIN = 0.5, 10**1.5  # the peak that a window is lifted to, by 30 dB at most
MIN_SPEECH = 0.1  # share of a window; measured in docs/recognition.md
SILENCE = 10 ** (audio.Limits().silence_dbfs / 20)


class Voice:
    """Silero's detector.

    Args:
        model: its ONNX file.

    Raises:
        BadSetting: the file is missing or is not the published one, or onnxruntime is not installed.
    """

    def __init__(self, model: Path) -> None:
        data = _read(model)
        try:
            import onnxruntime
        except ImportError:
            raise BadSetting(f"vad = {model}: it needs onnxruntime; install it, or leave vad unset") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # calls run side by side instead
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def speech(self, samples: Samples, rate_hz: int) -> float:
        """Share of `samples` [n] that is speech, 0 to 1."""
        heard = samples if rate_hz == RATE_HZ else soxr.resample(samples, rate_hz, RATE_HZ, quality="HQ")
        likely = self.probabilities(lifted(np.asarray(heard, dtype=np.float32)))
        return float(np.mean(likely >= SPEECH_PROBABILITY)) if len(likely) else 0.0

    def probabilities(self, samples: Samples) -> Samples:
        """Probability of speech [steps] for each 32 ms of `samples` [n] at 16 kHz; the last step is padded."""
        steps = -(-len(samples) // STEP)
        padded = np.zeros(CONTEXT + steps * STEP, dtype=np.float32)
        padded[CONTEXT : CONTEXT + len(samples)] = samples
        state, rate = np.zeros(STATE, dtype=np.float32), np.array(RATE_HZ, dtype=np.int64)
        found = np.empty(steps, dtype=np.float32)
        for step in range(steps):
            piece = padded[None, step * STEP : CONTEXT + (step + 1) * STEP]
            output, state = self._session.run(None, {"input": piece, "state": state, "sr": rate})
            found[step] = output[0, 0]
        return found


def lifted(samples: Samples) -> Samples:
    """Quiet samples made louder: the detector misses speech that was recorded at a low level."""
    peak = float(np.abs(samples).max(initial=0.0))
    return samples * np.float32(min(LOUD / peak, MOST_GAIN)) if 0 < peak < LOUD else samples


def _read(model: Path) -> bytes:
    try:
        data = model.read_bytes()
    except OSError as error:
        raise BadSetting(f"vad = {model}: {error.strerror}; give Silero's silero_vad.onnx ({SOURCE})") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise BadSetting(f"vad = {model}: its sha256 is {digest}, not {SHA256}; give the published file ({SOURCE})")
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A window, why it says nothing of emotion (None: it may), and the share of it that is speech, if anyone looked."""

    cut: Cut
    abstention: Abstention | None
    speech: float | None


def heard(cut: Cut, rate_hz: int, voice: Voice | None, *, every_window: bool) -> Heard:
    """Judges one window by itself.

    Args:
        cut: the window.
        rate_hz: of its samples.
        voice: the detector; None where only the level counts.
        every_window: answer it whatever is in it.
    """
    each = level(cut, speaks=voice is not None)
    if each.abstention is None and voice:
        speech = voice.speech(cut.samples, rate_hz)
        each = Heard(cut=cut, abstention="silence" if speech < MIN_SPEECH else None, speech=speech)
    return replace(each, abstention=None) if every_window else each


def level(cut: Cut, *, speaks: bool) -> Heard:
    """Judges one window by its length and its level; `speaks` says whether the share of speech is to be told."""
    silent = float(np.abs(cut.samples).max(initial=0.0)) < SILENCE
    short = cut.end_ms - cut.start_ms < MIN_WINDOW_MS
    abstention: Abstention | None = "too_short" if short else "silence" if silent else None
    return Heard(cut=cut, abstention=abstention, speech=0.0 if silent and speaks else None)
