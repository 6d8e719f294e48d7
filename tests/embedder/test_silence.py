"""Where silence tokens stand: every frame after a clip is counted once, and a sink is never stood on by chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.embedder.backbones.silence import (
    BORDER,
    SIGNAL_S,
    SIGNALS,
    SINK_SHARE,
    WINDOW,
    hear,
    placement,
    segments,
    sinks,
    table,
)

OWN = st.integers(0, WINDOW)
TOKENS = st.integers(4, 64)
SINKS = st.lists(st.integers(0, WINDOW - 1), unique=True, max_size=60)


@given(own=OWN, tokens=TOKENS, places=SINKS)
def test_every_frame_after_a_clip_is_counted_once(own: int, tokens: int, places: list[int]) -> None:
    found, counts = placement(own, tokens=tokens, sinks=places)
    assert found.shape == counts.shape == (tokens,)
    assert counts.sum() == pytest.approx(max(0, WINDOW - own - BORDER))
    seen = found[counts > 0]
    assert len(set(seen.tolist())) == len(seen)
    assert ((seen >= own + BORDER) & (seen < WINDOW)).all()


@given(own=st.integers(0, 1300), tokens=TOKENS, places=SINKS)
def test_the_strongest_sinks_stand_for_all_and_no_other_token_stands_on_one(
    own: int, tokens: int, places: list[int]
) -> None:
    found, counts = placement(own, tokens=tokens, sinks=places)
    ahead = [place for place in places if own + BORDER <= place < WINDOW - 1]
    chosen = ahead[: tokens // SINK_SHARE]
    on_sinks = np.isin(found, ahead)
    assert found[on_sinks].tolist() == chosen
    assert counts[on_sinks].sum() == pytest.approx(len(ahead))
    assert found[-1] == WINDOW - 1
    assert counts[-1] == 1


@given(frames=st.integers(1, 2000), share=st.floats(0.001, 1))
def test_segments_grow_and_none_is_empty(frames: int, share: float) -> None:
    count = max(1, int(frames * share))
    edges = segments(frames, count)
    assert (edges[0], edges[-1], len(edges)) == (0, frames, count + 1)
    widths = np.diff(edges)
    assert widths.min() >= 1
    assert widths[-1] >= widths[0] - 1


def test_a_sink_is_a_frame_far_above_the_others() -> None:
    states = np.random.default_rng(0).normal(size=(100, 8))
    states[[40, 70]] *= np.array([[30.0], [60.0]])
    assert sinks(states) == (70, 40)
    assert sinks(states[:30]) == ()


def test_states_are_means_over_signals_and_sound_is_replaced_by_the_silence_after_it() -> None:
    heard: list[int] = []

    def window(samples: NDArray[np.float32]) -> NDArray[np.float32]:
        heard.append(len(samples))
        states = np.arange(WINDOW, dtype=np.float32)[None, :, None] * np.ones((3, 1, 4), np.float32)
        return states + np.float32(len(heard))

    silence = hear(window, 16_000)
    assert heard == [round(SIGNAL_S * 16_000)] * SIGNALS
    assert silence.states.shape == (2, WINDOW, 4)  # what enters the first block is the clip's own
    first = round(SIGNAL_S * 50) + BORDER
    mean = np.mean(np.arange(1, SIGNALS + 1))
    assert (silence.states[0, : first + 1] == first + mean).all()
    assert (silence.states[0, first:, 0] == np.arange(first, WINDOW) + mean).all()


def test_the_table_is_the_placement_of_every_length() -> None:
    places, counts = table(tokens=8, sinks=[700, 900])
    assert places.shape == counts.shape == (WINDOW + 1, 8)
    for own in (0, 1, 699, 901, WINDOW - 9, WINDOW):
        expected = placement(own, tokens=8, sinks=[700, 900])
        assert (places[own] == expected[0]).all()
        assert (counts[own] == expected[1]).all()
