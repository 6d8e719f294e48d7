"""The door of a gRPC server: every RPC passes it before its message is read.

Health and reflection stay open: probes ask the one, and the other shows what is public.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import grpc

from servox import scopes
from servox.doors import Door, bearer_of
from servox.errors import ServoxError
from servox.visits import Visit

Context = grpc.aio.ServicerContext[Any, Any]
Enter = Callable[[Context], Awaitable[Visit]]


class Entrance(grpc.aio.ServerInterceptor):
    """Lets calls in, or refuses them.

    Args:
        door: knows whom.
    """

    def __init__(self, door: Door) -> None:
        self._door = door

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 -- gRPC's handlers are untyped
        """A handler that knows its caller."""
        handler: Any = await continuation(handler_call_details)
        scope = scopes.of_method(handler_call_details.method)
        if handler is None or scope == scopes.OPEN:
            return handler
        try:
            bearer = bearer_of(_metadata(handler_call_details).get("authorization"))
            if bearer is None and self._door.by_certificate:
                return _entered(handler, self._by_certificate(scope))
            visit = await self._door.admit(scope, bearer=bearer)
        except ServoxError as error:
            return _refusing(error)
        return _entered(handler, _as(visit))

    def _by_certificate(self, scope: str) -> Enter:
        """The certificate is known only once the call has begun; the handshake has checked it already."""

        async def enter(context: Context) -> Visit:
            return await self._door.admit(scope, certificate=certificate_of(context))

        return enter


def _as(visit: Visit) -> Enter:
    async def enter(_context: Context) -> Visit:
        return visit

    return enter


def _metadata(details: grpc.HandlerCallDetails) -> dict[str, str]:
    given: Any = details.invocation_metadata
    return {key: value for key, value in given or () if isinstance(value, str)}


def certificate_of(context: Context) -> str | None:
    """The common name of the caller's certificate; None without one."""
    found: Any = context.auth_context()
    for key, values in (found or {}).items():
        if key in ("x509_common_name", b"x509_common_name") and values:
            return bytes(values[0]).decode(errors="replace") or None
    return None


def _refusing(error: ServoxError) -> Any:  # noqa: ANN401 -- gRPC's handlers are untyped
    """Raises at once: a stream's handler is called before a message is there, so none is waited for."""

    async def refuse(_requests: Any, _context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
        for nothing in tuple[Any, ...]():
            yield nothing  # makes it a stream
        raise error

    return grpc.stream_stream_rpc_method_handler(refuse)


def _entered(handler: Any, enter: Enter) -> Any:  # noqa: ANN401 -- gRPC's handlers are untyped
    streams = handler.response_streaming
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if streams else 'unary'}"
    inner = getattr(handler, kind)
    if streams:
        wrapped: Any = _streaming(inner, enter, speaks=handler.request_streaming)
    else:
        wrapped = _single(inner, enter)
    return handler._replace(**{kind: wrapped})


def _single(inner: Callable[[Any, Any], Awaitable[Any]], enter: Enter) -> Callable[[Any, Any], Awaitable[Any]]:
    async def entered(request: Any, context: Context) -> Any:  # noqa: ANN401
        (await enter(context)).begin()
        return await inner(request, context)

    return entered


def _streaming(
    inner: Callable[[Any, Any], Any], enter: Enter, *, speaks: bool
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """A stream that ends with its visit.

    A caller who streams is answered first what came before; one who only listens is cut off.
    """

    async def entered(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
        visit = await enter(context)
        visit.begin()
        _held(visit, context)
        if speaks:
            async for message in inner(visit.watched(aiter(request)), context):
                yield message
            return
        with visit.cut():
            async for message in inner(request, context):
                yield message

    return entered


def _held(visit: Visit, context: Context) -> None:
    """A stream counts until its call ends: gRPC drops its handler without closing it when the caller leaves."""
    holding = ExitStack()
    holding.enter_context(visit.stream())
    done: Any = context  # its types want a class, not a function
    done.add_done_callback(lambda _: holding.close())
