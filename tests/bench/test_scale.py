"""What counts as growth of memory."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.scale import growth


def test_growth_is_from_the_second_tenth_to_the_last() -> None:
    held = [50] * 10 + [100] * 10 + [150] * 70 + [110] * 10
    assert growth(held) == pytest.approx(0.10)


@given(st.integers(1, 1 << 40), st.integers(3, 500))
def test_what_stays_has_not_grown(held: int, count: int) -> None:
    assert growth([held] * count) == 0


@given(st.integers(1, 1000), st.integers(30, 500), st.integers(1, 50))
def test_what_leaks_has_grown_and_one_outlier_says_nothing(start: int, count: int, step: int) -> None:
    held = [start + step * number for number in range(count)]
    assert growth(held) > 0
    assert growth([*held[:-1], 10**9]) == pytest.approx(growth(held), rel=1.0, abs=step / start)


def test_too_few_samples_say_nothing() -> None:
    assert math.isnan(growth([1, 2]))
