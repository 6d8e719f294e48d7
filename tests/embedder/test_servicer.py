import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.embedder.runtimes import Lengths, Pcm, Result, Runtime, lanes
from services.embedder.server import EmbedderServer
from services.embedder.settings import Settings
from servox.client import pcm
from servox.telemetry import Metrics
from servox.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc
from servox.wire import array_from_proto

RATE = 16_000
Request = tuple[str, embedder_pb2.EmbedRequest]


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
    """A running server, a stub without retries, and the gate before its device."""

    def __init__(self, server: EmbedderServer, metrics: Metrics, gate: threading.Event, address: str) -> None:
        self.server, self.metrics, self.gate, self.address = server, metrics, gate, address
        self.channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)])
        self.stub: Any = embedder_pb2_grpc.EmbedderStub(self.channel)  # type: ignore[no-untyped-call]

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(f"servox_embedder_{name}", labels)
        assert found is not None, name
        return found

    async def health(self) -> int:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="servox.v1.Embedder"))
        return int(answer.status)

    async def stream(self, requests: Iterable[Request]) -> dict[str, embedder_pb2.EmbedStreamResponse]:
        messages = [embedder_pb2.EmbedStreamRequest(id=name, request=request) for name, request in requests]
        return {answer.id: answer async for answer in self.stub.EmbedStream(iter(messages))}

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not met():  # noqa: ASYNC110 -- a gauge has no event
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(bundle: Path, folder: Path, **flags: object) -> AsyncIterator[Bench]:
    gate, metrics = threading.Event(), Metrics()
    gate.set()
    given: dict[str, object] = {
        "bundle": bundle,
        "grpc_socket": folder / "e.sock",
        "metrics_port": 0,
        "streams": 1,
        "decode_workers": 1,
    }
    settings = Settings.load({**given, **flags})
    server = EmbedderServer(
        settings, metrics, opened=lambda *a, **k: [GatedRuntime(lane, gate) for lane in lanes(*a, **k)]
    )
    bench = Bench(server, metrics, gate, await server.start())
    try:
        yield bench
    finally:
        gate.set()
        await bench.channel.close()
        await server.stop()


def _container(data: bytes, **more: Any) -> embedder_pb2.EmbedRequest:  # noqa: ANN401 -- fields of the message
    return embedder_pb2.EmbedRequest(audio=common_pb2.Audio(container=data), **more)


def _samples(samples: np.ndarray, **more: Any) -> embedder_pb2.EmbedRequest:  # noqa: ANN401 -- fields of the message
    return embedder_pb2.EmbedRequest(audio=pcm(samples, RATE), **more)


async def _refused(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


# ---- what is answered ----------------------------------------------------------------------------------------


async def test_describe_says_what_runs_and_what_is_accepted(tiny_bundle: Path, tmp_path: Path) -> None:
    async with serving(tiny_bundle, tmp_path, max_duration_ms=10_000) as bench:
        answer = await bench.stub.Describe(embedder_pb2.DescribeRequest())
    assert len(answer.bundle.digest) == 64
    assert (answer.rate_hz, answer.frames_per_s, answer.dims) == (RATE, 100, 4)
    assert (list(answer.layers), answer.default_layer) == ([0, 1], 1)
    assert (answer.min_duration_ms, answer.max_duration_ms) == (25, 10_000)
    assert answer.runtime in ("openvino", "onnx")
    assert answer.device == "cpu"
    assert answer.version


async def test_on_a_cpu_clips_of_one_width_share_a_batch_and_their_answers_are_those_of_each_alone(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray]
) -> None:
    clips = [np.roll(speech(2.6 if number % 3 else 2.9), number) for number in range(12)]  # of one bucket
    async with serving(tiny_bundle, tmp_path) as bench:
        alone = [await bench.stub.Embed(_samples(clip)) for clip in clips]
        assert bench.value("batch_clips_count") == bench.value("batch_clips_bucket", le="1.0") == len(clips)
        bench.gate.clear()
        calls = [asyncio.create_task(_one(bench, clip)) for clip in clips]
        begun_s = 4 * 2.95  # one batch runs, one is at hand
        audio_s = sum(len(clip) for clip in clips) / RATE
        await bench.until(lambda: bench.value("queued_audio_seconds") >= audio_s - begun_s)
        bench.gate.set()
        together = [await call for call in calls]
        assert bench.value("batch_clips_count") < 2 * len(clips)
        assert bench.value("batch_clips_bucket", le="2.0") == bench.value("batch_clips_count")
        assert bench.value("batch_padding_ratio_sum") == 0
    assert [answer.embedding for answer in together] == [answer.embedding for answer in alone]


