"""A prober with HTTP on a Unix socket, the toy embedder that it asks, and callers of both faces."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import soundfile

from services.prober.card import Card
from services.prober.heads import Floats, Head, shapes
from services.prober.registry import Registry
from servox.rpc import Server, channel
from servox.telemetry import Metrics
from servox.v1 import embedder_pb2_grpc, prober_pb2_grpc

RATE = 16_000
BUNDLE, DIMS = "ab" * 32, 24  # of the toy embedder


def noise(seconds: float, *, rate_hz: int = RATE) -> Floats:
    random = np.random.default_rng(11)
    samples = random.normal(size=int(seconds * rate_hz)) * np.linspace(0.01, 0.1, int(seconds * rate_hz))
    return np.clip(samples, -0.9, 0.9).astype(np.float32)


def wav(samples: Floats, *, rate_hz: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="WAV", subtype="FLOAT")
    return file.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """Both faces of one prober.

    Attributes:
        http: a client of its HTTP.
        grpc: a stub of its gRPC.
        socket: of its HTTP.
        server: itself.
        metrics: what it counts in.
        embedder: what it asks.
        waiting: set by a test's own embedder when it is asked.
        left: set by it when it is done, or left alone.
    """

    http: httpx.AsyncClient
    grpc: Any
    socket: Path
    server: Any
    metrics: Metrics
    embedder: Any
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def slow(self, answer: Any) -> None:
        """From here on the embedder answers single clips so."""
        self.embedder.embeds = answer

    async def recognize(self, body: Any, **query: Any) -> httpx.Response:
        """A recognition with a head named `toy`, unless told otherwise."""
        headers = {"content-type": "application/octet-stream", **query.pop("headers", {})}
        return await self.http.post(
            "/v1/recognize", content=body, params={"head": "toy", **query}, headers=headers, timeout=30
        )

    @staticmethod
    def samples(seconds: float, *, rate_hz: int = RATE) -> Floats:
        return noise(seconds, rate_hz=rate_hz)

    @staticmethod
    def wav(seconds: float, *, rate_hz: int = RATE) -> bytes:
        return wav(noise(seconds, rate_hz=rate_hz), rate_hz=rate_hz)

    @staticmethod
    def clipping() -> bytes:
        """What the toy embedder refuses."""
        return wav(np.ones(8000, dtype=np.float32))

    @staticmethod
    def silence() -> bytes:
        return wav(np.zeros(16_000, dtype=np.float32))

    async def raw(self, data: bytes, *, wait_s: float = 20.0) -> bytes:
        """Sends bytes, and gives all that comes back until the server closes."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        writer.write(data)
        try:
            async with asyncio.timeout(wait_s):
                return await reader.read()
        finally:
            writer.close()

    async def counted(self, name: str, **labels: str) -> None:
        """Waits until something was counted once."""
        async with asyncio.timeout(60):
            while not self.count(name, **labels):  # noqa: ASYNC110 -- counters tell nobody
                await asyncio.sleep(0.01)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def client_of(socket: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://prober", timeout=30)


@asynccontextmanager
async def face_at(folder: Path, toy: Any = None, **flags: Any) -> AsyncIterator[Face]:
    """A prober in `folder`, with an embedder if there is a toy to be one."""
    from services.prober.server import ProberServer
    from services.prober.settings import Settings

    embedder = Server(address=f"unix:{folder / 'e.sock'}", services=[], max_message_bytes=1 << 26)
    if toy:
        embedder_pb2_grpc.add_EmbedderServicer_to_server(toy, embedder.grpc)  # type: ignore[no-untyped-call]
        await embedder.start()
    socket = folder / "h.sock"
    given = {
        "grpc_socket": folder / "p.sock",
        "http_socket": socket,
        "http_port": 0,
        "metrics_port": 0,
        "heads": folder / "heads",
        "tenants": folder / "tenants",
        "embedder": f"unix:{folder / 'e.sock'}",
        "drain_grace_s": 2,
        "max_windows": 50,
        **flags,
    }
    metrics = Metrics()
    server = ProberServer(Settings.load(given), metrics)
    try:
        address = await server.start()
        async with channel(address) as connection, client_of(socket) as http:
            stub = prober_pb2_grpc.ProberStub(connection)  # type: ignore[no-untyped-call]
            yield Face(http=http, grpc=stub, socket=socket, server=server, metrics=metrics, embedder=toy)
    finally:
        await server.stop()
        if toy:
            await embedder.stop()


def head(name: str = "toy", **changes: Any) -> Head:
    """A head that reads the toy embedder's clips."""
    random = np.random.default_rng(3)
    facts: dict[str, Any] = {
        "name": name,
        "version": "0123456789abcdef",
        "kind": "logistic",
        "classes": ("anger", "happiness", "sadness"),
        "class_counts": (5, 6, 13),
        "bundle": BUNDLE,
        "layer": 2,
        "dims": DIMS,
        "temperature": 0.8,
        "seed": 0,
        "settings": {},
        "out_of_fold": None,
        "clip_set": "cd" * 32,
        "clips": 24,
        "speakers": 3,
        "servox": "0.1.0",
        "store": "/somewhere",
        "created": "2026-01-01T00:00:00+00:00",
    }
    card = Card(**{**facts, **changes})
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes(card).items()}
    weights["std"] = np.abs(weights["std"]) + np.float32(5)
    return Head(card=card, weights=weights)


def with_heads(folder: Path) -> Path:
    """The folder, with a registry that holds `toy`, and `other`, which reads another bundle."""
    registry = Registry(folder / "heads")
    registry.save(head())
    registry.save(head("other", bundle="cd" * 32))
    return folder


Opened = Callable[..., AbstractAsyncContextManager[Face]]


@pytest.fixture
def opened(tmp_path: Path, toys: Any) -> Opened:
    """Makes a prober with heads and an embedder, with other settings than `face` has."""
    return partial(face_at, with_heads(tmp_path), toys())


@pytest.fixture
def alone(tmp_path: Path) -> Opened:
    """Makes a prober with heads and without an embedder."""
    return partial(face_at, with_heads(tmp_path), None)


@pytest.fixture
async def face(opened: Opened) -> AsyncIterator[Face]:
    """A prober with heads and an embedder."""
    async with opened() as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, toys: Any) -> AsyncIterator[Face]:
    """One for all tests of a module, which leave it as it was and run in the module's loop."""
    async with face_at(with_heads(tmp_path_factory.mktemp("shared")), toys()) as found:
        yield found
