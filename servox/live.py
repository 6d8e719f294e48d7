"""One stream of audio to a prober, over as many connections as it takes.

- A connection that is lost is opened again and goes on with the first window that was not answered: the audio from
  the beginning of the window before it is kept for that, and no more. The head is then named with its version, so the
  answers are those of an unbroken stream even if another version was promoted meanwhile.
- A file that only the server can decode is sent again from its beginning; what was answered before is not answered
  twice.
- It goes on trying for `reconnect_s` after the last answer, with growing pauses, or those that the server asks for.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc

from servox.answers import Heard
from servox.errors import DeadlineExpired, Overloaded, ServoxError, Unavailable
from servox.replies import heard_from_proto
from servox.resending import pause_s
from servox.rpc import translated
from servox.sources import PIECE_BYTES, Chunks, Layout, each, layout_of, pieces_of
from servox.tape import Tape
from servox.tracing import CLOCKS_S
from servox.v1 import prober_pb2

Request = prober_pb2.RecognizeStreamRequest

BEHIND_S = 60  # of audio that is sent and unanswered before the source has to wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the caller wants of a stream.

    Attributes:
        config: head, prior, windows.
        peer: whom to name in errors.
        timeout_s: for all of it; None for as long as it takes.
        reconnect_s: how long to go on trying after the last answer.
    """

    config: prober_pb2.RecognizeConfig
    peer: str
    timeout_s: float | None
    reconnect_s: float
    began_s: float = field(default_factory=time.monotonic)

    def left_s(self) -> float | None:
        """Time that is left.

        Raises:
            DeadlineExpired: none.
        """
        if self.timeout_s is None:
            return None
        if (left_s := self.began_s + self.timeout_s - time.monotonic()) <= CLOCKS_S:
            raise late(self.peer, self.timeout_s)
        return left_s


def late(peer: str, timeout_s: float) -> DeadlineExpired:
    """What to say when the caller's own time is over."""
    return DeadlineExpired(f"{peer} did not finish within timeout_s = {timeout_s:g}: give it longer, or less to do")


class Sound(Protocol):
    """What is streamed."""

    async def feed(self) -> None:
        """Draws from the source until it ends; raises what it raises."""

    def requests(self, config: prober_pb2.RecognizeConfig, next_window: int) -> AsyncIterator[Request]:
        """Everything to send on a connection whose first new answer is `next_window`."""

    async def answered(self, index: int) -> None:
        """A window has its answer, and all before it."""

    @property
    def sent(self) -> bool:
        """Whether the last connection got all there is."""


