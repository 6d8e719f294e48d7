"""Hidden folders that a killed export left behind: told from those of a running one by a lock, and swept.

- A lock on the folder itself needs no file in it, and the system lets go of it with the process, however that ends.
- Between its making and its lock a folder looks left behind: who finds it swept by then makes another.
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
def hidden(out: Path, mark: str = "") -> Iterator[Path]:
    """A new hidden folder beside `out` that `sweep` leaves alone while this lasts; `mark` is part of its name."""
    descriptor: int | None = None
    while descriptor is None:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.{mark}", dir=out.parent))
        descriptor = _held(folder)
    try:
        yield folder
    finally:
        os.close(descriptor)


def sweep(out: Path) -> None:
    """Remove what earlier exports to `out` left beside it, unless it is in use or the one copy of a bundle."""
    prefix = f".{out.name}."
    for folder in [path for path in out.parent.iterdir() if path.name.startswith(prefix) and path.is_dir()]:
        if not out.exists() and folder.name.startswith(f"{prefix}{OLD}"):
            continue  # killed between two renames: the old bundle lies here and nowhere else
        with suppress(OSError):  # gone by now, or not ours to read
            _remove_unused(folder)


def _held(folder: Path) -> int | None:
    """A descriptor that holds the lock of a new folder; None if a sweep was faster."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks: there nothing is swept either
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # until a sweep that has it is done
    if folder.exists():
        return descriptor
    os.close(descriptor)
    return None


def _remove_unused(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _lock(descriptor):
            shutil.rmtree(folder, ignore_errors=True)  # under the lock, so that nobody begins to use it meanwhile
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by another, or a file system without locks: then nothing is swept
        return False
    return True
