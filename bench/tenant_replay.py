"""Tenants made of real clips: the streams that they send, and what the prober's own state makes of them.

- A tenant is one corpus, cut by speaker into two halves: one half calls and calibrates, the other is scored. So no
  figure comes from a speaker that the state has heard.
- The state, its guards, the mean that answers and the priors are the prober's own code; only the audio and its encoder
  are left out, for the embeddings are there already.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from services.prober.calibration import macro_f1
from services.prober.embedder import Embedded
from services.prober.heads import Head
from services.prober.novelty import distances
from services.prober.posterior import Posterior
from services.prober.prior import Prior
from services.prober.tenants.calibrated import Calibrated, calibrated
from services.prober.tenants.calls import clip_of, space_of
from services.prober.tenants.rules import Rules
from services.prober.tenants.statistics import State, learned, new_state
from servox.priors import softmax
from servox.v1 import common_pb2

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Content = Literal["balanced", "skewed 4:1", "one class"]

CLIP_MS = 3000
SKEW = 4.0  # the commonest class to the rarest
# The study's recipe: the tenant's mean replaces the training mean from the first clip that is enough, whatever it is.
PLAIN = Rules(
    least_diversity=0.0,
    low_shift=-1.0,
    high_shift=0.0,
    most_shift=np.inf,
    deviations=1e6,
    lean_nats=np.inf,
    hourly_clips=np.inf,
    settled_clips=0.0,
    far_spreads=np.inf,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tenant:
    """One corpus as a tenant of one head.

    Attributes:
        head: trained on other corpora, or on other speakers of this one.
        kind: which of the two: one corpus, four corpora, own corpus.
        corpus: of the tenant.
        vectors: `[n, d]`.
        labels: `[n]`, by the head's classes.
        callers: clips `[m]` of the half that calibrates.
        scored: clips of the other half.
    """

    head: Head
    kind: str
    corpus: str
    vectors: Floats
    labels: Ints
    callers: Ints
    scored: Ints

    @property
    def heard(self) -> Sequence[int]:
        """Classes that the callers have five clips of at least."""
        counts = np.bincount(self.labels[self.callers], minlength=len(self.head.card.classes))
        return [int(label) for label in np.flatnonzero(counts >= 5)]


def halves(speakers: Sequence[str], seed: int) -> tuple[Ints, Ints]:
    """Clips of a random half of the speakers, and of the others."""
    names = np.array(speakers)
    order = np.random.default_rng([seed, 1]).permutation(np.unique(names))
    first = np.isin(names, order[: len(order) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def drawn(
    labels: Ints, pool: Ints, content: Content, size: int, random: np.random.Generator, only: int | None = None
) -> Ints:
    """`size` clips of a pool, in random order; clips come again only once all of their class have come."""
    classes = [only] if only is not None else [int(each) for each in random.permutation(np.unique(labels[pool]))]
    steps = np.arange(len(classes)) / max(1, len(classes) - 1)
    shares = SKEW ** -(steps if content == "skewed 4:1" else np.zeros(len(classes)))
    queues = {each: random.permutation(pool[labels[pool] == each]) for each in classes}
    found = np.empty(size, dtype=np.int64)
    taken = dict.fromkeys(classes, 0)
    for place, label in enumerate(random.choice(classes, size, p=shares / shares.sum())):
        queue = queues[int(label)]
        found[place] = queue[taken[int(label)] % len(queue)]
        taken[int(label)] += 1
    return found


@dataclass(slots=True, kw_only=True, eq=False)
class Replay:
    """A tenant's state while clips come.

    Attributes:
        tenant: whose.
        rules: of the prober.
        state: as it is now.
        now_ms: time of the last clip.
    """

    tenant: Tenant
    rules: Rules
    state: State = field(init=False)
    now_ms: int = 0

    def __post_init__(self) -> None:
        self.state = new_state("tenant", space_of(self.tenant.head))

    def hear(self, vectors: Floats, *, each_ms: int = CLIP_MS) -> Iterator[str]:
        """One clip after the other, each a call of its own; yields why it did not count."""
        head = self.tenant.head
        training = head.weights["mean"].astype(np.float64)
        for values in vectors:
            self.now_ms += each_ms
            embedded = Embedded(
                values=values[None], bundle=common_pb2.Bundle(), timings=common_pb2.Timings(), duration_ms=CLIP_MS
            )
            clip = clip_of(head, embedded, self.state, self.rules)
            self.state, reason = learned(self.state, clip, self.rules, now_ms=self.now_ms, training_mean=training)
            yield reason

    def heard(self, vectors: Floats, *, each_ms: int = CLIP_MS) -> Sequence[str]:
        """`hear`, to the end."""
        return list(self.hear(vectors, each_ms=each_ms))

    def calibrated(self) -> Calibrated:
        """What the head takes from the state now."""
        return calibrated(self.state, self.tenant.head, self.rules)

    def probabilities(self, clips: Ints, prior: Prior | None = None, *, raw: bool = False) -> npt.NDArray[np.float64]:
        """Answers `[n, K]`; `raw` without the tenant's mean, but for an estimated prior."""
        tenant = self.tenant
        posterior = Posterior(tenant.head, prior or Prior(), calibration=self.calibrated())
        if raw:
            posterior = Posterior(tenant.head, prior or Prior(), calibration=replace(self.calibrated(), mean=None))
        logits = tenant.head.logits(tenant.vectors[clips], posterior.statistics)
        return softmax(posterior.assumed.applied(tenant.head.card.scaling.apply(logits)))

    def f1(self, clips: Ints | None = None, prior: Prior | None = None, *, raw: bool = False) -> float:
        """Macro-F1 of the scored half, or of some of its clips."""
        chosen = self.tenant.scored if clips is None else clips
        return macro_f1(self.probabilities(chosen, prior, raw=raw).argmax(axis=1), self.tenant.labels[chosen])

    def novel(self, *, calibrated: bool) -> float:
        """Share of the scored clips that would abstain as out of distribution."""
        head = self.tenant.head
        mean = self.calibrated().mean if calibrated else None
        away = self.tenant.vectors[self.tenant.scored] - (head.weights["mean"] if mean is None else mean)
        return float((distances(away / head.weights["std"]) > (head.card.novelty_limit or np.inf)).mean())


def true_prior(tenant: Tenant, clips: Ints) -> Prior:
    """The shares of classes among clips, as a request would give them."""
    counts = np.bincount(tenant.labels[clips], minlength=len(tenant.head.card.classes)) + 1.0
    shares: Mapping[str, float] = dict(zip(tenant.head.card.classes, counts / counts.sum(), strict=True))
    return Prior(kind="explicit", probabilities=shares)
