import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from services.embedder.batching import Budget
from services.embedder.device import Device, Samples
from services.embedder.engine import Answer, Engine
from services.embedder.metrics import EmbedderMetrics
from services.embedder.runtimes import Lengths, Pcm, Result
from servox.errors import BadAudio, DeadlineExpired, Unavailable
from servox.telemetry import Metrics

POISON = 9.0


class FakeRuntime:
    """The mean of each clip; does to a batch what `hook` says before."""

    name = "fake"
    device = "cpu"

    def __init__(self, hook: Callable[[Pcm], object] = lambda _: None) -> None:
        self.hook = hook
        self.widths: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.closed = False

    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
        self.widths.append(pcm.shape)
        self.threads.add(threading.get_ident())
        self.hook(pcm)
        means = np.array([row[:n].mean() for row, n in zip(pcm, lengths, strict=True)], np.float32)
        statistics = np.tile(means[:, None, None, None], (1, 1, 2, 3))
        return Result(statistics=statistics, frames=np.ones((len(pcm), 5, 3), np.float32) if frames else None)

    def close(self) -> None:
        self.closed = True


def _refuse_poison(pcm: Pcm) -> None:
    if (pcm == POISON).any():
        raise RuntimeError("kernel fault")


@asynccontextmanager
async def running(
    *runtimes: FakeRuntime,
    streams: int | None = None,
    clips: int = 4,
    stuck_after_s: float = 20,
    canary_every_s: float = 60,
    metrics: Metrics | None = None,
) -> AsyncIterator[Engine]:
    budget = Budget(samples=6400, clips=clips, buckets=(800, 1600), step=100, cost_s=1e-4)
    device = Device(runtimes, streams=streams, stuck_after_s=stuck_after_s)
    counters = EmbedderMetrics(metrics or Metrics())
    engine = Engine(device, budget=budget, rate_hz=1600, metrics=counters, canary_every_s=canary_every_s)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def _clip(value: float, samples: int = 700) -> Samples:
    return np.full(samples, value, np.float32)


async def test_every_bucket_is_run_on_every_thread_before_anything_else() -> None:
    first, second = FakeRuntime(), FakeRuntime()
    async with running(first, second):
        assert first.widths == second.widths == [(1, 800), (1, 1600)]
    assert len(first.threads | second.threads) == 2
    assert first.closed
    assert second.closed


async def test_a_device_that_cannot_run_a_bucket_does_not_start() -> None:
    def fail_wide(pcm: Pcm) -> None:
        if pcm.shape[1] > 800:
            raise RuntimeError("out of memory")

    with pytest.raises(Unavailable, match=r"1600 samples.*out of memory"):
        async with running(FakeRuntime(fail_wide)):
            pass


async def test_each_caller_gets_the_answer_to_its_own_clip() -> None:
    async with running(FakeRuntime(), FakeRuntime()) as engine:
        values = [0.01 * n for n in range(1, 60)]
        answers = await asyncio.gather(
            *(engine.run(_clip(v, 300 + 20 * i), frames=False) for i, v in enumerate(values))
        )
    for value, answer in zip(values, answers, strict=True):
        np.testing.assert_allclose(answer.statistics, value, rtol=1e-5)
        assert answer.queue_s >= 0
        assert answer.inference_s >= 0
        assert answer.frames is None


async def test_batches_grow_while_the_device_is_busy_and_only_then() -> None:
    gate = threading.Event()
    gate.set()
    runtime = FakeRuntime(lambda _: gate.wait(20))
    async with running(runtime) as engine:
        await engine.run(_clip(1.0), frames=False)
        assert runtime.widths[2:] == [(1, 700)], "an idle device takes a lone clip at once"
        gate.clear()
        waiting = [asyncio.create_task(engine.run(_clip(1.0), frames=False)) for _ in range(6)]
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(*waiting)
    assert max(rows for rows, _ in runtime.widths) == 4


async def test_what_waits_inside_an_engine_is_queued_and_not_yet_inferred() -> None:
    engine_lock, inside, go_on = threading.Lock(), threading.Semaphore(0), threading.Event()
    first_width, held_s = 700, 0.1

    def hook(pcm: Pcm) -> None:
        if not (pcm == 1).all():
            return  # a canary that warms
        inside.release()
        go_on.wait(20)

    class Lane(FakeRuntime):
        def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
            handed.release()
            with engine_lock:  # it computes one at a time, whoever asks
                return super().run(pcm, lengths, frames=frames)

    handed = threading.Semaphore(0)
    async with running(Lane(hook), Lane(hook), streams=1, clips=1) as engine:
        while handed.acquire(blocking=False):
            pass  # what warmed
        calls = [asyncio.create_task(engine.run(_clip(1.0, first_width), frames=False)) for _ in range(2)]
        for _ in calls:
            assert await asyncio.to_thread(handed.acquire, timeout=20)
        assert await asyncio.to_thread(inside.acquire, timeout=20)
        await asyncio.sleep(held_s)
        go_on.set()
        one, other = sorted(await asyncio.gather(*calls), key=lambda answer: answer.queue_s)
    assert one.inference_s >= held_s
    assert other.queue_s >= held_s
    assert other.queue_s == pytest.approx(one.queue_s + one.inference_s, abs=held_s / 2), "it began when the one ended"


