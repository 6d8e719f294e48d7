"""What a training tells its caller while it runs."""

import threading
import time
from dataclasses import dataclass

from servox.errors import ServoxError

from .heads import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a training is."""

    done: int
    total: int
    fraction: float
    eta_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A head that is in the registry now, or was before."""

    index: int
    head: Head
    reused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A head that cannot be trained."""

    index: int
    error: ServoxError


Event = Progress | Trained | Failed


class Stopped(Exception):
    """The training was told to stop."""


class Meter:
    """Work done and to do, in one unit; many threads add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = self._total = 0.0
        self._since = time.monotonic()

    def begin(self, total: float) -> None:
        """Starts the clock on `total` units of work."""
        self._total, self._since = total, time.monotonic()

    def add(self, work: float) -> None:
        """Counts work as done."""
        with self._lock:
            self._done += work

    def read(self) -> tuple[float, float]:
        """Share of the work that is done, and seconds to its end at the pace so far."""
        with self._lock:
            fraction = min(1.0, self._done / self._total) if self._total else 1.0
        elapsed = time.monotonic() - self._since
        return fraction, elapsed * (1 - fraction) / fraction if fraction else 0.0
