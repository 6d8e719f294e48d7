"""Folds and scores against scikit-learn."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from services.prober import calibration
from servox.errors import BadInput


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
