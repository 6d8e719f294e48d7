"""The prober as a process: registry, connection to the embedder, gRPC, HTTP and /metrics, one drain for all."""

import asyncio
import logging

from servox.telemetry import Metrics
from servox.v1 import prober_pb2_grpc

from .dataplane import Dataplane
from .http import Listener, app
from .metrics import ProberMetrics
from .servicer import ProberServicer
from .settings import Settings

log = logging.getLogger(__name__)


class ProberServer:
    """One prober.

    Args:
        settings: where it listens, where heads lie, where the embedder is.
        metrics: the registry that /metrics shows.

    Raises:
        StorageFull: the registry's folder cannot be made.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._counters = ProberMetrics(metrics)
        self._dataplane: Dataplane | None = None
        self._server = settings.server("servox.v1.Prober", door=settings.door(metrics))
        self._listener: Listener | None = None
        self.http = ""  # address, once it serves

    async def start(self) -> str:
        """Listens and serves.

        Returns:
            The address that clients use.

        Raises:
            Unavailable: an address is taken.
        """
        self._dataplane = Dataplane(self._settings, self._counters)
        servicer = ProberServicer(self._dataplane, self._counters)
        prober_pb2_grpc.add_ProberServicer_to_server(servicer, self._server.grpc)  # type: ignore[no-untyped-call]
        self._metrics.start(self._settings.metrics_host, self._settings.metrics_port)
        address = await self._server.start()
        await self._listen(self._dataplane)
        await self._server.serving(True)
        return address

    async def _listen(self, dataplane: Dataplane) -> None:
        if not self._settings.http_port and not self._settings.http_socket:
            return
        face = app(
            dataplane,
            self._settings,
            self._counters,
            door=self._server.door,
            ready=lambda: self._server.ready,
        )
        self._listener = Listener(face, face.traffic, self._settings, self._server.door.stale("certificates"))
        self.http = await self._listener.start()
        log.info("serving HTTP", extra={"address": self.http})

    async def wait_failed(self) -> None:
        """Returns once stopped.

        Raises:
            Unavailable: nobody can call any more, so the process must end.
        """
        await self._server.wait_failed()

    async def stop(self) -> None:
        """Drains, closes; a training that outlasts the grace is stopped, and its finished heads stay."""
        stopping = [self._server.stop()]
        if self._listener is not None:
            stopping.append(self._listener.stop(self._settings.drain_wait_s, self._settings.drain_grace_s))
        await asyncio.gather(*stopping)  # gRPC's first: it says NOT_SERVING, and /readyz repeats it
        if self._dataplane is not None:
            await self._dataplane.close()
        self._metrics.stop()
