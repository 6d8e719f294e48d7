"""The embedding store: arrays in Parquet parts on any fsspec URL, found by what made them.

- An array's address is (bundle digest, pooling, clip key); the key is the sha256 of the audio file's bytes. Nothing
  is ever overwritten: the same address always holds the same array.
- A part is written under a hidden name and renamed, so a reader sees whole parts or none; killing a writer loses at
  most the part it was writing.
- A clip set is a small table (key, label, speaker) that says what a head is trained on or scored on; its name is the
  digest of its content.
"""

import errno
import hashlib
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from servox.errors import BadInput, NotFound, StorageFull

log = logging.getLogger(__name__)

READERS = 4  # parts of a store that are read at once: unpacking takes a core, an object store takes its time

Floats = npt.NDArray[np.floating[Any]]
_TYPES = {"float32": pa.float32(), "float16": pa.float16()}


class EmbeddingStore:
    """Embeddings below one URL.

    Args:
        url: a folder, as a path or any fsspec URL (`file:`, `s3:`, `memory:`).
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = _filesystem(url)
        self._keys_of_part: dict[str, list[str]] = {}

    def keys(self, *, bundle: str, pooling: str) -> set[str]:
        """Clip keys that are stored for a bundle and a pooling."""
        return {key for part in self._parts(bundle, pooling) for key in self._part_keys(part)}

    def write(self, *, bundle: str, pooling: str, arrays: Mapping[str, Floats]) -> None:
        """Stores arrays (float32 or float16, any shape, one dtype) as one part.

        Raises:
            BadInput: no arrays, another dtype, or values that are not finite.
            StorageFull: the disk or the object store refused.
        """
        table = _to_table(arrays)
        folder = self._folder(bundle, pooling)
        _write_table(self._fs, f"{folder}/part-{uuid.uuid4().hex}.parquet", table)

    def read(self, *, bundle: str, pooling: str, keys: Sequence[str]) -> list[Floats]:
        """Arrays in the order of `keys`, each in the shape in which it was written.

        Raises:
            NotFound: a key is not stored; the message counts them and names the first.
        """
        wanted, found = frozenset(keys), dict[str, Floats]()

        def load(part: str) -> dict[str, Floats]:
            return {} if len(found) == len(wanted) else self._read_part(part, wanted)

        with ThreadPoolExecutor(READERS, "servox-store") as readers:
            for arrays in readers.map(load, self._parts(bundle, pooling)):
                found |= arrays
        missing = [key for key in keys if key not in found]
        if missing:
            raise NotFound(
                f"{len(missing)} of {len(keys)} clips have no {pooling} embedding of bundle {bundle[:12]} "
                f"in {self.url} (first: {missing[0]}); embed them first"
            )
        return [found[key] for key in keys]

    def _folder(self, bundle: str, pooling: str) -> str:
        return f"{self._root}/{bundle[:16]}/{pooling}"

    def _parts(self, bundle: str, pooling: str) -> list[str]:
        folder = self._folder(bundle, pooling)
        self._fs.invalidate_cache(folder)
        return sorted(cast("list[str]", self._fs.glob(f"{folder}/part-*.parquet")))

    def _part_keys(self, part: str) -> list[str]:
        if part not in self._keys_of_part:
            keys: list[str] = []
            with _spared(part), self._fs.open(part, "rb") as raw:
                keys = _keys(pq.ParquetFile(raw))
            self._keys_of_part[part] = keys  # only now: other threads take them for all there are
        return self._keys_of_part[part]

    def _read_part(self, part: str, wanted: frozenset[str]) -> dict[str, Floats]:
        if part in self._keys_of_part and wanted.isdisjoint(self._keys_of_part[part]):
            return {}
        found = dict[str, Floats]()
        with _spared(part), self._fs.open(part, "rb") as raw:
            file = pq.ParquetFile(raw, pre_buffer=True)
            keys = self._keys_of_part[part] = _keys(file)
            if not wanted.isdisjoint(keys):
                found = _arrays(file, keys, wanted)
        return found


def _keys(file: Any) -> list[str]:  # noqa: ANN401 -- pyarrow has no types
    return cast("list[str]", file.read(["key"])["key"].to_pylist())


def _arrays(file: Any, keys: Sequence[str], wanted: frozenset[str]) -> dict[str, Floats]:  # noqa: ANN401
    table = file.read(["shape", "values"])
    values = table["values"].combine_chunks()
    flat, offsets = values.values.to_numpy(zero_copy_only=False), values.offsets.to_numpy()
    rows = zip(keys, table["shape"].to_pylist(), pairwise(offsets), strict=True)
    return {key: flat[start:end].reshape(shape) for key, shape, (start, end) in rows if key in wanted}


@contextmanager
def _spared(part: str) -> Iterator[None]:
    """Ends a block at a part that cannot be read: what it held can be computed again; a run must not die of it."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        log.warning(
            "embedding part cannot be read, its clips count as missing",
            extra={"part": part, "why": str(error)},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledClip:
    """One row of a clip set: sha256 of the audio file, unified label, speaker (empty where there is none)."""

    key: str
    label: str
    speaker: str


