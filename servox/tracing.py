"""OpenTelemetry traces, in one place: off unless the standard `OTEL_*` variables ask for them.

- A server's span is a child of what its caller's `traceparent` names; channels hand the context on. Without a provider
  neither interceptor nor wrapper is installed, and a stage's span is a shared null context.
- Only OpenTelemetry's API is used, and only where it is installed: a bare client needs none of it, and an application
  with a provider of its own sees our spans in its traces.
- A span holds methods, codes, counts and durations. Audio is personal data, and so are ids that callers choose, their
  addresses, and paths in messages: none of it is ever in a span, an error is named by its class alone.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any, cast

import grpc

from servox import __version__
from servox.errors import BadSetting

try:
    from opentelemetry import context as otel_context
    from opentelemetry import propagate, trace
except ImportError:
    INSTALLED = False  # a bare client
else:
    INSTALLED = True

Value = str | int | float | bool
_NOTHING = nullcontext()
Context = grpc.aio.ServicerContext[Any, Any]

ERROR_KEY = "servox-error"
# Asked by probes every few seconds: they would drown the rest.
UNTRACED = ("/grpc.", "/inference.GRPCInferenceService/Server", "/inference.GRPCInferenceService/ModelReady")
# Two clocks, gRPC's and ours or a caller's and a server's, do not end a deadline at the same moment.
CLOCKS_S = 0.05
# What a server's span calls an error (OpenTelemetry's convention for gRPC): the others are the caller's.
FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
_SDK, _OTLP = "opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto"
_PROTOCOLS = {"grpc": f"{_OTLP}.grpc.trace_exporter", "http/protobuf": f"{_OTLP}.http.trace_exporter"}


# ---- where a process starts ----------------------------------------------------------------------------------


def configure_tracing(service: str) -> None:
    """Exports spans as the environment says; does nothing, at no cost, if it says nothing.

    `OTEL_TRACES_EXPORTER` is `otlp`, `console`, both with a comma, or `none`; an OTLP endpoint alone means `otlp`.
    The SDK itself reads the rest: sampler, resource attributes, headers, certificates, batching.

    Args:
        service: name of the process, unless the environment gives one.

    Raises:
        BadSetting: an exporter or protocol that does not exist, or whose package is not installed.
    """
    exporters = _exporters(os.environ)
    if not exporters:
        return
    try:
        sdk, export = import_module(_SDK), import_module(f"{_SDK}.export")
        resources = import_module("opentelemetry.sdk.resources")
        made = [(name, _exporter(name, export)) for name in exporters]
    except ImportError as error:
        raise BadSetting(
            f"traces are asked for by {_asked_by(os.environ)}, but {error.name} is not installed: "
            "pip install 'servox[tracing]' (and opentelemetry-exporter-otlp-proto-http for OTLP over HTTP), or set "
            "OTEL_TRACES_EXPORTER=none"
        ) from None
    named = resources.OTELResourceDetector().detect().attributes
    defaults = {"service.name": f"servox-{service}", "service.version": __version__}
    provider = sdk.TracerProvider(resource=resources.Resource.create({**defaults, **named}))
    for name, exporter in made:
        processor = export.SimpleSpanProcessor if name == "console" else export.BatchSpanProcessor
        provider.add_span_processor(processor(exporter))
    trace.set_tracer_provider(provider)


def _exporters(environment: Mapping[str, str]) -> list[str]:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    asked = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if not asked:
        return ["otlp"] if _endpoint(environment) else []
    names = [name.strip() for name in asked.split(",")]
    unknown = [name for name in names if name not in ("otlp", "console", "none")]
    if unknown:
        raise BadSetting(f"OTEL_TRACES_EXPORTER = {asked!r}: {unknown[0]!r} is unknown; use otlp, console or none")
    return [name for name in names if name != "none"]


def _exporter(name: str, export: Any) -> Any:  # noqa: ANN401 -- the SDK is optional, and so are its types
    if name == "console":
        return export.ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\n")
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    variable = next((each for each in variables if os.environ.get(each)), variables[-1])
    protocol = os.environ.get(variable) or "grpc"
    if protocol not in _PROTOCOLS:
        raise BadSetting(f"{variable} = {protocol!r} is unknown: use {' or '.join(_PROTOCOLS)}")
    return import_module(_PROTOCOLS[protocol]).OTLPSpanExporter()


def _endpoint(environment: Mapping[str, str]) -> str:
    variables = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next((each for each in variables if environment.get(each)), "")


def _asked_by(environment: Mapping[str, str]) -> str:
    return "OTEL_TRACES_EXPORTER" if environment.get("OTEL_TRACES_EXPORTER") else _endpoint(environment)


class _Listening:
    """Whether anybody wanted spans when the last server or channel was made: cheap enough to ask in every call."""

    asked = False


def _listening() -> bool:
    _Listening.asked = _tracer() is not None
    return _Listening.asked


def _tracer() -> Any:  # noqa: ANN401 -- None where nobody listens
    if not INSTALLED or isinstance(provider := trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return provider.get_tracer("servox", __version__)


# ---- inside a call -------------------------------------------------------------------------------------------


def span(name: str, **attributes: Value) -> AbstractContextManager[Any]:
    """A span around a block, a child of the current one; an error is noted by its class."""
    tracer = _tracer() if _Listening.asked else None
    return _NOTHING if tracer is None else _spanned(tracer, name, attributes)


@contextmanager
def _spanned(tracer: Any, name: str, attributes: Mapping[str, Value]) -> Iterator[None]:  # noqa: ANN401
    options = {"record_exception": False, "set_status_on_exception": False}  # both would keep the error's text
    with tracer.start_as_current_span(name, attributes=_prefixed(attributes), **options) as current:
        try:
            yield
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            if not isinstance(error, asyncio.CancelledError):
                current.set_status(trace.StatusCode.ERROR)
            raise


def record(name: str, *, began_s: float, ended_s: float, **attributes: Value) -> None:
    """A span of something that is over already; times of the monotonic clock."""
    if _Listening.asked and (tracer := _tracer()):
        offset_ns = time.time_ns() - time.monotonic_ns()
        began_ns, ended_ns = (offset_ns + round(each * 1e9) for each in (began_s, ended_s))
        tracer.start_span(name, start_time=began_ns, attributes=_prefixed(attributes)).end(ended_ns)


def trace_ids() -> dict[str, str]:
    """Where the current span is to be found, for logs; empty without one."""
    if not INSTALLED or not (current := trace.get_current_span().get_span_context()).is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(current.trace_id), "span_id": trace.format_span_id(current.span_id)}


def _prefixed(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {f"servox.{name}": value for name, value in attributes.items()}


# ---- between processes ---------------------------------------------------------------------------------------


def server_interceptors() -> list[grpc.aio.ServerInterceptor]:
    """What a server puts before its other interceptors: nothing where nobody listens."""
    return [_ServerSpans()] if _listening() else []


class _ServerSpans(grpc.aio.ServerInterceptor):
    """One span a call, under the caller's."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 -- gRPC's handlers are untyped
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(UNTRACED):
            return handler
        streams = handler.response_streaming
        kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if streams else 'unary'}"
        wrap = _streaming if streams else _single
        return handler._replace(**{kind: wrap(getattr(handler, kind), method)})


