"""Small files that change in one step: pointers from a name to a version, and what a writer leaves behind."""

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from servox.arrays import storing
from servox.errors import StorageFull

LEFTOVER_S = 24 * 3600  # what lies in the staging folder for so long has no writer any more


def point(pointer: Path, version: str) -> None:
    """Makes a pointer name a version, unless the name left meanwhile with its last version."""
    with suppress(FileNotFoundError):
        replace(pointer, version)


def replace(path: Path, text: str, *, synced: bool = False) -> None:
    """Writes a file that a reader sees whole, as it was or as it is now; `synced`: also after the power went."""
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with hidden.open("w") as file:
            file.write(text)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        hidden.replace(path)
    except OSError:
        hidden.unlink(missing_ok=True)
        raise
    if synced:
        sync(path.parent)


def sync(folder: Path) -> None:
    """Makes what was renamed or removed in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(pointer: Path) -> str:
    """The version that a pointer names; empty where there is none."""
    try:
        return pointer.read_text().strip()
    except (OSError, UnicodeDecodeError):  # not there, or damaged: the newest version stands in
        return ""


def leave(folder: Path) -> None:
    """Takes a name away that has no version left, unless one comes at this very moment."""
    (folder / "latest").unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def sweep(staging: Path) -> None:
    """Removes what a killed process left half written; what is young may have a writer."""
    for left in staging.iterdir():
        try:
            old = time.time() - left.stat().st_mtime > LEFTOVER_S
        except FileNotFoundError:
            continue  # its writer has finished
        if old:
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def writing(what: str) -> Iterator[None]:
    """`servox.arrays.storing`, also for copies: shutil keeps the reason of a failed copy as text only."""
    with storing(what):
        try:
            yield
        except shutil.Error as error:
            numbers = {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(error))}
            if numbers & {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise StorageFull(
                    f"cannot write {what}: the disk is full; free space or choose another place"
                ) from error
            raise
