"""Percentiles, Poisson schedules and goodput; then the loops against a target without a server."""

import asyncio
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.load import Burst, Outcome, Shot, arrivals, closed_loop, figures, open_loop, percentile

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


def shot(due_s: float, ended_s: float, outcome: Outcome = "answered") -> Shot:
    return Shot(due_s=due_s, sent_s=due_s, ended_s=ended_s, outcome=outcome)


def burst(*shots: Shot, begin_s: float = 0.0, end_s: float = 10.0) -> Burst:
    return Burst(shots=shots, begin_s=begin_s, end_s=end_s, generator_cpu_s=0.5)


@given(VALUES, st.floats(0.01, 1.0))
def test_a_percentile_is_numpys_by_nearest_rank(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(np.quantile(values, share, method="inverted_cdf"))


@given(VALUES, st.floats(0.01, 1.0))
def test_a_percentile_covers_its_share_and_no_smaller_value_does(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values)


def test_no_values_have_no_percentile() -> None:
    assert math.isnan(percentile([], 0.5))


@given(st.floats(0.1, 500), st.floats(0.01, 5), st.integers(0, 99))
def test_arrivals_ascend_inside_the_time(rate: float, duration_s: float, seed: int) -> None:
    moments = arrivals(rate, duration_s, seed=seed)
    assert ((moments >= 0) & (moments < duration_s)).all()
    assert (np.diff(moments) > 0).all()
    assert (moments == arrivals(rate, duration_s, seed=seed)).all()


def test_arrivals_are_a_poisson_process() -> None:
    gaps = np.diff(arrivals(100.0, 200.0, seed=3))
    assert stats.kstest(gaps, stats.expon(scale=0.01).cdf).pvalue > 0.01
    counts = [len(arrivals(20.0, 1.0, seed=seed)) for seed in range(400)]
    assert np.mean(counts) == pytest.approx(20, abs=0.7)
    assert np.var(counts) == pytest.approx(20, rel=0.25)


@pytest.mark.parametrize(("rate", "duration_s"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)])
def test_no_rate_or_no_time_has_no_arrivals(rate: float, duration_s: float) -> None:
    assert len(arrivals(rate, duration_s, seed=0)) == 0


def test_goodput_counts_answers_in_the_window_and_within_the_deadline() -> None:
    found = figures(
        [
            burst(
                shot(-0.5, -0.1),  # ended before the window
                shot(-0.5, 0.1),  # began before it, ended inside
                shot(1.0, 1.5),
                shot(1.0, 2.5),  # an answer, too late
                shot(2.0, 3.0, "late"),
                shot(3.0, 3.01, "refused"),
                shot(3.0, 3.2, "failed"),
                shot(9.8, 10.2),  # ended after it
            )
        ],
        deadline_s=1.0,
    )
    assert found.goodput == pytest.approx(0.2)
    assert found.answers == pytest.approx(0.3)
    assert found.sent == pytest.approx(0.6)
    assert (found.late, found.refused, found.failed) == (1, 1, 1)
    assert found.refusal_p99_ms == pytest.approx(10)
    assert found.p50_ms == pytest.approx(600)
    assert math.isinf(found.p99_ms)
    assert found.generator_cores == pytest.approx(0.05)


@given(
    st.lists(
        st.tuples(st.floats(0, 9), st.floats(0.001, 3), st.sampled_from(("answered", "refused", "late", "failed"))),
        max_size=50,
    ),
    st.floats(0.1, 2),
)
def test_goodput_is_never_more_than_answers(shots: list[tuple[float, float, Outcome]], deadline_s: float) -> None:
    made = burst(*(shot(due_s, due_s + took_s, outcome) for due_s, took_s, outcome in shots))
    found = figures([made, made], deadline_s=deadline_s)
    assert 0 <= found.goodput <= found.answers
    assert found.goodput == pytest.approx(sum(found.goodput_rounds) / 2)
    assert found.p50_ms <= found.p95_ms <= found.p99_ms or math.isnan(found.p50_ms)


class Slow:
    """One clip at a time, each as long as it says; no server."""

    def __init__(self, took_s: float, *, refuses_after: int = 10**9) -> None:
        self._took_s = took_s
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0
        self._refuses_after = refuses_after
        self.most = 0

    async def send(self, clip: int, *, patience_s: float) -> Outcome:  # noqa: ARG002 -- the target's signature
        if self._waiting >= self._refuses_after:
            return "refused"
        self._waiting += 1
        self.most = max(self.most, self._waiting)
        try:
            async with asyncio.timeout(patience_s), self._turn:
                await asyncio.sleep(self._took_s)
        except TimeoutError:
            return "late"
        finally:
            self._waiting -= 1
        return "answered"

    async def ask(self, clip: int, *, patience_s: float) -> bytes:  # noqa: ARG002 -- as above
        return b""

    async def close(self) -> None:
        return None


class Virtual(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to what comes next: nothing takes longer than it says."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        own: Any = self
        if not own._ready and own._scheduled:
            self.now_s = max(self.now_s, own._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=Virtual) as made:
        monkeypatch.setattr("bench.load.time", SimpleNamespace(monotonic=made.get_loop().time))
        yield made


def test_a_closed_loop_keeps_its_clients_waiting_and_no_more(runner: asyncio.Runner) -> None:
    target = Slow(0.01)
    found = runner.run(closed_loop(target, clients=3, clips=5, ramp_s=0.05, window_s=0.3, patience_s=5.0))
    assert target.most == 3
    assert {one.outcome for one in found.shots} == {"answered"}
    assert found.end_s - found.begin_s == pytest.approx(0.3)
    assert 0 < figures([found], deadline_s=5.0).answers <= 100 * 1.1


def test_an_open_loop_does_not_wait_and_its_latencies_count_from_the_schedule(runner: asyncio.Runner) -> None:
    target = Slow(0.05)
    began_s = runner.get_loop().time()
    found = runner.run(open_loop(target, rate=200, clips=5, ramp_s=0.0, window_s=0.3, deadline_s=0.2, seed=1))
    assert len(found.shots) == len(arrivals(200, 0.3, seed=1))
    assert target.most > 4  # they queue up
    assert runner.get_loop().time() - began_s >= 0.3
    assert {"answered", "late"} == {one.outcome for one in found.shots}
    assert all(one.ended_s >= one.sent_s >= one.due_s for one in found.shots)


def test_refusals_of_a_closed_loop_are_counted_and_do_not_spin(runner: asyncio.Runner) -> None:
    target = Slow(0.05, refuses_after=1)
    found = runner.run(closed_loop(target, clients=2, clips=5, ramp_s=0.0, window_s=0.3, patience_s=5.0))
    refused = [one for one in found.shots if one.outcome == "refused"]
    assert 0 < len(refused) <= 0.3 / 0.02 + 2
