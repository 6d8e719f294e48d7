"""What an engine's features are worth: macro-F1 of a logistic regression by speaker, and paired differences.

The evaluator's speaker folds (`sound`), three draws of them; C = 0.1 on features standardised by the training part;
intervals drawn over speakers. A mean over corpora takes their speakers as independent: variances of the mean add up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.engine_speech import Speech
from services.evaluator.splits import speaker_folds
from services.evaluator.statistics import Tables, paired, tables

SEEDS = (0, 1, 2)
C = 0.1
STEPS = 2_000

Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A mean difference in macro-F1 over corpora and its 95 % interval."""

    mean: float
    low: float
    high: float


def answers(speech: Speech, features: Features, cache: Path) -> Tables:
    """Confusions [seeds, speakers, K, K] of heads that never heard the speaker; kept at `cache`."""
    classes = sorted(set(speech.labels))
    truth = np.array([classes.index(label) for label in speech.labels])
    if cache.is_file():
        chosen = np.load(cache)
    else:
        chosen = np.stack([_chosen(speech, features, truth, seed) for seed in SEEDS])
        np.save(cache, chosen)
    return tables(truth, answers=chosen, speakers=speech.speakers, classes=len(classes))


def macro_f1(scored: Tables) -> float:
    """Mean over the draws of folds."""
    confusion = scored.confusions.sum(axis=1).astype(float)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    f1 = 2 * hits / np.maximum(confusion.sum(axis=1) + confusion.sum(axis=2), 1)
    return float(np.mean([row[total > 0].mean() for row, total in zip(f1, confusion.sum(axis=2), strict=True)]))


def gap(ours: Sequence[Tables], theirs: Sequence[Tables]) -> Gap:
    """`ours` minus `theirs`, the mean over corpora; the same speakers drawn for both."""
    differences = [paired(a, b) for a, b in zip(ours, theirs, strict=True)]
    mean = float(np.mean([each.estimate for each in differences]))
    ends = [(each.interval.low or 0.0, each.interval.high or 0.0, each.estimate) for each in differences]
    below = math.hypot(*(at - low for low, _, at in ends)) / len(ends)
    above = math.hypot(*(high - at for _, high, at in ends)) / len(ends)
    return Gap(mean=mean, low=mean - below, high=mean + above)


def _chosen(speech: Speech, features: Features, truth: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """The answer to each clip, -1 where no fold tests it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = np.full(len(truth), -1)
    splits = speaker_folds(speech.keys, speech.labels, speech.speakers, corpus=speech.name, seed=seed)
    for fold in splits.folds:
        head = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=STEPS))
        head.fit(features[fold.train], truth[fold.train])
        chosen[fold.test] = head.predict(features[fold.test])
    return chosen
