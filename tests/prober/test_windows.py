"""Windows of a file and of a stream."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.prober.windows import Cut, Cutter, cuts, grid
from servox.errors import BadInput


def as_rows(found: list[Cut]) -> list[tuple[int, int, int, bytes]]:
    return [(cut.index, cut.start_ms, cut.end_ms, cut.samples.tobytes()) for cut in found]


@given(
    st.integers(0, 3000),
    st.integers(100, 400),
    st.floats(0.2, 1),
    st.sampled_from([1000, 2750, 1001]),
    st.lists(st.integers(0, 700), max_size=12),
)
def test_a_stream_gives_the_windows_of_the_file(
    samples: int, window_ms: int, share: float, rate_hz: int, sizes: list[int]
) -> None:
    shape = grid(window_ms, max(20, int(window_ms * share)), rate_hz)
    audio = np.arange(1, samples + 1, dtype=np.float32)
    cutter, streamed, start = Cutter(shape), list[Cut](), 0
    for size in [*sizes, samples]:
        streamed += cutter.push(audio[start : start + size])
        start += size
    streamed += cutter.finish()
    whole = list(cuts(audio, shape))
    assert as_rows(streamed) == as_rows(whole)
    for cut in whole:
        assert len(cut.samples) == min(shape.window, samples)
    if whole:
        unheard = set(range(1, samples + 1)) - {int(v) for cut in whole for v in cut.samples}
        assert len(unheard) < max(1, rate_hz // 10) + 1, "only a short end may stay unheard"
    else:
        assert samples == 0


def test_windows_by_hand() -> None:
    audio = np.zeros(2600, dtype=np.float32)
    shape = grid(1000, 500, 1000)
    assert [(c.start_ms, c.end_ms) for c in cuts(audio, shape)] == [
        (0, 1000),
        (500, 1500),
        (1000, 2000),
        (1500, 2500),
        (1600, 2600),
    ]
    assert [(c.start_ms, c.end_ms) for c in cuts(audio[:2550], shape)][-1] == (1500, 2500)
    assert [(c.start_ms, c.end_ms) for c in cuts(audio[:300], shape)] == [(0, 300)]
    assert not list(cuts(audio[:0], shape))


def test_rounding_does_not_add_up() -> None:
    shape = grid(100, 33, 22_050)
    last = list(cuts(np.zeros(22_050 * 60, dtype=np.float32), shape))[-2]
    assert last.start_ms == pytest.approx(33 * last.index, abs=1)


def test_a_stream_keeps_no_more_than_it_needs() -> None:
    cutter = Cutter(grid(200, 50, 16_000))
    for _ in range(100):
        list(cutter.push(np.zeros(1600, dtype=np.float32)))
    assert len(cutter._kept) == 2 * 200 * 16


@pytest.mark.parametrize(("window_ms", "hop_ms"), [(0, 0), (99, 0), (30_001, 0), (-5, 0), (1000, 19), (1000, 1001)])
def test_lengths_out_of_range_are_refused(window_ms: int, hop_ms: int) -> None:
    with pytest.raises(BadInput, match="_ms = "):
        grid(window_ms, hop_ms, 16_000)


def test_no_hop_means_side_by_side() -> None:
    assert grid(500, 0, 16_000).hop_ms == 500
