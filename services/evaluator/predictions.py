"""Asks the prober for the logits that a cell is scored on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servox.arrays import EmbeddingStore, LabelledClip, write_clip_set
from servox.calibration import Scaling
from servox.v1 import common_pb2, embedder_pb2, prober_pb2
from servox.wire import array_from_proto

from .peers import Peers

Array = NDArray[np.float64]
Statistics = tuple[Array, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Logits of one head on the clips of one set."""

    logits: Array  # [variants, n, K], before temperature
    scaling: Scaling
    classes: tuple[str, ...]

    @property
    def calibrated(self) -> Array:
        """Logits after the head's scaling, `[variants, n, K]`."""
        return self.scaling.apply(self.logits)


class Predictor:
    """The heads and embeddings of one run.

    Args:
        peers: the way to the prober.
        store: URL of the embeddings.
        bundle: whose embeddings they are.
        pooling: in the store.
        layers: that heads read, up to the bundle's default one.
    """

    def __init__(
        self, *, peers: Peers, store: str, bundle: embedder_pb2.DescribeResponse, pooling: str, layers: int = 1
    ) -> None:
        self._peers = peers
        self._store = store
        self._bundle = bundle
        self._pooling = pooling
        self._layers = layers

    async def logits(
        self, head: common_pb2.Head, clips: Sequence[LabelledClip], *, statistics: Sequence[Statistics] = ()
    ) -> Answer:
        """Logits of `clips`: first as trained, then once for each of `statistics` in place of the head's own.

        Raises:
            ServoxError: what the prober answered.
        """
        stored = prober_pb2.StoredEmbeddings(
            store_url=self._store, clip_set_url=write_clip_set(f"{self._store}/sets", clips)
        )
        variants = [prober_pb2.Standardisation()] if statistics else []
        variants += [prober_pb2.Standardisation(mean=mean, std=std) for mean, std in statistics]
        request = prober_pb2.PredictRequest(
            head=f"{head.name}:{head.version}",
            bundle_digest=self._bundle.bundle.digest,
            stored=stored,
            variants=variants,
        )
        answer = await self._peers.predict(request)
        logits = array_from_proto(answer.logits, name="logits").astype(np.float64)
        scaling = Scaling(temperature=answer.temperature, bias=tuple(answer.bias))
        return Answer(logits=logits, scaling=scaling, classes=tuple(answer.classes))

    def embeddings(self, clips: Sequence[LabelledClip]) -> Array:
        """Pooled embeddings `[n, d]` of what heads read: one layer, or several one after the other.

        Raises:
            NotFound: a clip is not in the store.
        """
        last = list(self._bundle.layers).index(self._bundle.default_layer) + 1
        arrays = EmbeddingStore(self._store).read(
            bundle=self._bundle.bundle.digest, pooling=self._pooling, keys=[clip.key for clip in clips]
        )
        return np.stack([array[last - self._layers : last].reshape(-1) for array in arrays]).astype(np.float64)
