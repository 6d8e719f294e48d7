"""Open Inference Protocol against the running server, with plain stubs: what its clients see, good and bad."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.embedder.runtimes import Lengths, Pcm, Result, Runtime, lanes
from services.embedder.server import EmbedderServer
from services.embedder.settings import Settings
from servox import __version__
from servox.inference import open_inference_pb2 as oip
from servox.inference import open_inference_pb2_grpc
from servox.rpc import PUSHBACK_KEY
from servox.telemetry import Metrics
from servox.tracing import ERROR_KEY
from servox.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc
from servox.wire import array_from_proto

RATE, DIMS = 16_000, 4
SERVICE = "inference.GRPCInferenceService"
InputTensor = oip.ModelInferRequest.InferInputTensor
Output = oip.ModelInferRequest.InferRequestedOutputTensor


class GatedRuntime:
    """The real runtime behind a gate that a test opens and shuts."""

    def __init__(self, inner: Runtime, gate: threading.Event) -> None:
        self._inner, self._gate = inner, gate
        self.name, self.device = inner.name, inner.device

    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
        self._gate.wait(60)
        return self._inner.run(pcm, lengths, frames=frames)

    def close(self) -> None:
        self._inner.close()


class Bench:
    """A server, a stub without retries, and the gate before its device."""

    def __init__(self, bundle: Path, folder: Path, **flags: object) -> None:
        self.gate, self.metrics = threading.Event(), Metrics()
        given: dict[str, object] = {"bundle": bundle, "grpc_socket": folder / "e.sock", "metrics_port": 0, "streams": 1}
        given["decode_workers"] = 1
        self.server = EmbedderServer(
            Settings.load({**given, **flags}),
            self.metrics,
            opened=lambda *a, **k: [GatedRuntime(lane, self.gate) for lane in lanes(*a, **k)],
        )
        self.channel = grpc.aio.insecure_channel(f"unix:{folder / 'e.sock'}", options=[("grpc.enable_retries", 0)])
        self.stub: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.own: Any = embedder_pb2_grpc.EmbedderStub(self.channel)  # type: ignore[no-untyped-call]

    async def infer(self, *inputs: InputTensor, raw: Iterable[bytes] = (), **more: Any) -> oip.ModelInferResponse:  # noqa: ANN401
        fields = {"model_name": "tiny", **more}
        answer: oip.ModelInferResponse = await self.stub.ModelInfer(
            oip.ModelInferRequest(inputs=inputs, raw_input_contents=raw, **fields)
        )
        return answer

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(f"servox_embedder_{name}", labels)
        assert found is not None, name
        return found

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not met():  # noqa: ASYNC110 -- a gauge has no event
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(bundle: Path, folder: Path, **flags: object) -> AsyncIterator[Bench]:
    bench = Bench(bundle, folder, **flags)
    bench.gate.set()
    await bench.server.start()
    try:
        yield bench
    finally:
        bench.gate.set()
        await bench.channel.close()
        await bench.server.stop()


def tensor(name: str, datatype: str, *shape: int, **contents: object) -> InputTensor:
    typed: Any = oip.InferTensorContents(**contents) if contents else None  # type: ignore[arg-type]
    return InputTensor(name=name, datatype=datatype, shape=shape, contents=typed)


def raw_bytes(*elements: bytes) -> bytes:
    return b"".join(len(each).to_bytes(4, "little") + each for each in elements)


def outputs_of(answer: oip.ModelInferResponse) -> dict[str, np.ndarray]:
    """Outputs by name, typed or raw."""
    found = {}
    for place, each in enumerate(answer.outputs):
        dtype = {"FP32": "<f4", "INT64": "<i8", "BOOL": "?"}[each.datatype]
        field = {"FP32": "fp32_contents", "INT64": "int64_contents", "BOOL": "bool_contents"}[each.datatype]
        if answer.raw_output_contents:
            assert not each.HasField("contents"), "raw and typed at once"
            values = np.frombuffer(answer.raw_output_contents[place], dtype)
        else:
            values = np.array(getattr(each.contents, field), dtype)
        found[each.name] = values.reshape(tuple(each.shape))
    return found


async def refused(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def a_pcm(samples: np.ndarray) -> tuple[InputTensor, bytes]:
    return tensor("pcm", "FP32", 1, len(samples)), samples.astype("<f4").tobytes()


# ---- what is there -------------------------------------------------------------------------------------------


async def test_liveness_and_readiness_are_those_of_health(tiny_bundle: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_bundle, tmp_path)
    starting = asyncio.create_task(bench.server.start())
    live = await bench.stub.ServerLive(oip.ServerLiveRequest(), wait_for_ready=True, timeout=50)
    before = await bench.stub.ServerReady(oip.ServerReadyRequest())
    before_model = await bench.stub.ModelReady(oip.ModelReadyRequest(name="tiny"))
    bench.gate.set()
    await starting
    after = await bench.stub.ServerReady(oip.ServerReadyRequest())
    after_model = await bench.stub.ModelReady(oip.ModelReadyRequest(name="tiny"))
    other = await bench.stub.ModelReady(oip.ModelReadyRequest(name="whisper"))
    health: Any = health_pb2_grpc.HealthStub(bench.channel)
    checked = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    await bench.channel.close()
    await bench.server.stop()
    assert live.live
    assert (before.ready, before_model.ready) == (False, False), "the device is not warm yet"
    assert (after.ready, after_model.ready, other.ready) == (True, True, False)
    assert checked.status == health_pb2.HealthCheckResponse.SERVING


async def test_metadata_say_what_goes_in_and_what_comes_out(tiny_bundle: Path, tmp_path: Path) -> None:
    async with serving(tiny_bundle, tmp_path) as bench:
        server = await bench.stub.ServerMetadata(oip.ServerMetadataRequest())
        model = await bench.stub.ModelMetadata(oip.ModelMetadataRequest(name="tiny"))
        digest = (await bench.own.Describe(embedder_pb2.DescribeRequest())).bundle.digest
        same = [
            await bench.stub.ModelMetadata(oip.ModelMetadataRequest(name="tiny", version=version))
            for version in ("", digest[:12], digest[:20], digest)
        ]
        unknown = await refused(bench.stub.ModelMetadata(oip.ModelMetadataRequest(name="whisper")))
    assert (server.name, server.version) == ("servox", __version__)
    assert {each.name: (each.datatype, list(each.shape)) for each in model.inputs} == {
        "audio": ("BYTES", [-1]),
        "pcm": ("FP32", [-1, -1]),
        "lengths": ("INT64", [-1]),
    }
    assert {each.name: (each.datatype, list(each.shape)) for each in model.outputs} == {
        "embedding": ("FP32", [-1, -1, DIMS]),
        "statistics": ("FP32", [-1, -1, 2, DIMS]),
        "duration_ms": ("INT64", [-1]),
        "truncated": ("BOOL", [-1]),
    }
    assert list(model.versions) == [digest[:12]]
    assert model.properties["bundle_digest"] == digest
    assert all(each == model for each in same)
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    assert "'tiny'" in str(unknown.details()), "it says what is served"


async def test_a_setting_names_the_model_and_reflection_lists_the_service(tiny_bundle: Path, tmp_path: Path) -> None:
    async with serving(tiny_bundle, tmp_path, model_name="speech") as bench:
        assert (await bench.stub.ModelReady(oip.ModelReadyRequest(name="speech"))).ready
        assert not (await bench.stub.ModelReady(oip.ModelReadyRequest(name="tiny"))).ready
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(bench.channel)
        asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)]
        async for answer in stub.ServerReflectionInfo(iter(asked)):
            assert answer.file_descriptor_response.file_descriptor_proto


# ---- what is answered ----------------------------------------------------------------------------------------


async def test_a_batch_of_samples_is_answered_row_by_row_as_the_encoder_gives_it(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray], reference: Callable[..., np.ndarray]
) -> None:
    clips = [speech(1.0, seed=1), speech(0.4567, seed=2)]
    pcm = np.full((2, RATE), 0.7, "<f4")  # what is beyond a clip's length must not be heard
    for row, clip in zip(pcm, clips, strict=True):
        row[: len(clip)] = clip
    lengths = np.array([len(clip) for clip in clips], "<i8")
    async with serving(tiny_bundle, tmp_path) as bench:
        answer = await bench.infer(
            tensor("pcm", "FP32", 2, RATE),
            tensor("lengths", "INT64", 2),
            raw=[pcm.tobytes(), lengths.tobytes()],
            id="call-7",
            parameters={"layers": oip.InferParameter(string_param="all")},
        )
        digest = (await bench.own.Describe(embedder_pb2.DescribeRequest())).bundle.digest
    found = outputs_of(answer)
    assert list(found) == ["embedding", "statistics", "duration_ms", "truncated"]
    expected = np.stack([reference(clip) for clip in clips])
    np.testing.assert_allclose(found["statistics"], expected, atol=1e-4)
    np.testing.assert_array_equal(found["embedding"], found["statistics"][:, :, 0])
    assert found["duration_ms"].tolist() == [1000, 457]
    assert found["truncated"].tolist() == [False, False]
    assert (answer.id, answer.model_name, answer.model_version) == ("call-7", "tiny", digest[:12])
    told = answer.parameters
    assert told["layers"].string_param == "0,1"
    assert told["bundle_digest"].string_param == digest
    assert told["total_us"].int64_param >= told["inference_us"].int64_param > 0
    assert {"decode_us", "queue_us", "context"} <= set(told)


async def test_typed_and_raw_contents_give_the_same_and_the_same_as_embed(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    files = [encoded(speech(0.5, seed=3)), encoded(speech(0.7, seed=4), kind="FLAC", subtype="PCM_16")]
    samples = speech(0.5, seed=3)
    typed_out = {"binary_data_output": oip.InferParameter(bool_param=False)}
    async with serving(tiny_bundle, tmp_path) as bench:
        answers = [
            await bench.infer(tensor("audio", "BYTES", 2, bytes_contents=files)),
            await bench.infer(tensor("audio", "BYTES", 2, bytes_contents=files), parameters=typed_out),
            await bench.infer(tensor("audio", "BYTES", 2), raw=[raw_bytes(*files)]),
            await bench.infer(tensor("audio", "BYTES", 2), raw=[raw_bytes(*files)], parameters=typed_out),
        ]
        shape = (1, len(samples))
        contents = {"fp32_contents": samples.tolist()}
        typed = await bench.infer(
            tensor("pcm", "FP32", *shape, **contents), tensor("lengths", "INT64", 1, int64_contents=[len(samples)])
        )
        raw = await bench.infer(tensor("pcm", "FP32", *shape), raw=[samples.tobytes()])
        own = [
            await bench.own.Embed(
                embedder_pb2.EmbedRequest(audio=common_pb2.Audio(container=each), pooling=embedder_pb2.POOLING_MEAN_STD)
            )
            for each in files
        ]
    assert [bool(each.raw_output_contents) for each in answers] == [True, False, True, False]
    first, *others = [outputs_of(each) for each in answers]
    for other in others:
        for name, values in first.items():
            np.testing.assert_array_equal(other[name], values, err_msg=name)
    np.testing.assert_array_equal(first["statistics"], [array_from_proto(each.embedding) for each in own])
    for name, values in outputs_of(typed).items():
        np.testing.assert_array_equal(outputs_of(raw)[name], values, err_msg=name)
    np.testing.assert_allclose(outputs_of(raw)["embedding"], first["embedding"][:1], atol=1e-6)


async def test_a_request_chooses_outputs_layers_rate_and_length(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray], reference: Callable[..., np.ndarray]
) -> None:
    samples = speech(1.0)
    pcm, raw = a_pcm(samples)
    fast, fast_raw = a_pcm(speech(1.0, rate_hz=48_000))
    parameter = oip.InferParameter
    async with serving(tiny_bundle, tmp_path) as bench:
        chosen = await bench.infer(pcm, raw=[raw], outputs=[Output(name="duration_ms"), Output(name="embedding")])
        turned = await bench.infer(pcm, raw=[raw], parameters={"layers": parameter(string_param="1, 0")})
        one = await bench.infer(pcm, raw=[raw], parameters={"layers": parameter(int64_param=0)})
        cut = await bench.infer(pcm, raw=[raw], parameters={"truncate_ms": parameter(uint64_param=250)})
        resampled = await bench.infer(fast, raw=[fast_raw], parameters={"rate_hz": parameter(int64_param=48_000)})
        hinted = await bench.infer(
            pcm, raw=[raw], parameters={"priority": parameter(uint64_param=3), "timeout": parameter(int64_param=10**7)}
        )
    expected = reference(samples)[:, 0]
    assert [each.name for each in chosen.outputs] == ["duration_ms", "embedding"]
    assert len(chosen.raw_output_contents) == 2
    assert outputs_of(chosen)["embedding"].shape == (1, 1, DIMS), "the default layer"
    np.testing.assert_allclose(outputs_of(turned)["embedding"][0], expected[::-1], atol=1e-4)
    np.testing.assert_allclose(outputs_of(one)["embedding"][0], expected[:1], atol=1e-4)
    assert outputs_of(cut)["duration_ms"].tolist() == [250]
    assert outputs_of(cut)["truncated"].tolist() == [True]
    assert outputs_of(resampled)["duration_ms"].tolist() == [1000]
    np.testing.assert_allclose(outputs_of(resampled)["embedding"][0], expected[1:], atol=0.05)
    np.testing.assert_allclose(outputs_of(hinted)["embedding"][0], expected[1:], atol=1e-4)


# ---- what is refused -----------------------------------------------------------------------------------------


def _request(*inputs: InputTensor, **fields: Any) -> oip.ModelInferRequest:  # noqa: ANN401 -- fields of the message
    return oip.ModelInferRequest(**{"model_name": "tiny", "inputs": inputs, **fields})


def _parameter(name: str, **value: Any) -> oip.ModelInferRequest:  # noqa: ANN401 -- fields of the message
    parameters = {name: oip.InferParameter(**value)}
    return _request(tensor("pcm", "FP32", 1, 800), raw_input_contents=[bytes(3200)], parameters=parameters)


SHARED = InputTensor(name="pcm", datatype="FP32", shape=[1, 800])
SHARED.parameters["shared_memory_region"].string_param = "region"
CLASSIFIED = Output(name="embedding")
CLASSIFIED.parameters["classification"].int64_param = 1
PCM = tensor("pcm", "FP32", 1, 800)
TWO = tensor("pcm", "FP32", 1, 2, fp32_contents=[0.0, 0.0])
WRONG: dict[str, tuple[oip.ModelInferRequest, list[str]]] = {
    "no input": (_request(), ["neither audio nor pcm"]),
    "both inputs": (
        _request(PCM, tensor("audio", "BYTES", 1), raw_input_contents=[bytes(3200), raw_bytes(b"x")]),
        ["has audio and pcm"],
    ),
    "unknown input": (_request(tensor("wave", "FP32", 1, 8)), ["'wave'", "audio, pcm, lengths"]),
    "input twice": (_request(PCM, PCM, raw_input_contents=[bytes(3200)] * 2), ["'pcm'", "twice"]),
    "datatype": (_request(tensor("pcm", "FP64", 1, 8)), ["'pcm'", "'FP64'", "FP32"]),
    "rank": (_request(tensor("pcm", "FP32", 800)), ["'pcm'", "[800]", "[-1, -1]"]),
    "no samples": (_request(tensor("pcm", "FP32", 2**62, 0), raw_input_contents=[b""]), ["'pcm'", "from 1"]),
    "negative size": (_request(tensor("pcm", "FP32", -1, 800)), ["'pcm'", "[-1, 800]"]),
    "raw too short": (_request(PCM, raw_input_contents=[bytes(3196)]), ["'pcm'", "3200 bytes", "3196"]),
    "raw too long": (_request(PCM, raw_input_contents=[bytes(3204)]), ["'pcm'", "3200 bytes", "3204"]),
    "typed too few": (_request(tensor("pcm", "FP32", 1, 8, fp32_contents=[0.0] * 7)), ["'pcm'", "8 elements", "7"]),
    "no contents": (_request(PCM), ["'pcm'", "800 elements", "0 in contents.fp32_contents"]),
    "wrong field": (
        _request(tensor("pcm", "FP32", 1, 2, fp64_contents=[0.0, 0.0])),
        ["'pcm'", "contents.fp64_contents", "contents.fp32_contents"],
    ),
    "typed and raw": (
        _request(tensor("pcm", "FP32", 1, 2, fp32_contents=[0.0, 0.0]), raw_input_contents=[bytes(8)]),
        ["'pcm'", "typed contents beside raw_input_contents"],
    ),
    "raw for some": (
        _request(PCM, tensor("lengths", "INT64", 1, int64_contents=[800]), raw_input_contents=[bytes(3200)]),
        ["1 entries for 2 inputs"],
    ),
    "raw for nothing": (_request(raw_input_contents=[b"1234"]), ["1 entries for 0 inputs"]),
    "bytes cut": (
        _request(tensor("audio", "BYTES", 1), raw_input_contents=[raw_bytes(b"abcdef")[:-1]]),
        ["'audio'", "element 0"],
    ),
    "bytes without length": (
        _request(tensor("audio", "BYTES", 1), raw_input_contents=[b"RIFF"]),
        ["'audio'", "uint32"],
    ),
    "bytes too many": (
        _request(tensor("audio", "BYTES", 1), raw_input_contents=[raw_bytes(b"a", b"b")]),
        ["'audio'", "more than the 1"],
    ),
    "bytes too few": (
        _request(tensor("audio", "BYTES", 3), raw_input_contents=[raw_bytes(b"a", b"b")]),
        ["'audio'", "3 elements", "2"],
    ),
    "no clip": (_request(tensor("audio", "BYTES", 0), raw_input_contents=[b""]), ["'audio'", "[0]", "from 1"]),
    "too many clips": (
        _request(tensor("audio", "BYTES", 1025), raw_input_contents=[bytes(4 * 1025)]),
        ["1025 clips", "1024"],
    ),
    "lengths of others": (
        _request(PCM, tensor("lengths", "INT64", 2), raw_input_contents=[bytes(3200), bytes(16)]),
        ["'lengths'", "2 elements for 1 clips"],
    ),
    "length too long": (
        _request(TWO, tensor("lengths", "INT64", 1, int64_contents=[3])),
        ["'lengths'", "holds 3", "1 to 2"],
    ),
    "length negative": (
        _request(TWO, tensor("lengths", "INT64", 1, int64_contents=[-1])),
        ["'lengths'", "holds -1"],
    ),
    "lengths of files": (
        _request(tensor("audio", "BYTES", 1, bytes_contents=[b"x"]), tensor("lengths", "INT64", 1, int64_contents=[1])),
        ["'lengths'", "leave it out"],
    ),
    "shared memory": (_request(SHARED), ["'pcm'", "shared_memory_region"]),
    "unknown output": (_request(PCM, outputs=[Output(name="logits")]), ["'logits'", "embedding"]),
    "output twice": (_request(PCM, outputs=[Output(name="embedding")] * 2), ["'embedding'", "twice"]),
    "classification": (_request(PCM, outputs=[CLASSIFIED]), ["'embedding'", "classification"]),
    "unknown parameter": (_parameter("truncate", int64_param=1), ["'truncate'", "truncate_ms"]),
    "parameter without value": (_parameter("layers"), ["'layers'", "no value"]),
    "parameter of another type": (_parameter("truncate_ms", string_param="9"), ["truncate_ms = '9'", "integer"]),
    "boolean as integer": (_parameter("truncate_ms", bool_param=True), ["truncate_ms = True", "integer"]),
    "integer as boolean": (_parameter("binary_data_output", int64_param=0), ["binary_data_output = 0", "boolean"]),
    "negative cut": (_parameter("truncate_ms", int64_param=-5), ["truncate_ms = -5"]),
    "negative timeout": (_parameter("timeout", int64_param=-5), ["timeout = -5"]),
    "layer that is not there": (_parameter("layers", string_param="0,9"), ["layer 9"]),
    "layers in words": (_parameter("layers", string_param="last"), ["'last'", "0,1"]),
    "a layer a million times": (
        _parameter("layers", string_param="0," * 1_000_000 + "0"),
        ["1000001 layers"],
    ),
    "rate": (_parameter("rate_hz", int64_param=10), ["10"]),
    "silence": (_request(PCM, raw_input_contents=[bytes(3200)]), ["silent"]),
    "not audio": (_request(tensor("audio", "BYTES", 1, bytes_contents=[b"no audio"])), ["not audio"]),
}


NOT_THERE = (
    ({"model_name": "whisper"}, "model 'whisper' is not served here: ask for 'tiny'"),
    ({"model_name": ""}, "model '' is not served here"),
    ({"model_version": "1"}, "no version '1'"),
    ({"model_version": "0" * 64}, f"no version '{'0' * 64}'"),
)


async def test_wrong_tensors_parameters_and_models_are_refused_by_name(tiny_bundle: Path, tmp_path: Path) -> None:
    async with serving(tiny_bundle, tmp_path) as bench:
        for name, (request, says) in WRONG.items():
            error = await refused(bench.stub.ModelInfer(request))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (name, error.details())
            assert dict(error.trailing_metadata() or ()).get(ERROR_KEY), f"{name}: an error of ours, with its class"
            assert all(each in str(error.details()) for each in says), (name, error.details())
        for fields, text in NOT_THERE:
            error = await refused(bench.stub.ModelInfer(_request(PCM, **fields)))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert text in str(error.details())
            asked = {"name": fields.get("model_name", "tiny"), "version": fields.get("model_version", "")}
            assert not (await bench.stub.ModelReady(oip.ModelReadyRequest(**asked))).ready
        assert bench.value("inflight_audio_seconds") == 0
        counted = [bench.value("requests_total", method="ModelInfer", outcome=each) for each in ("internal", "ok")]
    assert counted == [0, 0]


async def test_one_bad_clip_fails_the_call_by_its_number_and_frees_the_others(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    files = [encoded(speech(0.5)), b"no audio", encoded(speech(0.5))]
    async with serving(tiny_bundle, tmp_path) as bench:
        bench.gate.clear()
        error = await refused(bench.infer(tensor("audio", "BYTES", 3, bytes_contents=files)))
        await bench.until(lambda: bench.value("inflight_audio_seconds") == 0)
        assert bench.value("requests_total", method="ModelInfer", outcome="BadAudio") == 1
        assert bench.value("requests_total", method="ModelInfer", outcome="cancelled") == 2
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error.details()).startswith("clip 1: ")
    assert dict(error.trailing_metadata() or ())[ERROR_KEY] == "BadAudio"


# ---- under load ----------------------------------------------------------------------------------------------


async def test_a_full_server_pushes_back_and_a_call_larger_than_the_budget_waits_its_turn(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray]
) -> None:
    pcm, raw = a_pcm(speech(4))
    async with serving(tiny_bundle, tmp_path, max_inflight_audio_s=5, max_duration_ms=5000) as bench:
        bench.gate.clear()
        holding = asyncio.create_task(bench.infer(pcm, raw=[raw]))
        await bench.until(lambda: bench.value("inflight_audio_seconds") > 3)
        error = await refused(bench.infer(pcm, raw=[raw]))
        bench.gate.set()
        await holding
        many = np.tile(speech(4), (8, 1)).astype("<f4")
        answer = await bench.infer(tensor("pcm", "FP32", *many.shape), raw=[many.tobytes()])
        assert bench.value("inflight_audio_seconds") == 0
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata() or ())[PUSHBACK_KEY]) > 0
    assert outputs_of(answer)["duration_ms"].tolist() == [4000] * 8


@pytest.mark.parametrize("how", ["deadline", "parameter", "cancel"])
async def test_a_call_whose_time_is_over_frees_what_it_held(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray], how: str
) -> None:
    many = np.tile(speech(1), (6, 1)).astype("<f4")
    parameters = {"timeout": oip.InferParameter(int64_param=100_000)} if how == "parameter" else {}
    request = _request(tensor("pcm", "FP32", *many.shape), raw_input_contents=[many.tobytes()], parameters=parameters)
    limits = {"max_inflight_audio_s": 3, "max_duration_ms": 3000, "batch_budget_s": 3}
    async with serving(tiny_bundle, tmp_path, **limits) as bench:
        bench.gate.clear()
        call = bench.stub.ModelInfer(request, timeout=0.1 if how == "deadline" else 30)
        if how == "cancel":
            await bench.until(lambda: bench.value("inflight_audio_seconds") >= 2)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        else:
            assert (await refused(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await bench.until(lambda: bench.value("inflight_audio_seconds") == 0)
        bench.gate.set()
        again = await bench.infer(tensor("pcm", "FP32", *many.shape), raw=[many.tobytes()])
    assert outputs_of(again)["embedding"].shape == (6, 1, DIMS)
