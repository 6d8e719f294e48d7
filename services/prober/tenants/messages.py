"""Between the messages of calibrations and the prober's own types."""

from services.prober.messages import PHASES, prior_to_proto
from servox.v1 import prober_pb2

from .statistics import State


def calibration_to_proto(state: State) -> prober_pb2.Calibration:
    """One state, without its statistics."""
    return prober_pb2.Calibration(
        tenant=state.tenant,
        bundle_digest=state.space.bundle,
        layers=state.space.layers,
        state=PHASES[state.phase],
        version=state.version,
        clips=state.clips,
        refused=state.refused,
        diversity=state.diversity,
        drift=state.drift,
        alarm=state.alarm,
        changed_unix_ms=state.changed_ms,
        prior=prior_to_proto(state.prior) if state.prior else None,
        weight=state.weight,
    )
