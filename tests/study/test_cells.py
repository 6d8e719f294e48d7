"""Counts of a cell against scikit-learn, and the inner folds against leaving folds out by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from services.study.cells import Speech, inner, outer


@pytest.fixture(scope="module")
def speech() -> Speech:
    """Four speakers who say three classes alike; one clip lies in no fold."""
    speakers = np.repeat(np.arange(4), 9)
    folds = np.stack([speakers, (speakers + 1) % 4])
    folds[:, 0] = -1
    return Speech(labels=np.tile(np.arange(3), 12), speakers=speakers, folds=folds, classes=3)


@pytest.fixture(scope="module")
def vectors(speech: Speech) -> np.ndarray:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(3, 5))
    return (means[speech.labels] + rng.normal(scale=0.8, size=(36, 5))).astype(np.float32)


def by_hand(x: np.ndarray, served: np.ndarray, speech: Speech, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    scaler = StandardScaler().fit(x[train])
    model = LogisticRegression(C=0.1, max_iter=2000).fit(scaler.transform(x[train]), speech.labels[train])
    counted = np.zeros((4, 3, 3), np.int64)
    answers = model.predict(scaler.transform(served[test]))
    for speaker, label, answer in zip(speech.speakers[test], speech.labels[test], answers, strict=True):
        counted[speaker, label, answer] += 1
    return counted


def test_outer_counts_are_those_of_scikit_learn(speech: Speech, vectors: np.ndarray) -> None:
    counted = outer(vectors, vectors, speech, c=0.1)
    assert counted.shape == (2, 4, 3, 3)
    for seed, folds in enumerate(speech.folds):
        expected = sum(
            by_hand(vectors, vectors, speech, (folds >= 0) & (folds != fold), folds == fold) for fold in range(4)
        )
        assert (counted[seed] == expected).all()
    assert counted.sum() == 2 * 35  # the clip in no fold is neither trained on nor scored


def test_a_transfer_trains_on_one_policy_and_serves_another(speech: Speech, vectors: np.ndarray) -> None:
    folds = speech.folds[0]
    moved = vectors + np.float32(1.5)
    expected = sum(by_hand(vectors, moved, speech, (folds >= 0) & (folds != fold), folds == fold) for fold in range(4))
    counted = outer(vectors, moved, speech, c=0.1)
    assert (counted[0] == expected).all()
    assert (counted != outer(vectors, vectors, speech, c=0.1)).any()


def test_inner_counts_hear_neither_the_fold_held_out_nor_the_one_scored(speech: Speech, vectors: np.ndarray) -> None:
    counted = inner(vectors, speech, c=0.1)
    assert counted.shape == (2, 4, 4, 3, 3)
    for seed, folds in enumerate(speech.folds):
        for held in range(4):
            others = [fold for fold in range(4) if fold != held]
            expected = sum(
                by_hand(vectors, vectors, speech, (folds >= 0) & (folds != held) & (folds != fold), folds == fold)
                for fold in others
            )
            assert (counted[seed, held] == expected).all()
            assert counted[seed, held][speech.fold_of_speaker[seed] == held].sum() == 0


def test_two_folds_are_too_few_for_an_inner_one(vectors: np.ndarray, speech: Speech) -> None:
    two = Speech(labels=speech.labels, speakers=speech.speakers, folds=speech.speakers[None] // 2, classes=3)
    assert inner(vectors, two, c=0.1).sum() == 0
