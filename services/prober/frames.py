"""Frames of one head's clips in a temporary memory-mapped file: as large as the corpus, whatever memory there is."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from servox.arrays import storing
from servox.errors import BadInput

from .heads import Floats

Ints = npt.NDArray[np.int64]


class FrameFile:
    """One file, written on first use and shared by the fits of one head.

    Args:
        folder: where it lies; None for the system's folder of temporary files.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: tuple[Floats, Ints] | None = None

    def open(self, read: Callable[[], Iterator[list[Floats]]]) -> tuple[Floats, Ints]:
        """All frames [f, d] and how many each clip has; read on first use."""
        with self._lock:
            if self._open is None:
                self._open = self._write(read())
            return self._open

    def close(self) -> None:
        """Lets the file go; it has no name any more."""
        with self._lock:
            self._open = None

    def _write(self, parts: Iterator[list[Floats]]) -> tuple[Floats, Ints]:
        lengths: list[int] = []
        dims: set[int] = set()
        with storing("the frames of a head"), tempfile.TemporaryFile(dir=self._folder) as file:
            for part in parts:
                lengths += [len(frames) for frames in part]
                dims |= {frames.shape[1] for frames in part}
                for frames in part:
                    file.write(np.ascontiguousarray(frames).data)
            if len(dims) != 1:
                raise BadInput(f"stored frames have {sorted(dims)} dimensions; the store mixes bundles: embed again")
            file.flush()
            values = np.memmap(file, dtype=np.float32, mode="r", shape=(sum(lengths), dims.pop()))
        return values, np.array(lengths, dtype=np.int64)