class Recording:
    """Samples as they come, with what may have to be sent again.

    Args:
        chunks: the source.
        window_ms, hop_ms: of the windows.
    """

    def __init__(self, chunks: Chunks, *, window_ms: int, hop_ms: int) -> None:
        self._chunks, self._hop_ms = chunks, hop_ms or window_ms
        self._window_ms = window_ms
        self._ready = asyncio.Event()  # the first chunk has come, or none will
        self._layout: Layout | None = None
        self._tape = Tape(frame_bytes=1, most_frames=1)
        self.sent = False

    async def feed(self) -> None:
        """Writes the source to the tape; one that fails must not look like one that ends."""
        async with contextlib.aclosing(each(self._chunks.samples, blocking=True)) as chunks:
            async for chunk in chunks:
                await self._write(chunk)
        await self._tape.end()
        self._ready.set()

    async def _write(self, chunk: Any) -> None:  # noqa: ANN401 -- an array of any kind
        if self._layout is None:
            self._layout = layout_of(chunk, self._chunks.rate_hz)
            most = (BEHIND_S * 1000 + self._window_ms + self._hop_ms) * self._layout.rate_hz // 1000
            self._tape = Tape(frame_bytes=self._layout.frame_bytes, most_frames=most)
            self._ready.set()
        data = self._layout.pack(chunk)
        step = max(1, PIECE_BYTES // self._layout.frame_bytes) * self._layout.frame_bytes
        for start in range(0, len(data), step):
            await self._tape.write(data[start : start + step])

    async def requests(self, config: prober_pb2.RecognizeConfig, next_window: int) -> AsyncIterator[Request]:
        """The configuration, then samples from where the window before `next_window` begins."""
        self.sent = False
        await self._ready.wait()
        layout = self._layout or Layout(rate_hz=self._chunks.rate_hz, channels=1, dtype="<f4")
        yield Request(
            config=prober_pb2.StreamConfig(
                recognize=config,
                rate_hz=layout.rate_hz,
                channels=layout.channels,
                format=layout.format,
                next_window=next_window,
            )
        )
        frame = self._first_frame(max(0, next_window - 1))
        while data := await self._tape.read(frame):
            yield Request(chunk=data)
            frame += len(data) // layout.frame_bytes
        self.sent = True

    async def answered(self, index: int) -> None:
        """Audio before this window is not needed any more."""
        await self._tape.cut(self._first_frame(index))

    def _first_frame(self, index: int) -> int:
        return index * self._hop_ms * self._chunks.rate_hz // 1000  # as the server's grid has it


class Encoded:
    """A file that only the server can decode.

    Args:
        source: its path or its bytes.
    """

    def __init__(self, source: bytes | Path) -> None:
        self._source = source
        self._error: Exception | None = None
        self._failed = asyncio.Event()
        self.sent = False

    async def feed(self) -> None:
        """Waits for a failure to read, which gRPC would swallow where it happens."""
        await self._failed.wait()
        if self._error:
            raise self._error

    async def requests(self, config: prober_pb2.RecognizeConfig, next_window: int) -> AsyncIterator[Request]:
        """The configuration, then the whole file."""
        self.sent = False
        try:
            yield Request(config=prober_pb2.StreamConfig(recognize=config, container=True, next_window=next_window))
            async for piece in pieces_of(self._source):
                yield Request(chunk=piece)
        except ServoxError as error:
            self._error = error
            self._failed.set()
            await asyncio.Event().wait()  # the stream is given up; it must not look like the end of the file
        self.sent = True

    async def answered(self, index: int) -> None:
        """Nothing is kept."""


async def stream(stub: Any, sound: Sound, asked: Asked) -> AsyncGenerator[Heard, None]:  # noqa: ANN401 -- untyped stub
    """Windows in their order, each once.

    Args:
        stub: a `ProberStub`.
        sound: what to send.
        asked: what is wanted of it.

    Raises:
        Unavailable, Overloaded: the prober stayed away, or full, for longer than `reconnect_s`.
        DeadlineExpired: `timeout_s` is over.
        ServoxError: what the prober refuses; what the source raises is raised as it is.
    """
    config, next_window = asked.config, 0
    lost_s, attempt = math.inf, 0  # since when the prober is away
    feeding = asyncio.create_task(sound.feed())
    try:
        while True:
            try:
                async with contextlib.aclosing(_connection(stub, sound, config, next_window, asked, feeding)) as found:
                    async for heard in found:
                        if heard.window.index < next_window:
                            continue
                        next_window, attempt, lost_s = heard.window.index + 1, 0, math.inf
                        config = _pinned(asked.config, heard)
                        await sound.answered(heard.window.index)
                        yield heard
            except (Unavailable, Overloaded) as error:
                wait_s, lost_s = pause_s(error, attempt), min(lost_s, time.monotonic())
                if _is_of(feeding, error) or time.monotonic() + wait_s - lost_s > asked.reconnect_s:
                    raise
                attempt += 1
                await asyncio.sleep(min(wait_s, asked.left_s() or wait_s))
            else:
                return
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _connection(
    stub: Any,  # noqa: ANN401 -- untyped stub
    sound: Sound,
    config: prober_pb2.RecognizeConfig,
    next_window: int,
    asked: Asked,
    feeding: asyncio.Task[None],
) -> AsyncGenerator[Heard, None]:
    """Answers of one connection.

    Raises:
        Unavailable: it ended before everything was sent.
    """
    timeout_s = asked.left_s()
    call = stub.RecognizeStream(sound.requests(config, next_window), timeout=timeout_s)
    try:
        with translated(asked.peer):
            while (message := await _read(call, feeding)) is not grpc.aio.EOF:
                yield heard_from_proto(message)
    except DeadlineExpired:
        if asked.timeout_s is not None:
            asked.left_s()  # raises, if it was the caller's own time that ended
        raise
    finally:
        call.cancel()
    if not sound.sent:
        raise Unavailable(f"{asked.peer} ended the stream before the audio did; it may be stopping")


async def _read(call: Any, feeding: asyncio.Task[None]) -> Any:  # noqa: ANN401 -- untyped call
    """The next message, unless the source fails first."""
    reading = asyncio.ensure_future(call.read())
    try:
        await asyncio.wait({reading} if feeding.done() else {reading, feeding}, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
            feeding.result()
        return await reading
    finally:
        reading.cancel()


def _is_of(feeding: asyncio.Task[None], error: ServoxError) -> bool:
    """Whether it is the source that failed, not the prober."""
    return feeding.done() and feeding.exception() is error


def _pinned(config: prober_pb2.RecognizeConfig, heard: Heard) -> prober_pb2.RecognizeConfig:
    pinned = prober_pb2.RecognizeConfig()
    pinned.CopyFrom(config)
    pinned.head = heard.head.tag
    return pinned