def clip_set_digest(clips: Sequence[LabelledClip]) -> str:
    """Sha256 of the rows in their order, 64 hex digits."""
    rows = "\n".join(f"{clip.key}\t{clip.label}\t{clip.speaker}" for clip in clips)
    return hashlib.sha256(rows.encode()).hexdigest()


def write_clip_set(folder: str, clips: Sequence[LabelledClip]) -> str:
    """Writes a clip set below `folder` (path or URL) under its digest and returns its URL; writing twice is harmless.

    Raises:
        BadInput: an empty set.
        StorageFull: the disk or the object store refused.
    """
    if not clips:
        raise BadInput("clip set: it has no clips; check the corpus and its label map")
    url = f"{folder.rstrip('/')}/{clip_set_digest(clips)}.parquet"
    fs, path = _filesystem(url)
    if not fs.exists(path):
        columns = {name: [getattr(clip, name) for clip in clips] for name in ("key", "label", "speaker")}
        _write_table(fs, path, pa.table(columns))
    return url


def read_clip_set(url: str) -> list[LabelledClip]:
    """The rows of a clip set, in order.

    Raises:
        NotFound: nothing lies at `url`.
        BadInput: it is no clip set.
    """
    fs, path = _filesystem(url)
    try:
        with fs.open(path, "rb") as file:
            table = pq.read_table(file, columns=["key", "label", "speaker"])
    except FileNotFoundError:
        raise NotFound(f"clip set {url}: there is no such file; write it before asking for it") from None
    except (pa.ArrowInvalid, KeyError) as error:
        raise BadInput(f"clip set {url}: {error}; it must be Parquet with columns key, label, speaker") from None
    return [LabelledClip(**row) for row in table.to_pylist()]


def _filesystem(url: str) -> tuple[Any, str]:
    fs, root = fsspec.core.url_to_fs(url)
    return fs, str(root).rstrip("/")


def _to_table(arrays: Mapping[str, Floats]) -> pa.Table:
    dtypes = {array.dtype.name for array in arrays.values()}
    if len(dtypes) != 1 or not dtypes <= set(_TYPES):
        raise BadInput(f"embeddings: dtypes {sorted(dtypes)}; write a non-empty batch of one dtype, float32 or float16")
    broken = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise BadInput(f"embedding of clip {broken[0]}: holds values that are not finite; embed it again")
    flat = [array.reshape(-1) for array in arrays.values()]
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in flat])])
    values = pa.array(np.concatenate(flat), type=_TYPES[dtypes.pop()])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, type=pa.int64()), values)
    shapes = pa.array([list(array.shape) for array in arrays.values()], type=pa.list_(pa.int32()))
    return pa.table({"key": list(arrays), "shape": shapes, "values": lists})


def _write_table(fs: Any, path: str, table: pa.Table) -> None:  # noqa: ANN401 -- fsspec has no types
    folder, name = path.rsplit("/", 1)
    hidden = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
    with storing(path):
        fs.makedirs(folder, exist_ok=True)
        with fs.open(hidden, "wb") as file:
            pq.write_table(table, file, compression="zstd")
        fs.mv(hidden, path)


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Turns a full disk or a spent quota into `StorageFull`, naming what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(f"cannot write {what}: {error.strerror}; free space or choose another place") from error
        raise
