import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import optimize, special

from servox import priors
from servox.errors import BadInput

Array = NDArray[np.float64]

LOGITS = arrays(np.float64, st.tuples(st.integers(1, 20), st.integers(2, 9)), elements=st.floats(-50, 50))
COUNTS = arrays(np.float64, st.integers(2, 9), elements=st.integers(0, 5000).map(float)).filter(lambda c: c.sum() > 0)


@given(LOGITS)
def test_softmax_equals_scipy(logits: Array) -> None:
    np.testing.assert_allclose(priors.softmax(logits), special.softmax(logits, axis=1), rtol=1e-12, atol=0)
    np.testing.assert_allclose(priors.log_softmax(logits), special.log_softmax(logits, axis=1), rtol=1e-12, atol=1e-12)


def test_softmax_keeps_an_excluded_class_out_and_survives_large_logits() -> None:
    found = priors.softmax([1e4, -np.inf, 1e4])
    assert found.tolist() == [0.5, 0.0, 0.5]
    assert priors.log_softmax([1e4, -np.inf, 1e4])[1] == -np.inf


@given(COUNTS, st.floats(0, 100))
def test_class_prior_is_a_distribution_between_frequency_and_uniform(counts: Array, smoothing: float) -> None:
    prior = priors.class_prior(counts, smoothing=smoothing)
    frequency, uniform = counts / counts.sum(), 1 / len(counts)
    assert prior.sum() == pytest.approx(1)
    assert (prior >= np.minimum(frequency, uniform) - 1e-12).all()
    assert (prior <= np.maximum(frequency, uniform) + 1e-12).all()


def test_class_prior_counts_pseudo_clips() -> None:
    assert priors.class_prior([3, 0], smoothing=1).tolist() == [0.8, 0.2]
    assert priors.class_prior([0, 0], smoothing=1).tolist() == [0.5, 0.5]


@given(LOGITS, st.data())
def test_adjust_is_bayes_rule(logits: Array, data: st.DataObject) -> None:
    k = logits.shape[1]
    counts = st.lists(st.integers(1, 1000), min_size=k, max_size=k)
    train, target = (priors.class_prior(data.draw(counts), smoothing=0) for _ in range(2))
    posterior = special.softmax(logits, axis=1)
    expected = posterior / train * target
    expected /= expected.sum(axis=1, keepdims=True)
    found = priors.softmax(priors.adjust(logits, train=train, target=target))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@given(LOGITS)
def test_adjusting_by_equal_priors_or_zero_strength_changes_nothing(logits: Array) -> None:
    prior = priors.class_prior(np.arange(logits.shape[1]), smoothing=1)
    np.testing.assert_allclose(priors.adjust(logits, train=prior, target=prior), logits, atol=1e-9)
    np.testing.assert_array_equal(priors.adjust(logits, train=prior, tau=0), logits)
    np.testing.assert_array_equal(priors.adjust(logits), logits)


def test_adjust_scales_with_tau_and_keeps_leading_axes() -> None:
    logits = np.zeros((2, 3, 2))
    found = priors.adjust(logits, train=[0.25, 0.75], tau=2)
    np.testing.assert_allclose(found, np.broadcast_to(-2 * np.log([0.25, 0.75]), (2, 3, 2)))


def test_adjust_makes_a_class_with_zero_target_prior_impossible() -> None:
    assert priors.softmax(priors.adjust([0.0, 5.0], target=[1, 0])).tolist() == [1, 0]


def test_adjust_refuses_a_zero_train_prior_unless_the_class_is_excluded() -> None:
    with pytest.raises(BadInput, match=r"class 1 is 0, .*smooth it"):
        priors.adjust([0.0, 0.0], train=[1, 0])
    assert priors.adjust([0.0, -np.inf], train=[1, 0]).tolist() == [0.0, -np.inf]


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        ([0.5, 0.5, 0.0], "shape"),
        ([1.5, -0.5], "-0.5"),
        ([np.nan, 1.0], "nan"),
        ([0.5, 0.49], "sums to 0.99"),
        ([[0.5, 0.5]], "shape"),
    ],
)
def test_bad_priors_are_named(prior: list[float], said: str) -> None:
    for field in ("train", "target"):
        with pytest.raises(BadInput, match=f"{field} prior.*{said}"):
            priors.adjust([0.0, 0.0], **{field: prior})  # type: ignore[arg-type]  # wrong on purpose


def test_a_prior_within_tolerance_is_taken() -> None:
    priors.adjust([0.0, 0.0], target=[0.5, 0.5 + 9e-7])
    with pytest.raises(BadInput):
        priors.adjust([0.0, 0.0], target=[0.5, 0.5 + 2e-6])


@pytest.mark.parametrize("logits", [np.nan, [np.nan, 0], [np.inf, 0], [-np.inf, -np.inf], [], [[0, 1], [np.nan, 0]]])
def test_bad_logits_are_refused(logits: list[float]) -> None:
    for function in (priors.softmax, priors.log_softmax, priors.adjust):
        with pytest.raises(BadInput, match="logits"):
            function(logits)


@pytest.mark.parametrize("smoothing", [-1, np.nan, np.inf])
def test_bad_smoothing_is_refused(smoothing: float) -> None:
    with pytest.raises(BadInput, match="smoothing is"):
        priors.class_prior([1, 2], smoothing=smoothing)


@pytest.mark.parametrize("counts", [[-1, 2], [np.nan, 1], [], [[1, 2]]])
def test_bad_counts_are_refused(counts: list[float]) -> None:
    with pytest.raises(BadInput, match="counts"):
        priors.class_prior(counts)
    with pytest.raises(BadInput, match="all zero"):
        priors.class_prior([0, 0], smoothing=0)


