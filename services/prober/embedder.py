"""The prober's side of the embedder: audio out, embeddings in, errors as the embedder meant them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from servox.errors import BundleError, DeadlineExpired, Unavailable
from servox.rpc import Tls, channel, translated
from servox.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc
from servox.wire import array_from_proto, failure_from_proto

from .card import Card
from .heads import Floats
from .settings import Settings
from .windows import Cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What the embedder made of one clip.

    Attributes:
        values: what a head reads: [1, d], or [frames, d] for a frame head.
        bundle: what made it.
        timings: of the embedder.
        duration_ms: of the audio.
    """

    values: Floats
    bundle: common_pb2.Bundle
    timings: common_pb2.Timings
    duration_ms: int


class Embedder:
    """A connection, opened by gRPC on first use.

    Args:
        settings: address, certificates, limits.
    """

    def __init__(self, settings: Settings) -> None:
        tls = Tls(ca=settings.embedder_ca) if settings.embedder_ca else None
        self._channel = channel(settings.embedder, max_message_bytes=settings.max_message_bytes, tls=tls)
        self._stub: Any = embedder_pb2_grpc.EmbedderStub(self._channel)  # type: ignore[no-untyped-call]
        self._peer = f"embedder at {settings.embedder}"
        self._timeout_s = settings.embed_timeout_s
        self._in_flight = settings.windows_in_flight

    async def describe(self) -> embedder_pb2.DescribeResponse:
        """What it runs and what it accepts.

        Raises:
            Unavailable: it does not answer.
        """
        with self._asking():
            answer: embedder_pb2.DescribeResponse = await self._stub.Describe(
                embedder_pb2.DescribeRequest(), timeout=self._timeout_s
            )
        return answer

    async def rate_hz(self) -> int:
        """The rate that its backbone hears.

        Raises:
            Unavailable: it does not answer.
        """
        return int((await self.describe()).rate_hz)

    async def answer(self, request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        """One clip, as the embedder itself answers it.

        Raises:
            ServoxError: whatever the embedder says of the request.
        """
        with self._asking():
            reply: embedder_pb2.EmbedResponse = await self._stub.Embed(request, timeout=self._timeout_s)
        return reply

    async def embed(self, audio: common_pb2.Audio, card: Card) -> Embedded:
        """One clip, as the head of `card` reads it.

        Raises:
            ServoxError: whatever the embedder says of the audio; HeadMismatch is left to the head.
        """
        with self._asking():
            reply = await self._stub.Embed(_request(audio, card), timeout=self._timeout_s)
        return _embedded(reply, card)

    async def windows(self, cuts: AsyncIterator[Cut], rate_hz: int, card: Card) -> AsyncGenerator[tuple[Cut, Embedded]]:
        """Windows in their order, embedded as they come; some are under way at a time, none is waited for needlessly.

        Raises:
            ServoxError: what `cuts` raised, or what the embedder says of a window.
        """
        sending = _Sending(cuts, rate_hz, card, self._in_flight)
        ready: dict[int, Embedded] = {}
        with translated(self._peer):
            call = self._stub.EmbedStream(sending.requests())
            try:
                async for reply in call:
                    if reply.WhichOneof("result") == "failure":
                        raise failure_from_proto(reply.failure)
                    ready[int(reply.id)] = _embedded(reply.response, card)
                    for cut in sending.answered(ready):
                        yield cut, ready.pop(cut.index)
            finally:
                call.cancel()
        if sending.error is not None:
            raise sending.error

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            with translated(self._peer):
                yield
        except DeadlineExpired:
            # It is our patience that ended, not the caller's.
            raise Unavailable(
                f"{self._peer} did not answer within {self._timeout_s:g} s: see that it runs and is ready"
            ) from None

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()


class _Sending:
    """Windows on their way: at most so many at a time, answered in order."""

    def __init__(self, cuts: AsyncIterator[Cut], rate_hz: int, card: Card, in_flight: int) -> None:
        self._cuts, self._rate_hz, self._card = cuts, rate_hz, card
        self._slots = asyncio.Semaphore(in_flight)
        self._waiting: list[Cut] = []
        self.error: Exception | None = None

    async def requests(self) -> AsyncIterator[embedder_pb2.EmbedStreamRequest]:
        """One request a window. gRPC would swallow an error that is raised here, so it is kept for the reader."""
        try:
            async for cut in self._cuts:
                await self._slots.acquire()
                self._waiting.append(cut)
                request = _request(pcm_of(cut, self._rate_hz), self._card)
                yield embedder_pb2.EmbedStreamRequest(id=str(cut.index), request=request)
        except Exception as error:  # noqa: BLE001 -- raised again where the answers are read
            self.error = error

    def answered(self, ready: dict[int, Embedded]) -> Iterable[Cut]:
        """Windows whose turn it is."""
        while self._waiting and self._waiting[0].index in ready:
            self._slots.release()
            yield self._waiting.pop(0)


def pcm_of(cut: Cut, rate_hz: int) -> common_pb2.Audio:
    """A window as a message."""
    data = np.ascontiguousarray(cut.samples, dtype="<f4").tobytes()
    pcm = common_pb2.Pcm(data=data, rate_hz=rate_hz, channels=1, format=common_pb2.SAMPLE_FORMAT_F32)
    return common_pb2.Audio(pcm=pcm)


def _request(audio: common_pb2.Audio, card: Card) -> embedder_pb2.EmbedRequest:
    if card.kind == "frame-mlp":
        return embedder_pb2.EmbedRequest(audio=audio, pooling=embedder_pb2.POOLING_FRAMES)
    return embedder_pb2.EmbedRequest(audio=audio, pooling=embedder_pb2.POOLING_MEAN, layers=card.layers)


def _embedded(reply: embedder_pb2.EmbedResponse, card: Card) -> Embedded:
    values = array_from_proto(reply.embedding, name="embedding")
    if values.ndim != 2 or (card.kind != "frame-mlp" and len(values) != len(card.layers)):
        raise BundleError(
            f"the embedder answered shape {list(values.shape)} for {len(card.layers)} layers; check its version"
        )
    if card.kind != "frame-mlp":
        values = values.reshape(1, -1)  # several layers are read one after the other
    return Embedded(
        values=values.astype(np.float32, copy=False),
        bundle=reply.bundle,
        timings=reply.timings,
        duration_ms=reply.duration_ms,
    )
