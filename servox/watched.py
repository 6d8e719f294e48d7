"""What lies in files that change while a process runs: keys, certificates.

- Files are looked at when somebody asks, at most once a second, and read again only when one of them has changed.
- What cannot be read keeps what was good before, says so in the log once for each change, and tells an alarm.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from servox.errors import ServoxError

log = logging.getLogger(__name__)

T = TypeVar("T")
Stamp = tuple[tuple[int, int, int] | None, ...]
LOOK_EVERY_S = 1.0


def _unheard(_stale: bool) -> None:
    """Nobody wants to know."""


class Watched(Generic[T]):
    """The content of files; safe to use from several threads.

    Args:
        paths: of the files.
        read: reads them all.
        alarm: told True when they cannot be read any more, False when they can again.
        every_s: how often to look, at most.
        clock: monotonic, in seconds.

    Raises:
        ServoxError: what `read` raises the first time.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], T],
        *,
        alarm: Callable[[bool], None] = _unheard,
        every_s: float = LOOK_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths, self._read, self._alarm = tuple(paths), read, alarm
        self._every_s, self._clock = every_s, clock
        self._lock = threading.Lock()
        self._looked_s = clock()
        self._stamp = self._stamped()
        self._value = read()

    def get(self) -> T:
        """What the files say now, or said last."""
        with self._lock:
            if self._due(self._clock()):
                self._look()
            return self._value

    def _due(self, now_s: float) -> bool:
        due = now_s - self._looked_s >= self._every_s
        self._looked_s = now_s if due else self._looked_s
        return due

    def _look(self) -> None:
        if (stamp := self._stamped()) == self._stamp:
            return
        self._stamp = stamp  # taken before the files are read: a change meanwhile is seen next time
        try:
            self._value = self._read()
        except ServoxError as error:
            log.error("a file was changed and cannot be used; what it said before goes on", extra={"error": str(error)})  # noqa: TRY400 -- its own message says all
            self._alarm(True)
        else:
            log.info("a file was changed and read again", extra={"file": str(self._paths[0])})
            self._alarm(False)

    def _stamped(self) -> Stamp:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()  # of what a link leads to: a Secret of Kubernetes is changed by its link
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
