import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from servox.priors import divergence, effective_classes
from servox.standardisation import blended, clipped, moved_mean, relevance, shift, target_statistics

ROWS = arrays(np.float64, st.tuples(st.integers(2, 40), st.just(5)), elements=st.floats(-100, 100))
SHARES = arrays(np.float64, 4, elements=st.floats(0.001, 1)).map(lambda each: each / each.sum())


@given(ROWS)
def test_the_running_mean_is_that_of_the_batch(values: np.ndarray) -> None:
    mean = np.zeros(5)
    for number, row in enumerate(values):
        mean = moved_mean(mean, row, before=float(number), weight=1.0)
    np.testing.assert_allclose(mean, target_statistics(values)[0], atol=1e-9)


@given(ROWS, st.floats(0.1, 10))
def test_a_clipped_value_lies_within_reach_and_what_lies_there_stays(values: np.ndarray, deviations: float) -> None:
    centre, std = values[0], np.full(5, 2.0)
    cut = clipped(values[1], centre, std, deviations=deviations)
    assert (np.abs(cut - centre) <= 2.0 * deviations + 1e-9).all()
    near = centre + np.clip(values[1] - centre, -1, 1) * deviations
    np.testing.assert_allclose(clipped(near, centre, std, deviations=deviations), near)


def test_a_shift_counts_squared_deviations() -> None:
    assert shift(np.full(3, 7.0), np.full(3, 3.0), np.full(3, 2.0)) == pytest.approx(4.0)


@given(st.floats(0, 10), st.floats(0, 10))
def test_relevance_rises_from_low_to_high(first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert relevance(low, low=0.2, high=0.3) <= relevance(high, low=0.2, high=0.3)
    assert relevance(0.2, low=0.2, high=0.3) == 0
    assert relevance(0.3, low=0.2, high=0.3) == 1


def test_blending_goes_from_training_to_target() -> None:
    np.testing.assert_allclose(blended([0.0, 2.0], [4.0, 4.0], 0.25), [1.0, 2.5])


@given(SHARES, SHARES)
def test_divergence_is_symmetric_and_bounded(first: np.ndarray, second: np.ndarray) -> None:
    assert divergence(first, second) == pytest.approx(divergence(second, first), abs=1e-12)
    assert 0 <= divergence(first, second) <= np.log(2)
    assert divergence(first, first) == 0


def test_divergence_of_what_shares_nothing_is_the_logarithm_of_two() -> None:
    assert divergence([1.0, 0.0], [0.0, 1.0]) == pytest.approx(np.log(2))


@given(SHARES)
def test_effective_classes_lie_between_one_and_all(prior: np.ndarray) -> None:
    assert 1 <= effective_classes(prior) <= 4 + 1e-9
    assert effective_classes(np.full(4, 0.25)) == pytest.approx(4)
    assert effective_classes([1.0, 0.0]) == 1
