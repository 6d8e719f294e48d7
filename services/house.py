"""The three services in one process, on Unix sockets: the same servers as on a cluster, no second code path."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from servox.settings import home
from servox.telemetry import Metrics


class Service(Protocol):
    """What the composition root asks of a server."""

    async def start(self) -> str:
        """Serves; returns the address."""

    async def stop(self) -> None:
        """Drains and closes; also after a start that failed or was cancelled, and more than once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """Addresses of the services that run; empty where one was not asked for.

    Attributes:
        failed: ends, by raising, when the worker of one of them is dead.
    """

    failed: asyncio.Future[Any]
    embedder: str = ""
    prober: str = ""
    evaluator: str = ""


@asynccontextmanager
async def running(
    *,
    bundle: Path | None,
    evaluator: bool = False,
    prober: bool = True,
    sockets: Path | None = None,
    http_port: int = 0,
) -> AsyncIterator[House]:
    """Starts what is asked for, in the order in which they need each other, and stops it in reverse.

    Args:
        bundle: what the embedder serves; None starts no embedder.
        evaluator: whether to start one (it needs the other two).
        prober: whether to start one.
        sockets: folder of the Unix sockets; a temporary one if None.
        http_port: of the prober's HTTP on loopback; 0 for none.

    Raises:
        BundleError: the bundle cannot be served.
        Unavailable: a socket cannot be bound.
    """
    folder = sockets or Path(tempfile.mkdtemp(prefix="servox-"))
    folder.mkdir(parents=True, exist_ok=True)
    services: list[Service] = []
    addresses: dict[str, str] = {}
    watching: list[asyncio.Future[Any]] = []
    try:
        if bundle is not None:
            await _add("embedder", _embedder(bundle, folder), services, addresses)
        if prober:
            await _add("prober", _prober(folder, addresses.get("embedder"), http_port), services, addresses)
        if evaluator:
            await _add("evaluator", _evaluator(folder, addresses), services, addresses)
        watchers = [watch() for each in services if (watch := getattr(each, "wait_failed", None))]
        failed: asyncio.Future[Any] = asyncio.gather(*watchers) if watchers else asyncio.Future()
        watching.append(failed)
        yield House(failed=failed, **addresses)
    finally:
        for future in watching:
            future.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        for service in reversed(services):
            await service.stop()
        if sockets is None:
            await asyncio.to_thread(shutil.rmtree, folder, True)


async def _add(name: str, service: Service, services: list[Service], addresses: dict[str, str]) -> None:
    services.append(service)  # before its start: one that is cancelled halfway is undone as well
    addresses[name] = await service.start()


def _embedder(bundle: Path, folder: Path) -> Service:
    from services.embedder.server import EmbedderServer
    from services.embedder.settings import Settings

    flags = {"bundle": bundle, "grpc_socket": folder / "embedder.sock", "metrics_port": 0}
    return EmbedderServer(Settings.load(flags), Metrics())


def _prober(folder: Path, embedder: str | None, http_port: int) -> Service:
    from services.prober.server import ProberServer
    from services.prober.settings import Settings

    flags = {"grpc_socket": folder / "prober.sock", "http_port": http_port, "metrics_port": 0, "embedder": embedder}
    return ProberServer(Settings.load(flags), Metrics())


def _evaluator(folder: Path, addresses: dict[str, str]) -> Service:
    from services.evaluator.server import EvaluatorServer
    from services.evaluator.settings import Settings

    home().mkdir(parents=True, exist_ok=True)
    flags = {"grpc_socket": folder / "evaluator.sock", "metrics_port": 0, **addresses}
    return EvaluatorServer(Settings.load(flags), Metrics())
