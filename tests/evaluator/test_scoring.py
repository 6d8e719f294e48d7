import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics

from services.evaluator.scoring import macro_scores, score, score_logits
from servox.errors import BadInput
from servox.priors import softmax

Array = NDArray[np.float64]


@st.composite
def scored_sets(draw: st.DrawFn) -> tuple[NDArray[np.intp], Array]:
    """Labels and probabilities; small sets, so that classes are often absent from truth or answers."""
    clips, classes = draw(st.integers(1, 40)), draw(st.integers(2, 8))
    seed, scale = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.1, 1.0, 5.0]))
    generator = np.random.default_rng(seed)
    return generator.integers(0, classes, clips), softmax(generator.normal(scale=scale, size=(clips, classes)))


@given(scored_sets())
def test_scores_over_the_truth_equal_scikit_learn(data: tuple[NDArray[np.intp], Array]) -> None:
    labels, posterior = data
    answers, found = posterior.argmax(axis=1), score(labels, posterior)
    present = np.unique(labels)
    assert found.macro_f1 == pytest.approx(
        metrics.f1_score(labels, answers, labels=present, average="macro", zero_division=0)
    )
    assert found.uar == pytest.approx(
        metrics.recall_score(labels, answers, labels=present, average="macro", zero_division=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scikit-learn warns of answers that the truth does not hold
        assert found.uar == pytest.approx(metrics.balanced_accuracy_score(labels, answers))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, answers))


@given(scored_sets())
def test_scores_over_what_appears_equal_scikit_learn(data: tuple[NDArray[np.intp], Array]) -> None:
    """Without `labels`, scikit-learn averages over what appears in truth or answers, as torchmetrics does."""
    labels, posterior = data
    answers, found = posterior.argmax(axis=1), score(labels, posterior, macro="appearing")
    assert found.macro_f1 == pytest.approx(metrics.f1_score(labels, answers, average="macro", zero_division=0))
    assert found.uar == pytest.approx(metrics.recall_score(labels, answers, average="macro", zero_division=0))


@given(scored_sets())
def test_tables_and_losses_equal_scikit_learn(data: tuple[NDArray[np.intp], Array]) -> None:
    labels, posterior = data
    classes = list(range(posterior.shape[1]))
    answers, found = posterior.argmax(axis=1), score(labels, posterior)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one class only in truth and answers
        counted = metrics.confusion_matrix(labels, answers, labels=classes)
    assert np.array_equal(found.confusion, counted)
    assert found.nll == pytest.approx(metrics.log_loss(labels, posterior, labels=classes))
    one_hot = np.eye(len(classes))[labels]
    assert found.brier == pytest.approx(
        sum(metrics.brier_score_loss(one_hot[:, k], posterior[:, k], pos_label=1) for k in classes)
    )
    f1 = metrics.f1_score(labels, answers, labels=classes, average=None, zero_division=0)
    recall = metrics.recall_score(labels, answers, labels=classes, average=None, zero_division=0)
    assert [value or 0.0 for value in found.per_class_f1] == pytest.approx(list(f1))
    assert [value or 0.0 for value in found.per_class_recall] == pytest.approx(list(recall))
    assert found.support == tuple(np.bincount(labels, minlength=len(classes)))
    assert (found.clips, sum(found.support)) == (len(labels), len(labels))


def _ece_in_a_loop(labels: NDArray[np.intp], posterior: Array) -> float:
    confidence, hit = posterior.max(axis=1), posterior.argmax(axis=1) == labels
    total = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return total


@given(scored_sets())
def test_ece_equals_its_definition(data: tuple[NDArray[np.intp], Array]) -> None:
    assert score(*data).ece == pytest.approx(_ece_in_a_loop(*data), abs=1e-9)


def test_ece_of_known_cases() -> None:
    assert score([0, 0], [[1.0, 0.0], [1.0, 0.0]]).ece == 0
    assert score([1, 1], [[1.0, 0.0], [1.0, 0.0]]).ece == 1
    assert score([0, 1], [[0.75, 0.25], [0.75, 0.25]]).ece == pytest.approx(0.25)


def test_a_class_in_neither_truth_nor_answers_is_undefined() -> None:
    found = score([0, 0, 1], [[0.8, 0.1, 0.1]] * 3)
    assert found.per_class_f1[0] == pytest.approx(0.8)
    assert found.per_class_f1[1:] == (0.0, None)
    assert found.per_class_recall == (1.0, 0.0, None)
    assert found.macro_f1 == pytest.approx(0.4)


def test_an_answered_class_without_clips_counts_only_where_it_appears() -> None:
    posterior = [[0.9, 0.1], [0.1, 0.9]]
    assert score([0, 0], posterior).macro_f1 == pytest.approx(2 / 3)
    assert score([0, 0], posterior, macro="appearing").macro_f1 == pytest.approx(1 / 3)
    assert score([0, 0], posterior).per_class_recall == (0.5, None)


def test_logits_may_exclude_a_class() -> None:
    found = score_logits([0, 1], [[0.0, -1.0, -np.inf], [0.0, 1.0, -np.inf]])
    assert (found.accuracy, found.per_class_f1[2]) == (1.0, None)


def test_nll_of_an_impossible_truth_is_finite_as_in_scikit_learn() -> None:
    assert score([1], [[1.0, 0.0]]).nll == pytest.approx(metrics.log_loss([1], [[1.0, 0.0]], labels=[0, 1]))


def test_scores_go_into_json() -> None:
    found = score([0, 0, 1], [[0.8, 0.1, 0.1]] * 3)
    assert json.loads(json.dumps(dataclasses.asdict(found)))["per_class_f1"][2] is None


def test_macro_scores_are_vectorised_and_undefined_without_clips() -> None:
    stacked = np.array([[[2, 0], [1, 1]], [[0, 0], [0, 0]]])
    found = macro_scores(stacked)
    assert found["accuracy"][0] == 0.75
    assert all(np.isnan(values[1]) for values in found.values())


@pytest.mark.parametrize(
    ("labels", "rows", "said"),
    [
        ([0], [[0.5, 0.5], [0.5, 0.5]], "labels have shape"),
        ([2], [[0.5, 0.5]], "labels hold 2"),
        ([-1], [[0.5, 0.5]], "labels hold -1"),
        ([0.0], [[0.5, 0.5]], "as integers"),
        ([0], [[0.5, 0.6]], "sums to 1.1"),
        ([], np.zeros((0, 2)), "at least one"),
    ],
)
def test_bad_input_is_named(labels: list[int], rows: list[list[float]], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        score(labels, rows)
