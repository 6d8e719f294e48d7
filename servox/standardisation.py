"""Statistics of unlabelled target speech in place of those of training; the same for serving and for scoring.

- A head standardises what it reads by the mean and deviation of its training clips. Where the speech is another, that
  mean is wrong, and the target's own, from 16 clips on, is worth more than any correction of priors.
- Nothing here reads labels. Arrays are `[d]` or `[n, d]`, float64.
- A *shift* is the mean over dimensions of the squared distance of two means in training deviations: 0 where they are
  equal, 1 where they lie one deviation apart in each dimension.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from servox.errors import BadInput

Array = NDArray[np.float64]

STD_FLOOR = 1e-3  # of the median std: a dimension that hardly moves on few clips must not be blown up


def target_statistics(embeddings: ArrayLike, indices: ArrayLike | None = None) -> tuple[Array, Array]:
    """Mean and std `[d]` of the target's pooled embeddings `[n, d]`, to replace the head's training statistics.

    No shrinkage towards the source: its mean is simply wrong for the target. Std is the population's, floored at a
    thousandth of the median std (1 where all are zero).

    Args:
        embeddings: `[n, d]`.
        indices: which clips calibrate; None for all.

    Raises:
        BadInput: not `[n, d]`, not finite, or fewer than 2 clips.
    """
    values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != 2:
        raise BadInput(f"embeddings have shape {values.shape}; give pooled ones, [clips, dimensions]")
    chosen = values if indices is None else values[np.asarray(indices, dtype=np.intp)]
    if len(chosen) < 2:
        raise BadInput(f"{len(chosen)} calibration clips; 2 are the least for a standard deviation")
    if not np.isfinite(chosen).all():
        raise BadInput("embeddings hold a value that is not finite; leave the clip out")
    std = chosen.std(axis=0)
    floor = STD_FLOOR * float(np.median(std)) or 1.0
    return chosen.mean(axis=0), np.maximum(std, floor)


def moved_mean(mean: Array, value: ArrayLike, *, before: float, weight: float) -> Array:
    """The mean `[d]` of clips of summed weight `before` after one more, `[d]`; of all clips it is their mean."""
    return np.asarray(mean + (np.asarray(value, dtype=np.float64) - mean) * (weight / (before + weight)))


def clipped(value: ArrayLike, centre: Array, std: ArrayLike, *, deviations: float) -> Array:
    """`value` `[d]`, no further than so many deviations from `centre` in any dimension (Winsorised)."""
    reach = np.asarray(std, dtype=np.float64) * deviations
    return np.clip(np.asarray(value, dtype=np.float64), centre - reach, centre + reach)


def shift(mean: ArrayLike, reference: ArrayLike, std: ArrayLike) -> float:
    """Mean over dimensions of ((mean - reference) / std) squared; see the module."""
    to = np.asarray(reference, dtype=np.float64)
    z = (np.asarray(mean, dtype=np.float64) - to) / np.asarray(std, dtype=np.float64)
    return float(np.mean(np.square(z)))


def relevance(shifted: float, *, low: float, high: float) -> float:
    """How far a target's mean is to replace the training mean, 0 to 1, rising linearly from `low` to `high`.

    Speakers that a head did not hear lie off its training mean by chance; a mean that lies no further than that says
    nothing of the target, and replacing by it costs what calibrating on a few speakers costs.
    """
    return float(np.clip((shifted - low) / (high - low), 0.0, 1.0))


def blended(training: ArrayLike, target: ArrayLike, share: float) -> Array:
    """The mean `[d]` to standardise by: `share` of the way from training to target."""
    base = np.asarray(training, dtype=np.float64)
    return np.asarray(base + share * (np.asarray(target, dtype=np.float64) - base))
