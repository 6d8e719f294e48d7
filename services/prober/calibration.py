"""A head's scaling from speakers that it never heard, and what its probabilities are worth before and after.

- Folds keep speakers apart and classes spread; where the clip set names no speakers, clips take their place.
- Temperature, and biases where asked for, minimise the out-of-fold NLL (`servox.calibration.fit_scaling`).
- Pure numpy: labels are ints [n], logits [n, K].
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from servox.calibration import Scaling, brier, ece, fit_scaling, nll
from servox.errors import BadInput
from servox.priors import softmax

from .card import OutOfFold

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def groups(speakers: Sequence[str]) -> tuple[Ints, str]:
    """A number for each speaker, `[n]`, and what the groups are; a clip without a speaker is a group of its own."""
    names = [speaker or f"\0{row}" for row, speaker in enumerate(speakers)]
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    named = sum(bool(speaker) for speaker in speakers)
    what = "speaker" if named == len(speakers) else "clip" if not named else "speaker, clip where none is named"
    return np.array([order[name] for name in names], dtype=np.int64), what


def fold_of(labels: Ints, group: Ints, *, folds: int, seed: int) -> Ints:
    """The fold of each clip, `[n]`: a group lies in one fold, and the classes spread as evenly as the groups allow.

    Groups are dealt out, the largest first, each to the fold where the class counts stay most even.

    Raises:
        BadInput: fewer than two groups.
    """
    count = int(group.max()) + 1 if len(group) else 0
    if count < 2:
        raise BadInput(
            f"the clip set has {count} speaker: a temperature needs at least 2, one to train on and one to score; "
            "add speakers or send calibrate = false"
        )
    classes = int(labels.max()) + 1
    table = np.zeros((count, classes))
    np.add.at(table, (group, labels), 1)
    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(-table[order].sum(axis=1), kind="stable")]
    filled = np.zeros((min(folds, count), classes))
    chosen = np.zeros(count, dtype=np.int64)
    for number in order:
        crowding = ((filled + table[number]) ** 2).sum(axis=1) - (filled**2).sum(axis=1)
        chosen[number] = np.lexsort((filled.sum(axis=1), crowding))[0]
        filled[chosen[number]] += table[number]
    return chosen[group]


def macro_f1(answers: Ints, labels: Ints) -> float:
    """Mean F1 over the classes that `labels` holds."""
    scores = []
    for label in np.unique(labels):
        hits = np.count_nonzero((answers == label) & (labels == label))
        scores.append(2 * hits / (np.count_nonzero(answers == label) + np.count_nonzero(labels == label)))
    return float(np.mean(scores))


def held_back(labels: Ints, group: Ints, *, share: float, seed: int) -> Ints:
    """Clips [m] of the groups that decide when a fit stops; those of a class that no other group has stay out.

    Raises:
        BadInput: fewer than two groups.
    """
    if len(np.unique(group)) < 2:
        raise BadInput(
            "early stopping holds back speakers, and there is only one to learn from: "
            "add speakers, lower calibration_folds, or set patience = 0"
        )
    number = np.unique(group, return_inverse=True)[1]
    fold = fold_of(labels, number, folds=max(2, round(1 / share)), seed=seed)
    taught = np.unique(labels[fold != 0])
    return np.flatnonzero((fold == 0) & np.isin(labels, taught))


def judge(
    logits: Array,
    labels: Ints,
    *,
    folds: Ints,
    biased: bool,
    speakers: int,
    grouped_by: str,
    left_out: int,
) -> tuple[Scaling, OutOfFold]:
    """The scaling of out-of-fold `logits` [n, K], and the scores that stand on the card.

    The head gets the scaling of all folds. The scores after it are of scalings that were each fitted on the *other*
    folds, so what is said of the calibration is out of fold as well.

    Args:
        logits: before any scaling.
        labels: [n].
        folds: [n], the fold of each clip.
        biased: whether a bias a class is fitted beside the temperature.
        speakers: how many groups there are.
        grouped_by: what a group is.
        left_out: clips that are not among these.
    """
    after = logits.copy()
    for fold in np.unique(folds):
        others = folds != fold
        if others.any():
            after[~others] = fit_scaling(logits[others], labels[others], biased=biased).apply(logits[~others])
    return fit_scaling(logits, labels, biased=biased), OutOfFold(
        macro_f1=macro_f1(after.argmax(axis=1), labels),
        floor=1 / len(np.unique(labels)),
        ece_before=ece(labels, softmax(logits)),
        ece_after=ece(labels, softmax(after)),
        nll_before=nll(logits, labels),
        nll_after=nll(after, labels),
        brier_before=brier(labels, softmax(logits)),
        brier_after=brier(labels, softmax(after)),
        clips=len(labels),
        left_out=left_out,
        speakers=speakers,
        folds=len(np.unique(folds)),
        grouped_by=grouped_by,
    )
