"""Hidden folders that a killed export left behind: told from those of a running one by a lock, and swept.

- A lock on the folder itself needs no file in it, and the system lets go of it with the process, however that ends.
- Between its making and its lock a folder looks left behind, so both, and a sweep, take turns by a lock on the parent.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OLD = "old-"  # holds a bundle that is being replaced


@contextmanager
def hidden(out: Path) -> Iterator[Path]:
    """A new hidden folder beside `out` that `sweep` leaves alone while this lasts."""
    with turn(out.parent):
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        descriptor = os.open(folder, os.O_RDONLY)
        _lock(descriptor)
    try:
        yield folder
    finally:
        os.close(descriptor)


@contextmanager
def turn(parent: Path) -> Iterator[None]:
    """While this lasts, no other process or thread sweeps below `parent` or makes a folder there."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: there nothing is swept either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sweep(out: Path) -> None:
    """Remove what earlier exports to `out` left beside it, unless it is in use or the one copy of a bundle."""
    prefix = f".{out.name}."
    with turn(out.parent):
        for folder in [path for path in out.parent.iterdir() if path.name.startswith(prefix) and path.is_dir()]:
            if not out.exists() and folder.name.startswith(f"{prefix}{OLD}"):
                continue  # killed between two renames: the old bundle lies here and nowhere else
            if not _in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by another, or a file system without locks: then nothing is swept
        return False
    return True
