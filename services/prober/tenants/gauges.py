"""Drift of tenants as Prometheus gauges, counted when somebody looks; docs/tenants.md says which value means what.

- A feature drift is a shift of means in training deviations (`servox.standardisation.shift`), a prior drift is a
  Jensen-Shannon divergence in nats.
- Labels are bounded: the tenants that called last have their own, all others share `other`, whose value is the highest
  of theirs; of heads, a state keeps the last four.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from servox.priors import divergence
from servox.standardisation import shift

from .statistics import FOUND_CLIPS, HEARD_CLIPS, Shares, State, drift

Floats = npt.NDArray[np.float32]
OTHER = "other"

# name → help, and the value of one head under one state
_HELP = {
    "feature_drift": "Shift of a tenant's recent features, by what they are compared with: training, state.",
    "prior_drift": "Divergence of the classes heard lately, nats, by what they are compared with: training, state.",
    "shift": "Shift of a tenant's mean from the training mean.",
    "weight": "Weight of the clips that a tenant's mean stands for.",
    "alarm": "1 while a guard holds a tenant's state back.",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Watched:
    """One state, and training mean and deviation of the heads that heard it."""

    state: State
    heads: Mapping[str, tuple[Floats, Floats]]


class TenantMetrics(Collector):
    """All metrics of tenants.

    Args:
        registry: where they go.
        watched: the states in memory, those that were used last first.
        most: tenants with labels of their own.
    """

    def __init__(self, registry: CollectorRegistry, watched: Callable[[], Sequence[Watched]], *, most: int) -> None:
        self._watched, self._most = watched, most
        self._clips = Counter(
            "servox_prober_tenant_clips",
            "Clips of tenants that could teach, by outcome: counted, duplicate, far, leaning, hourly, frozen.",
            ["outcome"],
            registry=registry,
        )
        registry.register(self)

    def heard(self, outcome: str) -> None:
        """One clip."""
        self._clips.labels(outcome).inc()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The families, empty."""
        yield from self._families().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families as they are now."""
        families = self._families()
        highest: dict[tuple[str, ...], float] = {}
        named: set[str] = set()
        for each in self._watched():
            if len(named) < self._most or each.state.tenant in named:
                named.add(each.state.tenant)
            tenant = each.state.tenant if each.state.tenant in named else OTHER
            for key, value in values(each, tenant):
                highest[key] = max(value, highest.get(key, 0.0))
        for (name, *labels), value in highest.items():
            families[name].add_metric(labels, value)
        yield from families.values()

    def _families(self) -> dict[str, GaugeMetricFamily]:
        labels = {"feature_drift": ["tenant", "head", "reference"], "prior_drift": ["tenant", "head", "reference"]}
        return {
            name: GaugeMetricFamily(f"servox_prober_tenant_{name}", text, labels=labels.get(name, ["tenant", "head"]))
            for name, text in _HELP.items()
        }


def values(watched: Watched, tenant: str) -> Iterator[tuple[tuple[str, ...], float]]:
    """Name and labels of each gauge of one state, and its value."""
    state = watched.state
    if not state.shares and state.alarm:
        yield ("alarm", tenant, ""), 1.0  # what was stored is damaged, and nobody was heard since
    for share in state.shares:
        labels = (tenant, share.head if tenant != OTHER else OTHER)
        yield ("weight", *labels), state.weight
        yield ("alarm", *labels), float(bool(state.alarm))
        yield ("shift", *labels), state.distance
        if share.head in watched.heads and state.recent_weight >= FOUND_CLIPS:
            mean, std = watched.heads[share.head]
            away = shift(state.recent, mean, std) - state.spread / state.recent_weight
            yield ("feature_drift", *labels, "training"), max(0.0, away)
            yield ("feature_drift", *labels, "state"), drift(state, std)
        if share.recent_weight >= HEARD_CLIPS:
            yield ("prior_drift", *labels, "training"), divergence(share.recent, share.prior)
            yield ("prior_drift", *labels, "state"), _from_state(share)


def _from_state(share: Shares) -> float:
    return divergence(share.recent, share.usual) if share.weight else 0.0
