"""Calibration of probabilities: the scaling that fits them, and how far they are from what happens.

- A scaling is a temperature T and, where asked for, a bias b for each class: softmax(z / T + b). `Scaling.apply` is the
  one place that divides by a temperature.
- Pure numpy; labels are ints `[n]`, logits `[n, K]`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from servox.priors import log_softmax, softmax

Array = npt.NDArray[np.float64]

ECE_BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
BIAS_SPREAD = 2.0  # nats: standard deviation of the Gaussian prior of each bias
_LOW, _HIGH = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
_STEPS = 100  # of Newton's method; it takes five to ten


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What logits go through before the softmax: z / temperature + bias.

    Attributes:
        temperature: positive.
        bias: `[K]`, summing to zero; empty for none.
    """

    temperature: float = 1.0
    bias: tuple[float, ...] = ()

    def apply(self, logits: npt.ArrayLike) -> Array:
        """Scaled logits `[..., K]`, float64; a class that cannot be answered (minus infinity) stays so."""
        scaled = np.asarray(logits, dtype=np.float64) / self.temperature
        return scaled + np.asarray(self.bias) if self.bias else scaled


UNSCALED = Scaling()


def fit_scaling(logits: npt.ArrayLike, labels: npt.ArrayLike, *, biased: bool) -> Scaling:
    """The temperature, or the temperature and biases, that fit `labels` best."""
    return fit_bias(logits, labels) if biased else Scaling(temperature=fit_temperature(logits, labels))


def fit_bias(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Scaling:
    """Bias-corrected temperature scaling: the T in [0.05, 20] and b that minimise the NLL under softmax(z / T + b).

    Alexandari, Kundaje & Shrikumar 2020 (arXiv 1901.06852), section 3. The NLL is convex in (1/T, b); Newton's method
    minimises it. Each b_k has a Gaussian prior of mean 0 and deviation 2 nats, a weight of a fraction of one clip: it
    keeps the bias of a class without clips finite and makes the biases sum to zero. Since b = 0 costs nothing under
    the prior, the fitted NLL is never above that of the temperature alone.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.intp)
    point = np.concatenate([[1 / fit_temperature(values, truth)], np.zeros(values.shape[1])])
    for _ in range(_STEPS):
        slope, curve = _derivatives(point, values, truth)
        held = (point[0] <= _LOW and slope[0] > 0) or (point[0] >= _HIGH and slope[0] < 0)
        first = int(held)  # at an edge of its range, 1/T stays while the biases move
        step = np.zeros_like(point)
        step[first:] = np.linalg.solve(curve[first:, first:], -slope[first:])
        point, moved = _walk(point, step, values, truth)
        if not moved:
            break
    bias = point[1:] - point[1:].mean()
    return Scaling(temperature=float(1 / point[0]), bias=tuple(map(float, bias)))


def _objective(point: Array, values: Array, truth: npt.NDArray[np.intp]) -> float:
    """Mean NLL at (1/T, b), with the prior of the biases."""
    bias = point[1:]
    return nll(values * point[0] + bias, truth) + float(bias @ bias) / (2 * BIAS_SPREAD**2 * len(truth))


def _derivatives(point: Array, values: Array, truth: npt.NDArray[np.intp]) -> tuple[Array, Array]:
    """Gradient [1 + K] and Hessian [1 + K, 1 + K] of the objective."""
    count, classes = values.shape
    shares = softmax(values * point[0] + point[1:])
    mean = (shares * values).sum(axis=1, keepdims=True)
    slope = shares.mean(axis=0) - np.bincount(truth, minlength=classes) / count
    precision = 1 / (BIAS_SPREAD**2 * count)
    curve = np.zeros((1 + classes, 1 + classes))
    curve[0, 0] = (shares * (values - mean) ** 2).sum(axis=1).mean() + 1e-12  # equal logits say nothing of T
    curve[0, 1:] = curve[1:, 0] = (shares * (values - mean)).mean(axis=0)
    curve[1:, 1:] = np.diag(shares.mean(axis=0) + precision) - shares.T @ shares / count
    first = float((mean[:, 0] - values[np.arange(count), truth]).mean())
    return np.concatenate([[first], slope + precision * point[1:]]), curve


def _walk(point: Array, step: Array, values: Array, truth: npt.NDArray[np.intp]) -> tuple[Array, bool]:
    """The point after a step, halved until the objective falls, and whether it fell at all."""
    before = _objective(point, values, truth)
    for _ in range(30):
        there = point + step
        there[0] = np.clip(there[0], _LOW, _HIGH)
        if _objective(there, values, truth) < before:
            return there, True
        step = step / 2
    return point, False


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The T in [0.05, 20] that minimises the NLL of `labels` under softmax(logits / T).

    Guo et al. 2017 (arXiv 1706.04599), section 4.2. In 1/T the NLL is convex, so its one minimum is found by bisection
    on its derivative.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.intp)
    said = values[np.arange(len(values)), truth]

    def slope(inverse: float) -> float:
        return float(((softmax(values * inverse) * values).sum(axis=1) - said).mean())

    low, high = _LOW, _HIGH
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


def brier(labels: npt.ArrayLike, probabilities: Array) -> float:
    """Mean over clips of the squared distance between probabilities [n, K] and the truth, 0 to 2 (Brier 1950)."""
    truth = np.eye(probabilities.shape[1])[np.asarray(labels, dtype=np.intp)]
    return float(np.square(probabilities - truth).sum(axis=1).mean())


def confidence_bins(probabilities: Array, *, bins: int = ECE_BINS) -> npt.NDArray[np.intp]:
    """Bin `[n]` of each clip's highest probability; bin b holds (b/bins, (b+1)/bins]."""
    above: npt.NDArray[np.intp] = np.ceil(probabilities.max(axis=1) * bins).astype(np.intp)
    return np.clip(above - 1, 0, bins - 1)


def ece(labels: npt.ArrayLike, probabilities: Array, *, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the top class (Guo et al. 2017): sum over bins of |hits - confidence| / n."""
    gap = (probabilities.argmax(axis=1) == np.asarray(labels)) - probabilities.max(axis=1)
    summed = np.bincount(confidence_bins(probabilities, bins=bins), weights=gap, minlength=bins)
    return float(np.abs(summed).sum() / len(gap))
