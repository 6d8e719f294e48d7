"""Threads that own the device: each has one runtime, takes one batch at a time and touches nothing else.

An engine with a queue of its own gets more threads than it computes batches at a time: what they hand over meanwhile
waits inside it, and is begun whether or not this process has time for it just then.

The threads are daemons: one that is stuck inside a driver must not keep the process from ending, and closing waits for
it no longer than `CLOSE_S`.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from servox.errors import Unavailable

from .runtimes import Result, Runtime
from .slices import DEFAULT_NS, set_slice
from .turns import Turns

log = logging.getLogger(__name__)

Samples = npt.NDArray[np.float32]
T = TypeVar("T")

CLOSE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A batch that was run, and when on the monotonic clock."""

    result: Result
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """Work for a thread, and the future of the event loop that waits for it."""

    work: Callable[[Runtime], Any]
    answer: "asyncio.Future[Any]"

    def tell(self, settle: Callable[[Any], None], value: object) -> None:
        """Settles the answer, from another thread; whoever left, or closed the loop, is told nothing."""
        with suppress(RuntimeError):
            self.answer.get_loop().call_soon_threadsafe(self._settle, settle, value)

    def _settle(self, settle: Callable[[Any], None], value: object) -> None:
        if not self.answer.done():
            settle(value)


class Device:
    """So many batches at a time.

    Args:
        runtimes: one for each thread.
        streams: batches that they compute at a time; None: one each.
        stuck_after_s: a batch that takes longer will not come back.
    """

    def __init__(self, runtimes: Sequence[Runtime], *, stuck_after_s: float, streams: int | None = None) -> None:
        self.streams = streams or len(runtimes)
        self._turns = Turns(self.streams, clock=time.monotonic)
        self._stuck_after_s = stuck_after_s
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._runtimes = runtimes
        self._threads = [
            threading.Thread(target=self._work, args=(runtime,), name=f"device-{number}", daemon=True)
            for number, runtime in enumerate(runtimes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queues(self) -> bool:
        """Whether batches wait inside the engine, which computes in threads of its own."""
        return len(self._runtimes) > self.streams

    async def run(
        self, clips: Sequence[Samples], *, samples: int, frames: bool, wanted: Callable[[], bool] = lambda: True
    ) -> Run | None:
        """Runs clips padded to `samples`; None if by then nobody wanted the answer.

        Raises:
            TimeoutError: the batch did not come back.
            Exception: whatever the runtime raises.
        """
        return await self._ordered(lambda runtime: self._run(runtime, clips, samples, frames) if wanted() else None)

    async def canary(self, samples: int) -> str:
        """Runs faint noise of a length; what went wrong, or nothing.

        Raises:
            TimeoutError: it did not come back.
        """
        return await self._ordered(lambda runtime: self._canary(runtime, samples))

    async def warm(self, lengths: Sequence[int]) -> None:
        """Runs every length once on every stream, so that no caller pays for a first time.

        Raises:
            Unavailable: a length does not run.
        """
        for length in lengths:
            if why := await self._everywhere(length):
                raise Unavailable(
                    f"the device cannot run the bundle ({length} samples: {why}); export it again or use another device"
                )

    async def canaries(self, samples: int) -> str:
        """Runs faint noise on every stream; what went wrong, or nothing.

        Raises:
            TimeoutError: one did not come back.
        """
        async with asyncio.timeout(self._stuck_after_s):
            return await self._everywhere(samples)

    def close(self, *, wait: bool) -> None:
        """Ends the threads after their present batch; `wait` False leaves stuck ones behind."""
        for _ in self._threads:
            self._orders.put(None)
        if wait:
            for thread, runtime in zip(self._threads, self._runtimes, strict=True):
                thread.join(CLOSE_S)
                if thread.is_alive():
                    log.error("a device thread is stuck and is left behind", extra={"stuck": thread.name})
                else:
                    runtime.close()

    async def _everywhere(self, samples: int) -> str:
        """A canary on every stream at once; the first complaint, or nothing."""
        barrier = threading.Barrier(self.streams)  # holds each thread until all have their share: one order each

        def share(runtime: Runtime) -> str:
            complaint = self._canary(runtime, samples)
            with suppress(threading.BrokenBarrierError):
                barrier.wait()
            return complaint

        try:
            complaints = await asyncio.gather(*(self._order(share) for _ in range(self.streams)))
        finally:
            barrier.abort()  # of use only to a caller that leaves early: its threads must not wait for ever
        return next(filter(None, complaints), "")

    async def _ordered(self, work: Callable[[Runtime], T]) -> T:
        async with asyncio.timeout(self._stuck_after_s):
            return await self._order(work)

    def _order(self, work: Callable[[Runtime], T]) -> "asyncio.Future[T]":
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._orders.put(_Order(work=work, answer=answer))
        return answer

    def _work(self, runtime: Runtime) -> None:
        if not self.queues:  # it computes; what it has from the event loop is to go first
            set_slice(DEFAULT_NS)
        while order := self._orders.get():
            if order.answer.cancelled():
                continue
            try:
                result = order.work(runtime)
            except Exception as error:  # noqa: BLE001 -- the thread's edge: whoever ordered the work decides
                order.tell(order.answer.set_exception, error)
            else:
                order.tell(order.answer.set_result, result)

    def _run(self, runtime: Runtime, clips: Sequence[Samples], samples: int, frames: bool) -> Run:
        pcm = np.zeros((len(clips), samples), np.float32)
        for row, clip in zip(pcm, clips, strict=True):
            row[: len(clip)] = clip
        lengths = np.array([len(clip) for clip in clips], np.int64)
        turn = self._turns.enter()
        try:
            result = runtime.run(pcm, lengths, frames=frames)
        finally:
            began_s, ended_s = self._turns.leave(turn)
        return Run(result=result, began_s=began_s, ended_s=ended_s)

    def _canary(self, runtime: Runtime, samples: int) -> str:
        noise = np.random.default_rng(0).normal(0, 0.01, samples).astype(np.float32)
        try:
            run = self._run(runtime, [noise], samples, frames=False)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the device is unfit
            return repr(error)
        log.debug("canary", extra={"samples": samples, "took_s": run.ended_s - run.began_s})
        return "" if np.isfinite(run.result.statistics).all() else "its statistics are not finite"
