# ruff: noqa: ARG002 -- servicers take what gRPC gives
"""Spans through real servers and channels, kept in memory; and what the environment turns on and off."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from servox import tracing
from servox.errors import BadInput, Overloaded, ServoxError, Unavailable
from servox.rpc import Server, channel, translated
from servox.telemetry import JsonFormatter
from servox.v1 import embedder_pb2, embedder_pb2_grpc

SECRET = "speaker-anna.wav"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Embedder(embedder_pb2_grpc.EmbedderServicer):
    """Answers, waits for ever, raises `error`, or asks the next server first."""

    def __init__(self, *, error: BaseException | None = None, following: str = "", waits: bool = False) -> None:
        self.error, self.following, self.waits = error, following, waits
        self.entered = asyncio.Event()
        self.logged: list[dict[str, Any]] = []

    async def Describe(self, request: Any, context: Any) -> embedder_pb2.DescribeResponse:  # noqa: ANN401, N802
        record = logging.makeLogRecord({"name": "servox.test", "msg": "seen"})
        self.logged.append(json.loads(JsonFormatter("embedder").format(record)))
        self.entered.set()
        if self.waits:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        if self.following:
            async with channel(self.following) as opened:
                await _stub(opened).Describe(embedder_pb2.DescribeRequest())
        return embedder_pb2.DescribeResponse(dims=7)

    async def EmbedStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401, N802
        async for request in request_iterator:
            with tracing.span("clip"):
                yield embedder_pb2.EmbedStreamResponse(id=request.id)
            self.entered.set()


@asynccontextmanager
async def serving(embedder: Embedder) -> AsyncIterator[str]:
    server = Server(address="127.0.0.1:0", services=["servox.v1.Embedder"], max_message_bytes=1 << 20)
    embedder_pb2_grpc.add_EmbedderServicer_to_server(embedder, server.grpc)  # type: ignore[no-untyped-call]
    yield await server.start()
    await server.stop()


def _stub(opened: grpc.aio.Channel) -> Any:  # noqa: ANN401 -- generated stubs have no types
    return embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]


async def _finished(exporter: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    """Spans end just after their calls; sorted by when they began."""
    async with asyncio.timeout(10):
        while len(exporter.get_finished_spans()) < count:  # noqa: ASYNC110 -- an exporter has no event
            await asyncio.sleep(0.005)
    return sorted(exporter.get_finished_spans(), key=lambda each: each.start_time or 0)


def _codes(spans: Iterable[ReadableSpan]) -> dict[SpanKind, object]:
    return {each.kind: (each.attributes or {})["rpc.response.status_code"] for each in spans if each.name != "clip"}


def _parent(span: ReadableSpan) -> int:
    return span.parent.span_id if span.parent else 0


def _id(span: ReadableSpan) -> int:
    assert span.context is not None
    number: int = span.context.span_id
    return number


async def test_a_callers_traceparent_is_the_parent_of_the_servers_span_and_in_its_logs(
    spans: InMemorySpanExporter,
) -> None:
    embedder = Embedder()
    async with serving(embedder) as address, grpc.aio.insecure_channel(address) as opened:
        metadata = (("traceparent", TRACEPARENT), ("x-caller", SECRET))
        await _stub(opened).Describe(embedder_pb2.DescribeRequest(), metadata=metadata)
        (span,) = await _finished(spans, 1)
    assert span.context is not None
    assert (span.name, span.kind) == ("servox.v1.Embedder/Describe", SpanKind.SERVER)
    assert trace.format_trace_id(span.context.trace_id) == TRACEPARENT[3:35]
    assert trace.format_span_id(_parent(span)) == TRACEPARENT[36:52]
    assert dict(span.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": "servox.v1.Embedder/Describe",
        "rpc.response.status_code": "OK",
    }
    assert span.status.status_code is StatusCode.UNSET
    (line,) = embedder.logged
    assert line["trace_id"] == TRACEPARENT[3:35]
    assert line["span_id"] == trace.format_span_id(_id(span))


async def test_a_damaged_traceparent_begins_a_trace_of_its_own(spans: InMemorySpanExporter) -> None:
    async with serving(Embedder()) as address, grpc.aio.insecure_channel(address) as opened:
        metadata = (("traceparent", "00-nonsense"),)
        await _stub(opened).Describe(embedder_pb2.DescribeRequest(), metadata=metadata)
        (span,) = await _finished(spans, 1)
    assert span.parent is None


async def test_channels_hand_the_context_on_from_server_to_server(spans: InMemorySpanExporter) -> None:
    async with serving(Embedder()) as last, serving(Embedder(following=last)) as first, channel(first) as opened:
        with tracing.span("mine"):
            await _stub(opened).Describe(embedder_pb2.DescribeRequest())
        chain = await _finished(spans, 5)
    kinds = [each.kind for each in chain]
    assert kinds == [SpanKind.INTERNAL, SpanKind.CLIENT, SpanKind.SERVER, SpanKind.CLIENT, SpanKind.SERVER]
    assert [_parent(each) for each in chain] == [0, *(_id(each) for each in chain[:-1])]
    assert len({each.context.trace_id for each in chain if each.context}) == 1


@pytest.mark.parametrize(
    ("error", "code", "kind", "fault"),
    [
        (BadInput(SECRET), "INVALID_ARGUMENT", "BadInput", False),
        (Overloaded(SECRET), "RESOURCE_EXHAUSTED", "Overloaded", False),
        (Unavailable(SECRET), "UNAVAILABLE", "Unavailable", True),
        (LookupError(SECRET), "INTERNAL", "INTERNAL", True),
    ],
)
async def test_a_failed_call_is_named_by_code_and_class_and_never_by_its_text(
    spans: InMemorySpanExporter, error: Exception, code: str, kind: str, fault: bool
) -> None:
    async with serving(Embedder(error=error)) as address, grpc.aio.insecure_channel(address) as opened:
        with pytest.raises(ServoxError), translated("embedder"):
            await _stub(tracing.traced(opened)).Describe(embedder_pb2.DescribeRequest())
        client, server = await _finished(spans, 2)
    assert (server.attributes or {})["rpc.response.status_code"] == code
    assert (server.attributes or {})["error.type"] == kind
    assert (server.status.status_code is StatusCode.ERROR) is fault, "a caller's mistake is no error of the server"
    assert (client.attributes or {})["rpc.response.status_code"] == code
    assert client.status.status_code is StatusCode.ERROR
    assert SECRET not in client.to_json() + server.to_json()


async def test_a_stream_is_one_span_with_its_items_below_and_ends_with_its_call(spans: InMemorySpanExporter) -> None:
    embedder = Embedder()
    async with serving(embedder) as address, channel(address) as opened:
        messages = [embedder_pb2.EmbedStreamRequest(id=SECRET) for _ in range(3)]
        assert len([each async for each in _stub(opened).EmbedStream(iter(messages))]) == 3
        whole = await _finished(spans, 5)
        spans.clear()
        embedder.entered.clear()

        async def endless() -> AsyncIterator[embedder_pb2.EmbedStreamRequest]:
            yield messages[0]
            await asyncio.Event().wait()

        call = _stub(opened).EmbedStream(endless())
        await call.read()
        await embedder.entered.wait()
        call.cancel()
        left = await _finished(spans, 3)
    server = next(each for each in whole if each.kind is SpanKind.SERVER)
    assert [_parent(each) for each in whole if each.name == "clip"] == [_id(server)] * 3
    assert _codes(whole) == {SpanKind.CLIENT: "OK", SpanKind.SERVER: "OK"}
    assert _codes(left)[SpanKind.CLIENT] == "CANCELLED"
    assert SECRET not in "".join(each.to_json() for each in (*whole, *left))


@pytest.mark.parametrize(("timeout_s", "code"), [(30, "CANCELLED"), (3, "DEADLINE_EXCEEDED")])
async def test_a_call_that_its_caller_leaves_ends_as_what_it_was(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, timeout_s: float, code: str
) -> None:
    monkeypatch.setattr(tracing, "CLOCKS_S", 2.0)  # what the call's way to the server may take
    embedder = Embedder(waits=True)
    async with serving(embedder) as address, channel(address) as opened:
        await opened.channel_ready()
        call = _stub(opened).Describe(embedder_pb2.DescribeRequest(), timeout=timeout_s)
        await embedder.entered.wait()
        if code == "CANCELLED":
            call.cancel()
        ended = await _finished(spans, 2)
    assert _codes(ended) == {SpanKind.CLIENT: code, SpanKind.SERVER: code}


def test_a_stage_that_fails_is_named_by_its_class(spans: InMemorySpanExporter) -> None:
    assert tracing.server_interceptors(), "whoever makes a server or a channel looks whether somebody listens"
    with pytest.raises(BadInput), tracing.span("decode", clips=3):
        raise BadInput(SECRET)
    (span,) = spans.get_finished_spans()
    assert dict(span.attributes or {}) == {"servox.clips": 3, "error.type": "BadInput"}
    assert span.status.status_code is StatusCode.ERROR
    assert not span.events, "an exception's event holds its text"
    assert SECRET not in span.to_json()


# ---- on and off ----------------------------------------------------------------------------------------------


def _python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=False, timeout=60)


CONFIGURE = """
    import sys
    from servox import tracing
    from servox.errors import BadSetting
    try:
        tracing.configure_tracing("embedder")
    except BadSetting as error:
        sys.exit(str(error))
    print("on" if tracing.server_interceptors() else "off", "opentelemetry.sdk" in sys.modules)
    with tracing.span("decode", clips=1):
        pass
