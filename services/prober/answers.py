"""What a recognition says: windows, why some of them have no answer, and what they say together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from servox.v1 import common_pb2

Array = npt.NDArray[np.float64]

Abstention = Literal["silence", "too_short", "out_of_distribution"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One stretch of audio.

    Attributes:
        index: 0, 1, 2, … in a file and in a stream alike.
        start_ms: from the start of the audio.
        end_ms: likewise.
        probabilities: [K] in the order of the head's classes; None where nothing was asked of the head.
        abstention: why there is no answer that should be acted on; None where there is one.
        speech: share of the window that is speech; None where nobody looked.
        novelty: distance to the training features over the head's limit; None where the head has none.
        uncalibrated: [K] without the tenant's calibration; None where nobody asked for it.
    """

    index: int
    start_ms: int
    end_ms: int
    probabilities: Array | None
    abstention: Abstention | None = None
    speech: float | None = None
    novelty: float | None = None
    uncalibrated: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """Windows of one clip and what they say together; what made them; microseconds by stage."""

    overall: Window
    windows: Sequence[Window]
    bundle: common_pb2.Bundle
    prior: Mapping[str, float]
    timings: common_pb2.Timings


class Tally:
    """Windows summed up as they come, in constant memory.

    The whole is the mean of the answered windows, weighted by their length. Where none was answered it abstains for the
    commonest reason; the probabilities of windows out of distribution are then its own.
    """

    def __init__(self) -> None:
        self._sums: dict[Abstention | None, _Sum] = {}
        self._counts: Counter[Abstention | None] = Counter()
        self._speech = _Mean()
        self._start_ms = self._end_ms = self._count = 0

    @property
    def count(self) -> int:
        """Windows so far."""
        return self._count

    def add(self, window: Window) -> None:
        """One more window."""
        weight = max(1, window.end_ms - window.start_ms)
        self._start_ms = min(self._start_ms, window.start_ms) if self._count else window.start_ms
        self._end_ms = max(self._end_ms, window.end_ms)
        self._count += 1
        self._counts[window.abstention] += 1
        self._speech.add(window.speech, weight)
        if window.probabilities is not None:
            sums = self._sums.setdefault(window.abstention, _Sum(len(window.probabilities)))
            sums.probabilities += window.probabilities * weight
            sums.novelty.add(window.novelty, weight)
            if window.uncalibrated is not None:
                sums.uncalibrated += window.uncalibrated * weight

    def overall(self) -> Window:
        """The whole, as one window; at least one must have been added."""
        reason = None if self._counts[None] else self._counts.most_common(1)[0][0]
        found = self._sums.get(reason)
        return Window(
            index=0,
            start_ms=self._start_ms,
            end_ms=self._end_ms,
            probabilities=_shares(found.probabilities) if found else None,
            uncalibrated=_shares(found.uncalibrated) if found else None,
            abstention=reason,
            speech=self._speech.value(),
            novelty=found.novelty.value() if found else None,
        )


def overall(windows: Iterable[Window]) -> Window:
    """What windows say together; see `Tally`."""
    tally = Tally()
    for window in windows:
        tally.add(window)
    return tally.overall()


class _Mean:
    """Weighted mean of what is not None."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float | None, weight: float) -> None:
        if value is not None:
            self._sum += value * weight
            self._weight += weight

    def value(self) -> float | None:
        return self._sum / self._weight if self._weight else None


def _shares(summed: Array) -> Array | None:
    """Of a weighted sum of probabilities; None where nothing was summed."""
    return summed / summed.sum() if summed.any() else None


class _Sum:
    """Windows of one kind: weighted sums of their probabilities [K], mean of their novelty."""

    def __init__(self, classes: int) -> None:
        self.probabilities: Array = np.zeros(classes)
        self.uncalibrated: Array = np.zeros(classes)
        self.novelty = _Mean()
