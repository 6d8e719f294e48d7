"""JSON schemas of what is sent and answered, made from the messages themselves, so that a new field is never missed."""

from collections.abc import Iterator
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from servox.v1 import prober_pb2

Schema = dict[str, Any]

_NUMBERS: dict[int, Schema] = {
    FieldDescriptor.TYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
_INTEGER: Schema = {"type": "integer"}
# What a field's name does not say. Every field of an answer has a line here; a test sees to it.
WORDS = {
    "Window": "One stretch of audio. Without an answer it has no probabilities, an empty label and confidence 0.",
    "Window.start_ms": "From the start of the audio.",
    "Window.end_ms": "From the start of the audio.",
    "Window.label": "The most probable class.",
    "Window.confidence": "Its calibrated probability.",
    "Window.probabilities": "Every class of the head in its order, summing to one.",
    "Window.index": "0, 1, 2, … in a file and in a stream alike.",
    "Window.abstention": "Why there is no answer that should be acted on; ABSTENTION_UNSPECIFIED where there is one.",
    "Window.speech": "Share of the window that is speech, 0 to 1; left out where nobody looked.",
    "Window.novelty": "Distance to the training features over the head's limit; above 1 is out of distribution.",
    "Window.uncalibrated": "Without the tenant's calibration, where the request asked for it.",
    "ClassProbability": "One class and its probability.",
    "ClassProbability.label": "Name of the class.",
    "ClassProbability.probability": "0 to 1, in full precision.",
    "RecognizeResponse": "Emotions of one clip, and what they were made by.",
    "RecognizeResponse.overall": "Mean of the windows' probabilities, weighted by their length.",
    "RecognizeResponse.windows": "In order; the whole clip is one window where none was asked for.",
    "RecognizeResponse.head": "The head that answered.",
    "RecognizeResponse.bundle": "The encoder's bundle.",
    "RecognizeResponse.prior": "The prior that was assumed, with its values.",
    "RecognizeResponse.timings": "How long each stage took.",
    "RecognizeResponse.calibration": "The tenant's calibration that was used.",
    "RecognizeResponse.stage": "As what the head answered; STAGE_UNSPECIFIED is a candidate, answering who names it.",
    "RecognizeResponse.notice": "To be shown to the people who were heard, where the deployment's policy says so.",
    "UsedCalibration": "Statistics of a tenant's speech in place of the training ones.",
    "UsedCalibration.tenant": "Whose; empty where the training statistics answer.",
    "UsedCalibration.state": "Collecting: too little was heard, so the training statistics answer.",
    "UsedCalibration.version": "Counts the changes of what answers; 0 where the training statistics do.",
    "UsedCalibration.clips": "That the statistics were taken from.",
    "UsedCalibration.shift": "Of the tenant's mean from the training mean, in squared training deviations.",
    "UsedCalibration.relevance": "How far the tenant's mean replaces the training mean, 0 to 1.",
    "Head": "Which head turned embeddings into emotions.",
    "Head.name": "In the registry.",
    "Head.version": "First 16 hex digits of the digest of what it was trained from.",
    "Head.digest": "sha256 of its weights and card.",
    "Head.bundle_digest": "Of the bundle whose embeddings it reads.",
    "Bundle": "Which artefact turned audio into embeddings. Heads are bound to its digest.",
    "Bundle.digest": "sha256.",
    "Bundle.source": "Name of the checkpoint.",
    "Bundle.family": "whisper, logmel, …",
    "Bundle.context": "padded, fixed:SECONDS, exact, silence:K or cached:K.",
    "Bundle.blocks": "Encoder blocks that are run.",
    "Bundle.precision": "fp32, bf16 or int8.",
    "Prior": "The class prior that answers assume.",
    "Prior.kind": "As the training set had it, uniform, as the request gave it, or the tenant's own.",
    "Prior.probabilities": "Of each class.",
    "Timings": "Microseconds by stage; 0 where a stage did not run here.",
    "Timings.decode_us": "Decoding and resampling.",
    "Timings.queue_us": "Waiting for the device.",
    "Timings.inference_us": "The encoder.",
    "Timings.total_us": "All of it.",
    "HeadSummary": "One head of a list.",
    "HeadSummary.head": "What names it.",
    "HeadSummary.kind": "How it is built.",
    "HeadSummary.classes": "In the order of its outputs.",
    "HeadSummary.production": "Whether its bare name answers with this version.",
    "HeadSummary.created_unix_ms": "When it was trained.",
    "HeadSummary.stage": "What it is to its name; STAGE_UNSPECIFIED is a candidate.",
}


def message_schemas() -> dict[str, Schema]:
    """A schema of every message that is answered, by its name."""
    roots = (prober_pb2.RecognizeResponse.DESCRIPTOR, prober_pb2.HeadSummary.DESCRIPTOR)
    found: dict[str, Descriptor] = {}
    for root in roots:
        for each in _reached(cast("Descriptor", root)):
            found.setdefault(each.name, each)
    return {name: _schema(each) for name, each in sorted(found.items())}


def _reached(message: Descriptor) -> Iterator[Descriptor]:
    yield message
    for field in message.fields:
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from _reached(field.message_type)


def _schema(message: Descriptor) -> Schema:
    properties = {}
    for field in message.fields:
        schema = _field(field)
        if words := WORDS.get(f"{message.name}.{field.name}"):
            schema = {**schema, "description": words}
        properties[field.name] = schema
    schema = {"type": "object", "properties": properties}
    # A message is always answered; what is optional is a number that nobody may have measured.
    schema["required"] = [field.name for field in message.fields if field.message_type or not field.has_presence]
    if words := WORDS.get(message.name):
        schema["description"] = words
    return schema


def _field(field: FieldDescriptor) -> Schema:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _value(field.message_type.fields_by_name["value"])}
    if field.is_repeated:
        return {"type": "array", "items": _value(field)}
    return _value(field)


def _value(field: FieldDescriptor) -> Schema:
    if field.message_type is not None:
        return ref(field.message_type.name)
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    return dict(_NUMBERS.get(field.type, _INTEGER))


def ref(name: str) -> Schema:
    """A reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}
