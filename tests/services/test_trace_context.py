"""The prober and the evaluator hand the trace they are in on to the embedder, each by its own way of asking it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.evaluator.peers import Peers
from services.evaluator.settings import Settings as EvaluatorSettings
from services.prober.embedder import Embedder
from services.prober.settings import Settings as ProberSettings
from servox import tracing
from servox.client import Client, files
from servox.rpc import Server
from servox.v1 import embedder_pb2, embedder_pb2_grpc
from servox.wire import array_to_proto


class Toy(embedder_pb2_grpc.EmbedderServicer):
    """Answers without embedding."""

    async def Describe(self, request: Any, context: Any) -> embedder_pb2.DescribeResponse:  # noqa: ANN401, ARG002, N802
        return embedder_pb2.DescribeResponse(rate_hz=16_000)

    async def EmbedStream(self, request_iterator: Any, context: Any) -> Any:  # noqa: ANN401, ARG002, N802
        async for request in request_iterator:
            response = embedder_pb2.EmbedResponse(embedding=array_to_proto(np.zeros((1, 4), np.float32)))
            yield embedder_pb2.EmbedStreamResponse(id=request.id, response=response)


async def _prober(address: str, folder: Path) -> None:
    embedder = Embedder(ProberSettings.load({"embedder": address, "heads": folder}))
    with tracing.span("application"):
        await embedder.describe()
    await embedder.close()


async def _evaluator(address: str, folder: Path) -> None:
    peers = Peers(EvaluatorSettings.load({"embedder": address, "store": str(folder)}))
    with tracing.span("application"):
        await peers.describe()
    await peers.close()


async def _client(address: str, folder: Path) -> None:
    (folder / "clip").write_bytes(b"audio")
    async with Client(embedder=address) as client:
        with tracing.span("application"):
            assert [each.id async for each in client.embed(files(folder / "clip"))] == [str(folder / "clip")]


@pytest.mark.parametrize("ask", [_prober, _evaluator, _client])
async def test_the_embedders_spans_are_below_the_callers(
    spans: InMemorySpanExporter, tmp_path: Path, ask: Callable[[str, Path], Awaitable[None]]
) -> None:
    server = Server(address=f"unix:{tmp_path / 'e.sock'}", services=[], max_message_bytes=1 << 20)
    embedder_pb2_grpc.add_EmbedderServicer_to_server(Toy(), server.grpc)  # type: ignore[no-untyped-call]
    await ask(await server.start(), tmp_path)
    calls = 2 if ask is _client else 1  # a client asks for the limits before it sends
    async with asyncio.timeout(10):
        while len(spans.get_finished_spans()) < 1 + 2 * calls:  # noqa: ASYNC110 -- an exporter has no event
            await asyncio.sleep(0.005)
    await server.stop()
    found = spans.get_finished_spans()
    by_id = {each.context.span_id: each for each in found if each.context}
    (application,) = (each for each in found if each.name == "application")
    for each in found:
        if each.kind is SpanKind.CLIENT:
            assert _parent(by_id, each) is application
        if each.kind is SpanKind.SERVER:
            assert _parent(by_id, each).kind is SpanKind.CLIENT
    assert str(tmp_path) not in "".join(each.to_json() for each in found), "a clip is called by its path"


def _parent(by_id: dict[int, ReadableSpan], span: ReadableSpan) -> ReadableSpan:
    assert span.parent is not None
    return by_id[span.parent.span_id]