def _single(inner: Callable[[Any, Any], Awaitable[Any]], method: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def spanned(request: Any, context: Context) -> Any:  # noqa: ANN401
        call = _Call(method, context)
        answer = await inner(request, context)
        call.answered = True
        return answer

    return spanned


def _streaming(inner: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def spanned(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
        call = _Call(method, context)
        async for message in inner(request, context):
            yield message
        call.answered = True

    return spanned


class _Call:
    """The span of one call to a server, from here to the end of the call.

    It becomes the current one for good: a call has a task, and so a context, of its own. It ends with the call and not
    with the handler, because gRPC drops a stream's handler without closing it when the caller leaves.
    """

    def __init__(self, method: str, context: Context) -> None:
        self.answered = False
        self._context = context
        carrier = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        caller, kind = propagate.extract(carrier), trace.SpanKind.SERVER
        self._span = _tracer().start_span(method[1:], context=caller, kind=kind, attributes=_rpc_attributes(method))
        otel_context.attach(trace.set_span_in_context(self._span, caller))
        done: Any = context  # its types want a class, not a function
        done.add_done_callback(self._end)

    def _end(self, _: object) -> None:
        code = self._code()
        self._span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            trailing = dict(self._context.trailing_metadata() or ())
            self._span.set_attribute("error.type", str(trailing.get(ERROR_KEY, code)))
        if code in FAULTS:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()

    def _code(self) -> str:
        """How the call ended: what was neither aborted nor answered was left by its caller.

        A stream that its caller leaves looks like one that the caller ended: only the caller's span tells them apart.
        """
        aborted = cast("grpc.StatusCode | None", self._context.code())  # its types know no call without a code
        if self.answered or aborted:
            return _name(aborted)
        remaining_s = cast("float | None", self._context.time_remaining())  # nor one without a deadline
        # A caller whose time is up hangs up: that news may overtake the server's own clock by some milliseconds.
        return "CANCELLED" if remaining_s is None or remaining_s > CLOCKS_S else "DEADLINE_EXCEEDED"


@contextmanager
def http_span(method: str, headers: Mapping[str, str]) -> Iterator[Callable[[str, int], None]]:
    """A server's span of one HTTP request, under its caller's; tell what it yields the route's template and the status.

    Args:
        method: GET, POST, ...; a closed set, like every label.
        headers: of the request; only the caller's trace is read.
    """
    tracer = _tracer() if _Listening.asked else None
    if tracer is None:
        yield lambda _route, _status: None
        return
    caller = propagate.extract(dict(headers))
    current = tracer.start_span(
        method, context=caller, kind=trace.SpanKind.SERVER, attributes={"http.request.method": method}
    )
    token = otel_context.attach(trace.set_span_in_context(current, caller))

    def settle(route: str, status: int) -> None:
        current.update_name(f"{method} {route}")
        current.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            current.set_attribute("error.type", str(status))
            current.set_status(trace.StatusCode.ERROR)

    try:
        yield settle
    finally:
        otel_context.detach(token)
        current.end()


def traced(channel: grpc.aio.Channel) -> grpc.aio.Channel:
    """The channel, whose calls from here on have a span and carry its context; as it was where nobody listens."""
    if _listening():
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            setattr(channel, kind, partial(_multicallable, getattr(channel, kind)))
    return channel


def _multicallable(make: Callable[..., Any], method: str, *arguments: Any, **options: Any) -> Callable[..., Any]:  # noqa: ANN401
    inner = make(method, *arguments, **options)
    if method.startswith(UNTRACED):
        return inner  # type: ignore[no-any-return]

    def call(request: Any = None, *, metadata: Any = None, **more: Any) -> Any:  # noqa: ANN401
        current = _tracer().start_span(method[1:], kind=trace.SpanKind.CLIENT, attributes=_rpc_attributes(method))
        headers: dict[str, str] = {}
        propagate.inject(headers, context=trace.set_span_in_context(current))
        made = inner(request, metadata=(*(metadata or ()), *headers.items()), **more)
        made.add_done_callback(partial(_settle, current))
        return made

    return call


def _settle(current: Any, call: Any) -> None:  # noqa: ANN401
    ending = asyncio.get_running_loop().create_task(_end_client(current, call))
    _ENDING.add(ending)
    ending.add_done_callback(_ENDING.discard)


async def _end_client(current: Any, call: Any) -> None:  # noqa: ANN401
    code = _name(await call.code())  # at once: the call is done
    current.set_attribute("rpc.response.status_code", code)
    if code != "OK":
        current.set_attribute("error.type", code)
        current.set_status(trace.StatusCode.ERROR)
    current.end()


_ENDING: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly


def _rpc_attributes(method: str) -> dict[str, Value]:
    return {"rpc.system.name": "grpc", "rpc.method": method[1:]}


def _name(code: Any) -> str:  # noqa: ANN401 -- gRPC gives the enum, its number, or nothing for OK
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((each.name for each in grpc.StatusCode if each.value[0] == (code or 0)), "UNKNOWN")
