"""Many clips through `EmbedStream`, a bounded number of them in flight."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc

from servox.errors import ServoxError, Unavailable
from servox.rpc import translated
from servox.v1 import embedder_pb2
from servox.wire import failure_from_proto

Request = tuple[str, embedder_pb2.EmbedRequest]
Outcome = embedder_pb2.EmbedResponse | ServoxError


async def embed_all(
    stub: Any,  # noqa: ANN401 -- generated stubs have no types
    requests: Iterable[Request],
    *,
    in_flight: int = 16,
) -> AsyncIterator[tuple[str, Outcome]]:
    """Each id with its embedding, or with the error that this clip alone met, as they finish.

    Args:
        stub: an `EmbedderStub`.
        requests: unique ids and their requests; drawn from as answers come back, so it may read files lazily.
        in_flight: how many are sent and not answered at a time.

    Raises:
        ServoxError: the stream itself failed.
    """
    slots, unanswered = asyncio.Semaphore(in_flight), set[str]()
    call = stub.EmbedStream(_outgoing(requests, slots, unanswered), wait_for_ready=True)
    try:
        with translated("embedder"):
            while (message := await call.read()) is not grpc.aio.EOF:
                unanswered.discard(message.id)
                slots.release()
                failed = message.WhichOneof("result") == "failure"
                yield message.id, failure_from_proto(message.failure) if failed else message.response
        if unanswered:
            raise Unavailable(f"the embedder ended the stream with {len(unanswered)} clips unanswered; send them again")
    finally:
        call.cancel()


async def _outgoing(
    requests: Iterable[Request], slots: asyncio.Semaphore, unanswered: set[str]
) -> AsyncIterator[embedder_pb2.EmbedStreamRequest]:
    for name, request in requests:
        await slots.acquire()
        unanswered.add(name)
        yield embedder_pb2.EmbedStreamRequest(id=name, request=request)
