"""A small store of embeddings with emotions in it, and a prober that serves on a Unix socket."""
# ruff: noqa: ANN401 -- arrays and gRPC stubs have no types worth naming here

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servox.arrays import EmbeddingStore, LabelledClip, write_clip_set
from servox.rpc import channel
from servox.telemetry import Metrics
from servox.v1 import prober_pb2, prober_pb2_grpc

BUNDLE = "ab" * 32
DIMS, LAYERS, LAYER = 24, 3, 2
LABELS = ("anger", "happiness", "sadness")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Clips in a store: three emotions, six speakers, embeddings that tell them apart with some noise."""

    store: str
    sets: str
    clips: list[LabelledClip]
    bundle: str = BUNDLE
    dims: int = DIMS
    layer: int = LAYER

    def subset(self, *, labels: tuple[str, ...] = LABELS, speakers: tuple[str, ...] | None = None) -> str:
        """URL of a clip set with these labels and speakers."""
        chosen = [c for c in self.clips if c.label in labels and (speakers is None or c.speaker in speakers)]
        return write_clip_set(self.sets, chosen)

    def vectors(self) -> Any:
        """[n, d] of the layer."""
        arrays = EmbeddingStore(self.store).read(bundle=BUNDLE, pooling="mean", keys=[c.key for c in self.clips])
        return np.stack([array[LAYER] for array in arrays])

    def spec(self, **changes: Any) -> prober_pb2.HeadSpec:
        """A head to train on all of it."""
        given: dict[str, Any] = {
            "name": "toy",
            "kind": prober_pb2.HEAD_KIND_MLP,
            "bundle_digest": BUNDLE,
            "layer": LAYER,
            "clip_set_url": write_clip_set(self.sets, self.clips),
            "settings": {"hidden": 16, "epochs": 4},
        }
        if changes.get("kind") == prober_pb2.HEAD_KIND_LOGISTIC:
            given["settings"] = {}
        return prober_pb2.HeadSpec(**{**given, **changes})


def corpus_at(folder: Path) -> Corpus:
    """Makes the corpus below a folder."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(len(LABELS), DIMS))
    clips, pooled, frames = [], {}, {}
    for row in range(72):
        label, speaker = row % len(LABELS), row % 6
        key = hashlib.sha256(f"clip {row}".encode()).hexdigest()
        clips.append(LabelledClip(key=key, label=LABELS[label], speaker=f"s{speaker}"))
        heard = centres[label] + random.normal(size=(int(random.integers(3, 9)), DIMS))
        frames[key] = heard.astype(np.float32)
        layers = np.stack([random.normal(size=DIMS), np.zeros(DIMS), heard.mean(axis=0)])
        pooled[key] = layers.astype(np.float32)
    store = EmbeddingStore(str(folder / "store"))
    store.write(bundle=BUNDLE, pooling="mean", arrays=pooled)
    store.write(bundle=BUNDLE, pooling="frames", arrays=frames)
    return Corpus(store=str(folder / "store"), sets=str(folder / "sets"), clips=clips)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus_at(tmp_path_factory.mktemp("corpus"))


@asynccontextmanager
async def prober_at(folder: Path, **flags: Any) -> AsyncIterator[Any]:
    """A stub of a prober whose registry lies in `folder`."""
    from services.prober.server import ProberServer
    from services.prober.settings import Settings

    settings = Settings.load(
        {"grpc_socket": folder / "p.sock", "heads": folder / "heads", "metrics_port": 0, "drain_grace_s": 1, **flags}
    )
    server = ProberServer(settings, Metrics())
    address = await server.start()
    try:
        async with channel(address) as connection:
            yield prober_pb2_grpc.ProberStub(connection)  # type: ignore[no-untyped-call]
    finally:
        await server.stop()


@pytest.fixture
async def prober(tmp_path: Path) -> AsyncIterator[Any]:
    """A prober without an embedder."""
    async with prober_at(tmp_path, embedder=f"unix:{tmp_path / 'nobody.sock'}") as stub:
        yield stub
