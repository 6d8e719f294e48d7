import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedder.batching import PATIENCE_S, PORTION, STRETCH, URGENT_SHARE, Budget, form
from servox.errors import BadSetting

RATE = 16_000
BUCKETS = tuple(int(seconds * RATE) for seconds in (0.5, 1, 2, 4, 8, 16, 30))


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    name: int
    samples: int
    arrived_s: float = 0.0
    frames: bool = False
    patience_s: float = 0.0
    deadline_s: float = math.inf
    cancelled: bool = False


def _budget(*, seconds: float = 30, clips: int = 8, cost_s: float = 0.01 / RATE, alike: bool = False) -> Budget:
    return Budget(samples=int(seconds * RATE), clips=clips, buckets=BUCKETS, step=1600, cost_s=cost_s, alike=alike)


def _waiters(now: float) -> st.SearchStrategy[list[Waiter]]:
    one = st.builds(
        Waiter,
        name=st.just(0),
        samples=st.integers(400, BUCKETS[-1]),
        arrived_s=st.floats(0, now),
        frames=st.booleans(),
        patience_s=st.sampled_from([0.0, 1.0, 10.0]),
        deadline_s=st.one_of(st.just(math.inf), st.floats(0, 2 * now)),
        cancelled=st.booleans(),
    )
    return st.lists(one, max_size=40).map(lambda found: [replace(w, name=i) for i, w in enumerate(found)])


BUDGETS = st.builds(_budget, seconds=st.floats(30, 300), clips=st.integers(1, 64), alike=st.booleans())


@given(pending=_waiters(10.0), budget=BUDGETS)
def test_a_batch_is_within_budget_of_one_lane_and_of_the_living(pending: list[Waiter], budget: Budget) -> None:
    batch = form(pending, budget, now=10.0)
    assert batch.samples * len(batch.clips) <= budget.samples
    assert len(batch.clips) <= budget.clips
    assert len({(budget.bucket(clip.samples), clip.frames) for clip in batch.clips}) <= 1
    assert all(clip.samples <= batch.samples for clip in batch.clips)
    assert not any(clip.cancelled or clip.deadline_s <= 10.0 for clip in batch.clips)
    assert 0 <= batch.padding < 1


@given(pending=_waiters(10.0), budget=BUDGETS)
def test_there_is_progress_and_what_must_not_run_is_dropped(pending: list[Waiter], budget: Budget) -> None:
    batch = form(pending, budget, now=10.0)
    dead = {w.name for w in pending if w.cancelled or w.deadline_s <= 10.0}
    assert {w.name for w in batch.dropped} == dead
    assert bool(batch.clips) == (len(dead) < len(pending))
    names = [w.name for w in batch.clips]
    assert len(names) == len(set(names))


def _cost_s(clip: Waiter, budget: Budget) -> float:
    return budget.padded(clip.samples) * budget.cost_s


def _urgent(clip: Waiter, budget: Budget, now: float) -> bool:
    due_s = min(clip.deadline_s, clip.arrived_s + PATIENCE_S)
    return due_s - now - _cost_s(clip, budget) < URGENT_SHARE * (due_s - clip.arrived_s)


@given(pending=_waiters(10.0), budget=BUDGETS)
def test_the_clip_whose_turn_was_first_is_in_when_none_is_urgent(pending: list[Waiter], budget: Budget) -> None:
    calm = [w for w in pending if not _urgent(w, budget, 10.0)]
    living = [w for w in calm if not w.cancelled and w.deadline_s > 10.0]
    turns_s = {w.name: w.arrived_s + w.patience_s + STRETCH * _cost_s(w, budget) for w in living}
    batch = form(calm, budget, now=10.0)
    if living:
        assert turns_s[batch.clips[0].name] == min(turns_s.values())


@given(pending=_waiters(10.0), budget=BUDGETS)
def test_of_what_is_urgent_and_in_time_the_earliest_due_is_in(pending: list[Waiter], budget: Budget) -> None:
    in_time = [w for w in pending if not w.cancelled and w.deadline_s >= 10.0 + _cost_s(w, budget)]
    due_s = {w.name: min(w.deadline_s, w.arrived_s + PATIENCE_S) for w in in_time if _urgent(w, budget, 10.0)}
    batch = form(pending, budget, now=10.0)
    if due_s:
        assert due_s.get(batch.clips[0].name) == min(due_s.values())


def test_callers_in_a_hurry_do_not_starve_one_without_a_deadline() -> None:
    budget = _budget(clips=1)
    patient, now, born = Waiter(name=0, samples=30 * RATE), 0.0, 1
    hurried: list[Waiter] = []
    while now < 2 * PATIENCE_S:  # always one that is urgent
        hurried.append(Waiter(name=born, samples=RATE, arrived_s=now - 1, deadline_s=now + 0.1))
        born += 1
        (chosen,) = form([patient, *hurried], budget, now=now).clips
        if chosen is patient:
            assert (1 - URGENT_SHARE) * PATIENCE_S - 1 < now < PATIENCE_S
            return
        hurried.remove(chosen)
        now += _cost_s(chosen, budget)
    pytest.fail("the patient caller still waits")


