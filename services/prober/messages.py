"""Between the prober's messages and its own types; nothing is decided here."""

from datetime import datetime

import numpy as np

from servox.errors import BadInput
from servox.v1 import common_pb2, prober_pb2
from servox.wire import array_from_proto, array_to_proto, failure_to_proto

from .answers import Abstention, Recognition, Window
from .asking import Ask
from .card import Card, Kind
from .dataplane import Prediction, Stored
from .heads import AnyFloats, Head, Standardisation
from .posterior import Posterior, Stage
from .prior import Prior, PriorKind
from .progress import Event, Failed, Progress
from .registry import Entry
from .specs import Spec, settings_of
from .tenants.calibrated import Calibrated
from .tenants.statistics import Phase
from .trainer import Order

_KINDS: dict[prober_pb2.HeadKind, Kind] = {
    prober_pb2.HEAD_KIND_MLP: "mlp",
    prober_pb2.HEAD_KIND_LOGISTIC: "logistic",
    prober_pb2.HEAD_KIND_FRAME_MLP: "frame-mlp",
}
_WIRE_KINDS = {kind: value for value, kind in _KINDS.items()}
_PRIORS: dict[prober_pb2.Prior.Kind, PriorKind] = {
    prober_pb2.Prior.KIND_UNSPECIFIED: "train",
    prober_pb2.Prior.KIND_TRAIN: "train",
    prober_pb2.Prior.KIND_UNIFORM: "uniform",
    prober_pb2.Prior.KIND_EXPLICIT: "explicit",
    prober_pb2.Prior.KIND_ESTIMATED: "estimated",
    prober_pb2.Prior.KIND_ESTIMATED_EM: "estimated-em",
    prober_pb2.Prior.KIND_TENANT: "tenant",
}
_WIRE_PRIORS: dict[PriorKind, prober_pb2.Prior.Kind] = {kind: value for value, kind in _PRIORS.items() if value}
STAGES: dict[Stage, prober_pb2.Stage] = {
    "candidate": prober_pb2.STAGE_UNSPECIFIED,
    "production": prober_pb2.STAGE_PRODUCTION,
    "canary": prober_pb2.STAGE_CANARY,
    "shadow": prober_pb2.STAGE_SHADOW,
}
PHASES: dict[Phase | None, prober_pb2.CalibrationState] = {
    None: prober_pb2.CALIBRATION_STATE_UNSPECIFIED,
    "collecting": prober_pb2.CALIBRATION_STATE_COLLECTING,
    "ready": prober_pb2.CALIBRATION_STATE_READY,
    "frozen": prober_pb2.CALIBRATION_STATE_FROZEN,
}
_ABSTENTIONS: dict[Abstention | None, prober_pb2.Abstention] = {
    None: prober_pb2.ABSTENTION_UNSPECIFIED,
    "silence": prober_pb2.ABSTENTION_SILENCE,
    "too_short": prober_pb2.ABSTENTION_TOO_SHORT,
    "out_of_distribution": prober_pb2.ABSTENTION_OUT_OF_DISTRIBUTION,
}


def order_from_proto(message: prober_pb2.HeadSpec) -> Order:
    """The head that a message asks for, or why it makes no sense: one bad head must not stop the others."""
    if message.kind not in _KINDS:
        return BadInput(
            f"head {message.name!r}: kind {message.kind} is unknown; give HEAD_KIND_MLP, _LOGISTIC or _FRAME_MLP"
        )
    kind = _KINDS[message.kind]
    try:
        return Spec(
            name=message.name,
            kind=kind,
            bundle=message.bundle_digest,
            layer=message.layer,
            clip_set_url=message.clip_set_url,
            classes=tuple(message.classes),
            seed=message.seed,
            calibrate=message.calibrate,
            settings=settings_of(kind, message.settings),
        )
    except BadInput as error:
        return error


def event_to_proto(event: Event) -> prober_pb2.TrainResponse:
    """One event of a training."""
    if isinstance(event, Progress):
        progress = prober_pb2.TrainProgress(
            heads_done=event.done,
            heads_total=event.total,
            fraction=event.fraction,
            eta_ms=round(event.eta_s * 1000),
        )
        return prober_pb2.TrainResponse(progress=progress)
    if isinstance(event, Failed):
        failed = prober_pb2.FailedHead(index=event.index, failure=failure_to_proto(event.error))
        return prober_pb2.TrainResponse(failed=failed)
    trained = prober_pb2.TrainedHead(index=event.index, head=head_to_proto(event.head), reused=event.reused)
    return prober_pb2.TrainResponse(trained=trained)


def head_to_proto(head: Head) -> common_pb2.Head:
    """What names a head."""
    return _named(head.card, head.digest)


def _named(card: Card, digest: str) -> common_pb2.Head:
    return common_pb2.Head(name=card.name, version=card.version, digest=digest, bundle_digest=card.bundle)


def source_from_proto(message: prober_pb2.PredictRequest) -> AnyFloats | Stored:
    """Where a request's embeddings are.

    Raises:
        BadInput: it has none.
    """
    match message.WhichOneof("input"):
        case "embeddings":
            return array_from_proto(message.embeddings, name="embeddings")
        case "stored":
            return Stored(store_url=message.stored.store_url, clip_set_url=message.stored.clip_set_url)
        case _:
            raise BadInput("the request has no embeddings: send `embeddings` or `stored`")


