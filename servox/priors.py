"""Class priors and logit adjustment: one implementation for serving and for scoring.

- Arrays are `[..., K]`, classes last, in the order of the head's taxonomy; everything is computed in float64.
- A logit of minus infinity means "this class cannot be answered" and stays so; NaN and plus infinity are refused.
- A prior is non-negative, finite and sums to one. A *train* prior may not be zero where the head can answer:
  dividing by it would make a class that was never seen always win. `adjust_paper` alone keeps that fault, on purpose.
- Nothing here reads labels of a target; whoever passes a target prior says where it came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from servox.errors import BadInput

Array = NDArray[np.float64]

SUM_TOLERANCE = 1e-6  # how far the sum of a prior or of a row of probabilities may be from one
PAPER_EPSILON = 1e-12  # inside the logarithms of SER Evals


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorEstimate:
    """A prior estimated from unlabelled clips.

    Attributes:
        prior: `[K]`, sums to one.
        iterations: how many updates were made.
        converged: False where the limit of iterations came first; the prior is then the last iterate.
    """

    prior: Array
    iterations: int
    converged: bool


def checked_prior(prior: ArrayLike, *, classes: int, field: str = "prior") -> Array:
    """`prior` as float64 `[classes]`.

    Raises:
        BadInput: wrong length, a negative or non-finite entry, or a sum that is not one within 1e-6.
    """
    values = np.asarray(prior, dtype=np.float64)
    if values.shape != (classes,):
        raise BadInput(f"{field} has shape {values.shape}; give one probability for each of the {classes} classes")
    if not np.isfinite(values).all() or (values < 0).any():
        bad = values[~np.isfinite(values) | (values < 0)][0]
        raise BadInput(f"{field} holds {bad}; probabilities are finite and not negative")
    if abs(values.sum() - 1) > SUM_TOLERANCE:
        raise BadInput(f"{field} sums to {values.sum():.8g}; divide it by its sum, or pass counts to class_prior")
    return values


def checked_logits(logits: ArrayLike, *, field: str = "logits") -> Array:
    """`logits` as float64 `[..., K]`; minus infinity marks a class that cannot be answered.

    Raises:
        BadInput: no class axis, NaN, plus infinity, or a row in which no class can be answered.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise BadInput(f"{field} has shape {values.shape}; the last axis must be the classes, at least one")
    if np.isnan(values).any() or np.isposinf(values).any():
        raise BadInput(f"{field} holds NaN or +inf; only finite values and -inf (an excluded class) are meant")
    if not np.isfinite(values).any(axis=-1).all():
        raise BadInput(f"{field} has a row of -inf only; leave at least one class to answer")
    return values


