"""A head under a prior: embeddings in, probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from servox.errors import BadInput, Refused
from servox.priors import adjust, class_prior, softmax

from .answers import Window
from .card import Card
from .embedder import Embedded
from .heads import TRAINING, Head, Standardisation
from .novelty import distances, tolerance
from .prior import Prior, PriorKind
from .tenants.calibrated import Calibrated

Array = npt.NDArray[np.float64]

Stage = Literal["candidate", "production", "canary", "shadow"]


class Listener(Protocol):
    """Whoever wants to know what was scored."""

    def scored(self, embedded: Embedded, window: Window) -> None:
        """One window with probabilities; called on the event loop, so it must be quick."""


class Posterior:
    """A head under one prior: embeddings in, probabilities out.

    Args:
        head: already checked against its registry.
        prior: to assume.
        calibration: what a tenant's state gives this head; None without a tenant.
        stage: as what the head answers.
        notice: to be shown to those who were heard; empty for none.
        uncalibrated: whether windows also carry what the head says without a tenant's calibration.
        listeners: are told of every window that was scored.

    Raises:
        BadInput: an explicit prior for other classes, or one that does not sum to one; a tenant's without a tenant.
        Refused: a kind of prior that this prober does not give.
    """

    def __init__(
        self,
        head: Head,
        prior: Prior,
        *,
        calibration: Calibrated | None = None,
        stage: Stage = "candidate",
        notice: str = "",
        uncalibrated: bool = False,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.head, self.calibration = head, calibration
        self.stage, self.notice = stage, notice
        self._uncalibrated, self._listeners = uncalibrated, tuple(listeners)
        self.assumed = _assumed(head.card, prior, calibration)
        self.prior_kind = self.assumed.kind
        mean = calibration.mean if calibration else None
        self.statistics = Standardisation(mean=mean) if mean is not None else TRAINING

    @cached_property
    def digest(self) -> str:
        """Of the head; counted once, for a stream names it with every window."""
        return self.head.digest

    @property
    def prior(self) -> dict[str, float]:
        """The prior that answers assume, by class."""
        counts = self.head.card.class_counts
        target = self.assumed.target
        values = class_prior(counts, smoothing=0.0) if target is None else target
        return dict(zip(self.head.card.classes, map(float, values), strict=True))

    def probabilities(self, embedded: Embedded) -> Array:
        """[K], summing to one.

        Raises:
            HeadMismatch: the embedder serves another bundle.
            BadInput: an embedding of another width.
        """
        self.head.check_bundle(embedded.bundle.digest)
        return self._probabilities(embedded, self.statistics, self.assumed)

    def uncalibrated(self, embedded: Embedded) -> Array | None:
        """[K] without anything of the tenant's; None where the request did not ask for it."""
        if not self._uncalibrated:
            return None
        assumed = _AS_TRAINED if self.assumed.kind in ("estimated", "estimated-em") else self.assumed
        return self._probabilities(embedded, TRAINING, assumed)

    def _probabilities(self, embedded: Embedded, statistics: Standardisation, assumed: "Assumed") -> Array:
        return softmax(assumed.applied(self.head.card.scaling.apply(self.head.logits(embedded.values, statistics)[0])))

    def told(self, embedded: Embedded, window: Window) -> None:
        """Tells the listeners of a window that was scored."""
        for listener in self._listeners:
            listener.scored(embedded, window)

    def novelty(self, embedded: Embedded) -> float | None:
        """Distance to the features that answer over the head's limit for this length; None where the head has none.

        The features are those of training, moved to the tenant's mean where it answers: another room is not another
        kind of sound.
        """
        return novelty_of(self.head, embedded, self.statistics)


def novelty_of(head: Head, embedded: Embedded, statistics: Standardisation = TRAINING) -> float | None:
    """See `Posterior.novelty`."""
    limit, weights = head.card.novelty_limit, head.weights
    if limit is None or "mean" not in weights:
        return None
    mean = weights["mean"] if statistics.mean is None else statistics.mean
    z = (embedded.values - mean) / weights["std"]
    return float(distances(z)[0]) / (limit * tolerance(embedded.duration_ms))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assumed:
    """The prior in the end: what to take out of the logits and what to put in; both None as in training."""

    kind: PriorKind
    train: Array | None = None
    target: Array | None = None

    def applied(self, logits: Array) -> Array:
        """Scaled logits [..., K] under this prior."""
        return adjust(logits, train=self.train, target=self.target)


_AS_TRAINED = Assumed(kind="train")


def _assumed(card: Card, prior: Prior, calibration: Calibrated | None) -> Assumed:
    if prior.kind == "train":
        return _AS_TRAINED
    if prior.kind in ("estimated", "estimated-em", "tenant"):
        return _tenants(card, prior, calibration)
    # A class that the training set lacks would always win if its prior of zero were taken out: it gets one pseudo-clip.
    train = class_prior(card.class_counts, smoothing=0.0 if all(card.class_counts) else 1.0)
    if prior.kind == "uniform":
        return Assumed(kind="uniform", train=train, target=_uniform(card))
    return Assumed(kind="explicit", train=train, target=explicit(card, prior))


def _tenants(card: Card, prior: Prior, calibration: Calibrated | None) -> Assumed:
    if calibration is None:
        raise BadInput(f"prior: {prior.kind} is a tenant's own: name the tenant, or give train, uniform or explicit")
    if prior.kind == "tenant":
        if calibration.own is None:
            raise BadInput(
                f"prior: none is set for tenant {calibration.tenant}: set one (servox tenants prior), or give another"
            )
        return _assumed(card, calibration.own, calibration)
    if prior.kind == "estimated":
        # What the head shows on this tenant is taken out whole, whatever made it so: what is left assumes equal shares.
        shown = calibration.shown
        return _AS_TRAINED if shown is None else Assumed(kind="estimated", train=shown, target=_uniform(card))
    if not calibration.em_allowed:
        raise Refused(
            "prior: estimated-em is off here, for it mostly hurts where the speech is another; give estimated, "
            "or have the operator set tenant_em"
        )
    if calibration.em is None:
        return _AS_TRAINED
    train = class_prior(card.class_counts, smoothing=0.0 if all(card.class_counts) else 1.0)
    return Assumed(kind="estimated-em", train=train, target=calibration.em)


def _uniform(card: Card) -> Array:
    return np.full(len(card.classes), 1 / len(card.classes))


def explicit(card: Card, prior: Prior) -> Array:
    """The probabilities [K] of an explicit prior, in the order of a head's classes.

    Raises:
        BadInput: other classes, negative figures, or a sum that is not one.
    """
    given = prior.probabilities
    if set(given) != set(card.classes):
        unknown, lacking = sorted(set(given) - set(card.classes)), sorted(set(card.classes) - set(given))
        raise BadInput(
            f"prior: unknown classes {unknown}, missing classes {lacking}; head {card.tag} has {list(card.classes)}"
        )
    target = np.array([given[name] for name in card.classes], dtype=np.float64)
    if not (target >= 0).all() or abs(target.sum() - 1) > 1e-3:
        raise BadInput(f"prior: it sums to {target.sum():g}; give probabilities from 0 to 1 that sum to 1")
    return np.asarray(target / target.sum())
