from hypothesis import given
from hypothesis import strategies as st

from services.evaluator.events import Events
from servox.v1 import evaluator_pb2


def test_the_estimate_follows_the_pace_of_the_phase_and_not_of_the_one_before() -> None:
    messages: list[evaluator_pb2.WatchRunResponse] = []
    now = [0.0]
    events = Events(messages.append, now=lambda: now[0])
    for seconds, phase, done, total in (
        (0, "embed", 0, 10),
        (100, "embed", 5, 10),
        (100, "train", 3, 5),
        (101, "train", 4, 5),
    ):
        now[0] = float(seconds)
        events.progress(phase, done, total)
    assert [message.progress.eta_ms for message in messages] == [0, 100_000, 0, 1000]


def test_what_was_stored_before_does_not_make_the_pace_look_faster() -> None:
    messages: list[evaluator_pb2.WatchRunResponse] = []
    now = [0.0]
    events = Events(messages.append, now=lambda: now[0])
    events.progress("embed", 90, 100)
    now[0] = 5.0
    events.progress("embed", 95, 100)
    assert messages[-1].progress.eta_ms == 5000


@given(done=st.integers(0, 50), total=st.integers(50, 100), seconds=st.floats(0, 1000))
def test_an_estimate_is_never_negative(done: int, total: int, seconds: float) -> None:
    messages: list[evaluator_pb2.WatchRunResponse] = []
    now = [0.0]
    events = Events(messages.append, now=lambda: now[0])
    events.progress("score", 0, total)
    now[0] = seconds
    events.progress("score", done, total)
    assert messages[-1].progress.eta_ms >= 0


def test_warnings_are_kept_for_the_manifest() -> None:
    events = Events(lambda _: None)
    events.warn("one clip is empty")
    assert events.warnings == ["one clip is empty"]
