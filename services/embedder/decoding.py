"""Bytes to samples beside the event loop: a bounded pool of processes, and a guess of the length before it.

- Files go to processes (`decode_worker`), whose memory and time are bounded: a file that crashes its decoder, eats its
  memory or never ends costs its own clip and a fresh process, never a neighbour and never the server.
- Raw samples need no parser, so they are converted in threads of this process.
- What waits for a worker is bounded by admission, which counts the guess made here; first come, first served.
- Workers are started by exec, never by fork alone: gRPC's and the device's threads run here, and their locks would be
  held for ever in a copy.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from signal import SIGALRM, SIGKILL, Signals
from typing import Literal, get_args

from servox import audio
from servox.errors import (
    BadAudio,
    BadInput,
    DeadlineExpired,
    ServoxError,
    ShortAudio,
    SilentAudio,
    TooLarge,
    Unavailable,
)

from .decode_process import Lost, Process, Refusal
from .decode_worker import Decoded, Order, decode

log = logging.getLogger(__name__)

TYPICAL_BYTES_PER_S = 8_000  # of compressed speech, 64 kbit/s
MAX_BYTES_PER_S = 6_200_000  # eight channels of float at 192 kHz: no header may claim to hold more in less
SHORTEST_S = 0.1
START_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # between tries to start a worker
TRIES = 2  # of a clip whose worker was killed, which is seldom its own fault
LEAVE_S = 0.5  # how long a worker may go on with a clip whose caller left
REFUSALS: dict[str, type[BadInput]] = {cls.__name__: cls for cls in (TooLarge, SilentAudio, ShortAudio)}
REMEDY = "convert it to wav or flac, or send it in parts"

Reason = Literal["crashed", "killed", "memory", "time", "abandoned", "worn"]
REASONS: tuple[Reason, ...] = get_args(Reason)


def guess_s(data: bytes | audio.Pcm, *, longest_s: float) -> float:
    """Seconds of audio by the first bytes alone, between a tenth of a second and `longest_s`.

    Exact for raw PCM and for plain wav and flac files; elsewhere by the rate of typical compressed speech. It decides
    nothing but how much of the budget a clip holds until it is decoded.
    """
    if isinstance(data, audio.Pcm):
        width = 2 if data.encoding == "s16le" else 4
        seconds = len(data.data) / max(1, data.rate_hz * max(1, data.channels) * width)
        floor_s = len(data.data) / MAX_BYTES_PER_S
    else:
        seconds = _header_s(data) or len(data) / TYPICAL_BYTES_PER_S
        floor_s = len(data) / MAX_BYTES_PER_S
    return min(max(seconds, floor_s, SHORTEST_S), longest_s)


def _header_s(data: bytes) -> float:
    if data[:4] == b"RIFF" and data[8:16] == b"WAVEfmt ":
        return len(data) / max(1, int.from_bytes(data[28:32], "little"))
    if data[:4] == b"fLaC":
        # STREAMINFO: 20 bits of rate, 3 of channels, 5 of depth, 36 of samples.
        packed = int.from_bytes(data[18:26], "big")
        return (packed & (1 << 36) - 1) / max(1, packed >> 44)
    return 0.0


class Decoder:
    """Decodes in processes of its own; belongs to one event loop.

    Args:
        workers: how many clips at a time.
        rate_hz: of the samples that come out.
        limits: what a clip may be; `truncate_ms` is set by each request.
        memory_bytes: most that one clip may take to decode, on top of what a worker needs when idle.
        timeout_s: most seconds that one clip may take.
        replaced: told why a worker was replaced, for the metrics.
        lost: told when no worker can be started any more.
    """

    def __init__(
        self,
        *,
        workers: int,
        rate_hz: int,
        limits: audio.Limits,
        memory_bytes: int = 512 << 20,
        timeout_s: float = 10.0,
        replaced: Callable[[Reason], object] = lambda _: None,
        lost: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._rate_hz = rate_hz
        self._limits = limits
        self._order = Order(
            socket=-1,
            memory=-1,
            shared_bytes=_shared_bytes(limits, rate_hz),
            rate_hz=rate_hz,
            memory_bytes=memory_bytes,
            timeout_s=timeout_s,
            max_bytes=limits.max_bytes,
            min_duration_ms=limits.min_duration_ms,
            max_duration_ms=limits.max_duration_ms,
            silence_dbfs=limits.silence_dbfs,
        )
        self._count = workers
        self._replaced = replaced
        self._lost = lost
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._alive: set[Process] = set()
        self._idle: list[Process] = []
        self._waiting: deque[asyncio.Future[Process]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._alive]

    async def start(self) -> None:
        """Starts the workers.

        Raises:
            Unavailable: they do not start.
        """
        try:
            for process in await asyncio.gather(*(self._started() for _ in range(self._count))):
                self._hand_on(process)
        except Lost as error:
            raise Unavailable(f"decode workers do not start: {error}; see what they wrote above") from None

    async def decode(self, data: bytes | audio.Pcm, *, truncate_ms: int, deadline_s: float = math.inf) -> Decoded:
        """Samples of one clip; a caller that leaves before a worker was free costs nothing.

        Raises:
            BadAudio: it cannot be decoded, holds nothing, crashes its decoder or takes too long.
            TooLarge: over a limit, and no `truncate_ms` was given; or it takes too much memory.
            DeadlineExpired: `deadline_s` (of the monotonic clock) passed before a worker was free.
            Unavailable: its workers were killed, time and again, or the pool is closed.
        """
        if isinstance(data, audio.Pcm) or not 0 < len(data) <= self._limits.max_bytes:
            args = (data, self._rate_hz, self._limits, truncate_ms)
            return await asyncio.get_running_loop().run_in_executor(self._threads, decode, *args)
        tries = 0
        while True:
            process = await self._free()
            if deadline_s <= time.monotonic():
                self._hand_on(process)
                raise DeadlineExpired("the deadline passed while the clip waited to be decoded; allow more time")
            try:
                return await self._ask(process, data, truncate_ms)
            except Unavailable:
                tries += process.asked  # one that was dead before never had the clip
                if tries == TRIES or self._closed:
                    raise

    async def close(self) -> None:
        """Ends the workers; more than once is fine."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for promise in self._waiting:
            if not promise.done():
                promise.set_exception(_closed())
        self._waiting.clear()
        self._idle.clear()
        await asyncio.gather(*(self._end(process) for process in list(self._alive)))
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    async def _ask(self, process: Process, data: bytes, truncate_ms: int) -> Decoded:
        try:
            async with asyncio.timeout(self._order.timeout_s):
                await process.send(data, truncate_ms)
                reply = await process.reply()
        except TimeoutError:
            self._replace(process, "time")
            raise self._too_long() from None
        except Lost:
            raise await self._died(process) from None
        except asyncio.CancelledError:
            self._spawn(self._let_finish(process))
            raise
        self._next(process, reply)
        if isinstance(reply, Decoded):
            return reply
        raise self._refused(reply)

    def _next(self, process: Process, reply: Decoded | Refusal) -> None:
        """What becomes of a worker that answered."""
        if isinstance(reply, Refusal) and reply.kind == "memory":
            self._replace(process, "memory")
        elif process.worn:
            self._replace(process, "worn")
        else:
            self._hand_on(process)

    def _refused(self, refusal: Refusal) -> BadInput:
        if refusal.kind == "memory":
            megabytes = self._order.memory_bytes >> 20
            return TooLarge(f"decoding takes more than {megabytes} MB of memory: send fewer channels or a lower rate")
        if refusal.kind == "bug":
            log.error("the decoder fails", extra={"why": refusal.message})
            return BadAudio(f"the decoder fails on this clip ({refusal.message}): {REMEDY}")
        return REFUSALS.get(refusal.kind, BadAudio)(refusal.message)

    async def _let_finish(self, process: Process) -> None:
        """A caller left: the worker is soon done with its clip, or is replaced."""
        try:
            async with asyncio.timeout(LEAVE_S):
                if process.asked:
                    self._next(process, await process.reply())
                else:
                    self._hand_on(process)
        except TimeoutError:
            self._replace(process, "abandoned")
        except Lost:
            await self._died(process)

    async def _died(self, process: Process) -> ServoxError:
        """Replaces a worker that ended by itself; what its clip is told."""
        code = await asyncio.to_thread(process.wait)
        if self._closed:
            return _closed()
        if code == -SIGKILL or code >= 0 or not process.asked:
            self._replace(process, "killed")
            return Unavailable("the decode workers of this clip were killed; send it again later")
        if code == -SIGALRM:
            self._replace(process, "time")
            return self._too_long()
        self._replace(process, "crashed")
        return BadAudio(f"the audio makes its decoder crash ({Signals(-code).name}): {REMEDY}")

    def _too_long(self) -> BadAudio:
        return BadAudio(f"decoding takes more than {self._order.timeout_s:g} s: {REMEDY}")

    # ---- who has which worker ------------------------------------------------------------------------------------

    async def _free(self) -> Process:
        if self._closed:
            raise _closed()
        if self._idle:
            return self._idle.pop()  # the last one that worked: its caches are warm
        promise: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._waiting.append(promise)
        try:
            return await promise
        except asyncio.CancelledError:
            # The worker may have been handed over in the very moment in which the caller left.
            if promise.done() and not promise.cancelled() and not promise.exception():
                self._hand_on(promise.result())
            raise

    def _hand_on(self, process: Process) -> None:
        if process not in self._alive:
            return
        while self._waiting:
            promise = self._waiting.popleft()
            if not promise.done():
                promise.set_result(process)
                return
        self._idle.append(process)

    def _replace(self, process: Process, reason: Reason) -> None:
        if self._closed:
            return
        log.warning("a decode worker is replaced", extra={"pid": process.pid, "why": reason})
        self._replaced(reason)
        self._spawn(self._succeed(process))

    async def _succeed(self, process: Process) -> None:
        await self._end(process)
        for pause_s in START_PAUSES_S:
            try:
                self._hand_on(await self._started())
            except Lost as error:
                log.error("a decode worker does not start", extra={"why": str(error)})  # noqa: TRY400 -- no trace needed
                await asyncio.sleep(pause_s)
            else:
                return
        if not self._alive:
            self._lost("no decode worker can be started")

    async def _started(self) -> Process:
        process = Process(self._order)  # takes about a millisecond; in a thread it could outlive a cancelled start
        self._alive.add(process)
        try:
            await process.ready()
        except Lost:
            await self._end(process)
            raise
        return process

    async def _end(self, process: Process) -> None:
        await asyncio.to_thread(process.kill)
        if process in self._alive:
            self._alive.discard(process)
            process.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _shared_bytes(limits: audio.Limits, rate_hz: int) -> int:
    """Room for the largest file and for the samples of the longest clip, with a second to spare for resampling."""
    return max(limits.max_bytes, (limits.max_duration_ms // 1000 + 2) * rate_hz * 4)


def _closed() -> Unavailable:
    return Unavailable("this embedder is stopping; ask another replica")
