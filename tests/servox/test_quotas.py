"""Quotas: no more than what is allowed, whatever comes when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servox.errors import Overloaded, OverQuota
from servox.quotas import DAY_S, Account, Allowance, Bucket, Day, burst_of, spend, take, until_midnight_s

RATES = st.floats(0.01, 1000)
GAPS = st.lists(st.floats(0, 10), min_size=1, max_size=60)


class Clock:
    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@given(RATES, GAPS)
def test_no_more_calls_pass_than_the_burst_and_the_rate_allow(rate: float, gaps: list[float]) -> None:
    bucket: Bucket | None = None
    now_s, passed = 0.0, 0
    for gap in gaps:
        now_s += gap
        bucket, wait_s = take(bucket, rate_per_s=rate, now_s=now_s)
        passed += not wait_s
        assert passed <= burst_of(rate) + rate * (now_s - gaps[0]) + 1e-6


@given(RATES, GAPS)
def test_who_waits_as_long_as_told_is_let_through(rate: float, gaps: list[float]) -> None:
    bucket: Bucket | None = None
    now_s = 0.0
    for gap in gaps:
        now_s += gap
        bucket, wait_s = take(bucket, rate_per_s=rate, now_s=now_s)
        if wait_s:
            _, again_s = take(bucket, rate_per_s=rate, now_s=now_s + wait_s * (1 + 1e-9) + 1e-9)
            assert again_s < 1e-6


@given(RATES, st.floats(0, 100))
def test_a_clock_that_runs_back_gives_nothing(rate: float, back_s: float) -> None:
    bucket, _ = take(None, rate_per_s=rate, now_s=1000)
    after, _ = take(bucket, rate_per_s=rate, now_s=1000 - back_s)
    assert after.level <= bucket.level


@given(st.lists(st.tuples(st.floats(0, 50_000), st.floats(0, 500)), max_size=50), st.floats(0, 2000))
def test_no_day_has_more_audio_than_its_limit(parts: list[tuple[float, float]], limit_s: float) -> None:
    day, now_s, heard = Day(), 0.0, dict[int, float]()
    for gap, audio_s in parts:
        now_s += gap
        before = day
        day, left = spend(day, audio_s, limit_s=limit_s, now_s=now_s)
        if left:
            heard[day.number] = heard.get(day.number, 0.0) + audio_s
        else:
            assert day.used_s == (before.used_s if before.number == day.number else 0.0), "a refusal costs nothing"
    assert all(used <= limit_s + 1e-6 for used in heard.values())


@given(st.floats(0, 1e9))
def test_midnight_comes_within_a_day(now_s: float) -> None:
    left = until_midnight_s(now_s)
    assert 0 < left <= DAY_S
    assert (now_s + left) % DAY_S == pytest.approx(0, abs=1e-3) or (now_s + left) % DAY_S == pytest.approx(DAY_S)


def test_an_account_counts_calls_audio_and_streams() -> None:
    clock = Clock()
    account, allowance = Account(clock), Allowance(rate_per_s=2, audio_s_per_day=10, streams=1)
    account.call(allowance)
    account.call(allowance)
    with pytest.raises(Overloaded) as slower:
        account.call(allowance)
    assert 0 < slower.value.retry_after_s <= 0.5
    clock.now_s = 1.0
    account.call(allowance)

    account.hear(9, allowance)
    with pytest.raises(OverQuota, match="9 of your 10 s") as used:
        account.hear(2, allowance)
    assert used.value.retry_after_s == DAY_S - 1
    account.hear(1, allowance)
    clock.now_s = DAY_S
    account.hear(10, allowance)

    with account.stream(allowance), pytest.raises(Overloaded, match="streams"), account.stream(allowance):
        pass
    with account.stream(allowance):
        pass


def test_audio_that_was_heard_already_is_counted_beyond_the_limit() -> None:
    account, allowance = Account(Clock()), Allowance(audio_s_per_day=10)
    account.hear(30, allowance, already=True)
    with pytest.raises(OverQuota):
        account.hear(0.1, allowance)


def test_nothing_is_refused_where_nothing_is_limited() -> None:
    account = Account(Clock())
    for _ in range(1000):
        account.call(Allowance())
        account.hear(1e9, Allowance())
