"""Heads, hosted with numpy alone: weights and a card, embeddings in, logits out.

- Three kinds. `mlp`: standardise, Linear(d, h), LayerNorm, GELU, Linear(h, K). `logistic`: standardise, Linear(d, K).
  `frame-mlp`: the same MLP without standardisation on every frame, then the mean of the frames' logits (SER Evals).
- Weights are float32 in torch's layout ([out, in]) under names of our own; they equal what torch computes to 1e-5.
- On disk: safetensors and JSON, never pickle. A head is bound to the digest of one bundle and refuses any other.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from servox.errors import BadInput, HeadMismatch

from .card import Card, card_from_json

Floats = npt.NDArray[np.float32]
AnyFloats = npt.NDArray[np.floating[Any]]
Weights = Mapping[str, Floats]

LAYER_NORM_EPSILON = 1e-5  # torch's default


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Standardisation:
    """Statistics in place of the training ones; None keeps the training one.

    Attributes:
        mean: [d].
        std: [d], positive.
    """

    mean: Floats | None = None
    std: Floats | None = None

    @property
    def replaces(self) -> bool:
        """Whether anything is not as it was trained."""
        return self.mean is not None or self.std is not None


TRAINING = Standardisation()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """A trained head."""

    card: Card
    weights: Weights

    @property
    def digest(self) -> str:
        """Sha256 of weights and card, 64 hex digits; the same wherever and whenever it was trained."""
        seal = hashlib.sha256(self.card.identity().encode())
        for name in sorted(self.weights):
            array = np.ascontiguousarray(self.weights[name], dtype="<f4")
            seal.update(f"{name}{array.shape}".encode() + array.tobytes())
        return seal.hexdigest()

    def check_bundle(self, digest: str) -> None:
        """Refuses embeddings of another bundle.

        Raises:
            HeadMismatch: `digest` is not the one that this head was trained on.
        """
        if digest != self.card.bundle:
            raise HeadMismatch(
                f"head {self.card.tag} reads embeddings of bundle {self.card.bundle}, "
                f"not of {digest or '(none named)'}; serve that bundle, or train the head on this one"
            )

    def logits(self, x: AnyFloats, statistics: Standardisation = TRAINING) -> Floats:
        """Logits before temperature.

        Args:
            x: pooled kinds [clips, d]; `frame-mlp` [frames, d] of one clip.
            statistics: replaces the training mean or deviation of a pooled kind.

        Returns:
            [clips, K]; one row for `frame-mlp`.

        Raises:
            BadInput: wrong shape, values that are not finite, or statistics where there are none to replace.
        """
        values = self._checked(x)
        if self.card.kind == "frame-mlp":
            if statistics.replaces:
                raise BadInput(f"head {self.card.tag} reads frames and standardises nothing; send no variants")
            return np.asarray(_mlp(values, self.weights).mean(axis=0, keepdims=True))
        values = (values - self._statistic("mean", statistics.mean)) / self._statistic("std", statistics.std)
        if self.card.kind == "logistic":
            return _linear(values, self.weights, "output")
        return _mlp(values, self.weights)

    def _checked(self, x: AnyFloats) -> Floats:
        if x.ndim != 2 or x.shape[1] != self.card.dims or not len(x):
            raise BadInput(
                f"embeddings of shape {list(x.shape)}: head {self.card.tag} reads [n, {self.card.dims}], n at least 1, "
                f"of {'layer' if len(self.card.layers) == 1 else 'layers'} {', '.join(map(str, self.card.layers))}"
            )
        if not np.isfinite(x).all():
            raise BadInput("embeddings hold values that are not finite; embed the audio again")
        return x.astype(np.float32, copy=False)

    def _statistic(self, name: str, given: Floats | None) -> Floats:
        if given is None:
            return self.weights[name]
        if given.shape != (self.card.dims,) or not np.isfinite(given).all():
            raise BadInput(f"standardisation {name}: {given.shape} or not finite; give {self.card.dims} finite figures")
        if name == "std" and (given <= 0).any():
            raise BadInput(f"standardisation std: smallest is {given.min()}; give positive figures")
        return given.astype(np.float32, copy=False)


def encode(head: Head) -> tuple[bytes, str]:
    """Weights as safetensors, card as JSON."""
    return save({name: np.ascontiguousarray(array) for name, array in head.weights.items()}), head.card.to_json()


def decode(weights: bytes, card: str) -> Head:
    """A head from what `encode` wrote.

    Raises:
        BadInput: damaged weights or card, or weights that do not fit the card.
    """
    facts = card_from_json(card)
    try:
        arrays = load(weights)
    except SafetensorError as error:
        raise BadInput(f"weights of head {facts.tag} are damaged ({error}); train it again") from None
    wanted = shapes(facts)
    got = {name: array.shape for name, array in arrays.items()}
    if got != wanted or any(array.dtype != np.float32 or not np.isfinite(array).all() for array in arrays.values()):
        raise BadInput(f"weights of head {facts.tag} do not fit its card: {got} instead of {wanted}; train it again")
    return Head(card=facts, weights=arrays)


def shapes(card: Card) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a head with this card."""
    d, k, h = card.dims, len(card.classes), int(card.settings.get("hidden", 0))
    standard = {} if card.kind == "frame-mlp" else {"mean": (d,), "std": (d,)}
    if card.kind == "logistic":
        return {**standard, "output.weight": (k, d), "output.bias": (k,)}
    hidden: dict[str, tuple[int, ...]] = {
        "hidden.weight": (h, d),
        "hidden.bias": (h,),
        "norm.weight": (h,),
        "norm.bias": (h,),
    }
    return {**standard, **hidden, "output.weight": (k, h), "output.bias": (k,)}


def _linear(x: Floats, weights: Weights, name: str) -> Floats:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _mlp(x: Floats, weights: Weights) -> Floats:
    hidden = _linear(x, weights, "hidden")
    centred = hidden - hidden.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(LAYER_NORM_EPSILON))
    normed = centred * scale * weights["norm.weight"] + weights["norm.bias"]
    return _linear(gelu(normed), weights, "output")


def gelu(x: Floats) -> Floats:
    """X Φ(x), exact to 1e-6 (Hendrycks & Gimpel 2016; not its tanh approximation)."""
    return np.float32(0.5) * x * (1 + erf(x * np.float32(np.sqrt(0.5))))


def erf(x: Floats) -> Floats:
    """The error function to 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26); numpy has none and scipy is no dependency."""
    size = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * size)
    series = np.full_like(size, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + np.float32(coefficient)
    return np.asarray(np.copysign(1 - series * t * np.exp(-size * size), x), dtype=np.float32)
