"""Heads to and from object storage: one archive a head, below any fsspec URL (`file:`, `s3:`, `memory:`, …).

- An archive is written under a hidden name and moved, so a reader of a folder sees whole archives or none; one that was
  cut short all the same is refused by what it holds (see `archives`).
- Importing goes through `Registry.save`: a head is there as a whole or not at all. The same head twice is nothing new;
  the same version with other content is refused, because a version never changes.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec

from servox.arrays import storing
from servox.errors import BadSetting, NotFound, Refused

from .archives import ENDING, MODEL, pack, unpack
from .entries import CARD, WEIGHTS
from .registry import Entry, Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """One archive that was read.

    Attributes:
        url: where it lies.
        entry: the head as the registry lists it now.
        new: False where the registry had it already.
    """

    url: str
    entry: Entry
    new: bool


def export_head(registry: Registry, name: str, url: str) -> str:
    """Writes a head below `url`, or to `url` itself where that ends in `.bentomodel`; again is harmless.

    Args:
        registry: where the head lies.
        name: `name` or `name:version`.
        url: a folder or a file, as a path or any fsspec URL.

    Returns:
        The URL of the archive.

    Raises:
        NotFound: no such head.
        BadInput: its entry is damaged.
        BadSetting: a URL that cannot be used.
        StorageFull: the disk or the object store refused.
    """
    head = registry.get(name)
    card, folder = head.card, registry.folder(head.card.name, head.card.version)
    files = {each: (folder / each).read_bytes() for each in (MODEL, CARD, WEIGHTS)}
    target = url if url.endswith(ENDING) else f"{url.rstrip('/')}/{card.name}-{card.version}{ENDING}"
    fs, path = _filesystem(target)
    place, _, bare = path.rpartition("/")
    hidden = f"{place}/.{bare}.{uuid.uuid4().hex[:8]}"
    with storing(target), _reached(target):
        fs.makedirs(place, exist_ok=True)
        try:
            with fs.open(hidden, "wb") as file:
                file.write(pack(files, head))
            fs.mv(hidden, path)
        finally:
            if fs.exists(hidden):
                fs.rm(hidden)
    return target


def archives_at(url: str) -> list[str]:
    """URLs of the archives that `url` means: itself, or those of a folder, sorted.

    Raises:
        NotFound: nothing is there.
        BadSetting: a URL that cannot be used.
    """
    if url.endswith(ENDING):
        return [url]
    fs, path = _filesystem(url)
    with _reached(url):
        fs.invalidate_cache(path)
        names = sorted(str(each).rpartition("/")[2] for each in fs.glob(f"{path}/*{ENDING}"))
    found = [f"{url.rstrip('/')}/{name}" for name in names if not name.startswith(".")]
    if not found:
        raise NotFound(f"{url}: there is no {ENDING} archive; `servox heads export` writes them")
    return found


def import_head(registry: Registry, url: str) -> Imported:
    """Reads one archive into the registry.

    Raises:
        NotFound: nothing lies at `url`.
        BadInput: the archive is cut short or damaged.
        Refused: the registry holds this version with other content.
        BadSetting: a URL that cannot be used.
        StorageFull: the disk refused.
    """
    fs, path = _filesystem(url)
    with _reached(url):
        head = unpack(fs.cat_file(path), origin=url)
    there = registry.find(head.card.name, head.card.version)
    if there is None:
        registry.save(head)
    kept = registry.entry(head.card.tag)  # also where another process was faster
    if kept.digest != head.digest:
        raise Refused(
            f"head {head.card.tag}: the registry holds it with digest {kept.digest}, {url} with {head.digest}; "
            "delete the one in the registry first, if the archive is the right one"
        )
    return Imported(url=url, entry=kept, new=there is None)


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise BadSetting(f"{url}: {error}; give a path or a URL whose fsspec package is installed") from None
    return fs, str(path).rstrip("/")


@contextmanager
def _reached(url: str) -> Iterator[None]:
    """Says of which URL a storage complains."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"{url}: there is no such file; see what `servox heads export` wrote") from None
    except (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise BadSetting(f"{url}: {error.strerror or error}; choose another place") from None
