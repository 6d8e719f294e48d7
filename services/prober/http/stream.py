"""`WS /v1/stream`: raw samples in, windows out as they are whole; the recogniser is the one of gRPC's RecognizeStream.

- The caller sends a config in JSON, then samples in binary messages of any length, then `{"type": "end"}`.
- The server answers `ready`, a `window` each, and `end`; an error is a problem, and then the connection is closed: 1008
  for what the caller did, 1013 for what may work later, 1011 for the rest.
- Samples are drawn as windows are answered and read: a caller who stops reading is not listened to, and nothing grows.
"""

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from services.prober import messages
from services.prober.dataplane import Dataplane
from services.prober.metrics import ProberMetrics
from services.prober.posterior import Posterior, Prior
from services.prober.settings import Settings
from services.prober.sound import Chunks
from services.prober.windows import Grid, Samples, grid
from servox.audio import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, Encoding
from servox.errors import BadInput, ServoxError
from servox.v1 import common_pb2

from .encoding import dumps, to_json
from .problems import Gone, Problem, Refusal, problem_of
from .queries import MAX_INTEGER, bad_value, prior_of

log = logging.getLogger(__name__)

CALLERS_FAULT, SERVERS_FAULT, LATER, FINE = 1008, 1011, 1013, 1000
_ENCODINGS: dict[str, Encoding] = {"s16le": "s16le", "f32le": "f32le"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a stream is.

    Attributes:
        head: name, or name:version.
        prior: to assume.
        shape: of the windows, at the rate of the samples.
        channels: interleaved.
        encoding: of a sample.
        every_window: answer windows without speech as well.
        next_window: first window to answer, for a stream that goes on.
    """

    head: str
    prior: Prior
    shape: Grid
    channels: int
    encoding: Encoding
    every_window: bool
    next_window: int


def config_of(text: str) -> Config:
    """The config in a message.

    Raises:
        Refusal: 400, what cannot be read.
        BadInput: values out of range.
    """
    given = _object(text)
    unknown = sorted(set(given) - {"type", *_DEFAULTS})
    if unknown or given.get("type", "config") != "config":
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"the first message has {str(unknown or given['type'])[:100]!r}: send a config with {', '.join(_DEFAULTS)}",
            name=unknown[0][:100] if unknown else "type",
        )
    head, encoding, every = (_of(given, name) for name in ("head", "format", "every_window"))
    if not isinstance(head, str) or not head:
        raise bad_value("head", json.dumps(head), "give the name of a head")
    if not isinstance(encoding, str) or encoding not in _ENCODINGS:
        raise bad_value("format", json.dumps(encoding), "give s16le or f32le")
    if not isinstance(every, bool):
        raise bad_value("every_window", json.dumps(every), "give true or false")
    rate_hz = _whole(given, "rate_hz", MIN_RATE_HZ, MAX_RATE_HZ)
    return Config(
        head=head,
        prior=prior_of(given.get("prior")),
        shape=grid(_whole(given, "window_ms", 0, MAX_INTEGER), _whole(given, "hop_ms", 0, MAX_INTEGER), rate_hz),
        channels=_whole(given, "channels", 1, MAX_CHANNELS),
        encoding=_ENCODINGS[encoding],
        every_window=every,
        next_window=_whole(given, "next_window", 0, MAX_INTEGER),
    )


_DEFAULTS: dict[str, object] = {
    "head": None,
    "window_ms": None,
    "hop_ms": 0,
    "rate_hz": None,
    "channels": 1,
    "format": "s16le",
    "prior": "train",
    "every_window": False,
    "next_window": 0,
}


def _object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "a text message is no JSON object: send a config first, an end last")
    return document


def _of(given: dict[str, Any], name: str) -> object:
    value = given.get(name)
    return _DEFAULTS[name] if value is None else value


def _whole(given: dict[str, Any], name: str, low: int, high: int) -> int:
    value = _of(given, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad_value(name, json.dumps(value), f"give a whole number from {low} to {high}")
    return value


class Streams:
    """The route.

    Args:
        dataplane: does the work.
        settings: patience.
        metrics: counts calls.
        origins: of other pages that may connect; `*` for all.
    """

    def __init__(
        self, dataplane: Dataplane, settings: Settings, metrics: ProberMetrics, origins: Sequence[str] = ()
    ) -> None:
        self._dataplane, self._settings, self._metrics = dataplane, settings, metrics
        self._origins = origins

    async def opened(self, websocket: WebSocket) -> None:
        """One connection.

        Raises:
            Refusal: 403, before it is accepted: a page of another origin.
            Gone: the caller left.
        """
        check_origin(websocket.headers, self._origins)
        await websocket.accept()
        talk = Talk(websocket)
        try:
            received = self._dataplane.patient(talk.received())
            config = config_of(await _first(received))
            with self._metrics.call("RecognizeStream"):
                count = await self._served(talk, config, received)
        except (ServoxError, HTTPException) as error:
            await talk.fail(problem_of(error))
        except Gone:
            raise
        except Exception as error:  # the process's edge: answered, logged, not hidden
            log.exception("unexpected error", extra={"request_id": websocket.scope["request_id"]})
            await talk.fail(problem_of(error))
        else:
            await talk.send("end", {"windows": count})
            await talk.close(FINE)

    async def _served(self, talk: "Talk", config: Config, received: AsyncIterator[Message]) -> int:
        posterior = await self._dataplane.posterior(config.head, config.prior)
        bundle = (await self._dataplane.describe()).bundle
        posterior.head.check_bundle(bundle.digest)
        await talk.send("ready", _used(config, posterior, bundle))
        return await self._windows(talk, config, posterior, received)

    async def _windows(
        self, talk: "Talk", config: Config, posterior: Posterior, received: AsyncIterator[Message]
    ) -> int:
        chunks = _samples(received, Chunks(config.encoding, config.channels))
        answers = self._dataplane.stream(
            chunks,
            config.shape,
            posterior,
            next_window=config.next_window,
            every_window=config.every_window,
        )
        count, classes = 0, posterior.head.card.classes
        async with aclosing(answers):
            async for window, _ in answers:
                await talk.send("window", to_json(messages.window_to_proto(window, classes)))
                count += 1
        return count


def check_origin(headers: Headers, origins: Sequence[str]) -> None:
    """Browsers let any page open a WebSocket anywhere and say whose page it is; others say nothing.

    Raises:
        Refusal: 403, a page of another origin that no setting allows.
    """
    origin = headers.get("origin")
    if origin is None or "*" in origins or origin.rstrip("/") in origins:
        return
    if urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            f"pages of {origin[:100]!r} may not connect: allow them on the server (http_origins)",
            name="Origin",
            value=origin[:100],
        )


def _used(config: Config, posterior: Posterior, bundle: common_pb2.Bundle) -> dict[str, Any]:
    return {
        "head": to_json(messages.head_to_proto(posterior.head)),
        "bundle": to_json(bundle),
        "prior": to_json(messages.prior_to_proto(config.prior.kind, posterior.prior)),
        "classes": list(posterior.head.card.classes),
    }


async def _first(received: AsyncIterator[Message]) -> str:
    message = await anext(received, None)
    text = message.get("text") if message else None
    if text is None:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the stream began without a config: send one as text, then samples")
    return str(text)


async def _samples(received: AsyncIterator[Message], chunks: Chunks) -> AsyncIterator[Samples]:
    async for message in received:
        if (text := message.get("text")) is None:
            yield chunks.push(message["bytes"])
        elif _object(text).get("type") == "end":
            break
        else:
            raise BadInput('the stream holds a second config: open another one to change it, or send {"type": "end"}')
    chunks.finish()


class Talk:
    """One connection, once it is accepted."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._request_id: str = websocket.scope["request_id"]
        self._open = True

    async def received(self) -> AsyncIterator[Message]:
        """What the caller sends.

        Raises:
            Gone: they left.
        """
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise Gone
            yield message

    async def send(self, kind: str, members: dict[str, Any]) -> None:
        """One message.

        Raises:
            Gone: nobody is there to read it.
        """
        if self._open:
            await self._passed({"type": "websocket.send", "text": dumps({"type": kind, **members}).decode()})

    async def fail(self, problem: Problem) -> None:
        """Says what was wrong, and closes."""
        code = SERVERS_FAULT if problem.status >= 500 else CALLERS_FAULT
        if problem.retry_after_s is not None:
            code = LATER
        elif problem.status == HTTPStatus.GATEWAY_TIMEOUT:
            code = CALLERS_FAULT  # nothing came
        await self.send("error", {"problem": problem.members(self._request_id)})
        await self.close(code, problem.kind)

    async def close(self, code: int, reason: str = "") -> None:
        """Closes, once."""
        if self._open:
            self._open = False
            await self._passed({"type": "websocket.close", "code": code, "reason": reason})

    async def _passed(self, message: Message) -> None:
        try:
            await self._websocket.send(message)
        except (WebSocketDisconnect, WebSocketDisconnected):
            raise Gone from None
