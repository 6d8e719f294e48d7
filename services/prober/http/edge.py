"""What every request passes: its id, trace, deadline, the door, admission, errors as problems, a line of log, counts.

- The app is this class around a router. Handlers raise; nothing else turns an error into an answer.
- Labels and spans name the template of a route, never a path. Logs name the id of a request and hold nothing of its
  body, its query or its address.
- An answer that has begun cannot change its status: lines of JSON then end with the problem, anything else is cut off.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.prober.metrics import ProberMetrics
from services.prober.patience import waiting
from servox.doors import Door
from servox.errors import DeadlineExpired, ServoxError
from servox.tracing import http_span
from servox.visits import Visit

from .encoding import dumps
from .entrance import Entrance, receiving
from .media import LINES
from .problems import GONE, Gone, Problem, Refusal, problem_of
from .traffic import Traffic

log = logging.getLogger(__name__)

TIMEOUT_HEADER, ID_HEADER = "x-request-timeout-ms", "x-request-id"
MAX_TIMEOUT_MS = 10**12  # what is far beyond any limit is a mistake
UNTEMPLATED = "other"  # a path that no route has
PROBES = ("/livez", "/readyz", "/metrics")
ADMITTED = ("/v1/recognize", "/v1/embeddings")
_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")
_NO_CONTENT = "default-src 'none'; frame-ancestors 'none'"


class Edge:
    """The HTTP app.

    Args:
        router: knows the routes.
        templates: of the routes, by their endpoint.
        counters: requests and their times.
        traffic: admission.
        door: who is let in.
        timeout_s: longest time for one request.
        origins: of pages that may call; `*` for all.
    """

    def __init__(
        self,
        router: ASGIApp,
        *,
        templates: Mapping[object, str],
        counters: ProberMetrics,
        traffic: Traffic,
        door: Door,
        timeout_s: float,
        origins: Sequence[str] = (),
    ) -> None:
        self._router, self._templates, self._counters = router, templates, counters
        self.traffic, self._timeout_s = traffic, timeout_s
        self._entrance = Entrance(door)
        self._inner: ASGIApp = self._exchanged
        if origins:
            self._inner = CORSMiddleware(
                self._exchanged,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=[TIMEOUT_HEADER, ID_HEADER, "traceparent", "content-type", "authorization"],
                expose_headers=[ID_HEADER, "retry-after", "x-embedding-shape"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection of ASGI."""
        await (self._router if scope["type"] == "lifespan" else self._inner)(scope, receive, send)

    async def _exchanged(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # the router then raises what it would answer in plain text
        headers, started = Headers(scope=scope), time.perf_counter()
        exchange = Exchange(scope, send, _request_id(headers))
        probe = scope["path"] in PROBES
        with _span(method_of(scope), headers, probe) as settle:
            try:
                await self._answered(scope, receive, exchange, headers)
            except Gone:
                exchange.status = GONE
            finally:
                template = self._templates.get(scope.get("endpoint"), UNTEMPLATED)
                settle(template, exchange.status)
                self._count(scope, template, exchange, time.perf_counter() - started, probe)

    async def _answered(self, scope: Scope, receive: Receive, exchange: "Exchange", headers: Headers) -> None:
        try:
            async with _deadline(scope, headers, self._timeout_s):
                visit = await self._entrance.visit(scope, headers)
                exchange.visit = visit
                with self._admission(scope, visit):
                    await self._router(scope, receiving(visit, receive, scope["type"]), exchange.send)
        except (ServoxError, HTTPException) as error:
            await exchange.fail(problem_of(error), receive)
        except Gone:
            raise
        except Exception as error:  # the process's edge: answered, logged, not hidden
            log.exception("unexpected error", extra={"request_id": exchange.request_id})
            await exchange.fail(problem_of(error), receive)

    @contextmanager
    def _admission(self, scope: Scope, visit: Visit) -> Iterator[None]:
        if scope["type"] == "websocket":
            with self.traffic.admitted("stream"), visit.stream():
                yield
        elif scope["method"] == "POST" and scope["path"] in ADMITTED:
            with self.traffic.admitted("request"):
                yield
        else:
            yield

    def _count(self, scope: Scope, template: str, exchange: "Exchange", took_s: float, probe: bool) -> None:
        method = method_of(scope)
        self._counters.http_requests.labels(template, method, str(exchange.status)).inc()
        if scope["type"] == "http":
            self._counters.http_seconds.labels(template).observe(took_s)
        if not probe:
            line = {"route": template, "method": method, "status": exchange.status, "ms": round(took_s * 1000, 1)}
            if name := exchange.visit.caller.name:
                line["caller"] = name
            log.info("request", extra={**line, "request_id": exchange.request_id})


def method_of(scope: Scope) -> str:
    """GET, POST, ... or WEBSOCKET; `other` for what nobody uses, so that a label stays a closed set."""
    if scope["type"] == "websocket":
        return "WEBSOCKET"
    return scope["method"] if scope["method"] in _METHODS else "other"


def _request_id(headers: Headers) -> str:
    given = headers.get(ID_HEADER, "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


@contextmanager
def _span(method: str, headers: Headers, probe: bool) -> Iterator[Any]:
    if probe:  # asked every few seconds: they would drown the rest
        yield lambda _route, _status: None
        return
    with http_span(method, headers) as settle:
        yield settle


@asynccontextmanager
async def _deadline(scope: Scope, headers: Headers, limit_s: float) -> AsyncIterator[None]:
    if scope["type"] == "websocket":
        yield
        return
    wait_s = _wait_s(headers, limit_s)
    deadline = asyncio.timeout(wait_s)
    try:
        with waiting(wait_s):
            async with deadline:
                yield
    except TimeoutError:
        if not deadline.expired():
            raise
        raise DeadlineExpired(
            f"the request took longer than {wait_s:g} s: send less audio, or give it more time ({TIMEOUT_HEADER})"
        ) from None


def _wait_s(headers: Headers, limit_s: float) -> float:
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return limit_s
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and 0 < int(text) <= MAX_TIMEOUT_MS):
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"{TIMEOUT_HEADER}: {text!r} is no time: give milliseconds, 1 or more",
            name=TIMEOUT_HEADER,
            value=text,
        )
    return min(limit_s, int(text) / 1000)


