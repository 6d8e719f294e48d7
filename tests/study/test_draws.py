"""Draws by speaker against the evaluator's own bootstrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.evaluator.statistics import intervals, paired, tables
from services.study.draws import Score, mean, score

CLIPS, CLASSES, SPEAKERS = 240, 4, 12


def answered(seed: int, skill: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = np.arange(CLIPS) % CLASSES
    speakers = [f"s{n}" for n in np.arange(CLIPS) // (CLIPS // SPEAKERS)]
    right = np.random.default_rng(seed).random((3, CLIPS)) < skill
    return labels, np.where(right, labels, rng.integers(0, CLASSES, (3, CLIPS))), speakers


def test_the_estimate_and_the_interval_are_the_evaluators() -> None:
    labels, answers, speakers = answered(1, 0.6)
    data = tables(labels, answers=answers, speakers=speakers, classes=CLASSES)
    found = score(data.confusions, seed=0)
    theirs = intervals(data)["macro_f1"]
    assert found.interval is not None
    assert theirs.low is not None
    assert theirs.high is not None
    assert found.interval == pytest.approx((theirs.low, theirs.high), abs=0.01)  # other draws of the same bootstrap


def test_a_difference_is_paired() -> None:
    labels, answers, speakers = answered(1, 0.6)
    better = np.where(np.random.default_rng(9).random(answers.shape) < 0.1, labels, answers)
    a, b = (tables(labels, answers=each, speakers=speakers, classes=CLASSES) for each in (better, answers))
    difference = score(a.confusions, seed=0) - score(b.confusions, seed=0)
    theirs = paired(a, b)
    assert difference.value == pytest.approx(theirs.estimate)
    assert difference.interval is not None
    assert theirs.interval.low is not None
    assert theirs.interval.high is not None
    assert difference.interval == pytest.approx((theirs.interval.low, theirs.interval.high), abs=0.006)
    assert difference.error < 0.5 * score(a.confusions, seed=0).error


def test_a_mean_over_corpora_is_surer_than_a_corpus() -> None:
    scores = []
    for seed in range(4):
        labels, answers, speakers = answered(seed, 0.6)
        data = tables(labels, answers=answers, speakers=speakers, classes=CLASSES)
        scores.append(score(data.confusions, seed=seed))
    overall = mean(scores)
    assert overall.value == pytest.approx(np.mean([each.value for each in scores]))
    assert overall.error == pytest.approx(np.sqrt(np.mean([each.error**2 for each in scores]) / 4), rel=0.15)


def test_one_speaker_has_no_interval() -> None:
    only = score(np.eye(3, dtype=np.int64)[None, None] * 5, seed=0)
    assert only.value == 1.0
    assert only.interval is None


@settings(max_examples=25)
@given(seed=st.integers(0, 99), silent=st.integers(0, 3))
def test_speakers_without_clips_change_nothing(seed: int, silent: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 5, (2, 6, 3, 3))
    counts[:, :, 0, 0] += 1
    padded = np.concatenate([counts, np.zeros((2, silent, 3, 3), np.int64)], axis=1)
    a, b = score(counts, seed=3, resamples=50), score(padded, seed=3, resamples=50)
    assert a.value == b.value
    assert (a.draws == b.draws).all()


def test_subtracting_a_score_from_itself_leaves_nothing() -> None:
    each = Score(value=0.5, draws=np.array([0.4, 0.6]), units=5)
    assert (each - each).error == 0
