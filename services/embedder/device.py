"""Threads that own the device: each has one runtime, takes one batch at a time and touches nothing else.

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
    """As many batches at a time as there are runtimes.

    Args:
        runtimes: one for each thread.
        stuck_after_s: a batch that takes longer will not come back.
    """

    def __init__(self, runtimes: Sequence[Runtime], *, stuck_after_s: float) -> None:
        self.streams = len(runtimes)
        self._stuck_after_s = stuck_after_s
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._runtimes = runtimes
        self._threads = [
            threading.Thread(target=self._work, args=(runtime,), name=f"device-{number}", daemon=True)
            for number, runtime in enumerate(runtimes)
        ]
        for thread in self._threads:
            thread.start()

    async def run(
        self, clips: Sequence[Samples], *, samples: int, frames: bool, wanted: Callable[[], bool] = lambda: True
    ) -> Run | None:
        """Runs clips padded to `samples`; None if by then nobody wanted the answer.

        Raises:
            TimeoutError: the batch did not come back.
            Exception: whatever the runtime raises.
        """
        return await self._ordered(lambda runtime: _run(runtime, clips, samples, frames) if wanted() else None)

    async def canary(self, samples: int) -> str:
        """Runs faint noise of a length; what went wrong, or nothing.

        Raises:
            TimeoutError: it did not come back.
        """
        return await self._ordered(lambda runtime: _canary(runtime, samples))

    async def warm(self, lengths: Sequence[int]) -> None:
        """Runs every length once on every thread, so that no caller pays for a first time.

        Raises:
            Unavailable: a length does not run.
        """

        def warm(runtime: Runtime) -> str:
            return "; ".join(f"{length} samples: {why}" for length in lengths if (why := _canary(runtime, length)))

        if problem := await self._everywhere(warm):
            raise Unavailable(f"the device cannot run the bundle ({problem}); export it again or use another device")

    async def canaries(self, samples: int) -> str:
        """Runs faint noise on every thread; what went wrong, or nothing.

        Raises:
            TimeoutError: one did not come back.
        """
        async with asyncio.timeout(self._stuck_after_s):
            return await self._everywhere(lambda runtime: _canary(runtime, samples))

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

    async def _everywhere(self, work: Callable[[Runtime], str]) -> str:
        """Runs work once on each thread; the first complaint, or nothing."""
        barrier = threading.Barrier(self.streams)  # holds each thread until all have their share: one order each

        def share(runtime: Runtime) -> str:
            complaint = work(runtime)
            with suppress(threading.BrokenBarrierError):
                barrier.wait()
            return complaint

        try:
            complaints = await asyncio.gather(*(self._order(share) for _ in self._threads))
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
        set_slice(DEFAULT_NS)  # inherited from the event loop, which is to go first
        while order := self._orders.get():
            if order.answer.cancelled():
                continue
            try:
                result = order.work(runtime)
            except Exception as error:  # noqa: BLE001 -- the thread's edge: whoever ordered the work decides
                order.tell(order.answer.set_exception, error)
            else:
                order.tell(order.answer.set_result, result)


def _run(runtime: Runtime, clips: Sequence[Samples], samples: int, frames: bool) -> Run:
    pcm = np.zeros((len(clips), samples), np.float32)
    for row, clip in zip(pcm, clips, strict=True):
        row[: len(clip)] = clip
    lengths = np.array([len(clip) for clip in clips], np.int64)
    began_s = time.monotonic()
    result = runtime.run(pcm, lengths, frames=frames)
    return Run(result=result, began_s=began_s, ended_s=time.monotonic())


def _canary(runtime: Runtime, samples: int) -> str:
    noise = np.random.default_rng(0).normal(0, 0.01, samples).astype(np.float32)
    try:
        run = _run(runtime, [noise], samples, frames=False)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the device is unfit
        return repr(error)
    log.debug("canary", extra={"samples": samples, "took_s": run.ended_s - run.began_s})
    return "" if np.isfinite(run.result.statistics).all() else "its statistics are not finite"
