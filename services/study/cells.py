"""One cell of a study: what heads make of one corpus under one policy at one depth, as counts by speaker.

- Heads are logistic regressions, the prober's control: no seed of their own, and equal to its MLP in F1. What is
  compared is what they read.
- `outer` is what the folds of `sound` give. `inner` is for a rule that may not look at the fold it is scored on: for
  every held-out fold, the answers on each of the *other* folds by a head that heard neither. A head without folds f and
  g serves both, so k folds need k(k - 1)/2 such heads.
- Counts are all that scores, intervals and paired differences need, and small enough to keep every cell.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from services.prober.fitting import standardised, statistics_of
from services.prober.logistic import fit_logistic

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

LEAST_FOLDS = 3  # of which one is held out, and the rest still train and test


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Speech:
    """The clips of a corpus, in one order.

    Attributes:
        labels: [n], indices of classes.
        speakers: [n], indices of speakers.
        folds: [seeds, n], the fold that tests a clip; -1 for a clip in none.
        classes: how many.
    """

    labels: Ints
    speakers: Ints
    folds: Ints
    classes: int

    @property
    def voices(self) -> int:
        """How many speakers."""
        return int(self.speakers.max()) + 1

    @property
    def fold_of_speaker(self) -> Ints:
        """[seeds, speakers]; -1 for a speaker in no fold."""
        found = np.full((len(self.folds), self.voices), -1)
        for seed, folds in enumerate(self.folds):
            inside = folds >= 0
            found[seed, self.speakers[inside]] = folds[inside]
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """Confusion matrices, row = truth.

    Attributes:
        outer: [seeds, speakers, K, K].
        inner: [seeds, folds, speakers, K, K], by the fold that was held out; zeros where there are too few folds.
    """

    outer: Ints
    inner: Ints


def outer(trained: Floats, served: Floats, speech: Speech, *, c: float) -> Ints:
    """Counts [seeds, speakers, K, K] of heads trained on `trained` [n, d] and asked about `served` [n, d].

    The two differ where a head is served by another policy than it was trained on.
    """
    counted = np.zeros((len(speech.folds), speech.voices, speech.classes, speech.classes), np.int64)
    for seed, folds in enumerate(speech.folds):
        for fold in range(int(folds.max()) + 1):
            answers = _answers(trained, served, speech, train=(folds >= 0) & (folds != fold), test=folds == fold, c=c)
            _count(counted[seed], answers, speech, folds == fold)
    return counted


def inner(x: Floats, speech: Speech, *, c: float) -> Ints:
    """Counts [seeds, folds, speakers, K, K] on the speakers that are left when a fold is held out."""
    most = int(speech.folds.max()) + 1
    counted = np.zeros((len(speech.folds), most, speech.voices, speech.classes, speech.classes), np.int64)
    for seed, folds in enumerate(speech.folds):
        number = int(folds.max()) + 1
        if number < LEAST_FOLDS:
            continue
        for held, tested in combinations(range(number), 2):
            train = (folds >= 0) & (folds != held) & (folds != tested)
            both = (folds == held) | (folds == tested)
            answers = np.full(len(folds), -1)
            answers[both] = _answers(x, x, speech, train=train, test=both, c=c)
            for out, scored in ((held, tested), (tested, held)):
                _count(counted[seed, out], answers[folds == scored], speech, folds == scored)
    return counted


def _answers(
    trained: Floats, served: Floats, speech: Speech, *, train: NDArray[np.bool_], test: NDArray[np.bool_], c: float
) -> Ints:
    statistics = statistics_of(trained[train])
    heard = standardised(trained[train], statistics)
    weights = fit_logistic(heard, speech.labels[train], classes=speech.classes, c=c)
    asked = standardised(served[test], statistics)
    return np.asarray((asked @ weights["output.weight"].T + weights["output.bias"]).argmax(axis=1), np.int64)


def _count(into: Ints, answers: Ints, speech: Speech, scored: NDArray[np.bool_]) -> None:
    np.add.at(into, (speech.speakers[scored], speech.labels[scored], answers), 1)
