"""What the bench of live streams computes; the streams themselves are run by hand."""

import math

import numpy as np
import pytest

from bench.stream import Grid, delays_s, places, ratios, row


def test_windows_are_due_when_they_are_whole() -> None:
    grid = Grid(window_ms=3000, hop_ms=1000)
    assert grid.ends_ms(6.5) == [3000, 4000, 5000, 6000]
    assert grid.ends_ms(2.9) == []
    assert delays_s(4, grid) == [0, 0.25, 0.5, 0.75]


def test_streams_hear_stretches_of_the_recording() -> None:
    sound = np.arange(16_000 * 10, dtype=np.float32)
    heard = places(4, sound, 2.0)
    assert [len(each) for each in heard] == [32_000] * 4
    assert len({float(each[0]) for each in heard}) == 4
    for each in heard:
        np.testing.assert_array_equal(np.diff(each), 1)
    assert len(places(1, sound, 30.0)[0]) == 480_000, "a short recording comes again"


def test_figures_and_ratios() -> None:
    ours = row("servox", 2, [0.01 * n for n in range(1, 101)], 100)
    assert (ours.p50_ms, ours.p95_ms, ours.p99_ms, ours.worst_ms) == pytest.approx((500, 950, 990, 1000))
    theirs = row("transformers", 2, [1.0, 3.0], 100)
    assert ratios([ours, theirs])["2"]["p50_ms"] == pytest.approx(2)
    assert ratios([ours]) == {}
    assert math.isnan(row("servox", 1, [], 10).worst_ms)
