"""The embedder's spans: what a clip cost and where, and nothing of what it held."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.embedder.server import EmbedderServer
from services.embedder.settings import Settings
from servox.client import pcm
from servox.inference import open_inference_pb2 as oip
from servox.inference import open_inference_pb2_grpc
from servox.telemetry import Metrics
from servox.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc

RATE = 16_000
SECRET = "speaker-anna"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STAGES = ["decode", "queue", "inference"]


@asynccontextmanager
async def serving(bundle: Path, folder: Path) -> AsyncIterator[grpc.aio.Channel]:
    flags = {"bundle": bundle, "grpc_socket": folder / "e.sock", "metrics_port": 0, "decode_workers": 1}
    server = EmbedderServer(Settings.load(flags), Metrics())
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as opened:
        yield opened
    await server.stop()


async def _finished(exporter: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    async with asyncio.timeout(20):
        while len(exporter.get_finished_spans()) < count:  # noqa: ASYNC110 -- an exporter has no event
            await asyncio.sleep(0.005)
    found = sorted(exporter.get_finished_spans(), key=lambda each: each.start_time or 0)
    exporter.clear()
    return found


def _below(spans: Iterable[ReadableSpan], parent: ReadableSpan) -> list[ReadableSpan]:
    assert parent.context is not None
    return [each for each in spans if each.parent and each.parent.span_id == parent.context.span_id]


def _names(spans: Iterable[ReadableSpan]) -> list[str]:
    return [each.name for each in spans]


def _us(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1000


async def test_every_clip_has_its_stages_under_its_call_and_nothing_personal(
    spans: InMemorySpanExporter, tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray]
) -> None:
    good = embedder_pb2.EmbedRequest(audio=pcm(speech(0.5), RATE))
    bad = embedder_pb2.EmbedRequest(audio=common_pb2.Audio(container=SECRET.encode()))
    items = [
        embedder_pb2.EmbedStreamRequest(id=f"{SECRET}-{number}", request=request)
        for number, request in enumerate((good, bad, good))
    ]
    tensor = oip.ModelInferRequest.InferInputTensor(name="pcm", datatype="FP32", shape=[2, 8000])
    samples = np.tile(speech(0.5), (2, 1)).astype("<f4").tobytes()
    infer = oip.ModelInferRequest(model_name="tiny", id=SECRET, inputs=[tensor], raw_input_contents=[samples])
    async with serving(tiny_bundle, tmp_path) as opened:
        stub: Any = embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]
        foreign: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(opened)  # type: ignore[no-untyped-call]
        answer = await stub.Embed(good, metadata=(("traceparent", TRACEPARENT),))
        one = await _finished(spans, 4)
        assert len([each async for each in stub.EmbedStream(iter(items))]) == 3
        many = await _finished(spans, 1 + 3 + 3 + 1 + 3)
        await foreign.ServerReady(oip.ServerReadyRequest())
        await foreign.ModelInfer(infer)
        batch = await _finished(spans, 1 + 2 * 4)

    assert _names(one) == ["servox.v1.Embedder/Embed", *STAGES]
    server, decode, queue, inference = one
    assert server.context is not None
    assert trace.format_trace_id(server.context.trace_id) == TRACEPARENT[3:35]
    assert _below(one, server) == [decode, queue, inference]
    assert abs(_us(queue) - answer.timings.queue_us) < 2, "the span and the reply tell the same"
    assert abs(_us(inference) - answer.timings.inference_us) < 2
    assert decode.end_time is not None
    spare_us = _us(server) - sum(_us(each) for each in (decode, queue, inference))  # between them, and around
    assert abs(decode.end_time - (queue.start_time or 0)) < 50_000_000 + 1000 * spare_us
    told = dict(inference.attributes or {})
    assert told == {"servox.audio_ms": 500, "servox.batch_clips": 1, "servox.bundle": answer.bundle.digest[:12]}

    (stream,) = (each for each in many if each.parent is None)
    clips = _below(many, stream)
    assert _names(clips) == ["clip"] * 3
    assert sorted(len(_below(many, clip)) for clip in clips) == [1, 3, 3], "the bad one ended in its decoding"
    failed = [dict(each.attributes or {}).get("error.type") for each in many if each.status.status_code.value == 2]
    assert failed == ["BadAudio", "BadAudio"], "the clip, and within it the decoding"

    (infer_span,) = (each for each in batch if each.parent is None)
    assert infer_span.name == "inference.GRPCInferenceService/ModelInfer"
    assert [_names(_below(batch, clip)) for clip in _below(batch, infer_span)] == [STAGES, STAGES]
    assert SECRET not in "".join(each.to_json() for each in (*one, *many, *batch))


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: dict[str, str] = {}

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: ANN401, ARG002, N802
        for resource in request.resource_spans:
            told = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.spans |= {each.name: told["service.name"] for scope in resource.scope_spans for each in scope.spans}
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_a_process_sends_its_spans_to_a_collector_and_the_last_ones_before_it_ends(
    tiny_bundle: Path, speech: Callable[..., np.ndarray]
) -> None:
    collector, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    flags = ["--bundle", str(tiny_bundle), "--grpc-port", "0", "--metrics-port", "0", "--decode-workers", "1"]
    command = [sys.executable, "-c", "from services.cli import main; main()", "serve", "embedder", *flags]
    environment = {**_environment(), "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    started = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environment)
    try:
        assert started.stderr is not None
        async with asyncio.timeout(60):
            while not (found := re.search(r"^serving on (\S+)", (await started.stderr.readline()).decode())):
                pass
        async with grpc.aio.insecure_channel(found[1]) as opened:
            stub: Any = embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]
            await stub.Embed(embedder_pb2.EmbedRequest(audio=pcm(speech(0.5), RATE)))
        started.send_signal(signal.SIGTERM)
        _, told = await asyncio.wait_for(started.communicate(), 60)
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()
        await server.stop(0)
    assert started.returncode == 0, told.decode()
    assert collector.spans == dict.fromkeys(["servox.v1.Embedder/Embed", *STAGES], "servox-embedder")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
