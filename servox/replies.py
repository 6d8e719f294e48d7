"""Between the prober's messages and the client's values."""

from servox.answers import (
    Abstention,
    Bundle,
    CalibrationState,
    Head,
    HeadSummary,
    Heard,
    Recognition,
    Stage,
    Timings,
    UsedCalibration,
    Window,
)
from servox.v1 import common_pb2, prober_pb2

_ABSTENTIONS = {
    prober_pb2.ABSTENTION_SILENCE: Abstention.SILENCE,
    prober_pb2.ABSTENTION_TOO_SHORT: Abstention.TOO_SHORT,
    prober_pb2.ABSTENTION_OUT_OF_DISTRIBUTION: Abstention.OUT_OF_DISTRIBUTION,
}
_STAGES = {
    prober_pb2.STAGE_UNSPECIFIED: Stage.CANDIDATE,
    prober_pb2.STAGE_PRODUCTION: Stage.PRODUCTION,
    prober_pb2.STAGE_CANARY: Stage.CANARY,
    prober_pb2.STAGE_SHADOW: Stage.SHADOW,
}
_STATES = {
    prober_pb2.CALIBRATION_STATE_UNSPECIFIED: CalibrationState.NONE,
    prober_pb2.CALIBRATION_STATE_COLLECTING: CalibrationState.COLLECTING,
    prober_pb2.CALIBRATION_STATE_READY: CalibrationState.READY,
    prober_pb2.CALIBRATION_STATE_FROZEN: CalibrationState.FROZEN,
}


def bundle_from_proto(message: common_pb2.Bundle) -> Bundle:
    """The bundle that a message names."""
    return Bundle(
        digest=message.digest,
        source=message.source,
        family=message.family,
        context=message.context,
        blocks=message.blocks,
        precision=message.precision,
    )


def head_from_proto(message: common_pb2.Head) -> Head:
    """The head that a message names."""
    return Head(name=message.name, version=message.version, digest=message.digest, bundle_digest=message.bundle_digest)


def summary_from_proto(message: prober_pb2.HeadSummary) -> HeadSummary:
    """One head of a list."""
    return HeadSummary(
        head=head_from_proto(message.head),
        classes=tuple(message.classes),
        production=message.production,
        created_unix_ms=message.created_unix_ms,
        stage=_STAGES.get(message.stage, Stage.UNKNOWN),
    )


def timings_from_proto(message: common_pb2.Timings) -> Timings:
    """The timings in a message."""
    return Timings(
        decode_us=message.decode_us,
        queue_us=message.queue_us,
        inference_us=message.inference_us,
        total_us=message.total_us,
    )


def calibration_from_proto(message: prober_pb2.UsedCalibration) -> UsedCalibration:
    """The tenant's calibration that a message names."""
    return UsedCalibration(
        tenant=message.tenant,
        state=_STATES.get(message.state, CalibrationState.UNKNOWN),
        version=message.version,
        clips=message.clips,
        shift=message.shift,
        relevance=message.relevance,
    )


def window_from_proto(message: prober_pb2.Window) -> Window:
    """One window; a reason to abstain that this client does not know stays a reason."""
    answered = bool(message.probabilities)
    abstained = message.abstention != prober_pb2.ABSTENTION_UNSPECIFIED
    return Window(
        index=message.index,
        start_ms=message.start_ms,
        end_ms=message.end_ms,
        label=message.label or None,
        confidence=message.confidence if answered or message.label else None,
        probabilities={each.label: each.probability for each in message.probabilities},
        abstention=_ABSTENTIONS.get(message.abstention, Abstention.UNKNOWN) if abstained else None,
        speech=message.speech if message.HasField("speech") else None,
        novelty=message.novelty if message.HasField("novelty") else None,
        uncalibrated={each.label: each.probability for each in message.uncalibrated},
    )


def recognition_from_proto(message: prober_pb2.RecognizeResponse) -> Recognition:
    """The answer to a clip."""
    return Recognition(
        overall=window_from_proto(message.overall),
        windows=tuple(window_from_proto(window) for window in message.windows),
        head=head_from_proto(message.head),
        bundle=bundle_from_proto(message.bundle),
        prior=dict(message.prior.probabilities),
        timings=timings_from_proto(message.timings),
        calibration=calibration_from_proto(message.calibration),
        stage=_STAGES.get(message.stage, Stage.UNKNOWN),
        notice=message.notice,
    )


def heard_from_proto(message: prober_pb2.RecognizeStreamResponse) -> Heard:
    """One window of a stream."""
    return Heard(
        window=window_from_proto(message.window),
        head=head_from_proto(message.head),
        bundle=bundle_from_proto(message.bundle),
        prior=dict(message.prior.probabilities),
        calibration=calibration_from_proto(message.calibration),
        stage=_STAGES.get(message.stage, Stage.UNKNOWN),
        notice=message.notice,
    )
