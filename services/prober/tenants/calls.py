"""One call of a tenant: with what it is answered, and which of its windows teach.

A call counts as a few clips at most, and these lie apart in time: the first window, then one after 15, 45 and 105 s, so
that neither an hour-long call nor its greeting stands for all that a tenant says. Whole clips are calls of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from services.prober.answers import Window
from services.prober.heads import TRAINING, Head, Standardisation
from services.prober.novelty import STEADY_MS
from services.prober.posterior import Listener, novelty_of
from servox.priors import softmax

from .calibrated import Calibrated, calibrated, tentative_mean
from .rules import Rules
from .statistics import FOUND_CLIPS, Clip, Space, State

if TYPE_CHECKING:
    from services.prober.embedder import Embedded

APART_MS = 15_000  # from the first clip of a call that counts to the second; then twice as far each time
LEAST_SPEECH = 0.1  # of a window that teaches, where somebody looked


class Teachable(Protocol):
    """Whoever keeps the state of the tenant who calls."""

    def state(self) -> State | None:
        """As it is now; None where nothing is learned here."""

    def heard(self, clip: Clip, head: Head) -> None:
        """One clip that may teach."""


def space_of(head: Head) -> Space:
    """The features that a head reads."""
    card = head.card
    return Space(bundle=card.bundle, layers=card.layers, dims=card.dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A call of a tenant, or of nobody.

    Attributes:
        tenant: empty for nobody.
        snapshot: the state with which the whole call is answered; None where there is none.
        rules: limits.
        listeners: who learns of its windows.
    """

    tenant: str = ""
    snapshot: State | None = None
    rules: Rules
    listeners: Sequence[Listener] = ()

    def calibrated(self, head: Head) -> Calibrated | None:
        """What a head takes from the tenant: nothing of another feature space, nor one that reads frames."""
        if not self.tenant:
            return None
        if self.snapshot is None or head.card.kind == "frame-mlp" or space_of(head) != self.snapshot.space:
            return Calibrated(tenant=self.tenant)
        return calibrated(self.snapshot, head, self.rules)


class Lesson:
    """The windows of one call that may teach.

    Args:
        head: that answers.
        teachable: whom.
        rules: limits.
    """

    def __init__(self, head: Head, teachable: Teachable, rules: Rules) -> None:
        self._head, self._teachable, self._rules = head, teachable, rules
        self._count = self._due_ms = 0

    def scored(self, embedded: "Embedded", window: Window) -> None:
        """One window that was answered; see `Listener`."""
        if self._count >= self._rules.call_clips or window.start_ms < self._due_ms:
            return
        if window.speech is not None and window.speech < LEAST_SPEECH:  # answered all the same, for `every_window`
            return
        state = self._teachable.state()
        if state is None:
            return
        self._count += 1
        self._due_ms = window.start_ms + APART_MS * (2**self._count - 1)
        self._teachable.heard(clip_of(self._head, embedded, state, self._rules), self._head)


def clip_of(head: Head, embedded: "Embedded", state: State, rules: Rules) -> Clip:
    """What a window can teach.

    Whether it is out of distribution is judged from the tenant's own mean, as soon as there is one: a state that
    collects may be of another room, where all windows abstain.
    """
    card = head.card
    mean = tentative_mean(state, head, rules)
    own = Standardisation(mean=mean) if mean is not None else TRAINING
    raw, shown = (softmax(card.scaling.apply(head.logits(embedded.values, each)[0])) for each in (TRAINING, own))
    return Clip(
        values=embedded.values[0].astype(np.float64),
        std=head.weights["std"].astype(np.float64),
        weight=min(1.0, embedded.duration_ms / STEADY_MS),
        head=card.tag,
        classes=card.classes,
        train=card.class_counts,
        raw=raw,
        shown=shown,
        far=_is_far(head, embedded, state, rules),
    )


def _is_far(head: Head, embedded: "Embedded", state: State, rules: Rules) -> bool:
    """Whether a window is unlike all that was heard of this tenant: over the head's limit, and far over the usual."""
    if state.weight < FOUND_CLIPS:
        return False
    novelty = novelty_of(head, embedded, Standardisation(mean=state.mean.astype(np.float32)))
    if novelty is None or head.card.novelty_limit is None:
        return False
    usual = max(1.0, rules.far_spreads * state.spread / head.card.novelty_limit)
    return novelty > usual
