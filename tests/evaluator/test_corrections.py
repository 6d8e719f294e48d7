import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from services.evaluator.corrections import (
    LADDER,
    Protocol,
    apply,
    calibration_draws,
    correction,
    held_out,
    ladder,
    restrict,
    shared_support,
)
from servox import priors
from servox.errors import BadInput, NotFound, Refused
from servox.standardisation import target_statistics

Array = NDArray[np.float64]

LABELS = st.lists(st.sampled_from(["anger", "calm", "fear", "joy", "neutral", "other"]), max_size=30)
LOGITS = arrays(np.float64, st.tuples(st.integers(2, 30), st.just(6)), elements=st.floats(-20, 20))
TRAIN, TARGET, SUPPORT = [50, 10, 0, 30, 5, 5], [5, 80, 3, 10, 0, 2], [0, 1, 3]


def _apply(name: str, logits: Array, *, protocol: Protocol = "sound") -> Array:
    support = SUPPORT if protocol == "sound" else [0, 1, 2, 3, 5]
    return apply(name, logits, protocol=protocol, support=support, train_counts=TRAIN, target_counts=TARGET)


def test_the_ladder_is_closed_and_says_what_it_takes_from_the_target() -> None:
    assert [rung.name for rung in ladder("sound")] == list(LADDER)
    assert [rung.name for rung in ladder("ser-evals")] == ["none", "oracle-prior"]
    assert {rung.name for rung in LADDER.values() if rung.target_labels} == {"oracle-prior"}
    assert {rung.name: rung.target_clips for rung in LADDER.values()} == {
        "none": 0,
        "minus-train-prior": 0,
        "oracle-prior": -1,
        "em-prior": -1,
        "mean-probability": -1,
        "standardise-16": 16,
        "standardise-64": 64,
        "standardise-all": -1,
    }
    assert all(rung.standardises == name.startswith("standardise-") for name, rung in LADDER.items())
    with pytest.raises(NotFound, match="coral"):
        correction("coral")


@given(LABELS, LABELS)
def test_shared_support_is_what_both_have_in_the_order_of_the_head(train: list[str], test: list[str]) -> None:
    classes = sorted(set(train), reverse=True)
    shared = set(train) & set(test) - {"other"}
    if len(shared) < 2:
        with pytest.raises(Refused, match=f"share {len(shared)} classes"):
            shared_support(classes, test)
    else:
        assert shared_support(classes, test) == tuple(label for label in classes if label in shared)


@given(LABELS)
def test_restrict_counts_every_clip_once(labels: list[str]) -> None:
    found = restrict(labels, ["anger", "joy"])
    assert [labels[i] for i in found.kept] == [label for label in labels if label in ("anger", "joy")]
    assert len(found.kept) + sum(found.dropped.values()) == len(labels)
    assert not {"anger", "joy"} & set(found.dropped)


@given(LOGITS, st.sampled_from(sorted(LADDER)))
def test_answers_stay_within_the_support(logits: Array, name: str) -> None:
    found = _apply(name, logits)
    assert np.isfinite(found[:, SUPPORT]).all()
    assert np.isneginf(np.delete(found, SUPPORT, axis=1)).all()


@given(LOGITS)
def test_none_and_standardisation_only_mask(logits: Array) -> None:
    for name in ("none", "standardise-16", "standardise-64", "standardise-all"):
        np.testing.assert_array_equal(_apply(name, logits), priors.mask(logits, SUPPORT))


@given(LOGITS)
def test_prior_corrections_are_bayes_rule_on_the_smoothed_support(logits: Array) -> None:
    posterior = special.softmax(logits[:, SUPPORT], axis=1)
    train, target = np.array([51, 11, 31]) / 93, np.array([6, 81, 11]) / 98
    for name, ratio in (("minus-train-prior", 1 / train), ("oracle-prior", target / train)):
        expected = posterior * ratio / (posterior * ratio).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(priors.softmax(_apply(name, logits))[:, SUPPORT], expected, rtol=1e-9, atol=1e-12)


@given(LOGITS)
def test_mean_probability_equals_its_plain_form(logits: Array) -> None:
    expected = priors.divide_by_mean(priors.softmax(logits[:, SUPPORT]))
    found = priors.softmax(_apply("mean-probability", logits))[:, SUPPORT]
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


@given(LOGITS)
def test_corrections_without_target_labels_do_not_read_the_target_counts(logits: Array) -> None:
    for rung in ladder("sound"):
        other = apply(
            rung.name, logits, protocol="sound", support=SUPPORT, train_counts=TRAIN, target_counts=TARGET[::-1]
        )
        if not rung.target_labels:
            np.testing.assert_array_equal(_apply(rung.name, logits), other)


