"""Changes of a file of keys: one at a time, whole or not at all, readable by its owner alone."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from servox.errors import BadSetting, NotFound, StorageFull
from servox.keys import Key, checked, document_of, minted, moment_s, read_keys


def create(path: Path, key: Key) -> tuple[str, Key]:
    """Adds a key to a file, which is made if it is not there.

    Args:
        path: of the file.
        key: its facts; id, sha256 and created are set here.

    Returns:
        The key's whole text, which is kept nowhere, and what the file knows of it.

    Raises:
        BadSetting: facts that make no sense, or a file that cannot be read.
        StorageFull: it cannot be written.
    """
    text, name, digest = minted()
    made = checked(replace(key, id=name, sha256=digest, created=_now()), "the key")
    _changed(path, lambda keys: [*keys, made])
    return text, made


def revoke(path: Path, names: list[str]) -> list[Key]:
    """Marks keys as revoked, by their ids.

    Raises:
        NotFound: no such key; then none is changed.
        BadSetting, StorageFull: see `create`.
    """
    keys = _changed(path, lambda keys: [_revoked(key) if key.id in names else key for key in _with(keys, names, path)])
    return [key for key in keys if key.id in names]


def rotate(path: Path, name: str, *, overlap: timedelta) -> tuple[str, Key]:
    """Makes a key with the same facts; the old one goes on for a while, but never for longer than it would have.

    Raises:
        NotFound: no such key.
        BadSetting, StorageFull: see `create`.
    """
    text, other, digest = minted()
    last = (datetime.now(UTC) + overlap).isoformat(timespec="seconds")

    def change(keys: list[Key]) -> list[Key]:
        (old,) = [key for key in _with(keys, [name], path) if key.id == name]
        if old.ended(datetime.now(UTC).timestamp()):
            raise BadSetting(f"key {name} of {path} is {old.ended(datetime.now(UTC).timestamp())}: create another one")
        kept = [replace(key, expires=_sooner(key.expires, last)) if key.id == name else key for key in keys]
        return [*kept, replace(old, id=other, sha256=digest, created=_now())]

    return text, _changed(path, change)[-1]


def _changed(path: Path, change: Callable[[list[Key]], list[Key]]) -> list[Key]:
    with _alone(path):
        keys = change(list(read_keys(path).values()) if path.exists() else [])
        _write(path, document_of(keys))
    return keys


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Others who change files of this folder wait."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BadSetting(f"keys {path}: {error.strerror}; name a file in a folder that is there") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, text: str) -> None:
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(text)  # a temporary file is its owner's alone
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StorageFull(f"keys {path}: {error.strerror}; free space, or name another place") from None


def _with(keys: list[Key], names: list[str], path: Path) -> list[Key]:
    if unknown := sorted(set(names) - {key.id for key in keys}):
        raise NotFound(f"keys {path}: there is no key {unknown[0]!r}; `servox keys list` shows their ids")
    return keys


def _revoked(key: Key) -> Key:
    return key if key.revoked else replace(key, revoked=_now())


def _sooner(one: str, other: str) -> str:
    return min(one, other, key=moment_s) if one else other


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
