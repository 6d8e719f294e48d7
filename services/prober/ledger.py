"""What was done to a name, and by whom: one line of JSON a change, and the lock under which changes are made.

- The pointer `production` is the truth and the history follows it: what is intended is written down, the pointer
  moves, the line is appended, the intention is removed; each step is synced. Whoever holds the lock next finishes what
  a killed process began: if the pointer moved the line is appended, if not the intention is forgotten. A pointer that
  another hand moved is written down as found.
- A line is one write. One that was torn (the power went) is left out on reading and cut off by the next writer.
- The lock is `flock` on a file: between processes and threads alike, and gone with the process that held it.
"""

import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from servox.errors import Refused

from .gate import Result
from .pointers import replace, writing

log = logging.getLogger(__name__)

Action = Literal["promoted", "rolled_back", "rolled_out", "refused", "evaluated", "deleted", "found"]
MOVES: tuple[Action, ...] = ("promoted", "rolled_back", "deleted", "found")  # that say what is in production


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change, or one that the gate refused.

    Attributes:
        time_unix_ms: when.
        action: what was done.
        version: to which version; empty where a name is left without one in production.
        replaced: version that was in production before; empty for none.
        actor: who; empty where nobody has to say.
        reason: theirs.
        gate: what the rules said.
    """

    time_unix_ms: int
    action: Action
    version: str
    replaced: str = ""
    actor: str = ""
    reason: str = ""
    gate: tuple[Result, ...] = ()


def now_ms() -> int:
    """The time of an event."""
    return time.time_ns() // 1_000_000


class Ledger:
    """The history of one name.

    Args:
        folder: of the name; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._history, self._intent = folder / "history.jsonl", folder / "intent.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the name inside the block; waits for whoever does.

        Raises:
            StorageFull: the disk refused the lock's file.
            Refused: nobody may write there.
        """
        try:
            with writing(f"the lock of {self._folder.name}"):
                self._folder.mkdir(parents=True, exist_ok=True)
                handle = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise Refused(
                f"the registry's folder {self._folder} may not be written here ({error.strerror}): give this user the "
                "right, or make the change where it may be"
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def events(self) -> list[Event]:
        """Every change, oldest first; what cannot be read is logged and left out."""
        try:
            lines = self._history.read_bytes().split(b"\n")
        except OSError:
            return []
        return [event for line in lines[:-1] if (event := self._event(line)) is not None]  # what has no end is torn

    def append(self, event: Event) -> None:
        """Adds a line; only under the lock.

        Raises:
            StorageFull: the disk refused.
        """
        line = _line(event)
        with writing(f"the history of {self._folder.name}"):
            handle = os.open(self._history, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                end = os.lseek(handle, _whole(handle), os.SEEK_SET)
                os.ftruncate(handle, end)
                if os.write(handle, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            finally:
                os.close(handle)

    def intend(self, event: Event) -> None:
        """Writes down what is about to be done; only under the lock."""
        with writing(f"the history of {self._folder.name}"):
            replace(self._intent, _line(event).decode(), synced=True)

    def settle(self, production: str) -> bool:
        """Finishes what a killed process began, and writes down what another hand did; only under the lock.

        Args:
            production: the version that the pointer names.

        Returns:
            Whether there was anything to finish.
        """
        begun = self._begun()
        if begun is not None:
            if begun.version == production and self._last() != production:
                self.append(begun)
            self._intent.unlink(missing_ok=True)
        known = self._last()
        if known == production:
            return begun is not None
        reason = "the pointer was moved by another hand than this program's"
        self.append(Event(time_unix_ms=now_ms(), action="found", version=production, replaced=known, reason=reason))
        return True

    def done(self, event: Event) -> None:
        """What was intended was done."""
        self.append(event)
        self._intent.unlink(missing_ok=True)

    def _begun(self) -> Event | None:
        try:
            return self._event(self._intent.read_bytes())
        except OSError:
            return None

    def _last(self) -> str:
        """What is in production by the history; empty for nothing."""
        return next((event.version for event in reversed(self.events()) if event.action in MOVES), "")

    def _event(self, line: bytes) -> Event | None:
        try:
            return event_of(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            log.warning(
                "a line of a history cannot be read",
                extra={"file": str(self._history), "why": f"{error}: {line[:80]!r}"},
            )
            return None


def event_of(document: dict[str, Any]) -> Event:
    """An event from what `asdict` gave; fields of a later version are left out.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    known = {field.name: document[field.name] for field in fields(Event) if field.name in document}
    if known["action"] not in get_args(Action):
        raise ValueError(f"unknown action {known['action']!r}")
    return Event(**{**known, "gate": tuple(Result(**result) for result in known.get("gate", ()))})


def _line(event: Event) -> bytes:
    return json.dumps(asdict(event), ensure_ascii=False).encode() + b"\n"


def _whole(handle: int) -> int:
    """Where the last whole line ends."""
    end = os.lseek(handle, 0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def before(events: list[Event]) -> list[str]:
    """Versions that a rollback can go back to, the nearest last: a stack that promotions grow and rollbacks shrink.

    The one in production is the last of them, unless nothing is.
    """
    stack: list[str] = []
    for event in events:
        if event.action not in MOVES:
            continue
        if event.action == "rolled_back":
            while stack and stack[-1] != event.version:
                stack.pop()
        if not stack or stack[-1] != event.version:
            stack.append(event.version)
    return stack
