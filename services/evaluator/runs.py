"""Runs at work: one task a run, any number of watchers.

The task is the only one that changes its run's state. A run that is cancelled, or whose evaluator is killed, leaves
whole files only; the next run into the same folder goes on from them.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

from servox.errors import Refused, ServoxError
from servox.v1 import evaluator_pb2

from .database import Database
from .events import Events
from .metrics import EvaluatorMetrics

log = logging.getLogger(__name__)

Execute = Callable[[evaluator_pb2.Run, Events], Coroutine[None, None, Path]]
_LABELS = {
    evaluator_pb2.RUN_STATE_SUCCEEDED: "succeeded",
    evaluator_pb2.RUN_STATE_FAILED: "failed",
    evaluator_pb2.RUN_STATE_CANCELLED: "cancelled",
}


class Runs:
    """Starts, watches and cancels runs.

    Args:
        database: where their state is kept.
        execute: does the work of one run and returns the report's path.
        metrics: counts them.
    """

    def __init__(self, database: Database, execute: Execute, metrics: EvaluatorMetrics) -> None:
        self._database = database
        self._execute = execute
        self._metrics = metrics
        self._tasks: dict[str, asyncio.Task[Path]] = {}
        self._folders: dict[str, str] = {}
        self._watchers: dict[str, list[asyncio.Queue[evaluator_pb2.WatchRunResponse | None]]] = {}

    def start(self, spec: evaluator_pb2.RunSpec) -> evaluator_pb2.Run:
        """Begins a run.

        Raises:
            Refused: another run is writing to the same folder.
        """
        folder = str(Path(spec.out_dir).resolve())
        if folder in self._folders.values():
            raise Refused(f"out_dir {spec.out_dir}: a run is writing there; wait for it, cancel it or choose another")
        run = self._database.create(spec)
        self._folders[run.id] = folder
        self._watchers[run.id] = []
        self._metrics.running.inc()
        task = asyncio.create_task(self._execute(run, Events(lambda message: self._publish(run.id, message))))
        task.add_done_callback(lambda done: self._end(run.id, done))
        self._tasks[run.id] = task
        return run

    async def watch(self, run_id: str) -> AsyncIterator[evaluator_pb2.WatchRunResponse]:
        """Messages from now until the run ends; the first and the last tell its state.

        Raises:
            NotFound: there is no such run.
        """
        queue: asyncio.Queue[evaluator_pb2.WatchRunResponse | None] = asyncio.Queue()
        yield evaluator_pb2.WatchRunResponse(run=self._database.get(run_id))
        if run_id in self._tasks:
            self._watchers[run_id].append(queue)
            while (message := await queue.get()) is not None:
                yield message
            yield evaluator_pb2.WatchRunResponse(run=self._database.get(run_id))

    async def cancel(self, run_id: str) -> evaluator_pb2.Run:
        """Stops a run after the piece of work at hand; a run that has ended stays as it is.

        Raises:
            NotFound: there is no such run.
        """
        self._database.get(run_id)
        if task := self._tasks.get(run_id):
            task.cancel()
            await asyncio.wait([task])
        return self._database.get(run_id)

    async def close(self) -> None:
        """Cancels what is at work, for the end of the process."""
        for run_id in list(self._tasks):
            await self.cancel(run_id)

    def _end(self, run_id: str, task: asyncio.Task[Path]) -> None:
        state, error, report = evaluator_pb2.RUN_STATE_SUCCEEDED, "", ""
        failure = None if task.cancelled() else task.exception()
        if task.cancelled():
            state = evaluator_pb2.RUN_STATE_CANCELLED
        elif isinstance(failure, ServoxError):
            state, error = evaluator_pb2.RUN_STATE_FAILED, str(failure)
        elif failure is not None:
            log.error("run failed", exc_info=failure, extra={"run": run_id})
            state, error = evaluator_pb2.RUN_STATE_FAILED, "internal error; the evaluator's log has the trace"
        else:
            report = str(task.result())
        self._database.end(run_id, state, error=error, report=report)
        self._metrics.running.dec()
        self._metrics.runs.labels(_LABELS[state]).inc()
        del self._tasks[run_id], self._folders[run_id]
        for queue in self._watchers.pop(run_id):
            queue.put_nowait(None)

    def _publish(self, run_id: str, message: evaluator_pb2.WatchRunResponse) -> None:
        for queue in self._watchers[run_id]:
            queue.put_nowait(message)
