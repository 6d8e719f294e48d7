"""The prober's HTTP face as a BentoML service: `bentoml serve services.prober.bento:Prober`, or a Bento of it.

- It is the app that `servox serve prober` runs, with the same settings (`SERVOX_PROBER_…`), around a dataplane of its
  own; gRPC is not served here.
- BentoML has routes of its own under /livez, /readyz and /metrics, which know nothing of the prober, and matches them
  before a mounted app. So the app is put in front of BentoML's router, and every path means what the app says.
- BentoML's metrics and its access log are off: the app counts and logs each request itself.
"""

import logging
import os
import warnings
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from servox.telemetry import configure_logging

from .http.hosted import Hosted
from .settings import Settings

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its own dependencies', on import
    import bentoml


class Front:
    """Gives every request to the prober's app; only starting and stopping is BentoML's.

    Args:
        inner: BentoML's app.
        face: the prober's.
    """

    def __init__(self, inner: ASGIApp, *, face: ASGIApp) -> None:
        self._inner, self._face = inner, face

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection of ASGI."""
        await (self._inner if scope["type"] == "lifespan" else self._face)(scope, receive, send)


_settings = Settings.load()
_face = Hosted(_settings)


@bentoml.service(
    name="servox-prober",
    traffic={"timeout": _settings.http_timeout_s},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Prober:
    """Speech emotion recognition over HTTP: audio in, emotions out."""

    @bentoml.on_startup  # type: ignore[untyped-decorator]  # BentoML has no types
    def log(self) -> None:
        """Logs as the prober does, now that BentoML has set up its own way; uvicorn would log queries and addresses."""
        configure_logging("prober", _settings.log_level)
        logging.getLogger("uvicorn.access").setLevel(logging.WARNING)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def close(self) -> None:
        """Lets what was admitted finish, and closes the connection to the embedder."""
        await _face.close()


def _in_front(service: Any) -> None:  # noqa: ANN401 -- BentoML has no types
    service.add_asgi_middleware(Front, face=_face)


_in_front(Prober)