async def test_every_pooling_and_layer_is_what_the_encoder_gives(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray], reference: Callable[..., np.ndarray]
) -> None:
    samples = speech(1.2345)
    expected = reference(samples)
    async with serving(tiny_bundle, tmp_path) as bench:
        default = await bench.stub.Embed(_samples(samples))
        turned = await bench.stub.Embed(_samples(samples, layers=[1, 0]))
        both = await bench.stub.Embed(_samples(samples, layers=[0, 1], pooling=embedder_pb2.POOLING_MEAN_STD))
        frames = await bench.stub.Embed(_samples(samples, pooling=embedder_pb2.POOLING_FRAMES))
    np.testing.assert_allclose(array_from_proto(default.embedding), expected[1:, 0], atol=1e-4)
    np.testing.assert_allclose(array_from_proto(turned.embedding), expected[::-1, 0], atol=1e-4)
    np.testing.assert_allclose(array_from_proto(both.embedding), expected, atol=1e-4)
    assert (list(default.layers), list(turned.layers)) == ([1], [1, 0])
    each = array_from_proto(frames.embedding)
    assert each.shape == (124, 4), "only the clip's own frames, none of the padding"
    np.testing.assert_allclose(each.mean(axis=0), expected[1, 0], atol=1e-4)
    assert default.bundle.source == "tiny"
    assert default.duration_ms == 1234
    assert default.timings.total_us >= default.timings.inference_us > 0


async def test_eight_channels_at_192_khz_come_out_as_their_mono_mean(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    data = encoded(speech(1.0, rate_hz=192_000, channels=8), rate_hz=192_000)
    async with serving(tiny_bundle, tmp_path) as bench:
        wide = await bench.stub.Embed(_container(data))
        narrow = await bench.stub.Embed(_container(encoded(speech(1.0))))
    np.testing.assert_allclose(
        array_from_proto(wide.embedding), array_from_proto(narrow.embedding), atol=0.02, err_msg="a 150 Hz tone"
    )


async def test_a_clip_over_the_limit_is_refused_or_cut_as_asked(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    long = encoded(speech(31))
    async with serving(tiny_bundle, tmp_path) as bench:
        error = await _refused(bench.stub.Embed(_container(long)))
        cut = await bench.stub.Embed(_container(long, truncate_ms=2_000))
        capped = await bench.stub.Embed(_container(long, truncate_ms=60_000))
        exact = await bench.stub.Embed(_container(encoded(speech(2)), truncate_ms=2_000))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "31.00 s" in str(error.details())
    assert (cut.truncated, cut.duration_ms) == (True, 2_000)
    assert (capped.truncated, capped.duration_ms) == (True, 30_000)
    assert (exact.truncated, exact.duration_ms) == (False, 2_000)
    assert cut.embedding == exact.embedding


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"layers": [1, 9]}, "layer 9"),
        ({"layers": [1] * 1_000_000}, "name each once"),
        ({"pooling": 17}, "pooling 17"),
        ({"truncate_ms": -5}, "truncate_ms = -5"),
        ({"patience_ms": 10_001}, "patience_ms = 10001"),
        ({"pooling": embedder_pb2.POOLING_FRAMES, "layers": [0]}, "layer 1 only"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray], more: dict[str, Any], says: str
) -> None:
    async with serving(tiny_bundle, tmp_path) as bench:
        error = await _refused(bench.stub.Embed(_samples(speech(), **more)))
        assert bench.value("inflight_audio_seconds") == 0
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in str(error.details())


async def test_a_request_without_audio_or_format_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    silent = common_pb2.Audio(pcm=common_pb2.Pcm(data=b"1234", rate_hz=RATE))
    async with serving(tiny_bundle, tmp_path) as bench:
        nothing = await _refused(bench.stub.Embed(embedder_pb2.EmbedRequest()))
        formless = await _refused(bench.stub.Embed(embedder_pb2.EmbedRequest(audio=silent)))
    assert "no audio" in str(nothing.details())
    assert "pcm.format 0" in str(formless.details())


# ---- streams -------------------------------------------------------------------------------------------------


