"""A small store of embeddings with emotions in it, and a prober that serves on a Unix socket."""
# ruff: noqa: ANN401, ARG002, N802 -- gRPC names methods and arguments, and its stubs have no types

import asyncio
import hashlib
from collections.abc import AsyncIterator, MutableSequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servox import audio
from servox.arrays import EmbeddingStore, LabelledClip, write_clip_set
from servox.errors import BadAudio, ServoxError, Unavailable
from servox.rpc import Server, channel
from servox.telemetry import Metrics
from servox.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc, prober_pb2, prober_pb2_grpc
from servox.wire import array_to_proto, failure_to_proto

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
        label, speaker = row % len(LABELS), row // len(LABELS) % 6
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
        {
            "grpc_socket": folder / "p.sock",
            "http_port": 0,
            "heads": folder / "heads",
            "tenants": folder / "tenants",
            "metrics_port": 0,
            "drain_grace_s": 1,
            **flags,
        }
    )
    server = ProberServer(settings, Metrics())
    address = await server.start()
    try:
        async with channel(address) as connection:
            yield prober_pb2_grpc.ProberStub(connection)  # type: ignore[no-untyped-call]
    finally:
        await server.stop()


class ToyEmbedder(embedder_pb2_grpc.EmbedderServicer):
    """Embeds PCM into level and spectrum, at the seam where the embedder would be; answers windows out of order."""

    embeds: Any = None  # what a test puts in the place of `Embed`

    def __init__(self) -> None:
        self.bundle = BUNDLE
        self.requests: MutableSequence[embedder_pb2.EmbedRequest] = []
        self.deaf = False  # takes windows and answers none
        self.failures = 0  # streams that are still to break after they took a window

    async def Describe(self, request: Any, context: Any) -> embedder_pb2.DescribeResponse:
        bundle = common_pb2.Bundle(digest=self.bundle)
        return embedder_pb2.DescribeResponse(bundle=bundle, rate_hz=16_000, dims=DIMS, layers=range(LAYERS))

    async def Embed(self, request: embedder_pb2.EmbedRequest, context: Any) -> embedder_pb2.EmbedResponse:
        if self.embeds:
            answer: embedder_pb2.EmbedResponse = await self.embeds(self, request, context)
            return answer
        return self._embedded(request)

    async def EmbedStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        answers: asyncio.Queue[Any] = asyncio.Queue()
        reading = asyncio.create_task(self._read(request_iterator, answers))
        try:
            while (answer := await answers.get()) is not None:
                if isinstance(answer, Unavailable):
                    raise answer
                yield answer
        finally:
            reading.cancel()

    async def _read(self, requests: Any, answers: "asyncio.Queue[Any]") -> None:
        """Of three windows that come at a time, the last one is answered first."""
        later, number = set[asyncio.Task[None]](), 0

        async def answer(message: embedder_pb2.EmbedStreamRequest, after_s: float) -> None:
            await asyncio.sleep(after_s)
            answers.put_nowait(self._answer(message))

        async for message in requests:
            if self.failures:
                self.failures -= 1
                answers.put_nowait(Unavailable("the toy embedder restarts"))
                return
            if self.deaf:
                continue
            later.add(asyncio.create_task(answer(message, 0.01 * (2 - number % 3))))
            number += 1
        await asyncio.gather(*later)
        answers.put_nowait(None)

    def _answer(self, message: embedder_pb2.EmbedStreamRequest) -> embedder_pb2.EmbedStreamResponse:
        try:
            return embedder_pb2.EmbedStreamResponse(id=message.id, response=self._embedded(message.request))
        except ServoxError as error:
            return embedder_pb2.EmbedStreamResponse(id=message.id, failure=failure_to_proto(error))

    def _embedded(self, request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        self.requests.append(request)
        rate_hz = 16_000
        if request.audio.WhichOneof("source") == "pcm":
            pcm, rate_hz = request.audio.pcm, request.audio.pcm.rate_hz
            short = pcm.format == common_pb2.SAMPLE_FORMAT_S16
            raw = np.frombuffer(pcm.data, dtype="<i2" if short else "<f4")
            samples = (raw / (32768 if short else 1)).astype(np.float32)
        else:
            samples = audio.decode(request.audio.container, rate_hz).samples
        if samples.max() > 0.99:
            raise BadAudio("the toy embedder hears clipping")
        values = np.abs(np.fft.rfft(samples, n=2 * DIMS - 2))[None].astype(np.float32)
        if request.pooling == embedder_pb2.POOLING_FRAMES:
            values = np.concatenate([values, values * 2])
        elif len(request.layers) > 1:
            values = np.concatenate([values * (1 + layer) for layer in request.layers])
        return embedder_pb2.EmbedResponse(
            embedding=array_to_proto(values),
            bundle=common_pb2.Bundle(digest=self.bundle, source="toy"),
            timings=common_pb2.Timings(inference_us=7),
            duration_ms=round(len(samples) * 1000 / rate_hz),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A prober and the toy embedder that it asks."""

    prober: Any
    embedder: ToyEmbedder
    address: str


@pytest.fixture(scope="session")
def toys() -> type[ToyEmbedder]:
    """Makes embedders that are not served yet."""
    return ToyEmbedder


@asynccontextmanager
async def paired(folder: Path, **flags: Any) -> AsyncIterator[Pair]:
    """A prober with a toy embedder, below a folder."""
    toy = ToyEmbedder()
    server = Server(address=f"unix:{folder / 'e.sock'}", services=[], max_message_bytes=1 << 26)
    embedder_pb2_grpc.add_EmbedderServicer_to_server(toy, server.grpc)  # type: ignore[no-untyped-call]
    address = await server.start()
    try:
        async with prober_at(folder, embedder=address, **flags) as stub:
            yield Pair(prober=stub, embedder=toy, address=f"unix:{folder / 'p.sock'}")
    finally:
        await server.stop()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """A prober with an embedder."""
    async with paired(tmp_path, max_windows=50, windows_in_flight=4) as each:
        yield each


@pytest.fixture
async def prober(tmp_path: Path) -> AsyncIterator[Any]:
    """A prober without an embedder."""
    async with prober_at(tmp_path, embedder=f"unix:{tmp_path / 'nobody.sock'}", embed_timeout_s=0.5) as stub:
        yield stub
