"""Downloads the corpora whose cards allow it: resumed after a break, checked, unpacked, and put in place at once.

A corpus folder appears complete or not at all: archives wait in `downloads/`, are unpacked beside the target under a
hidden name, and one rename puts the corpus there.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from servox.errors import BadCorpus, Refused, StorageFull, Unavailable

from .archives import is_archive, unpack
from .card import Archive, Card

# Called with the file's name, the bytes so far, and the bytes in all where the server tells.
Progress = Callable[[str, int, int | None], None]


def download(
    card: Card, data_dir: Path, *, client: httpx.Client | None = None, progress: Progress | None = None
) -> Path:
    """Fetch a corpus into `data_dir/corpora/<key>` and return that folder; one that is there already is left alone.

    Raises:
        Refused: the card allows no direct download; the message says how to get the corpus.
        Unavailable: the server cannot be reached or refuses.
        BadCorpus: a checksum differs, or an archive is damaged or unsafe.
        StorageFull: the disk is full.
    """
    if not card.obtain.direct:
        raise Refused(f"{card.key}: no direct download. {card.obtain.how} See {card.url}.")
    target = data_dir / "corpora" / card.key
    if target.is_dir() and any(target.iterdir()):
        return target
    waiting = data_dir / "downloads" / card.key
    with _disk_errors(card), _client(client) as http:
        waiting.mkdir(parents=True, exist_ok=True)
        files = [_fetch(http, archive, waiting, card=card, progress=progress) for archive in card.obtain.archives]
        try:
            _put_in_place(card, files, target)
        except BadCorpus:
            # A damaged file would be found complete, and damaged, again.
            shutil.rmtree(waiting)
            raise
    shutil.rmtree(waiting)
    return target


@contextmanager
def _client(given: httpx.Client | None) -> Iterator[httpx.Client]:
    if given is not None:
        yield given
        return
    timeout = httpx.Timeout(30.0, read=120.0)
    with httpx.Client(follow_redirects=True, timeout=timeout) as client:
        yield client


@contextmanager
def _disk_errors(card: Card) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        if problem.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull(
                f"{card.key}: the disk is full while downloading. Free some space and run it again."
            ) from problem
        raise BadCorpus(
            f"{card.key}: cannot write the download ({problem}). Check the folder's permissions."
        ) from problem


def _fetch(http: httpx.Client, archive: Archive, folder: Path, *, card: Card, progress: Progress | None) -> Path:
    """One file, complete and checked; a part left by an earlier run is continued."""
    name = Path(urlsplit(archive.url).path).name or card.key
    done, part = folder / name, folder / f"{name}.part"
    if not done.exists():
        try:
            _continue(http, archive.url, part, progress=progress)
        except httpx.HTTPError as problem:
            raise Unavailable(
                f"{card.key}: cannot download {archive.url} ({type(problem).__name__}: {problem}). "
                f"Run it again to continue, or by hand: {card.obtain.how}"
            ) from problem
        _verify(archive, part, card=card)
        part.rename(done)
    return done


def _continue(http: httpx.Client, url: str, part: Path, *, progress: Progress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with http.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if _told_size(response) == have:
                return
            # The file behind the URL changed: begin again.
            part.unlink()
            response.close()
            _continue(http, url, part, progress=progress)
            return
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        total = _told_size(response)
        _write(response, part, start=have if resumed else 0, total=total, progress=progress)
    if total is not None and part.stat().st_size != total:
        raise httpx.RemoteProtocolError(f"{part.stat().st_size} of {total} bytes came")


def _told_size(response: httpx.Response) -> int | None:
    """The whole file's size, from `Content-Range: bytes a-b/size` or `Content-Length`."""
    told = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    return int(told) if told.isdigit() else None


def _write(response: httpx.Response, part: Path, *, start: int, total: int | None, progress: Progress | None) -> None:
    if total is not None and shutil.disk_usage(part.parent).free < total - start:
        raise OSError(errno.ENOSPC, f"{total - start} bytes to come")
    with part.open("ab" if start else "wb") as out:
        for chunk in response.iter_raw():
            out.write(chunk)
            if progress is not None:
                progress(part.stem, out.tell(), total)


def _verify(archive: Archive, file: Path, *, card: Card) -> None:
    if not archive.sha256:
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != archive.sha256:
        file.unlink()
        raise BadCorpus(
            f"{card.key}: {archive.url} has sha256 {found}, the card says {archive.sha256}. "
            "The file was removed; try again, and if it stays so the corpus has changed."
        )


def _put_in_place(card: Card, files: list[Path], target: Path) -> None:
    unpacked = target.parent / f".{card.key}.unpacking"
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        for archive, file in zip(card.obtain.archives, files, strict=True):
            folder = unpacked / archive.folder
            folder.mkdir(parents=True, exist_ok=True)
            if is_archive(file.name):
                unpack(file, folder)
            else:
                shutil.copyfile(file, folder / file.name)
        if target.is_dir():
            target.rmdir()
        unpacked.rename(target)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
