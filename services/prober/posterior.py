"""A head under a prior: embeddings in, probabilities out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from servox.errors import BadInput
from servox.priors import adjust, class_prior, softmax

from .answers import Window
from .card import Card
from .embedder import Embedded
from .heads import Head
from .novelty import distances, tolerance

Array = npt.NDArray[np.float64]

PriorKind = Literal["train", "uniform", "explicit"]
Stage = Literal["candidate", "production", "canary", "shadow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """The class prior to assume; `probabilities` only where the kind is explicit."""

    kind: PriorKind = "train"
    probabilities: Mapping[str, float] = field(default_factory=dict)


class Listener(Protocol):
    """Whoever wants to know what was scored."""

    def scored(self, embedded: Embedded, window: Window) -> None:
        """One window with probabilities; called on the event loop, so it must be quick."""


class Posterior:
    """A head under one prior: embeddings in, probabilities out.

    Args:
        head: already checked against its registry.
        prior: to assume.
        stage: as what the head answers.
        notice: to be shown to those who were heard; empty for none.
        uncalibrated: whether windows also carry what the head says without a tenant's calibration.
        listeners: are told of every window that was scored.

    Raises:
        BadInput: an explicit prior for other classes, or one that does not sum to one.
    """

    def __init__(
        self,
        head: Head,
        prior: Prior,
        *,
        stage: Stage = "candidate",
        notice: str = "",
        uncalibrated: bool = False,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.head, self.prior_kind = head, prior.kind
        self.stage, self.notice = stage, notice
        self._uncalibrated, self._listeners = uncalibrated, tuple(listeners)
        self._train, self._target = _priors(head.card, prior)

    @cached_property
    def digest(self) -> str:
        """Of the head; counted once, for a stream names it with every window."""
        return self.head.digest

    @property
    def prior(self) -> dict[str, float]:
        """The prior that answers assume, by class."""
        counts = self.head.card.class_counts
        values = class_prior(counts, smoothing=0.0) if self._target is None else self._target
        return dict(zip(self.head.card.classes, map(float, values), strict=True))

    def probabilities(self, embedded: Embedded) -> Array:
        """[K], summing to one.

        Raises:
            HeadMismatch: the embedder serves another bundle.
            BadInput: an embedding of another width.
        """
        self.head.check_bundle(embedded.bundle.digest)
        logits = self.head.card.scaling.apply(self.head.logits(embedded.values)[0])
        return softmax(adjust(logits, train=self._train, target=self._target))

    def uncalibrated(self, embedded: Embedded) -> Array | None:
        """[K] without the tenant's calibration; None where the request did not ask for it."""
        return self.probabilities(embedded) if self._uncalibrated else None

    def told(self, embedded: Embedded, window: Window) -> None:
        """Tells the listeners of a window that was scored."""
        for listener in self._listeners:
            listener.scored(embedded, window)

    def novelty(self, embedded: Embedded) -> float | None:
        """Distance to the training features over the head's limit for this length; None where the head has none."""
        limit, weights = self.head.card.novelty_limit, self.head.weights
        if limit is None or "mean" not in weights:
            return None
        z = (embedded.values - weights["mean"]) / weights["std"]
        return float(distances(z)[0]) / (limit * tolerance(embedded.duration_ms))


def _priors(card: Card, prior: Prior) -> tuple[Array | None, Array | None]:
    """What to take out of the logits and what to put in."""
    if prior.kind == "train":
        return None, None
    # A class that the training set lacks would always win if its prior of zero were taken out: it gets one pseudo-clip.
    train = class_prior(card.class_counts, smoothing=0.0 if all(card.class_counts) else 1.0)
    if prior.kind == "uniform":
        return train, np.full(len(card.classes), 1 / len(card.classes))
    given = prior.probabilities
    if set(given) != set(card.classes):
        unknown, lacking = sorted(set(given) - set(card.classes)), sorted(set(card.classes) - set(given))
        raise BadInput(
            f"prior: unknown classes {unknown}, missing classes {lacking}; head {card.tag} has {list(card.classes)}"
        )
    target = np.array([given[name] for name in card.classes], dtype=np.float64)
    if not (target >= 0).all() or abs(target.sum() - 1) > 1e-3:
        raise BadInput(f"prior: it sums to {target.sum():g}; give probabilities from 0 to 1 that sum to 1")
    return train, target / target.sum()
