"""The evaluator as a process: runs, their database, gRPC and /metrics."""

from pathlib import Path

from servox.telemetry import Metrics
from servox.v1 import evaluator_pb2, evaluator_pb2_grpc

from .database import Database
from .events import Events
from .execution import Execution
from .metrics import EvaluatorMetrics
from .peers import Peers
from .runs import Runs
from .servicer import EvaluatorServicer
from .settings import Settings


class EvaluatorServer:
    """One evaluator.

    Args:
        settings: where it listens, where its peers are, where results go.
        metrics: the registry that /metrics shows.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._counters = EvaluatorMetrics(metrics)
        self._database = Database(settings.database)
        self._runs = Runs(self._database, self._execute, self._counters)
        self._server = settings.server("servox.v1.Evaluator", door=settings.door(metrics))

    async def start(self) -> str:
        """Listens and serves; runs that a dead evaluator left running are marked failed.

        Returns:
            The address that clients use.
        """
        self._database.end_interrupted()
        servicer = EvaluatorServicer(self._runs, self._database, self._settings.runs)
        evaluator_pb2_grpc.add_EvaluatorServicer_to_server(servicer, self._server.grpc)  # type: ignore[no-untyped-call]
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
        """Cancels runs at work (what they stored stays), drains, closes."""
        await self._runs.close()
        await self._server.stop()
        self._database.close()
        self._metrics.stop()

    async def _execute(self, run: evaluator_pb2.Run, events: Events) -> Path:
        peers = Peers(self._settings)
        try:
            execution = Execution(self._settings, peers, self._counters, self._database)
            return await execution.run(run, events)
        finally:
            await peers.close()
