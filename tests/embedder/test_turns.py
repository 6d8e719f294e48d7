"""Turns: when each batch began inside an engine that computes so many at a time, first come, first served."""

import heapq
import threading
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.embedder.turns import Turn, Turns

SECONDS = st.integers(1, 50).map(float)


class Clock:
    """A clock that stands until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 30).map(float), SECONDS), min_size=1, max_size=30))
def test_batches_begin_when_the_engine_began_them(streams: int, work: list[tuple[float, float]]) -> None:
    clock, arrived_s = Clock(), 0.0
    turns = Turns(streams, clock=clock)
    free = [0.0] * streams  # when each stream of the engine has time again
    ending: list[tuple[float, int]] = []
    entered: dict[int, Turn] = {}
    truth: dict[int, tuple[float, float]] = {}

    def end_until(moment_s: float) -> None:
        while ending and ending[0][0] <= moment_s:
            clock.now, number = heapq.heappop(ending)
            assert turns.leave(entered[number]) == truth[number]

    for number, (pause_s, takes_s) in enumerate(work):
        arrived_s += pause_s
        end_until(arrived_s)
        clock.now = arrived_s
        entered[number] = turns.enter()
        began_s = max(arrived_s, heapq.heappop(free))
        heapq.heappush(free, began_s + takes_s)
        truth[number] = began_s, began_s + takes_s
        heapq.heappush(ending, (began_s + takes_s, number))
    end_until(float("inf"))


def test_two_that_came_in_the_other_order_change_places() -> None:
    clock = Clock()
    turns = Turns(1, clock=clock)
    first = turns.enter()
    clock.now = 1.0
    second = turns.enter()
    clock.now = 5.0
    assert turns.leave(second) == (0.0, 5.0)
    clock.now = 8.0
    assert turns.leave(first) == (5.0, 8.0)


def test_threads_that_come_and_go_leave_nothing_behind() -> None:
    clock = iter(range(1_000_000))
    turns = Turns(2, clock=lambda: float(next(clock)))
    spans: list[tuple[float, float]] = []

    def work() -> None:
        spans.extend(turns.leave(turns.enter()) for _ in range(300))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spans) == 1500
    ended = sorted(end for _, end in spans)
    assert all(one < other for one, other in pairwise(ended))
    assert turns.leave(turns.enter())[0] > ended[-1], "a stream is free again"
