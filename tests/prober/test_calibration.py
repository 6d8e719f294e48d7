"""Folds and scores against scikit-learn."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, log_loss

from services.prober import calibration
from servox.calibration import brier, fit_scaling, nll
from servox.errors import BadInput
from servox.priors import softmax


def scores(seed: int, *, clips: int = 200, classes: int = 4, scale: float = 2.0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, clips)
    return (random.normal(size=(clips, classes)) + np.eye(classes)[labels]) * scale, labels


def test_f1_is_scikit_learns() -> None:
    logits, labels = scores(3)
    answers = logits.argmax(axis=1)
    assert calibration.macro_f1(answers, labels) == pytest.approx(f1_score(labels, answers, average="macro"))
    # only classes that the truth holds count, also where others were answered
    some = labels < 3
    wanted = f1_score(labels[some], answers[some], average="macro", labels=[0, 1, 2])
    assert calibration.macro_f1(answers[some], labels[some]) == pytest.approx(wanted)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=2, max_size=80),
    st.integers(2, 6),
    st.integers(0, 9),
)
def test_folds_keep_groups_together(rows: list[tuple[int, int]], folds: int, seed: int) -> None:
    labels = np.array([label for label, _ in rows])
    group, _ = calibration.groups([f"s{speaker}" for _, speaker in rows])
    if group.max() == 0:
        with pytest.raises(BadInput, match="1 speaker"):
            calibration.fold_of(labels, group, folds=folds, seed=seed)
        return
    chosen = calibration.fold_of(labels, group, folds=folds, seed=seed)
    assert chosen.shape == labels.shape
    assert all(len(set(chosen[group == number])) == 1 for number in set(group))
    assert len(set(chosen)) == min(folds, group.max() + 1), "no fold stays empty"


def test_folds_spread_the_classes() -> None:
    labels = np.arange(200) % 4
    group = np.arange(200) // 10
    chosen = calibration.fold_of(labels, group, folds=5, seed=0)
    counts = np.array([np.bincount(labels[chosen == fold], minlength=4) for fold in range(5)])
    assert counts.min() >= 8
    assert counts.max() <= 12


def test_clips_take_the_place_of_missing_speakers() -> None:
    assert calibration.groups(["a", "b", "a"])[0].tolist() == [0, 1, 0]
    assert calibration.groups(["a", "b"])[1] == "speaker"
    assert calibration.groups(["", "", ""])[0].tolist() == [0, 1, 2]
    assert calibration.groups(["", ""])[1] == "clip"
    group, what = calibration.groups(["a", "", "a", ""])
    assert group.tolist() == [0, 1, 0, 2]
    assert "clip where none" in what


@pytest.mark.parametrize("biased", [False, True])
def test_the_scores_after_scaling_are_cross_fitted(biased: bool) -> None:
    """Each fold is scored with what the others ask for; the head gets what all of them ask for."""
    logits, labels = scores(5)
    logits = logits + np.array([0.0, 0.0, 0.0, 3.0])
    folds = np.arange(200) % 4
    scaling, card = calibration.judge(
        logits, labels, folds=folds, biased=biased, speakers=8, grouped_by="speaker", left_out=2
    )
    assert scaling == fit_scaling(logits, labels, biased=biased)
    after = logits.copy()
    for fold in range(4):
        others = fit_scaling(logits[folds != fold], labels[folds != fold], biased=biased)
        after[folds == fold] = others.apply(logits[folds == fold])
    assert card.nll_after == pytest.approx(log_loss(labels, softmax(after)))
    assert card.nll_after > nll(scaling.apply(logits), labels), "what is fitted on itself flatters"
    assert card.nll_before == pytest.approx(log_loss(labels, softmax(logits)))
    assert (card.brier_before, card.brier_after) == (brier(labels, softmax(logits)), brier(labels, softmax(after)))
    assert card.macro_f1 == pytest.approx(f1_score(labels, after.argmax(axis=1), average="macro"))
    assert (card.folds, card.speakers, card.left_out, card.clips) == (4, 8, 2, 200)


def test_biases_mend_what_a_temperature_cannot() -> None:
    logits, labels = scores(5, clips=2000)
    logits = logits + np.array([0.0, 0.0, 0.0, 3.0])
    given: dict[str, Any] = {"folds": np.arange(2000) % 5, "speakers": 8, "grouped_by": "speaker", "left_out": 0}
    plain, mended = (calibration.judge(logits, labels, biased=biased, **given)[1] for biased in (False, True))
    assert mended.nll_after < plain.nll_after - 0.1
    assert mended.macro_f1 > plain.macro_f1


def test_speakers_are_held_back_whole_and_the_same_every_time() -> None:
    labels, group = np.arange(200) % 4, np.arange(200) // 10 + 3
    back = calibration.held_back(labels, group, share=0.2, seed=1)
    assert np.array_equal(back, calibration.held_back(labels, group, share=0.2, seed=1))
    assert 0.1 < len(back) / 200 < 0.3
    assert not set(group[back]) & set(np.delete(group, back))


def test_a_class_that_only_those_held_back_say_is_learned() -> None:
    labels, group = np.arange(40) % 2, np.arange(40) // 10
    for number in range(4):
        alone = np.where(group == number, 2, labels)
        back = calibration.held_back(alone, group, share=0.25, seed=0)
        assert number not in group[back]


def test_one_speaker_cannot_be_held_back() -> None:
    with pytest.raises(BadInput, match="patience = 0"):
        calibration.held_back(np.array([0, 1]), np.array([2, 2]), share=0.2, seed=0)
