import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn import metrics

from services.evaluator.floors import Floor, expected, floors
from servox.errors import BadInput

COUNTS = arrays(np.int64, st.integers(2, 9), elements=st.integers(0, 3000)).filter(lambda c: c.sum() > 0)


def _simulated(
    labels: NDArray[np.intp], shares: NDArray[np.float64], *, draws: int = 200
) -> tuple[float, float, float]:
    """Mean scores of random answers, by scikit-learn."""
    generator = np.random.default_rng(0)
    present, found = np.unique(labels), []
    for _ in range(draws):
        answers = generator.choice(len(shares), size=len(labels), p=shares)
        options = {"labels": present, "average": "macro", "zero_division": 0}
        found.append(
            (
                metrics.f1_score(labels, answers, **options),
                metrics.recall_score(labels, answers, **options),
                metrics.accuracy_score(labels, answers),
            )
        )
    f1, recall, accuracy = np.mean(found, axis=0)
    return float(f1), float(recall), float(accuracy)


@pytest.mark.parametrize("counts", [[71, 143, 46, 69, 0, 127, 79], [96, 24, 192, 192, 96, 60, 60]])
@pytest.mark.parametrize("way", ["majority", "uniform", "matched"])
def test_floors_equal_the_mean_of_random_answers(counts: list[int], way: str) -> None:
    truth = np.asarray(counts) / sum(counts)
    shares = {"majority": np.eye(7)[truth.argmax()], "uniform": (truth > 0) / (truth > 0).sum(), "matched": truth}[way]
    floor: Floor = getattr(floors(counts), way)
    f1, recall, accuracy = _simulated(np.repeat(np.arange(7), counts), shares)
    assert floor.macro_f1 == pytest.approx(f1, abs=0.005)
    assert floor.uar == pytest.approx(recall, abs=0.005)
    assert floor.accuracy == pytest.approx(accuracy, abs=0.005)


@given(COUNTS)
def test_closed_forms(counts: NDArray[np.int64]) -> None:
    found, shares = floors(counts), counts[counts > 0] / counts.sum()
    assert found.matched.macro_f1 == pytest.approx(1 / len(shares))
    assert found.matched.accuracy == pytest.approx((shares**2).sum())
    assert found.majority.macro_f1 == pytest.approx(2 * shares.max() / (1 + shares.max()) / len(shares))
    assert found.majority.accuracy == pytest.approx(shares.max())
    assert found.uniform.accuracy == pytest.approx(1 / len(shares))
    assert {round(f.uar, 9) for f in (found.majority, found.uniform, found.matched)} == {round(1 / len(shares), 9)}


@given(COUNTS)
def test_a_balanced_target_has_one_random_floor(counts: NDArray[np.int64]) -> None:
    balanced = floors((counts > 0).astype(int))
    assert balanced.uniform.macro_f1 == pytest.approx(balanced.matched.macro_f1)


def test_uniform_answers_may_spread_over_classes_that_the_target_lacks() -> None:
    found = floors([10, 10, 0], answerable=[True, True, True]).uniform
    assert [found.uar, found.accuracy] == pytest.approx([1 / 3, 1 / 3])
    assert found.macro_f1 == pytest.approx(0.4)


def test_expected_is_perfectly_bad_for_answers_that_are_never_true() -> None:
    assert expected(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == Floor(macro_f1=0.0, uar=0.0, accuracy=0.0)


def test_bad_input_is_named() -> None:
    with pytest.raises(BadInput, match="all zero"):
        floors([0, 0])
    with pytest.raises(BadInput, match="counts holds -1"):
        floors([-1, 2])
    for mask in ([True], [False, False]):
        with pytest.raises(BadInput, match="answerable"):
            floors([1, 1], answerable=mask)
