"""The HTTP app: every route, around one dataplane that gRPC shares."""

from collections.abc import Callable
from http import HTTPStatus
from typing import NoReturn

from starlette.requests import Request
from starlette.routing import BaseRoute, Route, Router, WebSocketRoute
from starlette.types import Receive, Scope, Send

from services.prober.dataplane import Dataplane
from services.prober.metrics import ProberMetrics
from services.prober.settings import Settings
from servox.doors import OPEN_DOOR, Door

from .description import document
from .edge import Edge
from .embeddings import Embeddings
from .health import Health
from .pages import Pages
from .problems import Refusal
from .recognition import Recognitions
from .registry import Heads
from .stream import Streams
from .traffic import Traffic


def app(
    dataplane: Dataplane,
    settings: Settings,
    metrics: ProberMetrics,
    *,
    door: Door = OPEN_DOOR,
    ready: Callable[[], bool] = lambda: True,
) -> Edge:
    """The ASGI app.

    Args:
        dataplane: does the work.
        settings: limits.
        metrics: counts, and shows what /metrics answers.
        door: who is let in.
        ready: what /readyz says.
    """
    routes = _routes(dataplane, settings, metrics, ready)
    traffic = Traffic(
        max_requests=settings.max_requests, max_streams=settings.max_streams, under_way=metrics.http_under_way
    )
    return Edge(
        Router(routes, redirect_slashes=False, default=_nowhere),
        templates={route.endpoint: route.path for route in routes if isinstance(route, Route | WebSocketRoute)},
        counters=metrics,
        traffic=traffic,
        door=door,
        timeout_s=settings.http_timeout_s,
        origins=origins_of(settings),
    )


def origins_of(settings: Settings) -> tuple[str, ...]:
    """Origins whose pages may call."""
    return tuple(origin.strip().rstrip("/") for origin in settings.http_origins.split(",") if origin.strip())


def _routes(
    dataplane: Dataplane, settings: Settings, metrics: ProberMetrics, ready: Callable[[], bool]
) -> list[BaseRoute]:
    health, heads = Health(ready, metrics.registry), Heads(dataplane, metrics)
    pages = Pages(document(settings))
    return [
        Route("/v1/recognize", Recognitions(dataplane, settings, metrics), methods=["POST"]),
        Route("/v1/embeddings", Embeddings(dataplane, settings, metrics), methods=["POST"]),
        Route("/v1/heads", heads.listed, methods=["GET"]),
        Route("/v1/heads/{name}", heads.one, methods=["GET"]),
        WebSocketRoute("/v1/stream", Streams(dataplane, settings, metrics, origins_of(settings)).opened),
        Route("/v1/stream", _upgrade, methods=["GET"]),
        Route("/livez", health.live, methods=["GET"]),
        Route("/readyz", health.readiness, methods=["GET"]),
        Route("/metrics", health.metrics, methods=["GET"]),
        Route("/openapi.json", pages.openapi, methods=["GET"]),
        Route("/docs", pages.guide, methods=["GET"]),
        Route("/docs/style.css", pages.guide_style, methods=["GET"]),
        Route("/", pages.index, methods=["GET"]),
        Route("/static/{name}", pages.static, methods=["GET"]),
    ]


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> NoReturn:  # noqa: ARG001 -- of ASGI
    raise Refusal(HTTPStatus.NOT_FOUND, f"there is nothing at {scope['path'][:100]!r}: /docs lists what there is")


async def _upgrade(request: Request) -> NoReturn:  # noqa: ARG001 -- Starlette gives it
    raise Refusal(
        HTTPStatus.UPGRADE_REQUIRED,
        "/v1/stream is a WebSocket: connect to it with ws: or wss:",
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )
