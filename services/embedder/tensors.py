"""Tensors of the Open Inference Protocol: messages to numpy and back, with every mismatch named.

Elements come typed, in a tensor's `contents`, or raw, in `raw_input_contents`: never both in one request. Raw elements
are little-endian and row-major; each element of a BYTES tensor is preceded by its length as a uint32. It knows the
protocol and nothing of audio.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from servox.errors import BadInput
from servox.inference import open_inference_pb2 as oip

Array = npt.NDArray[Any]
InputTensor = oip.ModelInferRequest.InferInputTensor

# Datatype: element on the wire, and the field of `contents` that holds it.
_NUMBERS: dict[str, tuple[np.dtype[Any], str]] = {
    "FP32": (np.dtype("<f4"), "fp32_contents"),
    "INT64": (np.dtype("<i8"), "int64_contents"),
    "BOOL": (np.dtype("?"), "bool_contents"),
}
_FIELDS = {"BYTES": "bytes_contents", **{datatype: field for datatype, (_, field) in _NUMBERS.items()}}
LENGTH_BYTES = 4  # before each element of a raw BYTES tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Datatype and shape of a tensor; -1 stands for any size."""

    datatype: str
    shape: tuple[int, ...]

    def to_proto(self, name: str) -> oip.ModelMetadataResponse.TensorMetadata:
        """As metadata tell it."""
        return oip.ModelMetadataResponse.TensorMetadata(name=name, datatype=self.datatype, shape=self.shape)


class Inputs:
    """The input tensors of one request, checked against what the model takes; elements are read when asked for.

    Args:
        request: as it came.
        known: the model's inputs by name.

    Raises:
        BadInput: an unknown or repeated name, another datatype or rank, contents both typed and raw, or not one raw
            content for each input.
    """

    def __init__(self, request: oip.ModelInferRequest, known: Mapping[str, Signature]) -> None:
        raw = list(request.raw_input_contents)
        if raw and len(raw) != len(request.inputs):
            raise BadInput(
                f"raw_input_contents holds {len(raw)} entries for {len(request.inputs)} inputs: send one for each, in "
                "their order; typed contents and shared memory cannot be mixed with them"
            )
        self._tensors: dict[str, InputTensor] = {}
        self._raw: dict[str, bytes | None] = {}
        contents: list[bytes | None] = [*raw] or [None] * len(request.inputs)
        for tensor, data in zip(request.inputs, contents, strict=True):
            if tensor.name in self._tensors:
                raise BadInput(f"input {tensor.name!r} comes twice: name each input once")
            _check(tensor, known)
            if data is not None and _filled(tensor):
                raise BadInput(f"input {tensor.name!r} has typed contents beside raw_input_contents: send one of them")
            self._tensors[tensor.name] = tensor
            self._raw[tensor.name] = data

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def array(self, name: str) -> Array:
        """Numbers, shaped; a view of the message's bytes where they came raw.

        Raises:
            BadInput: contents that do not fit the shape.
        """
        tensor, data = self._tensors[name], self._raw[name]
        dtype, field = _NUMBERS[tensor.datatype]
        shape = tuple(tensor.shape)
        count = math.prod(shape)
        if data is None:
            values: Array = np.array(getattr(tensor.contents, field), dtype=dtype)
            if len(values) != count:
                raise BadInput(_misfit(tensor, f"{count} elements", f"{len(values)} in contents.{field}"))
        else:
            if len(data) != count * dtype.itemsize:
                raise BadInput(_misfit(tensor, f"{count * dtype.itemsize} bytes", f"{len(data)} raw bytes"))
            values = np.frombuffer(data, dtype=dtype)
        return values.reshape(shape)

    def elements(self, name: str) -> list[bytes]:
        """Elements of a BYTES tensor, in order.

        Raises:
            BadInput: contents that do not fit the shape.
        """
        tensor, data = self._tensors[name], self._raw[name]
        count = math.prod(tensor.shape)
        found = tensor.contents.bytes_contents if data is None else _split(name, data, most=count)
        if len(found) != count:
            raise BadInput(_misfit(tensor, f"{count} elements", f"{len(found)}"))
        return list(found)


def tensor_to_proto(name: str, values: Array, *, typed: bool) -> tuple[oip.ModelInferResponse.InferOutputTensor, bytes]:
    """An output tensor, and its raw content (empty where `typed`)."""
    datatype = next(key for key, (dtype, _) in _NUMBERS.items() if dtype == values.dtype)
    tensor = oip.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=values.shape)
    if typed:
        getattr(tensor.contents, _FIELDS[datatype]).extend(values.ravel().tolist())
        return tensor, b""
    return tensor, np.ascontiguousarray(values).tobytes()


def _check(tensor: InputTensor, known: Mapping[str, Signature]) -> None:
    name, shape = tensor.name, list(tensor.shape)
    signature = known.get(name)
    if signature is None:
        raise BadInput(f"input {name!r} is unknown: this model takes {', '.join(known)}")
    if tensor.parameters:
        raise BadInput(
            f"input {name!r} has the parameters {', '.join(sorted(tensor.parameters))}: this server knows none of "
            "inputs, shared memory included; send the tensor itself"
        )
    if tensor.datatype != signature.datatype:
        raise BadInput(f"input {name!r} has datatype {tensor.datatype!r}: send {signature.datatype}")
    if len(shape) != len(signature.shape) or any(size < 1 for size in shape):
        raise BadInput(f"input {name!r} has shape {shape}: send {list(signature.shape)}, -1 being any size from 1")
    wrong = [field.name for field, _ in tensor.contents.ListFields() if field.name != _FIELDS[tensor.datatype]]
    if wrong:
        right = _FIELDS[tensor.datatype]
        raise BadInput(f"input {name!r} of {tensor.datatype} has contents.{wrong[0]}: send contents.{right}")


def _filled(tensor: InputTensor) -> bool:
    return bool(tensor.contents.ListFields())


def _split(name: str, data: bytes, *, most: int) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + LENGTH_BYTES + int.from_bytes(data[at : at + LENGTH_BYTES], "little")
        if at + LENGTH_BYTES > len(data) or end > len(data):
            raise BadInput(
                f"input {name!r}: element {len(found)} ends after the raw content's {len(data)} bytes: precede each "
                "element by its length as a little-endian uint32"
            )
        if len(found) == most:
            raise BadInput(f"input {name!r}: its raw content holds more than the {most} elements of its shape")
        found.append(data[at + LENGTH_BYTES : end])
        at = end
    return found


def _misfit(tensor: InputTensor, needed: str, came: str) -> str:
    return f"input {tensor.name!r}: shape {list(tensor.shape)} of {tensor.datatype} needs {needed}, but {came} came"
