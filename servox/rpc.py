"""A grpc.aio server and its channels, the same for every service.

- The server answers `grpc.health.v1` per service and reflection, and turns `servox.errors` into status codes in one
  place; an error that is not ours is logged with its trace and answered as INTERNAL, never with its text.
- The class of an error travels as trailing metadata (`servox-error`), so that a client raises what the server raised.
- gRPC's own accepting loop can die: one request whose path is not UTF-8 ends it (grpcio 1.85), and the process would
  live on deaf. `wait_failed` tells, so that the process ends and another one starts.
- Stopping drains: NOT_SERVING, a wait for endpoints to notice, the admitted calls to their end, then the sockets.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from servox.certificates import Certificates
from servox.doors import OPEN_DOOR, Door
from servox.entrance import Entrance
from servox.errors import BadSetting, Overloaded, OverQuota, ServoxError, TooLarge, Unavailable, from_grpc
from servox.keys import own
from servox.retries import service_config
from servox.tracing import ERROR_KEY, server_interceptors, traced

log = logging.getLogger(__name__)

PUSHBACK_KEY, DETAILS_KEY = "grpc-retry-pushback-ms", "grpc-status-details-bin"
MAX_CALLS = 1_000  # at a time on one connection; further ones wait at the caller's end


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files of one end. `ca` on a server asks callers for a certificate; on a client it says whom to trust."""

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def _read(self, path: Path | None) -> bytes | None:
        try:
            return path.read_bytes() if path else None
        except OSError as error:
            raise BadSetting(f"TLS file {path}: {error.strerror}; give a readable PEM file") from None

    def server(self, alarm: Callable[[bool], None] = lambda _: None) -> grpc.ServerCredentials:
        """Credentials of a server, which follow their files when these change; `alarm` is told when they cannot."""
        if self.certificate is None or self.key is None:
            raise BadSetting("TLS of a server needs a certificate and its key: give both")
        return Certificates(self.certificate, self.key, self.ca, alarm=alarm).grpc()

    def client(self) -> grpc.ChannelCredentials:
        """Credentials of a client."""
        return grpc.ssl_channel_credentials(self._read(self.ca), self._read(self.key), self._read(self.certificate))


def client_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """How to reach a peer: plain text unless a file is given.

    Raises:
        BadSetting: a certificate without its key, or without whom to trust.
    """
    if (certificate is None) != (key is None) or (certificate and not ca):
        raise BadSetting("a certificate for a peer needs its private key, and the CA to trust the peer by: give all")
    return Tls(ca=ca, certificate=certificate, key=key) if ca else None


class Server:
    """One gRPC server: register servicers on `.grpc`, then `start`, and `stop` to drain.

    Args:
        address: `host:port` (port 0: chosen by the system) or `unix:/path`.
        services: full names, as in `servox.v1.Embedder`; each has its own health.
        max_message_bytes: largest message in either direction.
        door: who is let in; everybody, unless it says otherwise.
    """

    def __init__(
        self,
        *,
        address: str,
        services: Sequence[str],
        max_message_bytes: int,
        tls: Tls | None = None,
        door: Door = OPEN_DOOR,
        max_connection_age_s: int = 300,
        drain_wait_s: float = 0.0,
        drain_grace_s: float = 30.0,
    ) -> None:
        self._requested = address
        self._services = ["", *services]
        self._tls = tls
        self.door = door
        self._drain = (drain_wait_s, drain_grace_s)
        self._health = health.aio.HealthServicer()
        self.ready = False  # what health says of the whole server
        self._options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_connection_age_ms", max_connection_age_s * 1000),
            ("grpc.max_concurrent_streams", MAX_CALLS),
            # No age grace: an old connection takes no new calls, but a stream of hours goes on to its end.
            # Idle connections are pinged as well, and may ping: one whose other end is gone does not stay.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.so_reuseport", 0),
        ]
        self.address = address
        self._ended: asyncio.Task[Any] | None = None
        self._stopped = False

    @cached_property
    def grpc(self) -> grpc.aio.Server:
        """What servicers are added to; made on first use, because it belongs to the event loop that runs then."""
        return grpc.aio.server(interceptors=[*server_interceptors(), _Errors(), *self._doors()], options=self._options)

    def _doors(self) -> list[Entrance]:
        return [Entrance(self.door)] if self.door.closed else []

    async def start(self) -> str:
        """Binds and listens; health stays NOT_SERVING until `serving(True)`.

        Returns:
            The address that clients use.

        Raises:
            Unavailable: the address is taken or cannot be bound.
        """
        from grpc_reflection.v1alpha import reflection

        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        names = [*self._services[1:], health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self.grpc)
        await self.serving(False)
        try:
            if self._tls:
                port = self.grpc.add_secure_port(self._requested, self._tls.server(self.door.stale("certificates")))
            else:
                port = self.grpc.add_insecure_port(self._requested)
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {self._requested}: {error}; choose another address") from None
        if not self._requested.startswith("unix:"):
            self.address = f"{self._requested.rsplit(':', 1)[0]}:{port}"
        await self.grpc.start()
        self._ended = asyncio.create_task(self._until_ended())
        return self.address

    async def wait_failed(self) -> None:
        """Returns once the server was stopped.

        Raises:
            Unavailable: it ended by itself.
        """
        if self._ended:
            await asyncio.wait([self._ended])
            if not self._stopped:
                raise Unavailable(f"gRPC's server ended by itself ({self._ended.result()}); this process ends")

    async def _until_ended(self) -> str:
        try:
            await self.grpc.wait_for_termination()
        except Exception as error:  # noqa: BLE001 -- whatever its loop died of
            return repr(error)
        return "no reason given"

    async def serving(self, ready: bool, *, service: str | None = None) -> None:
        """Sets the health of one service, or of all."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        if service is None:
            self.ready = ready
        for name in self._services if service is None else [service]:
            await self._health.set(name, status)

    async def stop(self) -> None:
        """Drains: NOT_SERVING, wait, finish what was admitted, close."""
        wait_s, grace_s = self._drain
        self._stopped = True
        self.ready = False
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(wait_s)
        await self.grpc.stop(grace_s)


class _Errors(grpc.aio.ServerInterceptor):
    """The one place where errors become status codes."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 -- gRPC's handlers are untyped
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc."):
            return handler
        method = handler_call_details.method
        for kind in ("unary_unary", "stream_unary"):
            if inner := getattr(handler, kind):
                return handler._replace(**{kind: _guard_unary(inner, method)})
        for kind in ("unary_stream", "stream_stream"):
            if inner := getattr(handler, kind):
                return handler._replace(**{kind: _guard_stream(inner, method)})
        return handler


