"""Scores of one set of answers: macro-F1, UAR, accuracy, per class, calibration.

- Labels are ints `[n]`, probabilities `[n, K]`; the answer is the most probable class, the lower index on ties.
- `macro="truth"` (protocol `sound`, the default) averages over the classes that the truth holds: a class nobody said
  cannot be recognised, and what is wrongly answered with it already costs the recall of the true classes.
  Equals scikit-learn's `f1_score(labels=present)`, and the UAR its `balanced_accuracy_score`.
- `macro="appearing"` (protocol `ser-evals`) averages over the classes that appear in the truth or among the answers,
  as torchmetrics does. It is what gives the paper's MESD row to five digits (constant "surprise": 1/7 of one F1).
  An answered class without clips has F1 and recall 0.
- ECE: 15 equal-width bins (Guo et al. 2017, arXiv 1706.04599), top label. NLL: nats, probabilities clipped at the
  float64 epsilon as scikit-learn does. Brier: summed over classes, 0 to 2.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from servox.calibration import ece
from servox.errors import BadInput
from servox.priors import checked_probabilities, softmax

Array = NDArray[np.float64]
Macro = Literal["truth", "appearing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Everything scored on one set of clips; plain tuples, so that it goes into JSON as it stands.

    Attributes:
        clips: clips scored.
        macro_f1: mean F1 over the classes that `macro` names.
        uar: mean recall over the same classes (unweighted average recall).
        accuracy: share of clips answered rightly.
        per_class_f1: `[K]`; None for a class in neither truth nor answers.
        per_class_recall: `[K]`; None for a class without clips.
        support: clips of each class, `[K]`.
        confusion: `[K][K]`, row = truth, column = answer.
        ece: expected calibration error, 0 to 1.
        nll: mean negative log-likelihood of the truth, nats.
        brier: mean squared distance to the one-hot truth, 0 to 2.
    """

    clips: int
    macro_f1: float
    uar: float
    accuracy: float
    per_class_f1: tuple[float | None, ...]
    per_class_recall: tuple[float | None, ...]
    support: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]
    ece: float
    nll: float
    brier: float


def score(labels: ArrayLike, probabilities: ArrayLike, *, macro: Macro = "truth") -> Scores:
    """Score probabilities `[n, K]` against labels `[n]`.

    Raises:
        BadInput: no clips, lengths that differ, a label outside 0..K-1, or rows that are not distributions.
    """
    posterior = checked_probabilities(probabilities)
    truth = checked_labels(labels, clips=len(posterior), classes=posterior.shape[1])
    counted = confusion(truth, posterior.argmax(axis=1), classes=posterior.shape[1])
    f1, recall = per_class(counted)
    means = macro_scores(counted, macro=macro)
    return Scores(
        clips=len(truth),
        macro_f1=float(means["macro_f1"]),
        uar=float(means["uar"]),
        accuracy=float(means["accuracy"]),
        per_class_f1=_optional(f1),
        per_class_recall=_optional(recall),
        support=tuple(int(n) for n in counted.sum(axis=1)),
        confusion=tuple(tuple(int(n) for n in row) for row in counted),
        ece=ece(truth, posterior),
        nll=float(-np.log(np.maximum(posterior[np.arange(len(truth)), truth], np.finfo(np.float64).eps)).mean()),
        brier=float(((posterior - np.eye(posterior.shape[1])[truth]) ** 2).sum(axis=1).mean()),
    )


def score_logits(labels: ArrayLike, logits: ArrayLike, *, macro: Macro = "truth") -> Scores:
    """`score` of softmax(logits); minus infinity marks a class that cannot be answered."""
    return score(labels, softmax(logits), macro=macro)


def checked_labels(labels: ArrayLike, *, clips: int, classes: int) -> NDArray[np.intp]:
    """`labels` as ints `[clips]`.

    Raises:
        BadInput: another shape, not whole numbers, or a value outside 0..classes-1.
    """
    values = np.asarray(labels)
    if values.shape != (clips,):
        raise BadInput(f"labels have shape {values.shape}; give one for each of the {clips} clips")
    if values.dtype.kind not in "iu":
        raise BadInput(f"labels are {values.dtype}; give class indices as integers")
    outside = (values < 0) | (values >= classes)
    if outside.any():
        raise BadInput(f"labels hold {values[outside][0]}; class indices go from 0 to {classes - 1}")
    return values.astype(np.intp)


def confusion(truth: NDArray[np.intp], answers: NDArray[np.intp], *, classes: int) -> NDArray[np.int64]:
    """Confusion matrix `[K, K]`, row = truth, column = answer."""
    flat = np.bincount(truth * classes + answers, minlength=classes * classes)
    return np.asarray(flat.reshape(classes, classes), dtype=np.int64)


def per_class(counted: ArrayLike) -> tuple[Array, Array]:
    """F1 and recall `[..., K]` of confusion matrices `[..., K, K]`; NaN where undefined.

    F1 = 2 TP / (truth + answers): undefined for a class in neither. Recall = TP / truth: undefined without clips.
    """
    matrix = np.asarray(counted, dtype=np.float64)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    truth, answers = matrix.sum(axis=-1), matrix.sum(axis=-2)
    f1 = np.divide(2 * hits, truth + answers, out=np.full_like(truth, np.nan), where=truth + answers > 0)
    recall = np.divide(hits, truth, out=np.full_like(truth, np.nan), where=truth > 0)
    return f1, recall


def macro_scores(counted: ArrayLike, *, macro: Macro = "truth") -> dict[str, Array]:
    """Macro-F1, UAR and accuracy `[...]` of confusion matrices `[..., K, K]`; NaN where nothing was counted."""
    matrix = np.asarray(counted, dtype=np.float64)
    f1, recall = per_class(matrix)
    averaged = ~np.isnan(f1) if macro == "appearing" else ~np.isnan(recall)
    number, total = averaged.sum(axis=-1), matrix.sum(axis=(-2, -1))
    hits = np.trace(matrix, axis1=-2, axis2=-1)
    summed = {"macro_f1": f1, "uar": recall}
    means = {name: np.where(averaged, np.nan_to_num(values), 0.0).sum(axis=-1) for name, values in summed.items()}
    return {
        "macro_f1": _ratio(means["macro_f1"], number),
        "uar": _ratio(means["uar"], number),
        "accuracy": _ratio(hits, total),
    }


def _ratio(above: Array, below: ArrayLike) -> Array:
    divisor = np.asarray(below, dtype=np.float64)
    quotient: Array = np.divide(above, divisor, out=np.full(np.shape(above), np.nan), where=divisor > 0)
    return quotient


def _optional(values: Array) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values)
