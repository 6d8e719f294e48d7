"""Many clips through `EmbedStream`: a bounded number in flight, and what went unanswered is sent again.

A server that is full or stopping answers what it admitted and pushes back the rest; embedding is a pure function of
the audio, so sending a clip twice is harmless. A stream that breaks is opened again, with growing pauses, until it has
broken too often without a single answer in between.

A channel balances calls, not messages: one stream stays with one replica. So the clips go through several streams,
each taking the next clip when it has room, and each ends after so many clips and is opened anew: a replica that is
slow gets fewer clips, and one that is added later gets its share.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass, replace
from typing import Any

import grpc

from servox.errors import BadInput, Overloaded, ServoxError, TooLarge, Unavailable
from servox.rpc import translated
from servox.v1 import embedder_pb2
from servox.wire import failure_from_proto

Request = tuple[str, embedder_pb2.EmbedRequest]
Outcome = embedder_pb2.EmbedResponse | ServoxError

MARGIN_BYTES = 64  # of a message around its parts
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
STREAMS = 4
CLIPS_PER_STREAM = 256


async def embed_all(
    stub: Any,  # noqa: ANN401 -- generated stubs have no types
    requests: Iterable[Request] | AsyncIterable[Request],
    *,
    in_flight: int = 32,
    attempts: int = 8,
    max_message_bytes: int = 64 << 20,
    streams: int = STREAMS,
) -> AsyncGenerator[tuple[str, Outcome], None]:
    """Each id with its embedding, or with the error that this clip alone met, as they finish.

    Args:
        stub: an `EmbedderStub`.
        requests: unique ids and their requests; drawn from as answers come back, so it may read files lazily.
        in_flight: how many are sent and not answered at a time.
        attempts: how often a clip is sent, and how often in a row a stream may break without an answer.
        max_message_bytes: what the embedder takes; a larger clip would end the stream, so it fails here, alone.
        streams: over how many streams, and so replicas, they are spread; `in_flight` is of all together.

    Raises:
        BadInput: an id that is unanswered comes again.
        Unavailable: the embedder stays away.
        ServoxError: a stream itself was refused.
    """
    source = _Source(requests)
    count = max(1, min(streams, in_flight))
    shares = [in_flight // count + (number < in_flight % count) for number in range(count)]
    answers: asyncio.Queue[tuple[str, Outcome]] = asyncio.Queue(maxsize=1)

    async def run(share: int) -> None:
        one = _embed_stream(stub, source, in_flight=share, attempts=attempts, max_message_bytes=max_message_bytes)
        async with contextlib.aclosing(one) as found:
            async for answer in found:
                source.answered(answer[0])
                await answers.put(answer)

    running = {asyncio.create_task(run(share)) for share in shares}
    try:
        async for answer in _merged(answers, running):
            yield answer
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _merged(
    answers: asyncio.Queue[tuple[str, Outcome]], running: set[asyncio.Task[None]]
) -> AsyncIterator[tuple[str, Outcome]]:
    """What is put into `answers` until every task has ended, or one has failed, which is raised last."""
    ended: set[asyncio.Task[Any]] = set()
    while ended != running and not any(task.exception() for task in ended):
        coming: asyncio.Task[Any] = asyncio.create_task(answers.get())
        try:
            done, _ = await asyncio.wait({coming, *(running - ended)}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not coming.done():
                coming.cancel()
        if coming in done:
            yield coming.result()
        ended |= done - {coming}
    while not answers.empty():
        yield answers.get_nowait()
    for task in ended:
        task.result()


class _Source:
    """Requests that several streams draw from, one at a time."""

    def __init__(self, requests: Iterable[Request] | AsyncIterable[Request]) -> None:
        self._requests = _each(requests)
        self._turn = asyncio.Lock()
        self._open: set[str] = set()

    def __aiter__(self) -> "_Source":
        return self

    async def __anext__(self) -> Request:
        async with self._turn:
            name, request = await anext(self._requests)
            if name in self._open:
                raise BadInput(f"id {name!r} comes twice; name each clip once")
            self._open.add(name)
            return name, request

    def answered(self, name: str) -> None:
        """The name may come again."""
        self._open.discard(name)


async def _embed_stream(
    stub: Any,  # noqa: ANN401 -- generated stubs have no types
    requests: AsyncIterable[Request],
    *,
    in_flight: int,
    attempts: int,
    max_message_bytes: int,
) -> AsyncGenerator[tuple[str, Outcome], None]:
    """One stream after another, as `embed_all`."""
    sending = _Sending(requests, in_flight=in_flight, attempts=attempts, limit_bytes=max_message_bytes)
    feeding = asyncio.create_task(sending.feed())
    broken, lost = 0, False
    try:
        await sending.begun.wait()  # a stream that nothing is sent on would only be opened and closed
        while sending.unfinished:
            call = stub.EmbedStream(sending.outgoing())
            try:
                with translated("embedder"):
                    while (message := await call.read()) is not grpc.aio.EOF:
                        for answer in sending.settle(message):
                            broken = 0
                            yield answer
                    sending.expect_end()
            except (Unavailable, Overloaded) as error:
                broken, lost = broken + 1, True
                if broken >= attempts:
                    raise
                await asyncio.sleep(pause_s(error, broken - 1))
            else:
                lost = False
            finally:
                call.cancel()
            sending.reopen(warily=lost)
        await feeding
        for refusal in sending.refusals():
            yield refusal
    finally:
        feeding.cancel()
        sending.close()


def pause_s(error: ServoxError, attempt: int) -> float:
    """How long to wait before attempt number `attempt` (from 0): what the server asked for, or longer each time."""
    asked_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
    growing_s = min(FIRST_PAUSE_S * 2.0**attempt, LONGEST_PAUSE_S)
    # Callers that were pushed back together must not come back together.
    return max(asked_s, growing_s) * random.uniform(1.0, 1.5)  # noqa: S311 -- no secret


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    id: str
    request: embedder_pb2.EmbedRequest
    attempt: int = 0


class _Sending:
    """What is to be sent, and what was sent and is not answered."""

    def __init__(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        in_flight: int,
        attempts: int,
        limit_bytes: int,
    ) -> None:
        self._requests = requests
        self._limit_bytes = limit_bytes
        self._refused: list[tuple[str, Outcome]] = []
        self._attempts = attempts
        self._slots = asyncio.Semaphore(in_flight)
        self._ready: asyncio.Queue[_Item | None] = asyncio.Queue()
        self._open: dict[str, _Item] = {}
        self._sent: dict[str, None] = {}  # in the order they went out, in which they go again
        self._fed = False
        self._had_its_share = False
        self._heard = asyncio.Event()  # not set: one item is out, and no other until the embedder says something
        self._heard.set()
        self.begun = asyncio.Event()

    @property
    def unfinished(self) -> bool:
        """Whether a clip is unanswered or still to come."""
        return bool(self._open) or not self._fed

    async def feed(self) -> None:
        """Draws requests as there is room for them; what the source raises is raised again by its awaiter."""
        requests = _each(self._requests)
        try:
            while True:
                await self._slots.acquire()  # before the request is drawn: it may be a file to be read
                name, request = await anext(requests)
                if (size := request.ByteSize() + len(name) + MARGIN_BYTES) > self._limit_bytes:
                    limit = f"the embedder takes {self._limit_bytes}"
                    self._refused.append((name, TooLarge(f"a message of {size} bytes: {limit}; send a shorter clip")))
                    self._slots.release()
                    continue
                if name in self._open:
                    raise BadInput(f"id {name!r} comes twice; name each clip once")
                self._open[name] = _Item(id=name, request=request)
                self._ready.put_nowait(self._open[name])
                self.begun.set()
        except StopAsyncIteration:
            return
        finally:
            self._fed = True
            self.begun.set()
            self._end_when_done()

    async def outgoing(self) -> AsyncIterator[embedder_pb2.EmbedStreamRequest]:
        """Requests for one stream, until everything is answered, or the stream is given up or had its share."""
        ready, heard = self._ready, self._heard
        for _ in range(CLIPS_PER_STREAM):
            if (item := await ready.get()) is None:
                return
            self._sent[item.id] = None
            yield embedder_pb2.EmbedStreamRequest(id=item.id, request=item.request)
            await heard.wait()
        self._had_its_share = True

    def refusals(self) -> list[tuple[str, Outcome]]:
        """What was not even sent, since this was last asked."""
        refused, self._refused = self._refused, []
        return refused

    def settle(self, message: embedder_pb2.EmbedStreamResponse) -> list[tuple[str, Outcome]]:
        """The answer in a message, unless it pushed the clip back to be sent again; and what was not even sent."""
        answer = self._settle(message)
        return [*self.refusals(), *([answer] if answer else [])]

    def _settle(self, message: embedder_pb2.EmbedStreamResponse) -> tuple[str, Outcome] | None:
        self._heard.set()
        item = self._open.get(message.id)
        if item is None:
            return None
        self._sent.pop(item.id, None)
        outcome: Outcome = message.response
        if message.WhichOneof("result") == "failure":
            outcome = failure_from_proto(message.failure)
            if outcome.retryable and item.attempt + 1 < self._attempts:
                self._again(item, after_s=pause_s(outcome, item.attempt))
                return None
        del self._open[item.id]
        self._slots.release()
        self._end_when_done()
        return item.id, outcome

    def expect_end(self) -> None:
        """The stream ended in peace, which is right only if everything is answered that it was to carry.

        Raises:
            Unavailable: it is not.
        """
        if self._sent or (self.unfinished and not self._had_its_share):
            raise Unavailable(f"the embedder ended the stream with {len(self._open)} clips unanswered")

    def reopen(self, *, warily: bool = False) -> None:
        """Ends with the present stream; what it did not answer goes into the next.

        Args:
            warily: the next one sends an item and waits for a word before it goes on. gRPC loses the reason of a
                refusal that meets a message on its way out ("Internal error from Core"), and so it would every time.
        """
        self._heard.set()
        if warily:
            self._heard = asyncio.Event()
        self._had_its_share = False
        old, self._ready = self._ready, asyncio.Queue()
        for name in self._sent:
            self._ready.put_nowait(self._open[name])
        self._sent.clear()
        while not old.empty():
            if item := old.get_nowait():
                self._ready.put_nowait(item)
        old.put_nowait(None)
        self._end_when_done()

    def close(self) -> None:
        """Lets the last stream's sender end."""
        self._heard.set()
        self._ready.put_nowait(None)

    def _again(self, item: _Item, *, after_s: float) -> None:
        later = replace(item, attempt=item.attempt + 1)
        self._open[item.id] = later
        asyncio.get_running_loop().call_later(after_s, lambda: self._ready.put_nowait(later))

    def _end_when_done(self) -> None:
        if not self.unfinished:
            self._ready.put_nowait(None)


async def _each(requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncIterator[Request]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
