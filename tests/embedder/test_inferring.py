"""Requests of the Open Inference Protocol, whatever they hold: understood, or refused as bad input; never a crash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from services.embedder.bundle import load
from services.embedder.inferring import INPUTS, Ask, Model, ask_from_proto
from services.embedder.tensors import Inputs
from servox.audio import Pcm
from servox.errors import BadInput, NotFound
from servox.inference import open_inference_pb2 as oip

Request = oip.ModelInferRequest
Tensor = Request.InferInputTensor
MOST = 1 << 20


def _audio(count: int, *, typed: list[bytes] | None = None, raw: bytes | None = None) -> Request:
    contents = None if typed is None else oip.InferTensorContents(bytes_contents=typed)
    tensor = Tensor(name="audio", datatype="BYTES", shape=[count], contents=contents)
    return Request(inputs=[tensor], raw_input_contents=[] if raw is None else [raw])


def _raw(elements: list[bytes]) -> bytes:
    return b"".join(len(each).to_bytes(4, "little") + each for each in elements)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=6))
def test_elements_of_bytes_are_the_same_raw_and_typed(elements: list[bytes]) -> None:
    requests = [_audio(len(elements), raw=_raw(elements)), _audio(len(elements), typed=elements)]
    for request in requests:
        assert Inputs(request, INPUTS).elements("audio") == elements


@given(st.binary(max_size=40), st.integers(0, 4))
def test_raw_bytes_are_taken_apart_without_loss_or_refused(data: bytes, count: int) -> None:
    try:
        elements = Inputs(_audio(count, raw=data), INPUTS).elements("audio")
    except BadInput:
        return
    assert len(elements) == count
    assert _raw(elements) == data


_floats = st.floats(width=32, allow_nan=False)
_tensors = st.builds(
    Tensor,
    name=st.sampled_from(["audio", "pcm", "lengths", "wave", ""]),
    datatype=st.sampled_from(["BYTES", "FP32", "INT64", "FP64", ""]),
    shape=st.lists(st.integers(-2, 5) | st.sampled_from([2**31, 2**62]), max_size=3),
    contents=st.none()
    | st.builds(
        oip.InferTensorContents,
        bytes_contents=st.lists(st.binary(max_size=4), max_size=4),
        fp32_contents=st.lists(_floats, max_size=6),
        int64_contents=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    ),
)
_parameters = st.dictionaries(
    st.sampled_from(["layers", "truncate_ms", "rate_hz", "timeout", "binary_data_output", "priority", "x"]),
    st.builds(oip.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1))
    | st.builds(oip.InferParameter, string_param=st.text(max_size=5))
    | st.builds(oip.InferParameter, double_param=st.floats())
    | st.builds(oip.InferParameter, bool_param=st.booleans())
    | st.builds(oip.InferParameter),
    max_size=2,
)
_requests = st.builds(
    Request,
    model_name=st.just("tiny") | st.text(max_size=3),
    model_version=st.just("") | st.text(max_size=3),
    parameters=_parameters,
    inputs=st.lists(_tensors, max_size=3),
    outputs=st.lists(
        st.builds(Request.InferRequestedOutputTensor, name=st.sampled_from(["embedding", "statistics", "x"])),
        max_size=2,
    ),
    raw_input_contents=st.lists(st.binary(max_size=24), max_size=3),
)


@pytest.fixture(scope="module")
def understood(tiny_bundle: Path) -> Callable[[Request], Ask | None]:
    model = Model(bundle=load(tiny_bundle), name="tiny")

    def understand(request: Request) -> Ask | None:
        try:
            return ask_from_proto(request, model, most_bytes=MOST)
        except (BadInput, NotFound):
            return None

    return understand


@given(request=_requests)
def test_any_request_is_understood_or_refused(understood: Callable[[Request], Any], request: Request) -> None:
    ask = understood(request)
    if ask is not None:
        assert 1 <= len(ask.clips) <= 1024
        assert all(isinstance(clip.audio, bytes | Pcm) for clip in ask.clips)


@given(where=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_damaged_message_is_understood_or_refused(
    understood: Callable[[Request], Any], where: int, value: int
) -> None:
    pcm = Tensor(name="pcm", datatype="FP32", shape=[2, 3])
    lengths = Tensor(name="lengths", datatype="INT64", shape=[2])
    raw = [np.ones((2, 3), "<f4").tobytes(), np.array([3, 2], "<i8").tobytes()]
    request = Request(model_name="tiny", id="x", inputs=[pcm, lengths], raw_input_contents=raw)
    request.parameters["layers"].string_param = "all"
    assert understood(request) is not None
    message = bytearray(request.SerializeToString())
    message[where % len(message)] = value
    try:
        damaged = Request.FromString(bytes(message))
    except DecodeError:
        return  # gRPC refuses it before us
    understood(damaged)
