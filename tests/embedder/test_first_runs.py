"""Who may run beside whom."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.embedder.runtimes.first_runs import FirstRuns

PATIENCE_S = 20


@pytest.fixture
def runs() -> FirstRuns:
    made = FirstRuns()
    for shape in ("a", "b"):
        with made.turn(shape):
            pass
    return made


def _entering(runs: FirstRuns, shape: str) -> tuple[threading.Event, Callable[[], None]]:
    """A thread that wants to run: whether it does, and what ends it."""
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with runs.turn(shape):
            inside.set()
            leave.wait(PATIENCE_S)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def end() -> None:
        leave.set()
        thread.join(PATIENCE_S)

    return inside, end


def test_known_shapes_run_side_by_side(runs: FirstRuns) -> None:
    one, end_one = _entering(runs, "a")
    other, end_other = _entering(runs, "b")
    assert one.wait(PATIENCE_S)
    assert other.wait(PATIENCE_S)
    end_one()
    end_other()


def test_a_first_run_waits_for_those_before_it_and_holds_those_after(runs: FirstRuns) -> None:
    known, end_known = _entering(runs, "a")
    assert known.wait(PATIENCE_S)
    new, end_new = _entering(runs, "new")
    assert not new.wait(0.05), "another runs"
    later, end_later = _entering(runs, "b")
    assert not later.wait(0.05), "a first run waits, and must not wait for ever"
    end_known()
    assert new.wait(PATIENCE_S)
    assert not later.wait(0.05), "a first run is alone"
    end_new()
    assert later.wait(PATIENCE_S)
    end_later()


def test_a_first_run_that_fails_is_first_again(runs: FirstRuns) -> None:
    with pytest.raises(RuntimeError, match="kernel"), runs.turn("new"):
        raise RuntimeError("kernel fault")
    again, end_again = _entering(runs, "new")
    assert again.wait(PATIENCE_S)
    known, end_known = _entering(runs, "a")
    assert not known.wait(0.05), "it was not known yet"
    end_again()
    assert known.wait(PATIENCE_S)
    end_known()


def test_many_threads_never_share_a_first_run() -> None:
    runs, inside, lock = FirstRuns(), set[int](), threading.Lock()
    seen: set[int] = set()
    shared: list[int] = []

    def work(number: int) -> None:
        shape = number % 17
        with runs.turn(shape):
            with lock:
                inside.add(number)
                if shape not in seen and len(inside) > 1:
                    shared.append(number)
            with lock:
                inside.discard(number)
                seen.add(shape)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(400)))
    assert shared == []
    assert seen == set(range(17))
