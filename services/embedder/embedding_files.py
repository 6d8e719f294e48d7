"""Embeddings as one file: `.npz` for numpy, `.parquet` for everything else; whole or not at all.

npz      files [n], layers, bundle; embeddings [n, layers, d] or [n, layers, 2, d]. Frames of n clips lie end to
         end in embeddings [all frames, d], clip i from offsets[i] to offsets[i + 1]
parquet  one row a file: file, bundle, layers, duration_ms, shape, values
"""

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from servox.client import Embedding
from servox.errors import BadSetting, StorageFull

FORMATS = (".npz", ".parquet")


def write_embeddings(path: Path, embeddings: Sequence[Embedding], *, frames: bool) -> None:
    """Writes embeddings of one bundle and pooling, at least one; `frames` says that they are of unequal lengths.

    Raises:
        BadSetting: the folder is not there or cannot be written, or a package is missing.
        StorageFull: no space is left.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".npz":
            _write_npz(hidden, embeddings, frames)
        else:
            _write_parquet(hidden, embeddings)
        hidden.replace(path)
    except OSError as error:
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else BadSetting
        raise kind(f"cannot write {path}: {error.strerror}; choose another place or make room") from None
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink()


def _write_npz(path: Path, embeddings: Sequence[Embedding], frames: bool) -> None:
    arrays = [embedding.array for embedding in embeddings]
    content = {
        "files": np.array([embedding.id for embedding in embeddings]),
        "bundle": np.array(embeddings[0].bundle.digest),
        "layers": np.array(embeddings[0].layers, np.int64),
    }
    if frames:
        content["embeddings"] = np.concatenate(arrays)
        content["offsets"] = np.cumsum([0, *(len(array) for array in arrays)])
    else:
        content["embeddings"] = np.stack(arrays)
    with path.open("wb") as file:
        np.savez(file, **content)  # type: ignore[arg-type]  # its stub mistakes the names for allow_pickle


def _write_parquet(path: Path, embeddings: Sequence[Embedding]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise BadSetting(f"cannot write {path}: Parquet needs pip install 'servox[store]'; or choose .npz") from None
    columns = {
        "file": pa.array([embedding.id for embedding in embeddings]),
        "bundle": pa.array([embedding.bundle.digest for embedding in embeddings]),
        "layers": pa.array([list(embedding.layers) for embedding in embeddings], pa.list_(pa.int32())),
        "duration_ms": pa.array([embedding.duration_ms for embedding in embeddings], pa.int64()),
        "shape": pa.array([list(embedding.array.shape) for embedding in embeddings], pa.list_(pa.int32())),
        "values": pa.array([embedding.array.ravel() for embedding in embeddings], pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")
