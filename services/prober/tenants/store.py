"""States on disk: one JSON a tenant and space, replaced in one step; who writes it, and who only reads.

- `<folder>/<tenant>/<space>.json`. A prober that looks after a state holds a lock on a file beside it, until it ends or
  sets the state aside; another prober on the same folder reads what the first one writes, and learns nothing.
- A state is written at most every few seconds, and when the prober ends. A crash loses what was learned since.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from services.prober.pointers import replace
from servox.errors import BadInput, StorageFull

from .records import NAME, from_json, to_json
from .statistics import State

log = logging.getLogger(__name__)


class StateFile:
    """The file of one state.

    Args:
        folder: of all tenants.
        tenant: checked name.
        space: name of the space.
    """

    def __init__(self, folder: Path, tenant: str, space: str) -> None:
        self.path = folder / tenant / f"{space}.json"
        self._lock_path = self.path.with_suffix(".lock")
        self._lock: int | None = None

    def hold(self) -> bool:
        """Whether this prober looks after the state from now on; False where another does.

        Raises:
            StorageFull: the folder cannot be written to.
        """
        if self._lock is not None:
            return True
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        if not self._is_there(lock):  # whoever held it took the file away as we opened it
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _is_there(self, lock: int) -> bool:
        try:
            return self._lock_path.stat().st_ino == os.fstat(lock).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Leaves the state to others; of a tenant of whom nothing was kept, no trace stays."""
        if self._lock is None:
            return
        if not self.path.exists():
            self._lock_path.unlink(missing_ok=True)
            with suppress(OSError):  # another space of the tenant is there
                self.path.parent.rmdir()
        os.close(self._lock)
        self._lock = None

    def stamp(self) -> tuple[int, int]:
        """Changes whenever the file does; zeros where there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_ino)

    def read(self) -> State | None:
        """The state; None where there is none.

        Raises:
            BadInput: a damaged file.
        """
        try:
            states = from_json(self.path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"calibration {self.path}: {error}; restore it or reset the tenant") from None
        if len(states) != 1 or states[0].tenant != self.path.parent.name or states[0].space.name != self.path.stem:
            raise BadInput(f"calibration {self.path}: it is of another tenant or space; restore it or reset the tenant")
        return states[0]

    def write(self, state: State) -> None:
        """Replaces what is there.

        Raises:
            StorageFull: the disk refuses it.
        """
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace(self.path, to_json([state]))

    def set_aside(self) -> None:
        """Keeps a damaged file under another name, so that the tenant can be learned anew and somebody can look."""
        self.path.replace(self.path.with_suffix(".damaged"))

    def remove(self) -> None:
        """Deletes the state; its lock stays."""
        self.path.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Whatever the disk says, a caller's answer or the next save must not end with a crash."""
    try:
        yield
    except OSError as error:
        raise StorageFull(
            f"cannot write the calibration {path}: {error.strerror}; make room, or see that the folder is writable"
        ) from None


def stored(folder: Path, tenant: str = "") -> Iterator[tuple[str, str]]:
    """Tenant and space of every state on disk, or of one tenant."""
    for path in sorted(folder.glob(f"{tenant or '*'}/*.json")):
        if NAME.fullmatch(path.parent.name) and not path.name.startswith("."):
            yield path.parent.name, path.stem
