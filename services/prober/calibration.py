"""A head's temperature from speakers that it never heard, and what its probabilities are worth before and after.

- Folds keep speakers apart and classes spread; where the clip set names no speakers, clips take their place.
- The temperature minimises the out-of-fold NLL (`servox.calibration.fit_temperature`).
- Pure numpy: labels are ints [n], logits [n, K].
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from servox.calibration import ece, fit_temperature, nll
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


def judge(
    logits: Array, labels: Ints, *, group: Ints, folds: int, grouped_by: str, left_out: int
) -> tuple[float, OutOfFold]:
    """The temperature of out-of-fold `logits` [n, K], and the scores that stand on the card."""
    best = fit_temperature(logits, labels)
    return best, OutOfFold(
        macro_f1=macro_f1(logits.argmax(axis=1), labels),
        floor=1 / len(np.unique(labels)),
        ece_before=ece(labels, softmax(logits)),
        ece_after=ece(labels, softmax(logits / best)),
        nll_before=nll(logits, labels),
        nll_after=nll(logits / best, labels),
        clips=len(labels),
        left_out=left_out,
        speakers=int(group.max()) + 1,
        folds=folds,
        grouped_by=grouped_by,
    )
