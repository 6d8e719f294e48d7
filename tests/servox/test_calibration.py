import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special

from servox.calibration import ece, fit_temperature, nll


def _sampled(*, temperature: float, seed: int = 0, clips: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels were drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(clips, 5))
    shares = special.softmax(logits / temperature, axis=1)
    labels = (shares.cumsum(axis=1) < rng.random((clips, 1))).sum(axis=1)
    return logits, np.minimum(labels, 4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    logits, labels = _sampled(temperature=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.1)


@given(seed=st.integers(0, 1000))
def test_it_is_the_minimum_that_scipy_finds(seed: int) -> None:
    logits, labels = _sampled(temperature=1.7, seed=seed, clips=60)
    found = optimize.minimize_scalar(lambda t: nll(logits / t, labels), bounds=(0.05, 20), method="bounded")
    assert nll(logits / fit_temperature(logits, labels), labels) <= found.fun + 1e-6


def test_answers_that_are_always_right_get_the_sharpest_temperature_and_always_wrong_the_flattest() -> None:
    logits = np.eye(3) * 5
    assert fit_temperature(logits, [0, 1, 2]) == 0.05
    assert fit_temperature(logits, [1, 2, 0]) == 20.0


def test_a_temperature_mends_the_calibration_error() -> None:
    logits, labels = _sampled(temperature=3.0)
    fitted = fit_temperature(logits, labels)
    before, after = (ece(labels, special.softmax(logits / t, axis=1)) for t in (1.0, fitted))
    assert after < 0.03
    assert before > 0.2


def test_nll_is_that_of_scipy() -> None:
    logits, labels = _sampled(temperature=1.0, clips=50)
    assert nll(logits, labels) == pytest.approx(-special.log_softmax(logits, axis=1)[np.arange(50), labels].mean())


def test_ece_by_hand() -> None:
    probabilities = np.array([[0.7, 0.3], [0.7, 0.3], [0.05, 0.95], [0.05, 0.95]])
    # one of two right at confidence .7, both right at .95
    assert ece([0, 1, 1, 1], probabilities) == pytest.approx((0.2 * 2 + 0.05 * 2) / 4)