async def test_one_bad_clip_of_a_stream_fails_alone(
    tiny_bundle: Path,
    tmp_path: Path,
    speech: Callable[..., np.ndarray],
    encoded: Callable[..., bytes],
    reference: Callable[..., np.ndarray],
) -> None:
    clips = {f"good-{n}": speech(0.3 + 0.17 * n, seed=n) for n in range(20)}
    whole = encoded(speech(1))
    bad = {
        "empty": b"",
        "text": b"this is no audio" * 50,
        "cut": whole[: len(whole) // 2],
        "silent": encoded(np.zeros(RATE, np.float32)),
        "nan": encoded(np.full(RATE, np.nan, np.float32)),
        "short": encoded(speech(0.01)),
        "long": encoded(speech(40)),
    }
    requests = [(name, _samples(samples, layers=[0])) for name, samples in clips.items()]
    for place, (name, data) in enumerate(bad.items()):
        requests.insert(3 * place, (name, _container(data)))
    requests.append(("layer", _samples(speech(), layers=[5])))
    async with serving(tiny_bundle, tmp_path) as bench:
        answers = await bench.stream(requests)
        assert bench.value("requests_total", method="EmbedStream", outcome="ok") == len(clips)
        for outcome, count in (("BadAudio", 4), ("SilentAudio", 1), ("ShortAudio", 1), ("TooLarge", 1)):
            assert bench.value("requests_total", method="EmbedStream", outcome=outcome) == count
        assert bench.value("inflight_audio_seconds") == 0
        assert bench.value("queued_audio_seconds") == 0
        for stage in ("decode", "queue", "inference", "total"):
            assert bench.value(f"{stage}_seconds_count") == len(clips)
    assert set(answers) == {name for name, _ in requests}
    for name, samples in clips.items():
        got = array_from_proto(answers[name].response.embedding)
        np.testing.assert_allclose(got, reference(samples)[:1, 0], atol=1e-4)
    for name in [*bad, "layer"]:
        assert answers[name].WhichOneof("result") == "failure", name
        assert not answers[name].failure.retryable
        assert len(answers[name].failure.message) > 20
    assert answers["long"].failure.kind == "TooLarge"
    assert "layer 5" in answers["layer"].failure.message


@pytest.mark.parametrize("second", ["", "a"])
async def test_ids_are_checked(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray], second: str
) -> None:
    async with serving(tiny_bundle, tmp_path) as bench:
        bench.gate.clear()
        messages = [embedder_pb2.EmbedStreamRequest(id=name, request=_samples(speech())) for name in ("a", second)]
        call = bench.stub.EmbedStream(iter(messages))
        reading = asyncio.create_task(call.read())
        await bench.until(lambda: bench.value("inflight_audio_seconds") > 0)
        assert bench.server._servicer is not None
        (stream,) = bench.server._servicer._streams
        await bench.until(lambda: stream._end is not None)  # the second was read while the first is unanswered
        bench.gate.set()
        assert (await reading).id == "a", "what was admitted is answered first"
        error = await _refused(call.read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"id {second!r}" in str(error.details())


async def test_a_stream_reads_no_more_than_it_may_have_in_flight(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray]
) -> None:
    async with serving(tiny_bundle, tmp_path, max_inflight_audio_s=40, stream_in_flight=8) as bench:
        bench.gate.clear()
        many = asyncio.create_task(bench.stream((str(n), _samples(speech(1))) for n in range(30)))
        await bench.until(lambda: bench.value("inflight_audio_seconds") >= 8)
        await asyncio.sleep(0.1)
        assert bench.value("inflight_audio_seconds") == 8
        big = asyncio.create_task(bench.stream((str(n), _samples(speech(11))) for n in range(4)))
        await bench.until(lambda: bench.value("inflight_audio_seconds") >= 30)
        await asyncio.sleep(0.1)
        assert bench.value("inflight_audio_seconds") == 30, "three quarters of the budget are for streams"
        single = asyncio.create_task(_one(bench, speech(9)))
        await bench.until(lambda: bench.value("inflight_audio_seconds") == 39)
        bench.gate.set()
        assert len(await many) == 30
        assert len(await big) == 4
        assert (await single).duration_ms == 9_000


async def _one(bench: Bench, samples: np.ndarray, *, timeout: float | None = None) -> embedder_pb2.EmbedResponse:  # noqa: ASYNC109 -- gRPC's
    answer: embedder_pb2.EmbedResponse = await bench.stub.Embed(_samples(samples), timeout=timeout)
    return answer


# ---- overload, deadlines, cancellation -----------------------------------------------------------------------


