"""The queue before the device, and the truth about whether the device still works.

- The queue belongs to the event loop. Each stream of the device has a second batch at hand while it works on one, so
  that it never waits for the event loop between two.
- When a batch fails, its clips are run again alone. One that fails alone while a canary passes is itself at fault and
  fails by itself; if the canary fails too, or a batch does not come back, the device is gone: `failed` says why.
- An idle device is tried by a canary now and then, so that its death is known before a caller comes.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from servox.errors import BadAudio, DeadlineExpired, ServoxError, Unavailable

from .batching import Batch, Budget, form
from .device import Device, Run, Samples
from .metrics import EmbedderMetrics

log = logging.getLogger(__name__)

COST_MEMORY = 0.9  # how much of the estimated cost of a sample survives a batch
COST_STEP = 0.02  # a change that the order of clips is to know of


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the device gave for one clip.

    Args:
        statistics: mean and standard deviation over the clip's frames, [layers, 2, d].
        frames: of the default layer, where asked for, [T, d]: the clip's own come first.
        queue_s: from the queue to the device.
        inference_s: of the batch that the clip was in.
        batch_clips: how many were in it.
    """

    statistics: Samples
    frames: Samples | None
    queue_s: float
    inference_s: float
    batch_clips: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """A clip in the queue; cancelling `answer` takes it out."""

    pcm: Samples
    frames: bool
    arrived_s: float
    patience_s: float
    deadline_s: float
    answer: asyncio.Future[Answer]

    @property
    def samples(self) -> int:
        """Length."""
        return len(self.pcm)

    @property
    def cancelled(self) -> bool:
        """Whether its caller left."""
        return self.answer.done()

    def refuse(self, error: ServoxError) -> None:
        """Answers with an error, unless it is answered already."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Engine:
    """Runs clips on one device; made inside the event loop that it serves.

    Args:
        device: its threads; closed with the engine.
        budget: bounds of a batch.
        rate_hz: of the samples, for metrics in seconds.
        canary_every_s: how long the device may be idle before it is tried.
    """

    def __init__(
        self, device: Device, *, budget: Budget, rate_hz: int, metrics: EmbedderMetrics, canary_every_s: float = 30.0
    ) -> None:
        self._device = device
        self._budget = budget
        self._cost_s = budget.cost_s
        self._rate_hz = rate_hz
        self._metrics = metrics
        self._canary_every_s = canary_every_s
        self._batches = 0
        self._pending: list[Job] = []
        metrics.queued.set_function(self._queued_s)
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.failed: asyncio.Future[ServoxError] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Warms every length bucket, then begins to serve the queue.

        Raises:
            Unavailable: the device cannot run a bucket.
        """
        await self._device.warm(self._budget.buckets)
        self._tasks = [asyncio.create_task(self._dispatch()) for _ in range(2 * self._device.streams)]
        self._tasks.append(asyncio.create_task(self._try_when_idle()))

    async def close(self) -> None:
        """Stops; whatever still waits is told so."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._give_up(_stopping())
        await asyncio.to_thread(self._device.close, wait=not self.failed.done())

    async def run(self, pcm: Samples, *, frames: bool, patience_s: float = 0.0, deadline_s: float = math.inf) -> Answer:
        """Statistics, and frames where asked for, of mono samples [n] at the bundle's rate.

        Raises:
            DeadlineExpired: `deadline_s` (of the monotonic clock) passed before the device was free.
            BadAudio: the encoder cannot make finite numbers of this clip.
            Unavailable: the device is gone.
        """
        if self.failed.done():
            raise self.failed.result()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        job = Job(
            pcm=pcm,
            frames=frames,
            arrived_s=time.monotonic(),
            patience_s=patience_s,
            deadline_s=deadline_s,
            answer=answer,
        )
        self._pending.append(job)
        self._wake.set()
        try:
            return await answer
        except asyncio.CancelledError:
            self._forget(job)
            raise

    def _forget(self, job: Job) -> None:
        """A caller left: its samples must not wait for the device, or a storm of cancellations fills the memory."""
        if job in self._pending:
            self._pending.remove(job)

    async def _try_when_idle(self) -> None:
        while not self.failed.done():
            before = self._batches
            await asyncio.sleep(self._canary_every_s)
            if self._batches == before and not self._pending and (why := await self._ailment(everywhere=True)):
                self.fail(f"the device is gone: idle, a canary failed: {why}")

    async def _dispatch(self) -> None:
        while not self.failed.done():
            await self._wake.wait()
            batch = form(self._pending, self._budget, now=time.monotonic())
            self._take_out(batch)
            if not self._pending:
                self._wake.clear()
            if batch.clips:
                try:
                    await self._serve(batch)
                except asyncio.CancelledError:
                    for job in batch.clips:
                        job.refuse(_stopping())
                    raise
                except Exception as error:  # a fault of ours, but callers must not wait for ever
                    log.exception("the dispatcher failed")
                    self.fail(f"the device is gone: its dispatcher failed: {error!r}", batch.clips)

    def _take_out(self, batch: Batch[Job]) -> None:
        gone = {id(job) for job in (*batch.clips, *batch.dropped)}
        if gone:
            self._pending = [job for job in self._pending if id(job) not in gone]
        for job in batch.dropped:
            self._metrics.queue.observe(time.monotonic() - job.arrived_s)
            job.refuse(DeadlineExpired("the deadline passed while the clip was queued; allow more time or send less"))

    async def _serve(self, batch: Batch[Job]) -> None:
        self._batches += 1
        try:
            run = await self._run(batch)
        except TimeoutError:
            self.fail(f"the device is gone: a batch of {len(batch.clips)} clips did not come back", batch.clips)
        except Exception as error:  # noqa: BLE001 -- a runtime may raise anything; whose fault it is comes out below
            log.warning("a batch failed", extra={"clips": len(batch.clips), "why": repr(error)})
            await self._find_fault(batch)
        else:
            self._scatter(batch, run)

    async def _run(self, batch: Batch[Job]) -> Run | None:
        return await self._device.run(
            [job.pcm for job in batch.clips],
            samples=batch.samples,
            frames=batch.clips[0].frames,
            wanted=lambda: not all(job.cancelled for job in batch.clips),
        )

    async def _find_fault(self, batch: Batch[Job]) -> None:
        for job in batch.clips:
            alone = Batch(clips=(job,), samples=self._budget.padded(job.samples), dropped=())
            try:
                self._scatter(alone, await self._run(alone))
            except Exception as error:  # noqa: BLE001 -- as in _serve
                if why := await self._ailment():
                    self.fail(f"the device is gone: it fails with {error!r}, and a canary too: {why}", batch.clips)
                    return
                seconds = job.samples / self._rate_hz
                job.refuse(BadAudio(f"the encoder fails on this clip of {seconds:.2f} s: {error!r}; check its samples"))

    async def _ailment(self, *, everywhere: bool = False) -> str:
        canary = self._device.canaries if everywhere else self._device.canary
        try:
            return await canary(self._budget.buckets[0])
        except TimeoutError:
            return "it did not come back"

    def _scatter(self, batch: Batch[Job], run: Run | None) -> None:
        if run is None:
            return
        inference_s = run.ended_s - run.began_s
        self._observe(batch, inference_s)
        for row, job in enumerate(batch.clips):
            statistics = run.result.statistics[row]
            if not np.isfinite(statistics).all():
                job.refuse(BadAudio("the encoder gives values that are not finite for this clip; check its samples"))
            elif not job.answer.done():
                answer = Answer(
                    statistics=statistics,
                    frames=None if run.result.frames is None else run.result.frames[row],
                    queue_s=max(0.0, run.began_s - job.arrived_s),
                    inference_s=inference_s,
                    batch_clips=len(batch.clips),
                )
                job.answer.set_result(answer)

    def _observe(self, batch: Batch[Job], inference_s: float) -> None:
        computed = batch.samples * len(batch.clips)
        self._metrics.batch.observe(inference_s)
        self._metrics.computed.inc(computed / self._rate_hz)
        self._metrics.batch_clips.observe(len(batch.clips))
        self._metrics.batch_padding.observe(batch.padding)
        self._metrics.batch_fill.observe(computed / self._budget.samples)
        self._cost_s = COST_MEMORY * self._cost_s + (1 - COST_MEMORY) * max(inference_s, 1e-6) / computed
        if not math.isclose(self._cost_s, self._budget.cost_s, rel_tol=COST_STEP):
            self._budget = replace(self._budget, cost_s=self._cost_s)

    def fail(self, why: str, jobs: Iterable[Job] = ()) -> None:
        """Refuses `jobs` and all that waits and is to come: the process has to end."""
        error = Unavailable(f"{why}; this embedder ends, ask another replica")
        log.error("the embedder fails", extra={"why": why})
        for job in jobs:
            job.refuse(error)
        self._give_up(error)
        if not self.failed.done():
            self.failed.set_result(error)
        self._wake.set()

    def _give_up(self, error: ServoxError) -> None:
        for job in self._pending:
            job.refuse(error)
        self._pending = []

    def _queued_s(self) -> float:
        """Seconds of audio that wait; called by the metrics' thread, while this one goes on."""
        return sum(job.samples for job in list(self._pending)) / self._rate_hz


def _stopping() -> Unavailable:
    return Unavailable("this embedder is stopping; ask another replica")
