"""What answering without listening scores, from class counts alone.

Expected F1 of class k for answers drawn independently of the clip with shares q, truth shares p:
2 p_k q_k / (p_k + q_k), the ratio of expectations; exact as the number of clips grows (hits p_k q_k, truth p_k, answers
q_k) and within 0.01 of the true expectation from some 500 clips on. Macro scores average over the classes that the
truth holds. Three ways to answer:

- `majority`: always the target's largest class; F1 2 p_max / (1 + p_max) for it, 0 for the others.
- `uniform`: every class that can be answered equally often. For the paper's pairs these are the 7 classes of its
  cluster, also where the target (MESD) lacks one; that is the definition that gives 0.133 on the mean of the 72 pairs.
- `matched`: drawn from the target's own prior, hence F1_k = p_k and macro-F1 = UAR = 1/K. The fair floor for a method
  that is told the target's prior, as the paper's is.

Mean macro-F1 over the paper's 72 pairs, "other" dropped: 0.0562, 0.1325, 0.1455.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from servox.errors import BadInput
from servox.priors import checked_counts

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Scores of one way to answer without listening."""

    macro_f1: float
    uar: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """The three floors of one target."""

    majority: Floor
    uniform: Floor
    matched: Floor


def floors(counts: ArrayLike, *, answerable: ArrayLike | None = None) -> Floors:
    """Floors of a target with `counts` clips of each class, `[K]`.

    Args:
        counts: scored clips of each class; drop excluded clips first.
        answerable: `[K]` booleans, the classes that uniform answers spread over; None for those the target holds.

    Raises:
        BadInput: bad counts, no clip at all, or a mask of another length or without any class.
    """
    checked = checked_counts(counts)
    if checked.sum() == 0:
        raise BadInput("counts are all zero; a floor needs at least one scored clip")
    truth = checked / checked.sum()
    mask = truth > 0 if answerable is None else np.asarray(answerable, dtype=bool)
    if mask.shape != truth.shape or not mask.any():
        raise BadInput(f"answerable is {mask}; give one boolean for each of {truth.size} classes, at least one True")
    largest = np.arange(truth.size) == truth.argmax()
    return Floors(
        majority=expected(truth, largest.astype(np.float64)),
        uniform=expected(truth, mask / mask.sum()),
        matched=expected(truth, truth),
    )


def expected(truth: Array, answers: Array) -> Floor:
    """Expected scores of answers drawn with shares `answers` `[K]`, independently of truth shares `truth` `[K]`."""
    present = truth > 0
    p, q = truth[present], answers[present]
    return Floor(
        macro_f1=float((2 * p * q / (p + q)).mean()),
        uar=float(q.mean()),
        accuracy=float((p * q).sum()),
    )
