"""The prober's side of the embedder: audio out, embeddings in, errors as the embedder meant them."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from servox.errors import (
    BundleError,
    DeadlineExpired,
    Forbidden,
    OverQuota,
    ServoxError,
    ShortAudio,
    SilentAudio,
    Unauthenticated,
    Unavailable,
)
from servox.keys import own_key
from servox.resending import Outcome, embed_all
from servox.rpc import channel, client_tls, translated
from servox.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc
from servox.wire import array_from_proto

from .answers import Abstention
from .card import Card
from .heads import Floats
from .patience import left_s
from .settings import Settings
from .voice import Heard
from .windows import Cut

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        tls = client_tls(settings.embedder_ca, settings.embedder_certificate, settings.embedder_private_key)
        key = own_key(settings.embedder_api_key) if settings.embedder_api_key else None
        self._channel = channel(settings.embedder, max_message_bytes=settings.max_message_bytes, tls=tls, key=key)
        self._stub: Any = embedder_pb2_grpc.EmbedderStub(self._channel)  # type: ignore[no-untyped-call]
        self._peer = f"embedder at {settings.embedder}"
        self._timeout_s = settings.embed_timeout_s
        self._max_message_bytes = settings.max_message_bytes

    async def describe(self) -> embedder_pb2.DescribeResponse:
        """What it runs and what it accepts.

        Raises:
            Unavailable: it does not answer.
        """
        with self._asking():
            answer: embedder_pb2.DescribeResponse = await self._stub.Describe(
                embedder_pb2.DescribeRequest(), timeout=left_s(self._timeout_s)
            )
        return answer

    async def answer(self, request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        """One clip, as the embedder itself answers it.

        Raises:
            ServoxError: whatever the embedder says of the request.
            DeadlineExpired: the caller waits no longer.
        """
        with self._asking():
            reply: embedder_pb2.EmbedResponse = await self._stub.Embed(request, timeout=left_s(self._timeout_s))
        return reply

    async def embed(self, audio: common_pb2.Audio, card: Card) -> Embedded:
        """One clip, as the head of `card` reads it.

        Raises:
            ServoxError: whatever the embedder says of the audio; HeadMismatch is left to the head.
        """
        with self._asking():
            reply = await self._stub.Embed(_request(audio, card), timeout=left_s(self._timeout_s))
        return _embedded(reply, card)

    async def windows(
        self, heard: AsyncIterator[Heard], rate_hz: int, card: Card, *, in_flight: int, streams: int, patience_ms: int
    ) -> AsyncGenerator[tuple[Heard, Embedded | None]]:
        """Windows in their order, embedded as they come; those that abstain, or turn out to, have no embedding.

        What a full or restarting embedder does not answer is sent again; see `servox.resending`.

        Args:
            heard: drawn from only as answers are taken: what nobody reads is not asked for.
            rate_hz: of the samples.
            card: of the head that is to read the embeddings.
            in_flight: most windows drawn and not yielded.
            streams: over how many streams, and so replicas, they are spread.
            patience_ms: what comes to the embedder up to so much later may go before them.

        Raises:
            ServoxError: what `heard` raised, after the windows before it; what the embedder says of a window.
            Unavailable: the embedder stays away, or is silent for longer than the longest wait.
        """
        line = _Line(heard, rate_hz, card, in_flight, patience_ms)
        sent = embed_all(
            self._stub,
            line.requests(),
            in_flight=in_flight,
            max_message_bytes=self._max_message_bytes,
            streams=streams,
        )
        working = asyncio.create_task(self._settle(line, sent))
        try:
            while (turn := await self._soonest(line.next(), working, None)) is not None:
                outcome = await self._soonest(turn.answer, working, self._timeout_s)
                with self._let_in():
                    turned = _turned(turn.heard, outcome, card)
                yield turned
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _soonest(self, coming: "asyncio.Future[T]", working: "asyncio.Task[None]", timeout_s: float | None) -> T:
        """What is coming, unless the work that brings it has failed, or takes too long."""
        try:
            both: set[asyncio.Future[Any]] = {coming, working}
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done() and working.done():
                working.result()
                return await coming  # all is answered: it is there in a moment
            if not coming.done():
                raise Unavailable(f"{self._peer} did not answer within {timeout_s:g} s: see that it runs and is ready")
            return coming.result()
        finally:
            coming.cancel()

    async def _settle(self, line: "_Line", sent: AsyncGenerator[tuple[str, Outcome]]) -> None:
        with self._let_in():
            await line.settle(sent)

    @contextmanager
    def _let_in(self) -> Iterator[None]:
        """What the embedder says of our own key is not the caller's to mend, and must not look like it."""
        try:
            yield
        except (Unauthenticated, Forbidden, OverQuota) as error:
            log.error("the embedder does not let this prober in", extra={"error": str(error)})  # noqa: TRY400 -- it says all
            raise Unavailable(
                f"{self._peer} does not let this prober in: whoever runs it sees to embedder_api_key or its certificate"
            ) from None

    @contextmanager
    def _asking(self) -> Iterator[None]:
        theirs = left_s(self._timeout_s) < self._timeout_s  # said now: gRPC's clock may be done before ours
        try:
            with self._let_in(), translated(self._peer):
                yield
        except DeadlineExpired:
            if theirs:
                raise DeadlineExpired(f"{self._peer} had no answer before your deadline: allow more time") from None
            # It is our patience that ended, not the caller's.
            raise Unavailable(
                f"{self._peer} did not answer within {self._timeout_s:g} s: see that it runs and is ready"
            ) from None

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """A window whose turn comes, and what will be known of it then; None where nobody is asked."""

    heard: Heard
    answer: "asyncio.Future[Outcome | None]"


