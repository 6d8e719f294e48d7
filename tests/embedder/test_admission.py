import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.embedder.admission import (
    DEADLINE_SHARE,
    LONGEST_RETRY_S,
    MEMORY_ANSWERS,
    MEMORY_S,
    SHORTEST_RETRY_S,
    STREAM_SHARE,
    Admission,
)
from servox.errors import BadSetting, Overloaded

BUDGET_S, LONGEST_S = 60.0, 30.0
SECONDS = st.floats(0.025, LONGEST_S)


def _admission() -> Admission:
    return Admission(budget_s=BUDGET_S, longest_s=LONGEST_S)


def test_a_budget_under_one_clip_is_refused_at_start() -> None:
    with pytest.raises(BadSetting, match=r"max_inflight_audio_s = 20 .* 30"):
        Admission(budget_s=20, longest_s=30)
    Admission(budget_s=30, longest_s=30)


def test_a_full_server_refuses_and_room_admits_again() -> None:
    admission = _admission()
    admission.admit(30, now=0)
    admission.admit(30, now=0)
    with pytest.raises(Overloaded, match=r"60 s of audio are in flight and the limit is 60 s"):
        admission.admit(0.5, now=0)
    admission.release(30, now=1)
    admission.admit(0.5, now=1)
    assert admission.load.clips == 2
    assert admission.load.audio_s == 30.5


@pytest.mark.parametrize("rate", [2.0, 20.0, 200.0])
def test_the_retry_time_is_what_the_drain_rate_needs_to_make_room(rate: float) -> None:
    admission, now = _admission(), 0.0
    for _ in range(60):
        admission.admit(1, now=now)
    for _ in range(500):
        now += 1 / rate
        admission.release(1, now=now)
        admission.admit(1, now=now)
    with pytest.raises(Overloaded) as caught:
        admission.admit(10, now=now)
    expected_s = min(max(10 / rate, SHORTEST_RETRY_S), LONGEST_RETRY_S)
    assert caught.value.retry_after_s == pytest.approx(expected_s, rel=0.05)


def test_idle_time_does_not_look_like_slowness() -> None:
    admission = _admission()
    for start in (0.0, 1000.0):
        admission.admit(10, now=start)
        admission.release(10, now=start + 0.5)
    admission.admit(30, now=5000.0)
    admission.admit(30, now=5000.0)
    with pytest.raises(Overloaded) as caught:
        admission.admit(10, now=5000.0)
    assert caught.value.retry_after_s == pytest.approx(0.5, rel=0.05)


def test_before_anything_was_finished_the_retry_time_is_a_second() -> None:
    admission = _admission()
    admission.admit(30, now=0)
    admission.admit(30, now=0)
    with pytest.raises(Overloaded) as caught:
        admission.admit(1, now=0)
    assert caught.value.retry_after_s == 1.0


def _finishing(rate: float, *, answered: bool = True) -> tuple[Admission, float]:
    """20 s of audio in flight, finished and followed at `rate` seconds of audio a second; and the time."""
    admission, now = _admission(), 0.0
    for _ in range(20):
        admission.admit(1, now=now)
    for _ in range(1000):
        now += 1 / rate
        admission.release(1, now=now, answered=answered)
        admission.admit(1, now=now)
    return admission, now


@given(rate=st.floats(5, 500), share=st.floats(0.1, 5))
def test_a_call_that_would_be_answered_too_late_is_refused_at_once(rate: float, share: float) -> None:
    admission, now = _finishing(rate)
    needs_s = 21 / rate / DEADLINE_SHARE
    if share > 1.1:
        admission.admit(1, now=now, remaining_s=share * needs_s)
    elif share < 0.9:
        with pytest.raises(Overloaded, match=r"after the deadline in") as caught:
            admission.admit(1, now=now, remaining_s=share * needs_s)
        after_s = (1 - share) * 21 / rate  # when so much is finished that the same call would be in time
        assert caught.value.retry_after_s == pytest.approx(
            min(max(after_s, SHORTEST_RETRY_S), LONGEST_RETRY_S), rel=0.1, abs=0.01 / rate
        )
    else:
        admission.admit(1, now=now)


def _needs(admission: Admission, needs_s: float, *, now: float, within: float) -> None:
    """A call of a second is admitted when its caller leaves it that much, and refused when it is less."""
    with pytest.raises(Overloaded, match=r"after the deadline in"):
        admission.admit(1, now=now, remaining_s=(1 - within) * needs_s)
    admission.admit(1, now=now, remaining_s=(1 + within) * needs_s)


