"""What an embedder is to clients of the Open Inference Protocol: its tensors, its parameters, and their meaning.

Either `audio` (whole files) or `pcm` (samples, with `lengths` where they differ) goes in; one row a clip comes out.
It turns requests into the dataplane's values and those into responses; docs/api.md is its reference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from servox.audio import Pcm
from servox.errors import BadInput, NotFound, TooLarge
from servox.inference import open_inference_pb2 as oip

from .bundle import Bundle
from .dataplane import Embedded, Request
from .tensors import Array, Inputs, Signature, tensor_to_proto

PLATFORM = "onnx_onnxv1"  # the specification's name for an ONNX graph
VERSION_DIGITS = 12  # of the digest; longer prefixes name the same version
MOST_CLIPS = 1024
INPUTS: Mapping[str, Signature] = {
    "audio": Signature(datatype="BYTES", shape=(-1,)),
    "pcm": Signature(datatype="FP32", shape=(-1, -1)),
    "lengths": Signature(datatype="INT64", shape=(-1,)),
}
PARAMETERS = ("layers", "truncate_ms", "rate_hz", "timeout", "binary_data_output")
# What other servers schedule by; an embedder keeps no sequences and has one priority, so these change nothing.
WITHOUT_EFFECT = ("priority", "sequence_id", "sequence_start", "sequence_end")

_ROWS: Mapping[str, Callable[[Embedded], Array]] = {
    "embedding": lambda embedded: embedded.embedding[:, 0],
    "statistics": lambda embedded: embedded.embedding,
    "duration_ms": lambda embedded: np.array(embedded.duration_ms, "<i8"),
    "truncated": lambda embedded: np.array(embedded.truncated),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A bundle under the name that clients ask for.

    Args:
        bundle: what is served.
        name: of the model.
    """

    bundle: Bundle
    name: str

    @property
    def version(self) -> str:
        """The beginning of the bundle's digest."""
        return self.bundle.digest[:VERSION_DIGITS]

    @property
    def outputs(self) -> dict[str, Signature]:
        """Every output, in the order in which they are answered."""
        dims = self.bundle.dims
        return {
            "embedding": Signature(datatype="FP32", shape=(-1, -1, dims)),
            "statistics": Signature(datatype="FP32", shape=(-1, -1, 2, dims)),
            "duration_ms": Signature(datatype="INT64", shape=(-1,)),
            "truncated": Signature(datatype="BOOL", shape=(-1,)),
        }

    def check(self, name: str, version: str) -> None:
        """Whether a request means this model; an empty version means any.

        Raises:
            NotFound: another name or version.
        """
        if name != self.name:
            raise NotFound(f"model {name!r} is not served here: ask for {self.name!r}")
        # A prefix shorter than the version that metadata tell could be that of another bundle.
        if version and not (len(version) >= VERSION_DIGITS and self.bundle.digest.startswith(version)):
            raise NotFound(
                f"model {name!r} has no version {version!r} here: ask for {self.version!r}, or leave the version empty"
            )

    def metadata(self) -> oip.ModelMetadataResponse:
        """Versions, tensors and properties."""
        bundle = self.bundle
        return oip.ModelMetadataResponse(
            name=self.name,
            versions=[self.version],
            platform=PLATFORM,
            inputs=[signature.to_proto(name) for name, signature in INPUTS.items()],
            outputs=[signature.to_proto(name) for name, signature in self.outputs.items()],
            properties={
                "inputs": "either audio, or pcm with lengths where clips differ in length",
                "bundle_digest": bundle.digest,
                "source": bundle.source,
                "context": str(bundle.context),
                "precision": bundle.precision,
                "rate_hz": str(bundle.rate_hz),
                "layers": ",".join(map(str, bundle.layers)),
                "default_layer": str(bundle.default_layer),
                "parameters": ",".join(PARAMETERS),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One ModelInfer request, understood.

    Args:
        clips: at least one.
        outputs: names, in the order of the answer.
        typed: whether outputs travel in `contents` instead of raw.
        timeout_s: longest time to take; None for the call's own deadline.
    """

    clips: tuple[Request, ...]
    outputs: tuple[str, ...]
    typed: bool
    timeout_s: float | None


def ask_from_proto(request: oip.ModelInferRequest, model: Model, *, most_bytes: int) -> Ask:
    """What is asked for.

    Args:
        request: as it came.
        model: what is served.
        most_bytes: largest answer.

    Raises:
        NotFound: another model or version.
        BadInput: tensors, parameters or outputs that this model does not have.
        TooLarge: more clips, or a larger answer, than one call may have.
    """
    model.check(request.model_name, request.model_version)
    given = _Parameters(request)
    outputs = _outputs(request, model)
    layers = _layers(given, model.bundle)
    audio = _audio(Inputs(request, INPUTS), rate_hz=given.integer("rate_hz", default=model.bundle.rate_hz))
    _check_size(len(audio), layers=len(layers) or 1, outputs=outputs, model=model, most_bytes=most_bytes)
    truncate_ms, timeout_us = given.integer("truncate_ms"), given.integer("timeout")
    if timeout_us < 0:
        raise BadInput(f"parameter timeout = {timeout_us} is negative: give microseconds, or 0 for no limit")
    return Ask(
        clips=tuple(Request(audio=each, pooling="mean_std", layers=layers, truncate_ms=truncate_ms) for each in audio),
        outputs=outputs,
        typed=not given.boolean("binary_data_output", default=True),
        timeout_s=timeout_us / 1e6 if timeout_us else None,
    )


def answer_to_proto(
    request: oip.ModelInferRequest, ask: Ask, answers: Sequence[Embedded], model: Model, *, total_s: float
) -> oip.ModelInferResponse:
    """The answer to one request; timings are those of its slowest clip, stage by stage, and of the whole call."""
    response = oip.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    for name in ask.outputs:
        values = np.stack([_ROWS[name](answer) for answer in answers])
        tensor, raw = tensor_to_proto(name, values, typed=ask.typed)
        response.outputs.append(tensor)
        if not ask.typed:
            response.raw_output_contents.append(raw)
    spent = [answer.spent for answer in answers]
    microseconds = {
        "decode_us": max(each.decode_s for each in spent),
        "queue_us": max(each.queue_s for each in spent),
        "inference_us": max(each.inference_s for each in spent),
        "total_us": total_s,
    }
    for key, seconds in microseconds.items():
        response.parameters[key].int64_param = round(seconds * 1e6)
    response.parameters["bundle_digest"].string_param = model.bundle.digest
    response.parameters["context"].string_param = str(model.bundle.context)
    response.parameters["layers"].string_param = ",".join(map(str, answers[0].layers))
    return response


class _Parameters:
    """Parameters of a request by type; unknown ones are refused, because a misspelt one would change nothing."""

    def __init__(self, request: oip.ModelInferRequest) -> None:
        unknown = sorted(set(request.parameters) - set(PARAMETERS) - set(WITHOUT_EFFECT))
        if unknown:
            raise BadInput(f"parameter {unknown[0]!r} is unknown: this server knows {', '.join(PARAMETERS)}")
        self._values = {name: getattr(each, _kind(name, each)) for name, each in request.parameters.items()}

    def integer(self, name: str, *, default: int = 0) -> int:
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadInput(f"parameter {name} = {value!r}: give an integer")
        return value

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise BadInput(f"parameter {name} = {value!r}: give a boolean")
        return value

    def text(self, name: str) -> str:
        value = self._values.get(name, "")
        if isinstance(value, bool | float):
            raise BadInput(f"parameter {name} = {value!r}: give a string")
        return str(value)


def _kind(name: str, parameter: oip.InferParameter) -> str:
    kind: str | None = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise BadInput(f"parameter {name!r} has no value: set one of its fields, or leave it out")
    return kind


def _outputs(request: oip.ModelInferRequest, model: Model) -> tuple[str, ...]:
    names = tuple(each.name for each in request.outputs)
    for place, each in enumerate(request.outputs):
        if each.name not in model.outputs:
            raise BadInput(f"output {each.name!r} is unknown: this model gives {', '.join(model.outputs)}")
        if each.name in names[:place]:
            raise BadInput(f"output {each.name!r} is asked for twice: name each output once")
        if each.parameters:
            raise BadInput(
                f"output {each.name!r} has the parameters {', '.join(sorted(each.parameters))}: this server knows none "
                "of outputs, classification and shared memory included"
            )
    return names or tuple(model.outputs)


def _layers(given: _Parameters, bundle: Bundle) -> tuple[int, ...]:
    text = given.text("layers").strip()
    if text == "all":
        return bundle.layers
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        held = ",".join(map(str, bundle.layers))
        raise BadInput(
            f"parameter layers = {text!r}: give numbers out of {held}, separated by commas, or 'all'"
        ) from None


def _audio(inputs: Inputs, *, rate_hz: int) -> Sequence[bytes | Pcm]:
    if ("audio" in inputs) == ("pcm" in inputs):
        both = "audio and pcm" if "audio" in inputs else "neither audio nor pcm"
        raise BadInput(f"the request has {both}: send whole files as audio, or samples as pcm")
    if "audio" in inputs:
        if "lengths" in inputs:
            raise BadInput("input 'lengths' goes with pcm: leave it out beside audio")
        return inputs.elements("audio")
    pcm = inputs.array("pcm")
    lengths = inputs.array("lengths") if "lengths" in inputs else np.full(len(pcm), pcm.shape[1])
    if len(lengths) != len(pcm):
        raise BadInput(f"input 'lengths' has {len(lengths)} elements for {len(pcm)} clips of pcm: send one for each")
    outside = [int(length) for length in lengths if not 1 <= length <= pcm.shape[1]]
    if outside:
        raise BadInput(f"input 'lengths' holds {outside[0]}: a clip of this pcm has 1 to {pcm.shape[1]} samples")
    return [
        Pcm(data=row[:length].tobytes(), rate_hz=rate_hz, channels=1, encoding="f32le")
        for row, length in zip(pcm, lengths, strict=True)
    ]


def _check_size(clips: int, *, layers: int, outputs: Sequence[str], model: Model, most_bytes: int) -> None:
    if clips > MOST_CLIPS:
        raise TooLarge(f"the request holds {clips} clips: send at most {MOST_CLIPS} in one call")
    vectors = {"embedding": 1, "statistics": 2}
    # Mean and deviation are computed whatever is asked for.
    kept = max(2, sum(vectors.get(name, 0) for name in outputs))
    answer_bytes = clips * layers * model.bundle.dims * 4 * kept
    if answer_bytes > most_bytes:
        raise TooLarge(
            f"the answer would take {answer_bytes} bytes and a message may have {most_bytes}: ask for fewer clips, "
            "layers or outputs"
        )