@given(long_s=st.floats(4, 30), short_s=st.floats(0.5, 2), load=st.floats(0.5, 1.5), clips=st.integers(1, 4))
def test_a_long_clip_is_run_however_many_short_ones_keep_coming(
    long_s: float, short_s: float, load: float, clips: int
) -> None:
    budget = _budget(clips=clips)
    service_s = budget.padded(int(short_s * RATE)) * budget.cost_s
    pending = [Waiter(name=0, samples=int(long_s * RATE))]
    now, born, next_arrival_s = 0.0, 1, 0.0
    # What comes after the long clip's turn goes behind it, so its wait is bounded by what came before.
    for _ in range(5_000):
        while next_arrival_s <= now:
            pending.append(Waiter(name=born, samples=int(short_s * RATE), arrived_s=next_arrival_s))
            born += 1
            next_arrival_s += service_s / load
        batch = form(pending, budget, now=now)
        if any(clip.name == 0 for clip in batch.clips):
            return
        ran = {clip.name for clip in batch.clips}
        pending = [w for w in pending if w.name not in ran]
        now += max(batch.samples * len(batch.clips) * budget.cost_s, service_s / 4)
    pytest.fail(f"the long clip still waits after {now:.1f} s")


@given(pending=_waiters(10.0), clips=st.integers(1, 64))
def test_where_company_costs_time_it_is_of_one_length_a_portion_and_never_with_the_urgent(
    pending: list[Waiter], clips: int
) -> None:
    budget = _budget(clips=clips, alike=True)
    batch = form(pending, budget, now=10.0)
    living = len(pending) - len(batch.dropped)
    assert {budget.padded(clip.samples) for clip in batch.clips} <= {batch.samples}
    assert len(batch.clips) <= max(1, PORTION * living)
    if len(batch.clips) > 1:
        assert not any(_urgent(clip, budget, 10.0) for clip in batch.clips[:1])


@pytest.mark.parametrize(("waiting", "together"), [(1, 1), (3, 1), (4, 2), (9, 4), (40, 8)])
def test_clips_of_one_length_run_together_once_several_wait(waiting: int, together: int) -> None:
    pending = [Waiter(name=number, samples=20_000 + number, arrived_s=9.9) for number in range(waiting)]
    assert len(form(pending, _budget(alike=True), now=10.0).clips) == together


def test_an_urgent_clip_runs_alone_where_company_costs_time() -> None:
    urgent = Waiter(name=0, samples=20_000, arrived_s=9.0, deadline_s=10.2)
    pending = [urgent, *(Waiter(name=number, samples=20_000, arrived_s=9.9) for number in range(1, 9))]
    assert form(pending, _budget(alike=True), now=10.0).clips == (urgent,)
    assert len(form(pending, _budget(alike=False), now=10.0).clips) == 8


def test_short_clips_overtake_a_long_one_that_came_with_them() -> None:
    pending = [Waiter(name=0, samples=30 * RATE), *(Waiter(name=i, samples=RATE) for i in range(1, 4))]
    assert {clip.name for clip in form(pending, _budget(), now=1.0).clips} == {1, 2, 3}


def test_bulk_lets_others_pass_that_come_within_its_patience_and_no_later() -> None:
    bulk = Waiter(name=0, samples=RATE, arrived_s=1.0, patience_s=1.0)
    live = Waiter(name=1, samples=RATE, arrived_s=1.9)
    late = replace(live, name=2, arrived_s=2.1)
    assert [clip.name for clip in form([bulk, live], _budget(clips=1), now=2.2).clips] == [1]
    assert [clip.name for clip in form([bulk, late], _budget(clips=1), now=2.2).clips] == [0]


def test_an_aged_long_clip_goes_before_fresh_short_ones() -> None:
    pending = [Waiter(name=0, samples=30 * RATE), Waiter(name=1, samples=RATE, arrived_s=9.999)]
    assert [clip.name for clip in form(pending, _budget(), now=10.0).clips] == [0]


def test_a_lone_clip_runs_at_once() -> None:
    batch = form([Waiter(name=0, samples=20_000, arrived_s=5.0)], _budget(), now=5.0)
    assert batch.clips
    assert batch.samples == 20_800
    assert batch.padding == pytest.approx(1 - 20_000 / 20_800)


def test_padding_never_passes_the_longest_clip() -> None:
    budget = Budget(samples=100_000, clips=1, buckets=(50_050,), step=1600, cost_s=1e-6)
    assert budget.padded(50_049) == 50_050


@pytest.mark.parametrize(("seconds", "clips"), [(29.9, 8), (60, 0)])
def test_a_budget_that_cannot_hold_the_longest_clip_is_refused(seconds: float, clips: int) -> None:
    with pytest.raises(BadSetting, match="cannot hold one clip of 480000 samples"):
        _budget(seconds=seconds, clips=clips)


def test_buckets_ascend() -> None:
    with pytest.raises(BadSetting, match="ascending"):
        Budget(samples=100, clips=1, buckets=(20, 10), step=1, cost_s=1.0)


@given(pending=_waiters(10.0), budget=BUDGETS)
def test_what_can_be_answered_in_time_runs_before_what_cannot(pending: list[Waiter], budget: Budget) -> None:
    batch = form(pending, budget, now=10.0)
    if batch.clips:
        in_time = {
            w.name
            for w in pending
            if not w.cancelled and 10.0 + budget.padded(w.samples) * budget.cost_s <= w.deadline_s
        }
        assert not in_time or batch.clips[0].name in in_time


def test_a_wrong_cost_does_not_stop_the_device() -> None:
    hopeless = Waiter(name=0, samples=RATE, deadline_s=0.1)
    assert form([hopeless], _budget(cost_s=1.0), now=0.0).clips == (hopeless,)
