"""gRPC adapters over the runs and their results."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from servox.errors import BadInput
from servox.v1 import evaluator_pb2, evaluator_pb2_grpc

from . import protocols
from .database import Database
from .runs import Runs

Context = grpc.aio.ServicerContext[Any, Any]


class EvaluatorServicer(evaluator_pb2_grpc.EvaluatorServicer):
    """The `Evaluator` service.

    Args:
        runs: those at work.
        database: all that ever were.
        default_out: where a run writes that names no folder.
    """

    def __init__(self, runs: Runs, database: Database, default_out: Path) -> None:
        self._runs = runs
        self._database = database
        self._default_out = default_out

    async def StartRun(  # noqa: N802
        self, request: evaluator_pb2.StartRunRequest, _context: Context
    ) -> evaluator_pb2.StartRunResponse:
        """Checks the spec and begins the run."""
        spec = evaluator_pb2.RunSpec()
        spec.CopyFrom(request.spec)
        protocol = protocols.from_wire(spec.protocol)
        protocol.with_seeds(spec.seeds)
        if not spec.data_dir:
            raise BadInput("data_dir is empty: give a folder with corpora/, as the evaluator sees it")
        spec.out_dir = spec.out_dir or str(self._default_out / protocol.name)
        return evaluator_pb2.StartRunResponse(run=self._runs.start(spec))

    async def WatchRun(  # noqa: N802
        self, request: evaluator_pb2.WatchRunRequest, _context: Context
    ) -> AsyncIterator[evaluator_pb2.WatchRunResponse]:
        """Events until the run ends."""
        async for message in self._runs.watch(request.id):
            yield message

    async def GetRun(  # noqa: N802
        self, request: evaluator_pb2.GetRunRequest, _context: Context
    ) -> evaluator_pb2.GetRunResponse:
        """One run."""
        return evaluator_pb2.GetRunResponse(run=self._database.get(request.id))

    async def ListRuns(  # noqa: N802
        self, _request: evaluator_pb2.ListRunsRequest, _context: Context
    ) -> evaluator_pb2.ListRunsResponse:
        """Every run, newest first."""
        return evaluator_pb2.ListRunsResponse(runs=self._database.all())

    async def CancelRun(  # noqa: N802
        self, request: evaluator_pb2.CancelRunRequest, _context: Context
    ) -> evaluator_pb2.CancelRunResponse:
        """Stops a run."""
        return evaluator_pb2.CancelRunResponse(run=await self._runs.cancel(request.id))

    async def GetResults(  # noqa: N802
        self, request: evaluator_pb2.GetResultsRequest, _context: Context
    ) -> AsyncIterator[evaluator_pb2.GetResultsResponse]:
        """Every finished cell of a run's folder."""
        root = Path(self._database.get(request.id).spec.out_dir) / "results"
        for path in sorted(root.glob("*/*/*/*.json")):
            text = path.read_text()
            yield evaluator_pb2.GetResultsResponse(path=path.relative_to(root).as_posix(), cell_json=text)
