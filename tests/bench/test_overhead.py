"""The bench of what an embedder takes beside its encoder: what counts, and whose it is."""

import threading
import time

import pytest

from bench.overhead import report, spent_ms


def test_the_least_of_each_counts_and_the_least_sum(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = [
        {"event loop": 1.0, "device": 0.5, "generator": 0.7, "answers a second": 300.0},
        {"event loop": 0.8, "device": 0.9, "decoders": 0.1, "generator": 0.6, "answers a second": 310.0},
    ]
    assert report(rounds) == {"decoders": 0.0, "device": 0.5, "event loop": 0.8, "all": 1.5, "generator": 0.6}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["event loop", "device", "decoders", "all of it", "(generator)"]


def test_time_is_told_by_what_a_thread_does() -> None:
    done = threading.Event()

    def work() -> None:
        until_s = time.thread_time() + 0.2
        while time.thread_time() < until_s:
            pass
        done.set()
        over.wait(20)

    over = threading.Event()
    before = spent_ms()
    thread = threading.Thread(target=work, name="device-7")
    thread.start()
    try:
        assert done.wait(20)
        assert spent_ms()["device"] - before.get("device", 0.0) >= 190
        assert spent_ms()["event loop"] > 0
    finally:
        over.set()
        thread.join()
