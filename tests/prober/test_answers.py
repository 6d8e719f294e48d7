"""What windows say together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.prober.answers import Abstention, Tally, Window, overall

REASONS: tuple[Abstention | None, ...] = (None, "silence", "too_short", "out_of_distribution")


def window(index: int, *, reason: Abstention | None = None, start_ms: int = 0, length_ms: int = 1000) -> Window:
    random = np.random.default_rng(index)
    given = reason in (None, "out_of_distribution")
    return Window(
        index=index,
        start_ms=start_ms,
        end_ms=start_ms + length_ms,
        probabilities=random.dirichlet([1, 1, 1]) if given else None,
        abstention=reason,
        speech=float(random.uniform()),
        novelty=float(random.uniform()) if given else None,
    )


@given(st.lists(st.tuples(st.sampled_from(REASONS), st.integers(100, 30_000)), min_size=1, max_size=30))
def test_the_whole_is_the_mean_of_what_was_answered(kinds: list[tuple[Abstention | None, int]]) -> None:
    windows = [
        window(n, reason=reason, start_ms=n * 100, length_ms=length_ms) for n, (reason, length_ms) in enumerate(kinds)
    ]
    whole = overall(windows)
    assert (whole.start_ms, whole.end_ms) == (0, max(each.end_ms for each in windows))
    answered = [each for each in windows if each.abstention is None]
    lengths = [each.end_ms - each.start_ms for each in windows]
    assert whole.speech == pytest.approx(np.average([each.speech or 0.0 for each in windows], weights=lengths))
    if answered:
        assert whole.abstention is None
        weights = [each.end_ms - each.start_ms for each in answered]
        mean = np.average(
            [each.probabilities for each in answered if each.probabilities is not None], axis=0, weights=weights
        )
        assert whole.probabilities is not None
        np.testing.assert_allclose(whole.probabilities, mean)
    else:
        reasons = [each.abstention for each in windows]
        assert reasons.count(whole.abstention) == max(map(reasons.count, reasons))
        assert (whole.probabilities is None) == (whole.abstention != "out_of_distribution")


def test_a_tally_holds_no_windows() -> None:
    tally = Tally()
    for number in range(1000):
        tally.add(window(number, start_ms=number * 10))
    assert tally.count == 1000
    assert tally.overall().end_ms == 10_990
    assert all(not isinstance(value, list) for value in vars(tally).values())