def checked_probabilities(probabilities: ArrayLike, *, field: str = "probabilities") -> Array:
    """`probabilities` as float64 `[n, K]`, rows summing to one within 1e-6.

    Raises:
        BadInput: another number of axes, no clip, or a row that is not a distribution.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise BadInput(f"{field} has shape {values.shape}; give [clips, classes], at least one of each")
    if not np.isfinite(values).all() or (values < 0).any():
        raise BadInput(f"{field} holds a negative or non-finite value; pass softmax(logits)")
    worst = int(np.abs(values.sum(axis=1) - 1).argmax())
    if abs(values[worst].sum() - 1) > SUM_TOLERANCE:
        raise BadInput(f"{field} row {worst} sums to {values[worst].sum():.8g}; pass softmax(logits)")
    return values


def checked_counts(counts: ArrayLike, *, field: str = "counts") -> Array:
    """`counts` as float64 `[K]`.

    Raises:
        BadInput: not one axis, a negative or non-finite entry, or nothing counted at all.
    """
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise BadInput(f"{field} has shape {values.shape}; give one count for each class")
    if not np.isfinite(values).all() or (values < 0).any():
        bad = values[~np.isfinite(values) | (values < 0)][0]
        raise BadInput(f"{field} holds {bad}; counts are finite and not negative")
    return values


def softmax(logits: ArrayLike) -> Array:
    """Probabilities `[..., K]`; an excluded class (minus infinity) gets exactly zero."""
    values = checked_logits(logits)
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def log_softmax(logits: ArrayLike) -> Array:
    """Logarithms of `softmax`, exact for probabilities that underflow."""
    values = checked_logits(logits)
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def class_prior(counts: ArrayLike, *, smoothing: float = 1.0) -> Array:
    """Prior `[K]` with additive smoothing: (n_k + a) / (N + K a).

    The posterior mean under a symmetric Dirichlet prior with parameter a; with a > 0 no class gets zero.

    Args:
        counts: clips of each class, `[K]`.
        smoothing: a, in pseudo-clips added to every class; 0 gives the plain frequencies.

    Raises:
        BadInput: bad counts, a negative smoothing, or nothing counted and no smoothing.
    """
    values = checked_counts(counts)
    if not np.isfinite(smoothing) or smoothing < 0:
        raise BadInput(f"smoothing is {smoothing}; give the number of pseudo-clips for each class, 0 or more")
    smoothed = values + smoothing
    if smoothed.sum() == 0:
        raise BadInput("counts are all zero and smoothing is 0; count at least one clip or smooth")
    return np.asarray(smoothed / smoothed.sum())


def adjust(
    logits: ArrayLike, *, train: ArrayLike | None = None, target: ArrayLike | None = None, tau: float = 1.0
) -> Array:
    """z_k - tau log p_train,k + tau log p_target,k.

    Menon et al. 2021 (arXiv 2007.07314), equation 9 (post-hoc logit adjustment; there the target is balanced), with
    the target prior put back as Bayes' rule under label shift wants it.

    Args:
        logits: `[..., K]`.
        train: the prior of the training set, `[K]`; None removes nothing.
        target: the prior to expect, `[K]`; None assumes nothing. A class with zero target prior becomes impossible.
        tau: strength; 1 for calibrated logits.

    Raises:
        BadInput: bad logits or prior, negative tau, or a zero train prior for a class that can be answered.
    """
    values = checked_logits(logits)
    if not np.isfinite(tau) or tau < 0:
        raise BadInput(f"tau is {tau}; give a finite strength, 0 (no adjustment) or more")
    if tau == 0:
        return values.copy()
    shift = np.zeros(values.shape[-1])
    if train is not None:
        shift -= tau * _log_train(train, answerable=np.isfinite(values).reshape(-1, values.shape[-1]))
    if target is not None:
        checked = checked_prior(target, classes=values.shape[-1], field="target prior")
        with np.errstate(divide="ignore"):
            shift += tau * np.log(checked)
    return checked_logits(values + shift, field="adjusted logits")


def _log_train(train: ArrayLike, *, answerable: NDArray[np.bool_]) -> Array:
    """Log p_train, 0 for excluded classes (their logit stays minus infinity whatever is added)."""
    checked = checked_prior(train, classes=answerable.shape[1], field="train prior")
    unseen_classes = np.flatnonzero(answerable.any(axis=0) & (checked == 0))
    if unseen_classes.size:
        unseen = int(unseen_classes[0])
        raise BadInput(f"train prior of class {unseen} is 0, so it would always win; smooth it or mask the class")
    return np.log(np.where(checked > 0, checked, 1.0))


def adjust_paper(
    logits: ArrayLike, *, train_counts: ArrayLike, target_counts: ArrayLike, other: int | None = 6
) -> Array:
    """SER Evals' adjustment to the letter: z_k - log(p_train,k + 1e-12) + log(p_target,k + 1e-12).

    arXiv 2408.07851. Priors are the plain label frequencies of the whole source and the whole target set, so it is an
    oracle; a class that the source never had gains 27.6 nats. The "other" logit becomes minus infinity; the caller
    drops the target's clips labelled "other".

    Args:
        logits: `[..., K]`.
        train_counts: clips of each class in the source, `[K]`.
        target_counts: clips of each class in the target, `[K]`.
        other: index of "other"; None where the taxonomy has none.

    Raises:
        BadInput: bad logits or counts, lengths that differ, or an index outside the taxonomy.
    """
    values = checked_logits(logits)
    classes = values.shape[-1]
    if other is not None and not 0 <= other < classes:
        raise BadInput(f"other is {other}; give an index below {classes}, or None")
    logs = []
    for field, counts in (("train_counts", train_counts), ("target_counts", target_counts)):
        checked = checked_counts(counts, field=field)
        if checked.shape != (classes,) or checked.sum() == 0:
            raise BadInput(f"{field} counts {checked.sum():g} clips of {checked.size} classes; {classes} are wanted")
        logs.append(np.log(checked / checked.sum() + PAPER_EPSILON))
    adjusted: Array = values - logs[0] + logs[1]
    if other is not None:
        adjusted[..., other] = -np.inf
    return adjusted


def mask(logits: ArrayLike, classes: Sequence[int]) -> Array:
    """`logits` with minus infinity at every class that is not in `classes`.

    Raises:
        BadInput: bad logits, no class left, or an index outside the taxonomy.
    """
    values = checked_logits(logits)
    kept = np.asarray(list(classes), dtype=np.intp)
    if kept.size == 0 or kept.min() < 0 or kept.max() >= values.shape[-1]:
        raise BadInput(f"classes to keep are {list(classes)}; give at least one index below {values.shape[-1]}")
    out = np.full_like(values, -np.inf)
    out[..., kept] = values[..., kept]
    return out


def em_prior(
    probabilities: ArrayLike, *, train: ArrayLike, max_iterations: int = 1000, tolerance: float = 1e-8
) -> PriorEstimate:
    """Prior of an unlabelled set by expectation maximisation.

    Saerens, Latinne, Decaestecker 2002 ("Adjusting the outputs of a classifier to new a priori probabilities"),
    equation 9: the fixed point maximises the likelihood of the set if only the prior has shifted and the posteriors
    are calibrated. Under any other shift it can be far off (and then hurts).

    Args:
        probabilities: posteriors under the train prior, `[n, K]`.
        train: the train prior, `[K]`.
        max_iterations: where to stop without convergence.
        tolerance: largest change of an entry that counts as converged.

    Raises:
        BadInput: bad probabilities or prior, or a zero train prior for a class that has probability.
    """
    posterior = checked_probabilities(probabilities)
    base = checked_prior(train, classes=posterior.shape[1], field="train prior")
    if (posterior[:, base == 0] > 0).any():
        raise BadInput("train prior is 0 for a class that has probability; smooth it or mask the class")
    ratio = posterior / np.where(base > 0, base, 1.0)
    estimate = base.copy()
    for iteration in range(1, max_iterations + 1):
        weighted = ratio * estimate
        updated = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
        change = np.abs(updated - estimate).max()
        estimate = updated
        if change < tolerance:
            return PriorEstimate(prior=estimate / estimate.sum(), iterations=iteration, converged=True)
    return PriorEstimate(prior=estimate / estimate.sum(), iterations=max_iterations, converged=False)


def divide_by_mean(probabilities: ArrayLike) -> Array:
    """Mean-probability correction: p_k / mean_n(p_k), rows renormalised, `[n, K]`.

    Removes the prior that the head *shows* on this set (its mean posterior) instead of the one that it was trained
    with; close to Prior2Posterior (arXiv 2412.16540). It pushes the set towards equal shares of the classes, which is
    an assumption about the target. A class without any probability keeps none.

    Raises:
        BadInput: bad probabilities.
    """
    posterior = checked_probabilities(probabilities)
    mean = posterior.mean(axis=0)
    corrected = posterior / np.where(mean > 0, mean, 1.0)
    return np.asarray(corrected / corrected.sum(axis=1, keepdims=True))


def log_mean(logits: ArrayLike) -> Array:
    """Logarithm of the mean probability of each class, `[K]`, over the clips of `logits` `[n, K]`.

    In the log domain: dividing probabilities that underflowed would lose the order of the classes.
    """
    logs = log_softmax(logits)
    peak = logs.max(axis=0)
    return np.asarray(peak + np.log(np.exp(logs - peak).mean(axis=0)))


def minus_shown(logits: ArrayLike, shown: ArrayLike) -> Array:
    """Mean-probability correction, log p_k - log mean(p_k), `[..., K]`; the softmax of it is `divide_by_mean`.

    Args:
        logits: `[..., K]`.
        shown: logarithm of the mean probability that the head shows on the target, `[K]`: `log_mean` of all its clips,
            or the logarithm of a mean that was kept while they came.
    """
    return np.asarray(log_softmax(logits) - np.asarray(shown, dtype=np.float64))


def em_step(estimate: ArrayLike, probabilities: ArrayLike, *, train: ArrayLike, share: float) -> Array:
    """`em_prior` while clips come: the estimated prior `[K]` after one more of them.

    Cappe & Moulines 2009 (arXiv 0712.4273), equation 11, for a mixture whose parts are known: the estimate moves by
    `share` towards the clip's posterior under it. With shares 1/n it approaches the fixed point of `em_prior`.

    Args:
        estimate: `[K]`, positive where `probabilities` are.
        probabilities: posterior of the clip under the train prior, `[K]`.
        train: the train prior, `[K]`, positive.
        share: from 0 to 1.
    """
    before = np.asarray(estimate, dtype=np.float64)
    weighted = np.asarray(probabilities, dtype=np.float64) / np.asarray(train, dtype=np.float64) * before
    moved = before + share * (weighted / weighted.sum() - before)
    return np.asarray(moved / moved.sum())


def effective_classes(prior: ArrayLike) -> float:
    """Exponential of the entropy: 1 where one class has everything, K where all have the same."""
    values = np.asarray(prior, dtype=np.float64)
    held = values[values > 0]
    return float(np.exp(-(held * np.log(held)).sum()))


def divergence(first: ArrayLike, second: ArrayLike) -> float:
    """Jensen-Shannon divergence of two priors `[K]`, nats: 0 where they are equal, log 2 where they share nothing."""
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    return max(0.0, (_relative(one, (one + two) / 2) + _relative(two, (one + two) / 2)) / 2)


def _relative(prior: Array, to: Array) -> float:
    held = prior > 0
    return float((prior[held] * np.log(prior[held] / to[held])).sum())