@given(streams=st.integers(1, 8), clips=st.integers(1, 8), rate=st.floats(1, 100))
def test_the_rate_is_of_all_streams_at_work(streams: int, clips: int, rate: float) -> None:
    """`clips` at a time of a second each, at `rate` a second: the idle streams could have done as much again."""
    admission, now = Admission(budget_s=60, longest_s=30, streams=streams), 0.0
    for _ in range(clips):
        admission.admit(1, now=now)
    for _ in range(1000):
        now += 1 / rate
        admission.release(1, now=now)
        admission.admit(1, now=now)
    full = rate * max(1, streams / clips)
    _needs(admission, (clips + 1) / full / DEADLINE_SHARE, now=now, within=0.05)


@given(rate=st.floats(0.02, 500), part=st.floats(0, 1))
def test_between_two_answers_a_slow_server_is_as_fast_as_it_is(rate: float, part: float) -> None:
    """However rare its answers are, and though callers come in between and the time since the last one is counted."""
    admission, now = _finishing(rate)
    for _ in range(4):
        now += part / rate / 4
        admission.admit(0.025, now=now)
    _needs(admission, 21.1 / rate / DEADLINE_SHARE, now=now, within=0.1)


@given(before=st.floats(1, 100), after=st.floats(20, 200))
def test_the_rate_follows_a_server_that_becomes_faster_or_slower(before: float, after: float) -> None:
    admission, now = _finishing(before)
    for _ in range(int(max(6 * MEMORY_S * after, 6 * MEMORY_ANSWERS * after / min(before, after)))):
        now += 1 / after
        admission.release(1, now=now)
        admission.admit(1, now=now)
    _needs(admission, 21 / after / DEADLINE_SHARE, now=now, within=0.1)


def test_an_idle_server_admits_whatever_the_deadline() -> None:
    admission, now = _finishing(2.0)
    for _ in range(20):
        admission.release(1, now=now)
    admission.admit(30, now=now, remaining_s=0.01)


def test_what_was_not_answered_does_not_make_the_server_look_fast() -> None:
    admission, now = _finishing(500, answered=False)
    admission.admit(1, now=now, remaining_s=0.001)  # nothing was finished, so nothing is known
    answered, now = _finishing(10)
    for _ in range(50):  # a storm of callers that leave
        answered.admit(1, now=now)
        answered.release(1, now=now, answered=False)
    with pytest.raises(Overloaded, match="about 10 s are finished each second"):
        answered.admit(1, now=now, remaining_s=1)


def test_an_expired_call_is_not_called_an_overload() -> None:
    admission, now = _finishing(10)
    admission.admit(1, now=now, remaining_s=-0.5)


def test_streams_leave_room_for_single_calls() -> None:
    admission = _admission()
    taken = 0
    while admission.admit_stream(1, now=0):
        taken += 1
    assert taken == int(BUDGET_S * STREAM_SHARE)
    admission.admit(BUDGET_S - taken, now=0)


def test_the_longest_clip_of_a_stream_goes_in_when_nothing_else_is() -> None:
    admission = Admission(budget_s=30, longest_s=30)
    assert admission.admit_stream(30, now=0)


class Traffic(RuleBasedStateMachine):
    """Any order of admissions, amendments and releases keeps the count true and within bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = _admission()
        self.held: list[float] = []
        self.now = 0.0

    @rule(seconds=SECONDS, step=st.floats(0, 10))
    def call(self, seconds: float, step: float) -> None:
        self.now += step
        before = self.admission.load
        if before.clips and before.audio_s + seconds > BUDGET_S:
            with pytest.raises(Overloaded) as caught:
                self.admission.admit(seconds, now=self.now)
            assert SHORTEST_RETRY_S <= caught.value.retry_after_s <= LONGEST_RETRY_S
            assert self.admission.load == before
        else:
            self.admission.admit(seconds, now=self.now)
            self.held.append(seconds)

    @rule(seconds=SECONDS)
    def stream(self, seconds: float) -> None:
        if self.admission.admit_stream(seconds, now=self.now):
            self.held.append(seconds)

    @precondition(lambda self: self.held)
    @rule(decoded=SECONDS)
    def decode(self, decoded: float) -> None:
        self.admission.amend(self.held[-1], decoded)
        self.held[-1] = decoded

    @precondition(lambda self: self.held)
    @rule(data=st.data(), step=st.floats(0, 10))
    def finish(self, data: st.DataObject, step: float) -> None:
        self.now += step
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.admission.release(self.held.pop(index), now=self.now)

    @invariant()
    def the_count_is_what_is_held(self) -> None:
        assert self.admission.load.clips == len(self.held)
        assert self.admission.load.audio_s == pytest.approx(sum(self.held), abs=1e-6)


test_traffic = Traffic.TestCase


@given(st.lists(SECONDS, min_size=1, max_size=50))
def test_an_empty_server_holds_exactly_nothing(clips: list[float]) -> None:
    admission = Admission(budget_s=1e9, longest_s=30)
    for seconds in clips:
        admission.admit(seconds, now=0)
    for seconds in reversed(clips):
        admission.release(seconds, now=0)
    assert admission.load.audio_s == 0.0
