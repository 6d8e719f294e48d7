import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn.metrics import brier_score_loss

from servox.calibration import (
    BIAS_SPREAD,
    UNSCALED,
    Scaling,
    brier,
    ece,
    fit_bias,
    fit_scaling,
    fit_temperature,
    nll,
)


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


def _penalised(point: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean NLL at (1/T, b) with the prior of the biases, in scipy's words."""
    chosen = special.log_softmax(logits * point[0] + point[1:], axis=1)[np.arange(len(labels)), labels]
    return float(-chosen.mean() + (point[1:] ** 2).sum() / (2 * BIAS_SPREAD**2 * len(labels)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.sampled_from([0.3, 1.0, 4.0]), classes=st.integers(2, 5))
def test_the_biases_are_the_minimum_that_scipy_finds(seed: int, temperature: float, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(60, classes))
    shares = special.softmax(logits / temperature + rng.normal(size=classes), axis=1)
    labels = np.minimum((shares.cumsum(axis=1) < rng.random((60, 1))).sum(axis=1), classes - 1)
    start = np.concatenate([[1.0], np.zeros(classes)])
    bounds = [(1 / 20, 20)] + [(None, None)] * classes
    found = optimize.minimize(_penalised, start, args=(logits, labels), bounds=bounds, method="L-BFGS-B")
    scaling = fit_bias(logits, labels)
    ours = np.array([1 / scaling.temperature, *scaling.bias])
    assert _penalised(ours, logits, labels) <= found.fun + 1e-7
    np.testing.assert_allclose(ours, found.x, atol=0.02)


def test_the_biases_that_made_the_labels_are_found() -> None:
    rng = np.random.default_rng(0)
    logits, true = rng.normal(scale=2, size=(20_000, 4)), np.array([1.0, 0.5, -0.5, -1.0])
    shares = special.softmax(logits / 1.5 + true, axis=1)
    labels = np.minimum((shares.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1), 3)
    scaling = fit_bias(logits, labels)
    assert scaling.temperature == pytest.approx(1.5, rel=0.05)
    np.testing.assert_allclose(scaling.bias, true, atol=0.08)


@given(
    seed=st.integers(0, 1000), clips=st.integers(1, 40), classes=st.integers(2, 6), scale=st.sampled_from([0, 1, 30])
)
def test_biases_never_fit_worse_than_a_temperature_alone(seed: int, clips: int, classes: int, scale: float) -> None:
    """Also where classes are absent, logits say nothing or tell everything, and 1/T stands at an edge."""
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(scale=scale, size=(clips, classes)), rng.integers(0, classes, clips)
    scaling = fit_bias(logits, labels)
    assert nll(scaling.apply(logits), labels) <= nll(logits / fit_temperature(logits, labels), labels) + 1e-9
    assert 0.05 <= scaling.temperature <= 20.0
    assert np.abs(scaling.bias).max() < 25
    assert sum(scaling.bias) == pytest.approx(0, abs=1e-9)


def test_a_class_without_clips_keeps_a_finite_bias() -> None:
    logits, labels = _sampled(temperature=1.0, clips=300)
    kept = labels != 4
    scaling = fit_bias(logits[kept], labels[kept])
    assert -25 < scaling.bias[4] < -2
    assert min(scaling.bias) == scaling.bias[4]


def test_a_scaling_is_a_division_and_a_sum() -> None:
    logits = np.array([[1.0, -np.inf, 3.0]])
    np.testing.assert_array_equal(Scaling(temperature=2.0).apply(logits), [[0.5, -np.inf, 1.5]])
    np.testing.assert_array_equal(Scaling(temperature=2.0, bias=(1.0, 0.0, -1.0)).apply(logits), [[1.5, -np.inf, 0.5]])
    np.testing.assert_array_equal(UNSCALED.apply(logits), logits)
    assert fit_scaling([[1.0, 0.0], [0.0, 1.0]], [0, 0], biased=False).bias == ()
    assert len(fit_scaling([[1.0, 0.0], [0.0, 1.0]], [0, 0], biased=True).bias) == 2


def test_brier_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    shares, labels = special.softmax(rng.normal(size=(50, 2)), axis=1), rng.integers(0, 2, 50)
    assert brier(labels, shares) == pytest.approx(2 * brier_score_loss(labels, shares[:, 1]))
    assert brier([0, 1], np.eye(2)) == 0
    assert brier([1, 0], np.eye(2)) == 2