"""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_without_being_asked_for_nothing_is_even_imported(environment: dict[str, str]) -> None:
    done = _python(CONFIGURE, **environment)
    assert done.stdout == "off False\n", done.stderr


def test_the_console_shows_each_span_on_a_line_under_the_names_of_the_environment() -> None:
    done = _python(CONFIGURE, OTEL_TRACES_EXPORTER="console")
    state, line = done.stdout.splitlines()
    assert state == "on True", done.stderr
    span = json.loads(line)
    assert (span["name"], span["attributes"]) == ("decode", {"servox.clips": 1})
    assert span["resource"]["attributes"]["service.name"] == "servox-embedder"
    named = _python(CONFIGURE, OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="voices")
    assert json.loads(named.stdout.splitlines()[1])["resource"]["attributes"]["service.name"] == "voices"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ["OTEL_TRACES_EXPORTER", "'zipkin'", "otlp, console or none"]),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            ["OTEL_EXPORTER_OTLP_PROTOCOL", "'http/json'", "grpc or http/protobuf"],
        ),
    ],
)
def test_what_cannot_be_exported_to_is_refused_by_name(environment: dict[str, str], says: list[str]) -> None:
    done = _python(CONFIGURE, **environment)
    assert done.returncode == 1
    assert all(each in done.stderr for each in says), done.stderr


MISSING = """
    import sys
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name == "opentelemetry" or name.startswith("opentelemetry."):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.meta_path.insert(0, Absent())
"""


def test_a_client_needs_no_opentelemetry_and_a_server_says_what_it_lacks() -> None:
    client = _python(MISSING + "    import servox.client, servox.tracing\n    print(servox.tracing.trace_ids())")
    assert client.stdout == "{}\n", client.stderr
    off = _python(MISSING + CONFIGURE)
    assert off.stdout == "off False\n", off.stderr
    asked = _python(MISSING + CONFIGURE, OTEL_TRACES_EXPORTER="otlp")
    assert asked.returncode == 1
    assert "servox[tracing]" in asked.stderr
    assert "OTEL_TRACES_EXPORTER" in asked.stderr
