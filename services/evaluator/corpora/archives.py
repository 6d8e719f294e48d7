"""Unpacks downloaded archives: regular files only, never outside the folder, never more than the limits.

Links, devices and permissions of an archive are ignored; a member whose path leaves the folder refuses the whole
archive, since an honest one has none.
"""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from servox.errors import BadCorpus

MAX_UNPACKED_BYTES = 512 * 1024**3
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


def is_archive(name: str) -> bool:
    """Whether a file name is one of an archive that can be unpacked here."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive, and archives directly inside it, into a folder.

    Raises:
        BadCorpus: the archive is damaged, leaves the folder, or is larger than any corpus.
        OSError: the disk refused a write.
    """
    _unpack_one(archive, folder)
    inner = [file for file in sorted(folder.rglob("*")) if file.is_file() and is_archive(file.name)]
    for file in inner:
        _unpack_one(file, file.parent)
        file.unlink()


def _unpack_one(archive: Path, folder: Path) -> None:
    written = 0
    with _reading(archive):
        for name, stream in _members(archive):
            target = _inside(folder, name, archive=archive.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
                written += out.tell()
            if written > MAX_UNPACKED_BYTES:
                raise BadCorpus(f"archive {archive.name}: unpacks to more than {MAX_UNPACKED_BYTES} bytes; refused.")


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, LZMAError, NotImplementedError) as problem:
        raise BadCorpus(f"archive {archive.name}: damaged ({problem}). Remove it and download it again.") from problem


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
                if not info.is_dir() and not is_link:
                    with bundle.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(archive) as bundle_tar:
        for member in bundle_tar:
            data = bundle_tar.extractfile(member) if member.isfile() else None
            if data is not None:
                with data:
                    yield member.name, data


def _inside(folder: Path, name: str, *, archive: str) -> Path:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
        raise BadCorpus(f"archive {archive}: the member {name!r} leaves the folder; refused. Get it from its owner.")
    return folder.joinpath(*parts)