def test_em_and_mean_probability_help_under_pure_label_shift() -> None:
    """Two classes, exact posteriors under equal shares, a target of 9 to 1: what the methods are made for."""
    generator = np.random.default_rng(0)
    truth = (generator.random(3000) < 0.1).astype(int)
    score = generator.normal(loc=np.where(truth == 1, 1.0, -1.0))
    logits = np.stack([-score, score], axis=1)
    options = {"support": [0, 1], "train_counts": [500, 500], "target_counts": [1, 1]}
    accuracy = {
        name: float((apply(name, logits, protocol="sound", **options).argmax(axis=1) == truth).mean())
        for name in ("none", "em-prior")
    }
    assert accuracy["em-prior"] > accuracy["none"] + 0.03


def test_ser_evals_is_the_formula_to_the_letter() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 6))
    expected = priors.adjust_paper(logits, train_counts=TRAIN, target_counts=TARGET, other=4)
    np.testing.assert_array_equal(_apply("oracle-prior", logits, protocol="ser-evals"), expected)
    assert (_apply("oracle-prior", logits, protocol="ser-evals").argmax(axis=1) == 2).all(), "an unseen class wins"
    with pytest.raises(Refused, match="does not report 'em-prior'"):
        _apply("em-prior", logits, protocol="ser-evals")


def test_apply_names_counts_of_another_taxonomy() -> None:
    with pytest.raises(BadInput, match="counts are of 2 classes"):
        apply(
            "oracle-prior",
            np.zeros((1, 3)),
            protocol="sound",
            support=[0, 1],
            train_counts=[1, 2],
            target_counts=[1] * 3,
        )


def test_target_statistics_equal_scikit_learn() -> None:
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    chosen = [3, 5, 8, 13, 21]
    scaler = StandardScaler().fit(x[chosen].astype(np.float64))
    mean, std = target_statistics(x, chosen)
    np.testing.assert_allclose(mean, scaler.mean_, rtol=1e-9)
    np.testing.assert_allclose(std, scaler.scale_, rtol=1e-9)
    np.testing.assert_allclose(target_statistics(x)[0], x.mean(axis=0), atol=1e-6)


def test_a_dimension_that_does_not_move_is_not_blown_up() -> None:
    x = np.random.default_rng(0).normal(size=(16, 5))
    x[:, 2] = 7.0
    assert target_statistics(x)[1][2] == pytest.approx(1e-3 * np.median(x.std(axis=0)))
    assert target_statistics(np.ones((4, 3)))[1].tolist() == [1, 1, 1]


def test_target_statistics_refuse_what_they_cannot_describe() -> None:
    with pytest.raises(BadInput, match="1 calibration clips"):
        target_statistics(np.ones((5, 2)), [1])
    with pytest.raises(BadInput, match=r"shape \(5,\)"):
        target_statistics(np.ones(5))
    with pytest.raises(BadInput, match="not finite"):
        target_statistics([[1.0, np.nan], [1.0, 2.0]])


@given(st.integers(32, 300), st.integers(0, 10))
def test_calibration_draws_partition_the_target(clips: int, seed: int) -> None:
    draws = calibration_draws(clips, size=16, draws=3, seed=seed)
    again = calibration_draws(clips, size=16, draws=3, seed=seed)
    assert [d.tolist() for d in draws] == [d.tolist() for d in again]
    for drawn in draws:
        rest = held_out(clips, drawn)
        assert len(drawn) == 16
        assert sorted([*drawn, *rest]) == list(range(clips))


def test_calibration_draws_differ_and_are_even() -> None:
    draws = calibration_draws(100, size=16, draws=2000, seed=0)
    assert len({tuple(d) for d in draws}) == 2000
    share = np.bincount(np.concatenate(draws), minlength=100) / 2000
    assert np.abs(share - 0.16).max() < 0.04


def test_a_small_target_is_refused() -> None:
    with pytest.raises(Refused, match="31 clips; 32 are the least"):
        calibration_draws(31, size=16)
    with pytest.raises(BadInput, match="0 draws"):
        calibration_draws(100, size=16, draws=0)


def test_target_standardisation_undoes_a_shift_of_the_channel() -> None:
    """A head moved to a corpus with another offset and scale: 16 unlabelled clips restore most of what was lost."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(4, 10))
    labels = generator.integers(0, 4, 800)
    source = centres[labels] + generator.normal(scale=0.7, size=(800, 10))
    target = 5 * source[400:] + 20
    mean, std = target_statistics(source[:400])
    head = LogisticRegression().fit((source[:400] - mean) / std, labels[:400])
    drawn = calibration_draws(400, size=16, draws=1)[0]
    rest = held_out(400, drawn)
    shifted, scale = target_statistics(target, drawn)
    plain = head.score((target[rest] - mean) / std, labels[400:][rest])
    corrected = head.score((target[rest] - shifted) / scale, labels[400:][rest])
    ceiling = head.score((source[400:][rest] - mean) / std, labels[400:][rest])
    assert plain < 0.5 < corrected
    assert corrected > plain + 0.6 * (ceiling - plain)