async def test_frames_come_only_where_they_were_asked_for() -> None:
    async with running(FakeRuntime()) as engine:
        plain, framed = await asyncio.gather(engine.run(_clip(1), frames=False), engine.run(_clip(1), frames=True))
    assert plain.frames is None
    assert framed.frames is not None


async def test_one_poisonous_clip_fails_alone_and_the_device_lives_on() -> None:
    gate = threading.Event()
    gate.set()

    def hook(pcm: Pcm) -> None:
        gate.wait(20)
        _refuse_poison(pcm)

    async with running(FakeRuntime(hook)) as engine:
        gate.clear()
        tasks = [asyncio.create_task(engine.run(_clip(v), frames=False)) for v in (1, 1, 1, 2, POISON, 3, 1)]
        await asyncio.sleep(0.05)
        gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        good = [a for a in answers if not isinstance(a, BaseException)]
        assert len(good) == 6
        assert isinstance(answers[4], BadAudio)
        assert "kernel fault" in str(answers[4])
        assert not engine.failed.done()


async def test_values_that_are_not_finite_are_nobodys_embedding() -> None:
    class Dividing(FakeRuntime):
        def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
            result = super().run(pcm, lengths, frames=frames)
            result.statistics[(pcm == POISON).any(axis=1)] = np.nan
            return result

    async with running(Dividing()) as engine:
        with pytest.raises(BadAudio, match="not finite"):
            await engine.run(_clip(POISON), frames=False)
        await engine.run(_clip(1), frames=False)


async def test_a_broken_device_fails_everything_and_says_so() -> None:
    broken = threading.Event()

    def hook(pcm: Pcm) -> None:
        if broken.is_set():
            raise RuntimeError("device lost")

    async with running(FakeRuntime(hook)) as engine:
        await engine.run(_clip(1), frames=False)
        broken.set()
        answers = await asyncio.gather(*(engine.run(_clip(1), frames=False) for _ in range(20)), return_exceptions=True)
        assert {type(a) for a in answers} == {Unavailable}
        assert "device lost" in str(await engine.failed)
        with pytest.raises(Unavailable, match="device lost"):
            await engine.run(_clip(1), frames=False)


async def test_a_batch_that_does_not_come_back_is_a_dead_device() -> None:
    gate = threading.Event()
    stuck = FakeRuntime(lambda pcm: (pcm == POISON).any() and gate.wait(20))
    try:
        async with running(stuck, stuck_after_s=0.2) as engine:
            with pytest.raises(Unavailable, match="did not come back"):
                await engine.run(_clip(POISON), frames=False)
            assert engine.failed.done()
    finally:
        gate.set()


@pytest.mark.parametrize("dead", [0, 1])
async def test_a_device_that_dies_while_nobody_calls_is_noticed_on_every_thread(dead: int) -> None:
    broken = threading.Event()

    def hook(pcm: Pcm) -> None:
        if broken.is_set():
            raise RuntimeError("device lost")

    runtimes = [FakeRuntime(), FakeRuntime()]
    runtimes[dead].hook = hook
    async with running(*runtimes, canary_every_s=0.02) as engine:
        async with asyncio.timeout(20):  # every thread is tried
            while min(len(runtime.widths) for runtime in runtimes) <= 2:  # noqa: ASYNC110 -- a list has no event
                await asyncio.sleep(0.005)
        assert not engine.failed.done(), "a healthy device passes"
        broken.set()
        assert "idle, a canary failed" in str(await asyncio.wait_for(engine.failed, 10))
        with pytest.raises(Unavailable, match="device lost"):
            await engine.run(_clip(1), frames=False)


async def test_a_device_that_hangs_while_nobody_calls_is_noticed() -> None:
    stuck, gate = threading.Event(), threading.Event()
    try:
        async with running(
            FakeRuntime(lambda _: stuck.is_set() and gate.wait(20)), canary_every_s=0.02, stuck_after_s=0.1
        ) as engine:
            stuck.set()
            assert "did not come back" in str(await asyncio.wait_for(engine.failed, 10))
    finally:
        gate.set()