class Exchange:
    """One request and its answer.

    Args:
        scope: of ASGI.
        send: of ASGI.
        request_id: the caller's, or made here.
    """

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._scope, self._send = scope, send
        self.request_id = request_id
        self.visit = Visit()  # anybody's, until somebody is known
        self.status = GONE
        self._media = ""
        self._begun = self._ended = self._failed = False
        scope["request_id"] = request_id

    async def send(self, message: Message) -> None:
        """Hands a message on, with the headers that every answer has."""
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self._begun, self.status = True, message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers[ID_HEADER] = self.request_id
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Cache-Control", "no-store")
            headers.setdefault("Content-Security-Policy", _NO_CONTENT)
            self._media = headers.get("content-type", "")
        elif kind == "websocket.accept":
            self._begun, self.status = True, 101
            message["headers"] = [*message.get("headers", []), (ID_HEADER.encode(), self.request_id.encode())]
        elif kind == "websocket.close":
            self.status = message.get("code", 1000)
        elif kind.endswith(".body"):
            if self._media == LINES and not self._failed:
                self.visit.check()  # an answer of hours ends with the visit
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, problem: Problem, receive: Receive) -> None:
        """Answers with a problem, as far as the answer has not begun."""
        self._failed = True
        if not self._begun:
            await problem.response(self.request_id)(self._scope, receive, self.send)
        elif self._media == LINES and not self._ended:
            line = dumps({"problem": problem.members(self.request_id)}) + b"\n"
            await self.send({"type": "http.response.body", "body": line, "more_body": False})
        self.status = problem.status
