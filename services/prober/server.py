"""The prober as a process: registry, connection to the embedder, gRPC and /metrics."""

from servox.telemetry import Metrics
from servox.v1 import prober_pb2_grpc

from .dataplane import Dataplane
from .metrics import ProberMetrics
from .servicer import ProberServicer
from .settings import Settings


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
        self._server = settings.server("servox.v1.Prober")

    async def start(self) -> str:
        """Listens and serves.

        Returns:
            The address that clients use.

        Raises:
            Unavailable: the address is taken.
        """
        self._dataplane = Dataplane(self._settings, self._counters)
        servicer = ProberServicer(self._dataplane, self._counters)
        prober_pb2_grpc.add_ProberServicer_to_server(servicer, self._server.grpc)  # type: ignore[no-untyped-call]
        self._metrics.start(self._settings.metrics_host, self._settings.metrics_port)
        address = await self._server.start()
        await self._server.serving(True)
        return address

    async def wait_failed(self) -> None:
        """Returns once stopped.

        Raises:
            Unavailable: nobody can call any more, so the process must end.
        """
        await self._server.wait_failed()

    async def stop(self) -> None:
        """Drains, closes; a training that outlasts the grace is stopped, and its finished heads stay."""
        await self._server.stop()
        if self._dataplane is not None:
            await self._dataplane.close()
        self._metrics.stop()