class _Line:
    """Windows on their way: at most so many at a time, answered in order."""

    def __init__(self, heard: AsyncIterator[Heard], rate_hz: int, card: Card, in_flight: int, patience_ms: int) -> None:
        self._heard, self._rate_hz, self._card = heard, rate_hz, card
        self._patience_ms = patience_ms
        self._turns: asyncio.Queue[_Turn | Exception | None] = asyncio.Queue(in_flight)
        self._asked: dict[str, asyncio.Future[Outcome | None]] = {}

    async def requests(self) -> AsyncIterator[tuple[str, embedder_pb2.EmbedRequest]]:
        """Requests for the windows that need one. An error takes its turn like a window, after those before it."""
        loop = asyncio.get_running_loop()
        try:
            async for each in self._heard:
                turn = _Turn(heard=each, answer=loop.create_future())
                await self._turns.put(turn)
                if each.abstention:
                    turn.answer.set_result(None)
                    continue
                name = str(each.cut.index)
                self._asked[name] = turn.answer
                request = _request(pcm_of(each.cut, self._rate_hz), self._card)
                request.patience_ms = self._patience_ms
                yield name, request
        except Exception as error:  # noqa: BLE001 -- raised again where the answers are read
            await self._turns.put(error)
        else:
            await self._turns.put(None)

    async def settle(self, answers: AsyncGenerator[tuple[str, Outcome]]) -> None:
        """Hands answers to those who wait for them."""
        async with aclosing(answers):
            async for name, outcome in answers:
                self._asked.pop(name).set_result(outcome)

    def next(self) -> "asyncio.Task[_Turn | None]":
        """Whose turn it is; None at the end."""
        return asyncio.create_task(self._next())

    async def _next(self) -> _Turn | None:
        turn = await self._turns.get()
        if isinstance(turn, Exception):
            raise turn
        return turn


def _turned(heard: Heard, outcome: Outcome | None, card: Card) -> tuple[Heard, Embedded | None]:
    if isinstance(outcome, SilentAudio | ShortAudio):
        return replace(heard, abstention=abstention_of(outcome)), None
    if isinstance(outcome, ServoxError):
        raise outcome
    return heard, None if outcome is None else _embedded(outcome, card)


def abstention_of(error: SilentAudio | ShortAudio) -> Abstention:
    """Why audio that the embedder hears nothing in has no answer."""
    return "silence" if isinstance(error, SilentAudio) else "too_short"


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