async def test_a_device_at_work_is_not_bothered_by_canaries() -> None:
    runtime, every_s, idle = FakeRuntime(), 0.05, 0
    async with running(runtime, canary_every_s=every_s) as engine:
        before_s = time.monotonic()
        for _ in range(40):
            began_s = time.monotonic()
            await engine.run(_clip(1.0), frames=False)
            idle += int((time.monotonic() - before_s) / every_s)  # times that no batch may have begun for so long
            before_s = began_s
            await asyncio.sleep(0.005)
        idle += int((time.monotonic() - before_s) / every_s)
        assert runtime.widths.count((1, 800)) <= 1 + idle, "one at the start, and none after while there is work"


async def test_a_start_that_is_cancelled_leaves_no_thread_waiting_for_the_other() -> None:
    gate = threading.Event()
    runtimes = FakeRuntime(), FakeRuntime(lambda _: gate.wait(20))
    device = Device(runtimes, stuck_after_s=20)
    warming = asyncio.create_task(device.warm((800,)))
    while not runtimes[0].widths:  # noqa: ASYNC110 -- a list has no event
        await asyncio.sleep(0.005)
    warming.cancel()
    await asyncio.gather(warming, return_exceptions=True)
    gate.set()
    await asyncio.wait_for(asyncio.to_thread(device.close, wait=True), 10)
    assert runtimes[0].closed
    assert runtimes[1].closed


async def test_closing_waits_for_a_stuck_thread_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.embedder.device.CLOSE_S", 0.05)
    gate = threading.Event()
    stuck = FakeRuntime(lambda _: gate.wait(20))
    device = Device((stuck,), stuck_after_s=20)
    warming = asyncio.create_task(device.warm((800,)))
    while not stuck.widths:  # noqa: ASYNC110 -- a list has no event
        await asyncio.sleep(0.005)
    try:
        device.close(wait=True)
        assert not stuck.closed, "a runtime in use is not freed"
    finally:
        gate.set()
    await warming


class Gated:
    """A hook that holds every batch while the gate is shut, and notes the clips that ran."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.seen: list[float] = []

    def __call__(self, pcm: Pcm) -> None:
        self.open.wait(20)
        self.seen.extend(float(row[0]) for row in pcm)


async def _held(engine: Engine, gated: Gated, *values: float) -> list[asyncio.Task[Answer]]:
    """Two clips that fill the thread and the batch before it, then `values`, all waiting."""
    gated.open.clear()
    tasks = [asyncio.create_task(engine.run(_clip(value), frames=False)) for value in (1.0, 1.0)]
    await asyncio.sleep(0.02)
    tasks += [asyncio.create_task(engine.run(_clip(value), frames=False)) for value in values]
    await asyncio.sleep(0)
    return tasks


async def test_clips_whose_deadline_passes_in_the_queue_are_never_run() -> None:
    gated = Gated()
    async with running(FakeRuntime(gated), clips=1) as engine:
        tasks = await _held(engine, gated)
        soon = time.monotonic() + 0.01
        late = asyncio.create_task(engine.run(_clip(5), frames=False, deadline_s=soon))
        await asyncio.sleep(0.02)
        gated.open.set()
        with pytest.raises(DeadlineExpired, match="queued"):
            await late
        await asyncio.gather(*tasks)
    assert 5.0 not in gated.seen


async def test_clips_whose_caller_left_are_never_run() -> None:
    gated = Gated()
    async with running(FakeRuntime(gated), clips=1) as engine:
        tasks = await _held(engine, gated, 3.0, 5.0)
        tasks[3].cancel()
        await asyncio.sleep(0)
        gated.open.set()
        await asyncio.gather(*tasks[:3])
    assert 3.0 in gated.seen
    assert 5.0 not in gated.seen


async def test_the_gauge_of_the_queue_moves() -> None:
    gated, metrics = Gated(), Metrics()
    async with running(FakeRuntime(gated), clips=1, metrics=metrics) as engine:
        tasks = await _held(engine, gated, 1.0, 1.0, 1.0, 1.0)
        queued = metrics.registry.get_sample_value("servox_embedder_queued_audio_seconds")
        assert queued == pytest.approx(4 * 700 / 1600)
        gated.open.set()
        await asyncio.gather(*tasks)
        assert metrics.registry.get_sample_value("servox_embedder_queued_audio_seconds") == 0
        assert metrics.registry.get_sample_value("servox_embedder_batch_clips_count") == 6


async def test_closing_answers_all_who_wait() -> None:
    gated = Gated()
    async with running(FakeRuntime(gated), clips=1) as engine:
        tasks = await _held(engine, gated, 1.0, 1.0)
        closing = asyncio.create_task(asyncio.to_thread(gated.open.wait))
        asyncio.get_running_loop().call_later(0.05, gated.open.set)
        await asyncio.gather(engine.close(), closing)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(answer) for answer in answers} == {Unavailable}
