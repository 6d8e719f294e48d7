"""What features are worth: macro-F1 of a logistic regression by speaker, and paired differences between features.

The evaluator's speaker folds (`sound`), three draws of them; C = 0.1 on features standardised by the training part;
intervals drawn over speakers. A mean over corpora takes their speakers as independent: variances of the mean add up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.evaluator.splits import speaker_folds
from services.evaluator.statistics import Tables, paired, tables

SEEDS = (0, 1, 2)
C = 0.1
STEPS = 2_000

Features = NDArray[np.float32]
Answers = NDArray[np.intp]


class Labelled(Protocol):
    """A corpus: one key, label and speaker a clip."""

    @property
    def name(self) -> str:
        """Of the corpus."""

    @property
    def keys(self) -> Sequence[str]:
        """Digests of the clips."""

    @property
    def labels(self) -> Sequence[str]:
        """Classes."""

    @property
    def speakers(self) -> Sequence[str]:
        """Who speaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A mean difference in macro-F1 over corpora and its 95 % interval; no interval from a single speaker."""

    mean: float
    low: float | None
    high: float | None


def answers(corpus: Labelled, features: Features) -> Answers:
    """The class [seeds, clips] that a head which never heard the speaker gives each clip; -1 where no fold tests it.

    Args:
        corpus: n clips.
        features: [n, d].

    Raises:
        Refused: no speaker-disjoint folds can be made.
    """
    return np.stack([_answers(corpus, features, seed) for seed in SEEDS])


def counted(corpus: Labelled, chosen: Answers) -> Tables:
    """Confusions [seeds, speakers, K, K] of `chosen`."""
    classes, truth = _truth(corpus)
    return tables(truth, answers=chosen, speakers=corpus.speakers, classes=len(classes))


def macro_f1(scored: Tables) -> float:
    """Mean over the draws of folds, over the classes that the truth holds."""
    confusion = scored.confusions.sum(axis=1).astype(float)
    clips = confusion.sum(axis=2)
    f1 = 2 * np.diagonal(confusion, axis1=1, axis2=2) / np.maximum(confusion.sum(axis=1) + clips, 1)
    return float(np.mean([row[total > 0].mean() for row, total in zip(f1, clips, strict=True)]))


def gap(ours: Sequence[Tables], theirs: Sequence[Tables]) -> Gap:
    """`ours` minus `theirs`, the mean over corpora; the same speakers drawn for both."""
    differences = [paired(a, b) for a, b in zip(ours, theirs, strict=True)]
    mean = float(np.mean([each.estimate for each in differences]))
    lows = [each.estimate - each.interval.low for each in differences if each.interval.low is not None]
    highs = [each.interval.high - each.estimate for each in differences if each.interval.high is not None]
    if min(len(lows), len(highs)) < len(differences):
        return Gap(mean=mean, low=None, high=None)
    return Gap(mean=mean, low=mean - math.hypot(*lows) / len(lows), high=mean + math.hypot(*highs) / len(highs))


def _answers(corpus: Labelled, features: Features, seed: int) -> Answers:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _, truth = _truth(corpus)
    chosen = np.full(len(truth), -1, np.intp)
    splits = speaker_folds(corpus.keys, corpus.labels, corpus.speakers, corpus=corpus.name, seed=seed)
    for fold in splits.folds:
        head = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=STEPS))
        head.fit(features[fold.train], truth[fold.train])
        chosen[fold.test] = head.predict(features[fold.test])
    return chosen


def _truth(corpus: Labelled) -> tuple[list[str], Answers]:
    classes = sorted(set(corpus.labels))
    return classes, np.array([classes.index(label) for label in corpus.labels], np.intp)
