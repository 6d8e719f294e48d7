"""Stored embeddings in memory: what training and prediction read, each clip once.

- An embedding never changes under its address, so a cached one is never stale; the least recently used go first when
  the budget of bytes is spent.
- Pooled vectors are cached clip by clip: the folds of a corpus share theirs. Frames are large and are read in pieces,
  never kept.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from servox.arrays import EmbeddingStore
from servox.errors import BadInput

from .heads import AnyFloats, Floats

FRAMES_AT_A_TIME = 256  # clips; some 80 MB of 512 dimensions

_Address = tuple[str, str, int, str]  # store, bundle, layer, clip key


class Vectors:
    """Pooled vectors and frames of embedding stores.

    Args:
        cache_bytes: how much to keep in memory.
    """

    def __init__(self, cache_bytes: int) -> None:
        self._budget = cache_bytes
        self._held: OrderedDict[_Address, Floats] = OrderedDict()
        self._bytes = 0
        self._stores: dict[str, EmbeddingStore] = {}
        self._lock = threading.Lock()

    def pooled(self, url: str, *, bundle: str, layers: Sequence[int], keys: Sequence[str]) -> Floats:
        """Mean vectors [n, d] of one layer, or of several one after the other, in the order of `keys`.

        Raises:
            NotFound: a clip is not in the store.
            BadInput: no keys, or the store has no such layer.
        """
        if not keys:
            raise BadInput("no clips were named; give a clip set that is not empty")
        found = {layer: self._cached(url, bundle, layer, keys) for layer in layers}
        missing = [key for key in dict.fromkeys(keys) if any(key not in held for held in found.values())]
        if missing:
            arrays = self._store(url).read(bundle=bundle, pooling="mean", keys=missing)
            for layer, held in found.items():
                fresh = {key: _layer(array, layer, key) for key, array in zip(missing, arrays, strict=True)}
                self._keep(url, bundle, layer, fresh)
                held.update(fresh)
        return np.concatenate([_stack([held[key] for key in keys]) for held in found.values()], axis=1)

    def frames(self, url: str, *, bundle: str, keys: Sequence[str]) -> Iterator[list[Floats]]:
        """Frames [t, d] of the bundle's default layer, in the order of `keys`, some hundred clips at a time.

        Raises:
            NotFound: a clip is not in the store.
            BadInput: no keys, or an array that is no sequence of frames.
        """
        if not keys:
            raise BadInput("no clips were named; give a clip set that is not empty")
        for start in range(0, len(keys), FRAMES_AT_A_TIME):
            part = keys[start : start + FRAMES_AT_A_TIME]
            arrays = self._store(url).read(bundle=bundle, pooling="frames", keys=part)
            for key, array in zip(part, arrays, strict=True):
                if array.ndim != 2 or not len(array):
                    raise BadInput(
                        f"stored frames of clip {key}: shape {list(array.shape)}, not [frames, d]; embed it again"
                    )
            yield [array.astype(np.float32, copy=False) for array in arrays]

    def _store(self, url: str) -> EmbeddingStore:
        with self._lock:
            return self._stores.setdefault(url, EmbeddingStore(url))

    def _cached(self, url: str, bundle: str, layer: int, keys: Sequence[str]) -> dict[str, Floats]:
        found = {}
        with self._lock:
            for key in keys:
                address = (url, bundle, layer, key)
                if address in self._held:
                    self._held.move_to_end(address)
                    found[key] = self._held[address]
        return found

    def _keep(self, url: str, bundle: str, layer: int, fresh: dict[str, Floats]) -> None:
        with self._lock:
            for key, vector in fresh.items():
                if (address := (url, bundle, layer, key)) not in self._held:
                    self._held[address] = vector
                    self._bytes += vector.nbytes
            while self._bytes > self._budget:
                _, dropped = self._held.popitem(last=False)
                self._bytes -= dropped.nbytes


def _layer(array: AnyFloats, layer: int, key: str) -> Floats:
    if array.ndim != 2 or layer >= len(array):
        raise BadInput(
            f"stored embedding of clip {key}: shape {list(array.shape)} has no layer {layer}; "
            "name a layer of the bundle, or embed the clip again"
        )
    # A copy: a view would keep every layer of the clip in memory.
    return np.array(array[layer], dtype=np.float32)


def _stack(vectors: Sequence[Floats]) -> Floats:
    dims = {len(vector) for vector in vectors}
    if len(dims) != 1:
        raise BadInput(f"stored embeddings have {sorted(dims)} dimensions; the store mixes bundles: embed again")
    return np.stack(vectors)