def _guard_unary(inner: Callable[[Any, Any], Awaitable[Any]], method: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: ANN401
        try:
            return await inner(request, context)
        except ServoxError as error:
            await _abort(context, error)
        except Exception:  # the process's edge: answered, logged, not hidden
            log.exception("unexpected error", extra={"method": method})
            await _abort_unknown(context, method)

    return guarded


def _guard_stream(inner: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:  # noqa: ANN401
        try:
            async for message in inner(request, context):
                yield message
        except ServoxError as error:
            await _abort(context, error)
        except Exception:  # the process's edge: answered, logged, not hidden
            log.exception("unexpected error", extra={"method": method})
            await _abort_unknown(context, method)

    return guarded


async def _abort_unknown(context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error in {method}; the server's log has the trace")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: ServoxError) -> None:
    metadata: list[tuple[str, str | bytes]] = [(ERROR_KEY, type(error).__name__)]
    if isinstance(error, Overloaded | OverQuota):
        metadata.append((DETAILS_KEY, _retry_details(error)))
    if isinstance(error, Overloaded):
        metadata.append((PUSHBACK_KEY, str(int(error.retry_after_s * 1000))))
    elif not error.retryable:
        metadata.append((PUSHBACK_KEY, "-1"))  # a full disk shares its code with a full queue, and stays full
    await context.abort(error.grpc_code, str(error), tuple(metadata))


def _retry_details(error: Overloaded | OverQuota) -> bytes:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(int(error.retry_after_s * 1000))
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=error.grpc_code.value[0], message=str(error), details=[detail])
    return bytes(status.SerializeToString())


def channel(
    address: str,
    *,
    max_message_bytes: int = 64 << 20,
    tls: Tls | None = None,
    key: str | Callable[[], str] | None = None,
) -> grpc.aio.Channel:
    """A channel that balances over all addresses of a name and tries again what `servox.retries` says.

    Args:
        address: `host:port`, `dns:///name:port` (all its replicas) or `unix:/path`.
        max_message_bytes: largest message in either direction.
        tls: whom to trust and who we are; None for plain text.
        key: API key or token that every call shows, or what tells the present one; None for none.

    Raises:
        BadSetting: a key that cannot be one.
    """
    options = [
        ("grpc.service_config", service_config()),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 60_000),
    ]
    if tls:
        return _keyed(traced(grpc.aio.secure_channel(address, tls.client(), options=options)), key)
    return _keyed(traced(grpc.aio.insecure_channel(address, options=options)), key)


def _keyed(opened: grpc.aio.Channel, key: str | Callable[[], str] | None) -> grpc.aio.Channel:
    """The channel, whose calls from here on show the key."""
    if key is not None:
        shown = own(key) if isinstance(key, str) else key
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            setattr(opened, kind, partial(_showing, getattr(opened, kind), shown))
    return opened


def _showing(make: Callable[..., Any], key: str | Callable[[], str], *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
    inner = make(*arguments, **options)

    def call(request: Any = None, *, metadata: Any = None, **more: Any) -> Any:  # noqa: ANN401
        present = key if isinstance(key, str) else key()
        return inner(request, metadata=(*(metadata or ()), ("authorization", f"Bearer {present}")), **more)

    return call


@contextmanager
def translated(peer: str) -> Iterator[None]:
    """Raises inside a client what the server raised: `grpc.aio.AioRpcError` becomes the matching `ServoxError`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        trailing = {key: str(value) for key, value in error.trailing_metadata() or ()}
        kind = trailing.get(ERROR_KEY)
        message = error.details() or error.code().name
        if kind is None and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
            kind = TooLarge.__name__  # gRPC's own refusal, which no retry will help
        raised = from_grpc(error.code(), message if kind else f"{peer}: {message}", kind)
        if isinstance(raised, Overloaded) and PUSHBACK_KEY in trailing:
            raised.retry_after_s = int(trailing[PUSHBACK_KEY]) / 1000
        if isinstance(raised, OverQuota):
            raised.retry_after_s = _told_s(error) or raised.retry_after_s
        raise raised from error


def _told_s(error: grpc.aio.AioRpcError) -> float | None:
    """When to come again, by the details of a status."""
    details = dict(error.trailing_metadata() or ()).get(DETAILS_KEY)
    told = error_details_pb2.RetryInfo()
    if not isinstance(details, bytes):
        return None
    status = status_pb2.Status.FromString(details)
    return told.retry_delay.ToMilliseconds() / 1000 if any(each.Unpack(told) for each in status.details) else None