def test_adjust_paper_gives_an_unseen_class_27_nats() -> None:
    found = priors.adjust_paper([0.0, 0.0, 0.0], train_counts=[10, 0, 1], target_counts=[5, 5, 1], other=2)
    assert found[1] - np.log(5 / 11) == pytest.approx(27.631, abs=1e-3)
    assert found[0] == pytest.approx(np.log(5 / 11) - np.log(10 / 11))
    assert found[2] == -np.inf


@given(LOGITS, st.data())
def test_adjust_paper_equals_adjust_where_nothing_is_zero(logits: Array, data: st.DataObject) -> None:
    k = logits.shape[1]
    counts = st.lists(st.integers(1, 1000), min_size=k, max_size=k)
    train, target = data.draw(counts), data.draw(counts)
    expected = priors.adjust(
        logits, train=priors.class_prior(train, smoothing=0), target=priors.class_prior(target, smoothing=0)
    )
    found = priors.adjust_paper(logits, train_counts=train, target_counts=target, other=None)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_adjust_paper_refuses_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="train_counts"):
        priors.adjust_paper([0.0, 0.0], train_counts=[1], target_counts=[1, 1], other=None)
    with pytest.raises(BadInput, match="target_counts"):
        priors.adjust_paper([0.0, 0.0], train_counts=[1, 1], target_counts=[0, 0], other=None)
    with pytest.raises(BadInput, match="other is 6"):
        priors.adjust_paper([0.0, 0.0], train_counts=[1, 1], target_counts=[1, 1])


def test_mask_excludes_the_rest() -> None:
    assert priors.mask([[1.0, 2.0, 3.0]], [0, 2]).tolist() == [[1.0, -np.inf, 3.0]]
    for bad in ([], [3], [-1]):
        with pytest.raises(BadInput, match="classes to keep"):
            priors.mask([[1.0, 2.0, 3.0]], bad)


def _posteriors(*, prior: Array, target: Array, clips: int, seed: int) -> Array:
    """Exact posteriors under `prior` of two-dimensional Gaussian classes whose shares are `target`."""
    generator = np.random.default_rng(seed)
    centres = 1.5 * np.stack([np.cos(np.arange(len(prior)) * 2), np.sin(np.arange(len(prior)) * 2)], axis=1)
    said = generator.choice(len(prior), size=clips, p=target)
    points = centres[said] + generator.normal(size=(clips, 2))
    logs = -((points[:, None] - centres) ** 2).sum(axis=2) / 2 + np.log(prior)
    return np.asarray(special.softmax(logs, axis=1))


@pytest.mark.parametrize("seed", range(3))
def test_em_finds_the_most_likely_prior(seed: int) -> None:
    """The likelihood of Saerens et al. is concave in the prior: a general optimiser must find the same point."""
    train, target = np.full(3, 1 / 3), np.array([0.7, 0.2, 0.1])
    posterior = _posteriors(prior=train, target=target, clips=4000, seed=seed)
    found = priors.em_prior(posterior, train=train)
    best = optimize.minimize(
        lambda free: -np.log((posterior / train) @ special.softmax(np.append(free, 0.0))).mean(), np.zeros(2), tol=1e-12
    )
    assert found.converged
    np.testing.assert_allclose(found.prior, special.softmax(np.append(best.x, 0.0)), atol=2e-4)
    np.testing.assert_allclose(found.prior, target, atol=0.04)


def test_em_says_when_it_stopped_early() -> None:
    posterior = _posteriors(prior=np.full(3, 1 / 3), target=np.array([0.8, 0.1, 0.1]), clips=200, seed=0)
    found = priors.em_prior(posterior, train=np.full(3, 1 / 3), max_iterations=2)
    assert (found.converged, found.iterations) == (False, 2)


def test_em_leaves_an_excluded_class_at_zero_and_refuses_a_zero_train_prior() -> None:
    posterior = priors.softmax(priors.mask(np.random.default_rng(0).normal(size=(50, 3)), [0, 1]))
    assert priors.em_prior(posterior, train=[0.5, 0.3, 0.2]).prior[2] == 0
    assert priors.em_prior(posterior, train=[0.5, 0.5, 0.0]).prior[2] == 0
    with pytest.raises(BadInput, match="train prior is 0"):
        priors.em_prior(posterior, train=[1.0, 0.0, 0.0])


@given(LOGITS)
def test_divide_by_mean_equalises_a_constant_answer(logits: Array) -> None:
    constant = np.broadcast_to(priors.softmax(logits[:1]), logits.shape)
    np.testing.assert_allclose(priors.divide_by_mean(constant), 1 / logits.shape[1], rtol=1e-9)
    found = priors.divide_by_mean(priors.softmax(logits))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


def test_divide_by_mean_changes_the_answer_of_a_biased_head() -> None:
    found = priors.divide_by_mean([[0.9, 0.1], [0.6, 0.4]])
    np.testing.assert_allclose(
        found[1], [0.6 / 0.75 / (0.6 / 0.75 + 0.4 / 0.25), 0.4 / 0.25 / (0.6 / 0.75 + 0.4 / 0.25)]
    )
    assert found.argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("rows", [[[0.5, 0.6]], [[-0.5, 1.5]], [[np.nan, 1.0]], [0.5, 0.5], np.zeros((0, 2))])
def test_bad_probabilities_are_refused(rows: list[float]) -> None:
    with pytest.raises(BadInput, match="probabilities"):
        priors.divide_by_mean(rows)
    with pytest.raises(BadInput, match="probabilities"):
        priors.em_prior(rows, train=[0.5, 0.5])
