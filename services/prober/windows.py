"""Where windows lie in audio, for a whole file and for a stream alike.

- Window i covers the samples from i × hop on, for as long as it fits. If the end of the audio stays uncovered by at
  least 100 ms, one more window ends exactly there. Audio shorter than one window is one window.
- The stream gives the windows of the file, whatever the size of its chunks, and keeps no more than two windows in
  memory. A resumed stream gives those that an unbroken one would have given from there on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from servox.errors import BadInput

Samples = npt.NDArray[np.float32]

MIN_WINDOW_MS, MAX_WINDOW_MS = 100, 30_000
MIN_HOP_MS = 20
TAIL_MS = 100  # less than this at the end is not worth a window that mostly repeats the one before
MAX_INDEX = 1 << 40  # sample numbers beyond this would not fit into 64 bits at every rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How audio of one rate is cut.

    Attributes:
        window_ms: length of a window.
        hop_ms: from the start of one to the start of the next.
        rate_hz: of the samples.
    """

    window_ms: int
    hop_ms: int
    rate_hz: int

    @property
    def window(self) -> int:
        """Samples of a window."""
        return self.window_ms * self.rate_hz // 1000

    def start(self, index: int) -> int:
        """First sample of a window; from milliseconds each time, so that no rounding adds up."""
        return index * self.hop_ms * self.rate_hz // 1000

    def ms(self, sample: int) -> int:
        """Time of a sample."""
        return round(sample * 1000 / self.rate_hz)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One window: number, time, samples [n]."""

    index: int
    start_ms: int
    end_ms: int
    samples: Samples


def grid(window_ms: int, hop_ms: int, rate_hz: int) -> Grid:
    """A checked grid; `hop_ms` 0 means windows side by side.

    Raises:
        BadInput: a length out of range, or a hop that leaves audio unheard.
    """
    hop_ms = hop_ms or window_ms
    if not MIN_WINDOW_MS <= window_ms <= MAX_WINDOW_MS:
        raise BadInput(f"window_ms = {window_ms}: give {MIN_WINDOW_MS} to {MAX_WINDOW_MS}")
    if not MIN_HOP_MS <= hop_ms <= window_ms:
        raise BadInput(f"hop_ms = {hop_ms}: give {MIN_HOP_MS} to window_ms ({window_ms}), or 0 for the window's length")
    return Grid(window_ms=window_ms, hop_ms=hop_ms, rate_hz=rate_hz)


def check_next_window(next_window: int) -> None:
    """Refuses a number that no window has.

    Raises:
        BadInput: negative, or beyond all audio.
    """
    if not 0 <= next_window <= MAX_INDEX:
        raise BadInput(f"next_window = {next_window}: give the number of the first window to answer, 0 or more")


class Cutter:
    """Cuts samples as they come: `push` them, then `finish` once.

    Args:
        shape: how.
        next_window: number of the first window to give; samples then begin where the one before it began (with the
            first sample for 0 and 1), which is what the window at the end may need.

    Raises:
        BadInput: `next_window` is no number of a window.
    """

    def __init__(self, shape: Grid, *, next_window: int = 0) -> None:
        check_next_window(next_window)
        self._grid = shape
        self._index = next_window
        self._offset = shape.start(max(0, next_window - 1))  # of the first kept sample
        self._kept = np.empty(2 * shape.window, dtype=np.float32)
        self._length = 0

    def push(self, samples: Samples) -> Iterator[Cut]:
        """Windows that are whole now."""
        for at in range(0, len(samples), self._grid.window):
            self._keep(samples[at : at + self._grid.window])
            while self._end() - self._grid.start(self._index) >= self._grid.window:
                yield self._cut(self._grid.start(self._index))

    def finish(self) -> Iterator[Cut]:
        """The window at the end, if there is something left to hear."""
        end, window = self._end(), self._grid.window
        covered = self._grid.start(self._index - 1) + window if self._index else 0
        if end - covered >= (TAIL_MS * self._grid.rate_hz // 1000 if self._index else 1):
            yield self._cut(max(0, end - window))

    def _keep(self, samples: Samples) -> None:
        if self._length + len(samples) > len(self._kept):
            # What a next window needs, and what a last one that ends with the audio may need: one window at most.
            first = min(self._grid.start(self._index), self._end() - self._grid.window)
            dropped = min(max(0, first - self._offset), self._length)
            self._kept[: self._length - dropped] = self._kept[dropped : self._length]
            self._length, self._offset = self._length - dropped, self._offset + dropped
        self._kept[self._length : self._length + len(samples)] = samples
        self._length += len(samples)

    def _end(self) -> int:
        return self._offset + self._length

    def _cut(self, start: int) -> Cut:
        at = start - self._offset
        samples = self._kept[at : min(at + self._grid.window, self._length)].copy()
        index, self._index = self._index, self._index + 1
        return Cut(
            index=index,
            start_ms=self._grid.ms(start),
            end_ms=self._grid.ms(start + len(samples)),
            samples=samples,
        )


def cuts(samples: Samples, shape: Grid) -> Iterator[Cut]:
    """Every window of a whole file."""
    cutter = Cutter(shape)
    yield from cutter.push(samples)
    yield from cutter.finish()
