"""uvicorn's protocols on a socket of ours: one event loop with gRPC, one drain, no signals and no polling.

- A client that stalls is cut off: one that never finishes its headers, one that stops reading its answer, one that goes
  on sending what was refused. uvicorn itself waits for them for ever.
- Compression of the WebSocket is off, so that a small message cannot become a large one.
"""

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

import h11
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol
from uvicorn.server import ServerState

from services.prober.settings import Settings
from servox.certificates import Certificates, subject_of
from servox.errors import Unavailable

from .encoding import dumps
from .entrance import CERTIFICATE
from .problems import MEDIA_TYPE, Problem
from .traffic import Traffic

HEADER_BYTES = 16 << 10  # request line and headers together
MESSAGE_BYTES = 1 << 20  # of the WebSocket: 5 s of 48 kHz stereo float
BACKLOG = 512
PING_S = 20.0
KEEP_ALIVE_S = 75  # longer than gateways keep a connection, so that it is they who close it
LAST_WORDS_S = 2.0  # for answers and closing handshakes, once all that was admitted is through


class _State(ServerState):
    """What connections share; the date is told as each answer begins."""

    def __init__(self, idle_s: float) -> None:
        self.idle_s = idle_s
        super().__init__()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"date", formatdate(usegmt=True).encode())]

    @default_headers.setter
    def default_headers(self, value: object) -> None:
        """Uvicorn's own server would set it once a second."""


class _Stall:
    """A timer that cuts a connection off."""

    def __init__(self, protocol: Any, idle_s: float) -> None:  # noqa: ANN401 -- either of uvicorn's
        self._protocol, self._idle_s = protocol, idle_s
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, stalled: bool) -> None:
        """Starts the timer, lets it run on, or stops it."""
        if stalled and self._timer is None:
            self._timer = self._protocol.loop.call_later(self._idle_s, self._protocol.transport.abort)
        elif not stalled and self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Http(H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state[CERTIFICATE] = subject_of(transport.get_extra_info("ssl_object"))
        self.access_log = False  # it would show paths and queries
        idle_s = self.server_state.idle_s  # type: ignore[attr-defined]
        self._sending, self._reading = _Stall(self, idle_s), _Stall(self, idle_s)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._sending.watch(False)
        self._reading.watch(False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def handle_websocket_upgrade(self, event: Any) -> None:  # noqa: ANN401 -- of h11
        self._sending.watch(False)
        self._reading.watch(False)
        super().handle_websocket_upgrade(event)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.watch(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.watch(False)

    def send_400_response(self, msg: str) -> None:
        """Bytes that are not HTTP as we take it, in our own form; uvicorn calls this as it handles the error."""
        error = sys.exception()
        status = HTTPStatus(error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400)
        detail = f"{msg.rstrip('.')}: send HTTP/1.1"
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            detail = f"request line and headers of more than {HEADER_BYTES} bytes: send fewer, or shorter ones"
        body = dumps(Problem(status=status, kind=status.phrase.replace(" ", ""), detail=detail).members(""))
        first = f"HTTP/1.1 {status.value} {status.phrase}"
        head = f"{first}\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def _look(self) -> None:
        """The client has to send: the rest of its headers, or of a body that was answered already."""
        upgraded = self.transport.get_protocol() is not self
        cycle: RequestResponseCycle | None = self.cycle
        between = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        answered = cycle is not None and cycle.response_complete and not between  # uvicorn's own timer has the pause
        self._sending.watch(not upgraded and (cycle is None or answered))


class _Stream(WSProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reading = _Stall(self, self.idle_s)

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.idle_s: float = server_state.idle_s  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading.watch(False)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.watch(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.watch(False)


class Listener:
    """One HTTP server.

    Args:
        app: what is served.
        traffic: of the app; waited for when it stops.
        settings: where it listens, certificates, patience.
        alarm: told whether changed certificates cannot be used.
    """

    _LOUDEST: ClassVar[int] = logging.ERROR  # what uvicorn says below it, the app says better

    def __init__(
        self, app: ASGIApp, traffic: Traffic, settings: Settings, alarm: Callable[[bool], None] = lambda _: None
    ) -> None:
        self._settings, self._traffic, self._alarm = settings, traffic, alarm
        self._state = _State(settings.http_idle_s)
        self._config = Config(
            app,
            http=_Http,
            ws=_Stream,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=HEADER_BYTES,
            ws_max_size=MESSAGE_BYTES,
            ws_ping_interval=PING_S,
            ws_ping_timeout=None,  # a stream that waits for the embedder is not read, and so hears no pong
            ws_per_message_deflate=False,
        )
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listens.

        Returns:
            `http://host:port`, or `unix:/path`.

        Raises:
            Unavailable: the address is taken.
            BadSetting: the certificate cannot be read.
        """
        logging.getLogger("uvicorn.error").setLevel(self._LOUDEST)
        self._config.load()
        loop, settings = asyncio.get_running_loop(), self._settings
        context = self._tls()
        try:
            if settings.http_socket:
                self._server = await loop.create_unix_server(
                    self._protocol, sock=_bound(settings.http_socket), ssl=context, backlog=BACKLOG
                )
                return f"unix:{settings.http_socket}"
            self._server = await loop.create_server(
                self._protocol, settings.http_host, settings.http_port, ssl=context, backlog=BACKLOG
            )
        except OSError as error:
            where = settings.http_socket or f"{settings.http_host}:{settings.http_port}"
            raise Unavailable(f"cannot listen for HTTP on {where}: {error.strerror}; choose another address") from None
        host, port = self._server.sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if context else 'http'}://{shown}:{port}"

    def _tls(self) -> ssl.SSLContext | None:
        settings = self._settings
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        ca = settings.tls_client_ca
        return Certificates(settings.tls_certificate, settings.tls_key, ca, alarm=self._alarm).ssl()

    def _protocol(self) -> _Http:
        return _Http(self._config, self._state, {})

    async def stop(self, wait_s: float, grace_s: float) -> None:
        """Drains: serves on for `wait_s`, then admits nothing, lets what was admitted finish, and closes."""
        if self._server is None:
            return
        await asyncio.sleep(wait_s)
        self._server.close()
        await self._traffic.close(grace_s)
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=LAST_WORDS_S)
        for task in list(self._state.tasks):
            task.cancel()
        for connection in list(self._state.connections):
            connection.transport.abort()
        self._server = None


def _bound(path: Path) -> socket.socket:
    """A socket that nobody listens on any more is taken over; one in use is left, and binding it fails."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)):
                path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(str(path))
    except OSError:
        bound.close()
        raise
    return bound
