"""Calibration of probabilities: the temperature that fits them, and how far they are from what happens.

Pure numpy; labels are ints `[n]`, logits `[n, K]`.
"""

import numpy as np
import numpy.typing as npt

from servox.priors import log_softmax, softmax

Array = npt.NDArray[np.float64]

ECE_BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The T in [0.05, 20] that minimises the NLL of `labels` under softmax(logits / T).

    Guo et al. 2017 (arXiv 1706.04599), section 4.2. In 1/T the NLL is convex, so its one minimum is found by bisection
    on its derivative.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.intp)
    said = values[np.arange(len(values)), truth]

    def slope(inverse: float) -> float:
        return float(((softmax(values * inverse) * values).sum(axis=1) - said).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def nll(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean negative log-likelihood of `labels`, nats."""
    truth = np.asarray(labels, dtype=np.intp)
    return float(-log_softmax(logits)[np.arange(len(truth)), truth].mean())


def confidence_bins(probabilities: Array, *, bins: int = ECE_BINS) -> npt.NDArray[np.intp]:
    """Bin `[n]` of each clip's highest probability; bin b holds (b/bins, (b+1)/bins]."""
    above: npt.NDArray[np.intp] = np.ceil(probabilities.max(axis=1) * bins).astype(np.intp)
    return np.clip(above - 1, 0, bins - 1)


def ece(labels: npt.ArrayLike, probabilities: Array, *, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the top class (Guo et al. 2017): sum over bins of |hits - confidence| / n."""
    gap = (probabilities.argmax(axis=1) == np.asarray(labels)) - probabilities.max(axis=1)
    summed = np.bincount(confidence_bins(probabilities, bins=bins), weights=gap, minlength=bins)
    return float(np.abs(summed).sum() / len(gap))
