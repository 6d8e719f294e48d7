# ruff: noqa: ANN401, ARG002, N802 -- servicers take what gRPC gives
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from servox import resending
from servox.errors import Unavailable
from servox.retries import service_config
from servox.rpc import Server, channel, translated
from servox.v1 import embedder_pb2, embedder_pb2_grpc


class Breaking(embedder_pb2_grpc.EmbedderServicer):
    """Breaks so many calls, each after it took a request, and answers the others."""

    def __init__(self, breaks: int) -> None:
        self.breaks = breaks
        self.calls = 0

    def _called(self) -> None:
        self.calls += 1
        if self.breaks:
            self.breaks -= 1
            raise Unavailable("restarts")

    async def Embed(self, request: Any, context: Any) -> embedder_pb2.EmbedResponse:
        self._called()
        return embedder_pb2.EmbedResponse(duration_ms=7)

    async def EmbedStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        number = 0
        async for request in request_iterator:
            if number == 0:
                self._called()
            number += 1
            yield embedder_pb2.EmbedStreamResponse(id=request.id, response=embedder_pb2.EmbedResponse(duration_ms=7))


@asynccontextmanager
async def serving(folder: Path, embedder: Breaking) -> AsyncIterator[Any]:
    server = Server(address=f"unix:{folder / 'e.sock'}", services=[], max_message_bytes=1 << 20)
    embedder_pb2_grpc.add_EmbedderServicer_to_server(embedder, server.grpc)  # type: ignore[no-untyped-call]
    address = await server.start()
    try:
        async with channel(address) as connection:
            yield embedder_pb2_grpc.EmbedderStub(connection)  # type: ignore[no-untyped-call]
    finally:
        await server.stop()


def test_every_call_is_tried_again_but_those_whose_requests_are_a_stream() -> None:
    every, streamed = json.loads(service_config())["methodConfig"]
    assert every["name"] == [{}]
    assert every["retryPolicy"]["maxAttempts"] > 1
    assert streamed == {
        "name": [
            {"service": "servox.v1.Embedder", "method": "EmbedStream"},
            {"service": "servox.v1.Prober", "method": "RecognizeStream"},
        ]
    }


async def test_grpc_tries_a_single_request_again(tmp_path: Path) -> None:
    embedder = Breaking(2)
    async with serving(tmp_path, embedder) as stub:
        answer = await stub.Embed(embedder_pb2.EmbedRequest())
    assert answer.duration_ms == 7
    assert embedder.calls == 3


async def test_grpc_leaves_a_broken_stream_to_who_knows_what_is_unanswered(tmp_path: Path) -> None:
    embedder = Breaking(2)
    async with serving(tmp_path, embedder) as stub:
        with pytest.raises(Unavailable, match="restarts"), translated("embedder"):
            async for _ in stub.EmbedStream(iter([embedder_pb2.EmbedStreamRequest(id="a")])):
                pass
    assert embedder.calls == 1


async def test_streams_that_break_over_and_over_neither_end_the_process_nor_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gRPC's own retries a round in some forty ended this very process, or waited for ever."""
    monkeypatch.setattr(resending, "FIRST_PAUSE_S", 0.001)
    embedder = Breaking(0)
    names = [str(number) for number in range(6)]
    async with serving(tmp_path, embedder) as stub:
        for _ in range(100):
            embedder.breaks = 2
            clips = [(name, embedder_pb2.EmbedRequest()) for name in names]
            answers = [name async for name, _ in resending.embed_all(stub, clips, in_flight=4, streams=1)]
            assert answers == names
    assert embedder.calls == 300
