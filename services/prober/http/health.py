"""`/livez`, `/readyz` and `/metrics`, for whoever supervises the process."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from servox.errors import Unavailable

from .encoding import dumps
from .media import JSON


class Health:
    """The routes.

    Args:
        ready: what gRPC's health says of the whole server.
        registry: of metrics.
    """

    def __init__(self, ready: Callable[[], bool], registry: CollectorRegistry) -> None:
        self._ready, self._registry = ready, registry

    async def live(self, request: Request) -> Response:  # noqa: ARG002 -- Starlette gives it
        """The event loop answers."""
        return Response(dumps({"status": "ok"}), media_type=JSON)

    async def readiness(self, request: Request) -> Response:  # noqa: ARG002
        """Whether to send requests here.

        Raises:
            Unavailable: not yet, or not any more.
        """
        if not self._ready():
            raise Unavailable("the server is not ready: it starts or stops; ask again")
        return Response(dumps({"status": "ok"}), media_type=JSON)

    async def metrics(self, request: Request) -> Response:
        """Metrics as Prometheus reads them."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"Content-Type": media_type})
