"""What an MLP is trained on: one vector a clip, or every frame of it. Numpy only."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .heads import Floats

Ints = npt.NDArray[np.int64]


class Inputs(Protocol):
    """Rows of clips that are numbered 0, 1, 2, ….

    Attributes:
        dims: d, values in a row.
        layers: 1, or how many layers' rows lie one after the other and are to be mixed.
    """

    dims: int
    layers: int

    def __len__(self) -> int:
        """How many clips."""

    def take(self, clips: Ints) -> tuple[Floats, Ints | None]:
        """Rows [r, d] or [r, layers, d] of these clips, and which clip each belongs to ([r]; None: one row a clip)."""


class Vectors:
    """One standardised vector a clip.

    Args:
        x: [n, d], or [n, layers, d] to be mixed.
    """

    def __init__(self, x: Floats) -> None:
        self._x = x
        self.dims = x.shape[-1]
        self.layers = x.shape[1] if x.ndim == 3 else 1

    def __len__(self) -> int:
        return len(self._x)

    def take(self, clips: Ints) -> tuple[Floats, None]:
        """One row a clip."""
        return self._x[clips], None


class Frames:
    """Every frame of every clip, one clip after the other; may lie in a memory-mapped file.

    Args:
        values: [frames, d].
        lengths: [n], frames of each clip, in the order of `values`.
        chosen: [m], the clips to use; None for all.
    """

    layers = 1

    def __init__(self, values: Floats, lengths: Ints, chosen: Ints | None = None) -> None:
        self._values = values
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._chosen = np.arange(len(lengths)) if chosen is None else chosen
        self.dims = values.shape[1]

    def __len__(self) -> int:
        return len(self._chosen)

    def take(self, clips: Ints) -> tuple[Floats, Ints]:
        """All frames of the clips."""
        spans = [(self._starts[clip], self._starts[clip + 1]) for clip in self._chosen[clips]]
        rows = np.concatenate([self._values[start:end] for start, end in spans])
        return rows, np.repeat(np.arange(len(spans)), [end - start for start, end in spans])
