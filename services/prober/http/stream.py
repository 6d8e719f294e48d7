"""`WS /v1/stream`: raw samples in, windows out as they are whole; the recogniser is the one of gRPC's RecognizeStream.

- The caller sends a config in JSON, then samples in binary messages of any length, then `{"type": "end"}`.
- The server answers `ready`, a `window` each, and `end`; an error is a problem, and then the connection is closed: 1008
  for what the caller did, 1013 for what may work later, 1011 for the rest.
- Samples are drawn as windows are answered and read: a caller who stops reading is not listened to, and nothing grows.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
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
from services.prober.posterior import Posterior
from services.prober.settings import Settings
from services.prober.sound import Chunks
from services.prober.windows import Samples
from servox.errors import BadInput, ServoxError
from servox.v1 import common_pb2

from .encoding import dumps, to_json
from .entrance import spoken
from .problems import Gone, Problem, Refusal, problem_of
from .stream_config import Config, config_of, object_of

log = logging.getLogger(__name__)

CALLERS_FAULT, SERVERS_FAULT, LATER, FINE = 1008, 1011, 1013, 1000


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
        await websocket.accept(spoken(websocket.scope.get("subprotocols", ())))
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
        posterior = await self._dataplane.posterior(config.ask)
        bundle = (await self._dataplane.describe()).bundle
        posterior.head.check_bundle(bundle.digest)
        await talk.send("ready", _used(posterior, bundle))
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


def _used(posterior: Posterior, bundle: common_pb2.Bundle) -> dict[str, Any]:
    shown = to_json(messages.answered(posterior, bundle))
    shown.pop("window", None)
    return {**shown, "classes": list(posterior.head.card.classes)}


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
        elif object_of(text).get("type") == "end":
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
        if problem.retryable:
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
