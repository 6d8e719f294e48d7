"""What a head takes from a tenant's state: a mean, a prior, and what to say of both."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.prober.heads import Floats, Head
from services.prober.prior import Prior
from servox.priors import class_prior
from servox.standardisation import blended, relevance

from .rules import Rules
from .statistics import Phase, Shares, State, unbiased_shift

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibrated:
    """One head under one tenant's state; a value, so that a call ends with what it began with.

    Attributes:
        tenant: whose.
        phase: of their state; None for a head that standardises nothing.
        version: of the state; 0 where the training statistics answer.
        clips: that counted.
        shift: of the tenant's mean from the head's training mean; 0 before anything counted.
        relevance: how far the tenant's mean replaces the training mean.
        mean: `[d]` to standardise by; None for the training mean.
        shown: mean probability `[K]` that the head shows on the tenant; None while too little was heard.
        em: prior `[K]` by expectation maximisation, likewise.
        own: the prior that was set for the tenant.
        em_allowed: whether `em` may be asked for.
    """

    tenant: str
    phase: Phase | None = None
    version: int = 0
    clips: int = 0
    shift: float = 0.0
    relevance: float = 0.0
    mean: Floats | None = None
    shown: Array | None = None
    em: Array | None = None
    own: Prior | None = None
    em_allowed: bool = False


def calibrated(state: State, head: Head, rules: Rules) -> Calibrated:
    """What `head` takes from a state of its own feature space."""
    training, std = head.weights["mean"], head.weights["std"]
    away = unbiased_shift(state, training, std)
    answers = state.phase != "collecting"
    share = relevance(away, low=rules.low_shift, high=rules.high_shift) if answers else 0.0
    heard = state.share(head.card.tag)
    known = heard if answers and heard is not None and heard.weight >= rules.ready_clips / 2 else None
    return Calibrated(
        tenant=state.tenant,
        phase=state.phase,
        version=state.version if answers else 0,
        clips=state.clips,
        shift=away,
        relevance=share,
        mean=blended(training, state.mean, share).astype(np.float32) if share else None,
        shown=_smoothed(known, rules) if known else None,
        em=class_prior(known.em * known.weight, smoothing=1.0) if known else None,
        own=state.prior,
        em_allowed=rules.em,
    )


def tentative_mean(state: State, head: Head, rules: Rules) -> Floats | None:
    """The mean that would answer if a collecting state answered already; None for the training mean."""
    away = unbiased_shift(state, head.weights["mean"], head.weights["std"])
    share = relevance(away, low=rules.low_shift, high=rules.high_shift)
    return blended(head.weights["mean"], state.mean, share).astype(np.float32) if share else None


def _smoothed(heard: Shares, rules: Rules) -> Array:
    extra = rules.smoothing_clips
    return np.asarray((heard.shown * heard.weight + heard.prior * extra) / (heard.weight + extra))