async def test_a_full_server_pushes_back_at_once_with_a_time(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray]
) -> None:
    async with serving(tiny_bundle, tmp_path, max_inflight_audio_s=30) as bench:
        bench.gate.clear()
        first = asyncio.create_task(_one(bench, speech(29)))
        await bench.until(lambda: bench.value("inflight_audio_seconds") == 29)
        error = await _refused(_one(bench, speech(2)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        info = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() > 0
        assert trailing["servox-error"] == "Overloaded"
        assert bench.value("requests_total", method="Embed", outcome="Overloaded") == 1
        bench.gate.set()
        assert (await first).duration_ms == 29_000
        assert (await _one(bench, speech(2))).duration_ms == 2_000


async def test_a_deadline_that_passes_frees_the_seat(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray]
) -> None:
    async with serving(tiny_bundle, tmp_path) as bench:
        bench.gate.clear()
        error = await _refused(_one(bench, speech(), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await bench.until(lambda: bench.value("inflight_audio_seconds") == 0)
        bench.gate.set()
        await _one(bench, speech(), timeout=20)


async def test_cancelling_frees_the_seats_of_calls_and_of_streams(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray]
) -> None:
    async with serving(tiny_bundle, tmp_path, max_inflight_audio_s=40) as bench:
        bench.gate.clear()
        calls = [bench.stub.Embed(_samples(speech(2))) for _ in range(5)]
        messages = [embedder_pb2.EmbedStreamRequest(id=str(n), request=_samples(speech(3))) for n in range(5)]
        stream = bench.stub.EmbedStream(iter(messages))
        reading = asyncio.create_task(stream.read())
        await bench.until(lambda: bench.value("inflight_audio_seconds") == 25)
        for call in (*calls, stream):
            call.cancel()
        await bench.until(lambda: bench.value("inflight_audio_seconds") == 0)
        await bench.until(lambda: bench.value("queued_audio_seconds") == 0)
        with pytest.raises(asyncio.CancelledError):
            await reading
        bench.gate.set()
        await _one(bench, speech(30))
        await bench.until(lambda: bench.value("requests_total", method="Embed", outcome="cancelled") == 5)


# ---- health and drain ----------------------------------------------------------------------------------------


async def test_health_follows_the_device(tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray]) -> None:
    async with serving(tiny_bundle, tmp_path, stuck_after_s=0.3) as bench:
        assert await bench.health() == health_pb2.HealthCheckResponse.SERVING
        failed = asyncio.create_task(bench.server.wait_failed())
        await asyncio.sleep(0)
        bench.gate.clear()
        error = await _refused(_one(bench, speech()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(Exception, match="device is gone"):
            await failed
        assert await bench.health() == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_nothing_is_served_before_every_bucket_is_warm(tiny_bundle: Path, tmp_path: Path) -> None:
    gate, metrics = threading.Event(), Metrics()
    settings = Settings.load({"bundle": tiny_bundle, "grpc_socket": tmp_path / "e.sock", "metrics_port": 0})
    server = EmbedderServer(
        settings, metrics, opened=lambda *a, **k: [GatedRuntime(lane, gate) for lane in lanes(*a, **k)]
    )
    starting = asyncio.create_task(server.start())
    bench = Bench(server, metrics, gate, f"unix:{tmp_path / 'e.sock'}")
    try:
        async with asyncio.timeout(50):
            await bench.channel.channel_ready()
        assert await bench.health() == health_pb2.HealthCheckResponse.NOT_SERVING
        gate.set()
        await starting
        assert await bench.health() == health_pb2.HealthCheckResponse.SERVING
    finally:
        gate.set()
        await bench.channel.close()
        await server.stop()


async def test_draining_finishes_what_was_admitted_and_hands_back_the_rest(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray]
) -> None:
    async with serving(tiny_bundle, tmp_path, stream_in_flight=4) as bench:
        bench.gate.clear()
        calls = [asyncio.create_task(_one(bench, speech(1))) for _ in range(6)]
        messages = [embedder_pb2.EmbedStreamRequest(id=str(n), request=_samples(speech(1))) for n in range(20)]
        stream = bench.stub.EmbedStream(iter(messages))
        first = asyncio.create_task(stream.read())
        await bench.until(lambda: bench.value("inflight_audio_seconds") == 10)
        stopping = asyncio.create_task(bench.server.stop())
        await asyncio.sleep(0.1)
        bench.gate.set()
        answers = [await call for call in calls]
        assert [answer.duration_ms for answer in answers] == [1_000] * 6
        answered = [(await first).id, *[(await stream.read()).id for _ in range(3)]]
        error = await _refused(stream.read())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert sorted(answered) == ["0", "1", "2", "3"]
        await stopping
