"""gRPC adapters over the dataplane: messages in, messages out, one count an answer."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc

from servox.errors import ServoxError
from servox.tracing import span
from servox.v1 import embedder_pb2, embedder_pb2_grpc
from servox.wire import failure_to_proto

from .dataplane import Dataplane
from .messages import bundle_to_proto, request_from_proto, response_to_proto
from .metrics import EmbedderMetrics
from .streams import Stream

Context = grpc.aio.ServicerContext[Any, Any]


class EmbedderServicer(embedder_pb2_grpc.EmbedderServicer):
    """The `Embedder` service.

    Args:
        dataplane: what does the work.
        description: the answer to Describe.
        stream_in_flight: most unanswered items of one stream.
    """

    def __init__(
        self,
        dataplane: Dataplane,
        *,
        description: embedder_pb2.DescribeResponse,
        stream_in_flight: int,
        metrics: EmbedderMetrics,
    ) -> None:
        self._dataplane = dataplane
        self._description = description
        self._bundle = bundle_to_proto(dataplane.bundle)
        self._stream_in_flight = stream_in_flight
        self._metrics = metrics
        self._streams: set[Stream] = set()
        self._draining = False

    def drain(self) -> None:
        """Lets streams, open and to come, finish what was admitted and take no more."""
        self._draining = True
        for stream in self._streams:
            stream.drain()

    async def Describe(  # noqa: N802
        self,
        request: embedder_pb2.DescribeRequest,  # noqa: ARG002 -- gRPC's signature
        context: Context,  # noqa: ARG002
    ) -> embedder_pb2.DescribeResponse:
        """What this server runs."""
        self._metrics.count("Describe", None)
        return self._description

    async def Embed(  # noqa: N802
        self, request: embedder_pb2.EmbedRequest, context: Context
    ) -> embedder_pb2.EmbedResponse:
        """One clip."""
        try:
            asked = request_from_proto(request)
            embedded = await self._dataplane.embed(asked, deadline_s=deadline_of(context))
        except BaseException as error:
            self._metrics.count("Embed", error)
            raise
        self._metrics.count("Embed", None)
        return response_to_proto(embedded, self._bundle)

    async def EmbedStream(  # noqa: N802
        self, request_iterator: AsyncIterator[embedder_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[embedder_pb2.EmbedStreamResponse]:
        """Many clips."""
        deadline_s = deadline_of(context)
        stream = Stream(
            lambda request, admitted: self._answer_item(request, admitted, deadline_s), in_flight=self._stream_in_flight
        )
        self._streams.add(stream)
        self._metrics.open_streams.set(len(self._streams))
        # A caller that leaves ends the call, not this generator: gRPC drops it without closing it.
        cast("Any", context).add_done_callback(lambda _: self._close(stream))  # its types want a class, not a function
        if self._draining:
            stream.drain()
        async for answer in stream.answers(request_iterator):
            yield answer

    def _close(self, stream: Stream) -> None:
        stream.abandon()
        self._streams.discard(stream)
        self._metrics.open_streams.set(len(self._streams))

    async def _answer_item(
        self, request: embedder_pb2.EmbedStreamRequest, admitted: asyncio.Event, deadline_s: float
    ) -> embedder_pb2.EmbedStreamResponse:
        try:
            asked = request_from_proto(request.request)
            with span("clip"):
                seat = await self._dataplane.seat(asked)
                admitted.set()
                embedded = await self._dataplane.embed_seated(asked, seat, deadline_s=deadline_s)
        except ServoxError as error:
            self._metrics.count("EmbedStream", error)
            return embedder_pb2.EmbedStreamResponse(id=request.id, failure=failure_to_proto(error))
        except BaseException as error:
            self._metrics.count("EmbedStream", error)
            raise
        self._metrics.count("EmbedStream", None)
        return embedder_pb2.EmbedStreamResponse(id=request.id, response=response_to_proto(embedded, self._bundle))


def deadline_of(context: Context) -> float:
    """The caller's deadline on the monotonic clock; infinite where there is none."""
    remaining_s = cast("float | None", context.time_remaining())  # its types know no call without a deadline
    return math.inf if remaining_s is None else time.monotonic() + remaining_s