def variant_from_proto(message: prober_pb2.Standardisation) -> Standardisation:
    """Statistics of a request; what is empty stays as it was trained."""
    return Standardisation(
        mean=np.array(message.mean, dtype=np.float32) if message.mean else None,
        std=np.array(message.std, dtype=np.float32) if message.std else None,
    )


def prediction_to_proto(prediction: Prediction) -> prober_pb2.PredictResponse:
    """Scores of a head."""
    card = prediction.head.card
    return prober_pb2.PredictResponse(
        head=head_to_proto(prediction.head),
        classes=card.classes,
        logits=array_to_proto(prediction.logits),
        temperature=card.temperature,
        bias=card.bias,
        probabilities=array_to_proto(prediction.probabilities),
    )


def prior_from_proto(message: prober_pb2.Prior) -> Prior:
    """The prior that a request assumes.

    Raises:
        BadInput: an unknown kind, or probabilities that the kind does not take.
    """
    if message.kind not in _PRIORS:
        known = ", ".join(prober_pb2.Prior.Kind.Name(value) for value in _WIRE_PRIORS.values())
        raise BadInput(f"prior: kind {message.kind} is unknown; give one of {known}")
    kind = _PRIORS[message.kind]
    if message.probabilities and kind != "explicit":
        raise BadInput("prior: probabilities are given, but the kind is not KIND_EXPLICIT; drop them or set it")
    return Prior(kind=kind, probabilities=dict(message.probabilities))


def ask_from_proto(message: prober_pb2.RecognizeConfig) -> Ask:
    """What a request asks for.

    Raises:
        BadInput: an impossible prior.
    """
    return Ask(
        head=message.head,
        prior=prior_from_proto(message.prior),
        tenant=message.tenant,
        uncalibrated=message.uncalibrated,
        purpose=message.purpose,
        session=message.session,
    )


def prior_to_proto(prior: Prior) -> prober_pb2.Prior:
    """A prior."""
    return prober_pb2.Prior(kind=_WIRE_PRIORS[prior.kind], probabilities=prior.probabilities)


def _used(calibration: Calibrated | None) -> prober_pb2.UsedCalibration:
    """The tenant's calibration that a call answers with; empty where there is no tenant."""
    if calibration is None:
        return prober_pb2.UsedCalibration()
    return prober_pb2.UsedCalibration(
        tenant=calibration.tenant,
        state=PHASES[calibration.phase],
        version=calibration.version,
        clips=calibration.clips,
        shift=calibration.shift,
        relevance=calibration.relevance,
    )


def answered(posterior: Posterior, bundle: common_pb2.Bundle) -> prober_pb2.RecognizeStreamResponse:
    """What made the windows of a call, all but the window."""
    return prober_pb2.RecognizeStreamResponse(
        head=_named(posterior.head.card, posterior.digest),
        bundle=bundle,
        prior=prior_to_proto(Prior(kind=posterior.prior_kind, probabilities=posterior.prior)),
        calibration=_used(posterior.calibration),
        stage=STAGES[posterior.stage],
        notice=posterior.notice,
    )


def window_to_proto(window: Window, classes: tuple[str, ...]) -> prober_pb2.Window:
    """One window, its classes in the head's order."""
    shown = prober_pb2.Window(
        index=window.index,
        start_ms=window.start_ms,
        end_ms=window.end_ms,
        abstention=_ABSTENTIONS[window.abstention],
        speech=window.speech,
        novelty=window.novelty,
    )
    if window.probabilities is not None:
        best = int(window.probabilities.argmax())
        shown.label, shown.confidence = classes[best], float(window.probabilities[best])
        for label, value in zip(classes, window.probabilities, strict=True):
            shown.probabilities.add(label=label, probability=float(value))
    if window.uncalibrated is not None:
        for label, value in zip(classes, window.uncalibrated, strict=True):
            shown.uncalibrated.add(label=label, probability=float(value))
    return shown


def window_answered(
    window: Window, posterior: Posterior, bundle: common_pb2.Bundle
) -> prober_pb2.RecognizeStreamResponse:
    """One window of a stream, and what made it."""
    shown = answered(posterior, bundle)
    shown.window.CopyFrom(window_to_proto(window, posterior.head.card.classes))
    return shown


def recognition_to_proto(recognition: Recognition, posterior: Posterior) -> prober_pb2.RecognizeResponse:
    """Emotions of one clip."""
    classes = posterior.head.card.classes
    made_by = answered(posterior, recognition.bundle)
    return prober_pb2.RecognizeResponse(
        overall=window_to_proto(recognition.overall, classes),
        windows=[window_to_proto(window, classes) for window in recognition.windows],
        head=made_by.head,
        bundle=made_by.bundle,
        prior=made_by.prior,
        timings=recognition.timings,
        calibration=made_by.calibration,
        stage=made_by.stage,
        notice=made_by.notice,
    )


def summary_to_proto(entry: Entry) -> prober_pb2.HeadSummary:
    """One head of a list."""
    card = entry.card
    return prober_pb2.HeadSummary(
        head=_named(card, entry.digest),
        kind=_WIRE_KINDS[card.kind],
        classes=card.classes,
        production=entry.production,
        created_unix_ms=round(datetime.fromisoformat(card.created).timestamp() * 1000),
        stage=STAGES[entry.stage],
    )
