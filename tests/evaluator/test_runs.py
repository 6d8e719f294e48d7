import asyncio
from pathlib import Path

import pytest

from services.evaluator.database import Database
from services.evaluator.events import Events
from services.evaluator.metrics import EvaluatorMetrics
from services.evaluator.runs import Execute, Runs
from servox.errors import BadCorpus, NotFound, Refused
from servox.telemetry import Metrics
from servox.v1 import evaluator_pb2

RUNNING, SUCCEEDED, FAILED, CANCELLED = 1, 2, 3, 4


def _runs(tmp_path: Path, execute: Execute) -> tuple[Runs, Database, Metrics]:
    metrics = Metrics()
    database = Database(f"sqlite:///{tmp_path / 'runs.db'}")
    return Runs(database, execute, EvaluatorMetrics(metrics)), database, metrics


def _spec(tmp_path: Path) -> evaluator_pb2.RunSpec:
    return evaluator_pb2.RunSpec(data_dir="data", protocol=evaluator_pb2.PROTOCOL_SOUND, out_dir=str(tmp_path / "out"))


async def test_a_watcher_sees_the_state_the_events_and_the_end(tmp_path: Path) -> None:
    seen = asyncio.Event()

    async def execute(run: evaluator_pb2.Run, events: Events) -> Path:
        await seen.wait()
        events.progress("embed", 1, 2)
        events.warn("one clip is empty")
        return tmp_path / "report.html"

    runs, database, metrics = _runs(tmp_path, execute)
    run = runs.start(_spec(tmp_path))
    messages = []
    async for message in runs.watch(run.id):
        messages.append(message)
        seen.set()
    assert messages[0].run.state == RUNNING
    assert [message.WhichOneof("event") for message in messages[1:3]] == ["progress", "warning"]
    assert messages[-1].run.state == SUCCEEDED
    assert messages[-1].run.report == str(tmp_path / "report.html")
    assert database.get(run.id).ended_unix_ms >= run.started_unix_ms
    assert metrics.registry.get_sample_value("servox_evaluator_runs_total", {"state": "succeeded"}) == 1
    assert metrics.registry.get_sample_value("servox_evaluator_running_runs") == 0


async def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    async def execute(run: evaluator_pb2.Run, events: Events) -> Path:
        raise BadCorpus("no corpus below data")

    runs, database, _ = _runs(tmp_path, execute)
    run = runs.start(_spec(tmp_path))
    [message async for message in runs.watch(run.id)]
    assert database.get(run.id).state == FAILED
    assert database.get(run.id).error == "no corpus below data"


async def test_an_unexpected_error_fails_the_run_and_not_the_evaluator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def execute(run: evaluator_pb2.Run, events: Events) -> Path:
        raise ZeroDivisionError

    runs, database, _ = _runs(tmp_path, execute)
    run = runs.start(_spec(tmp_path))
    [message async for message in runs.watch(run.id)]
    assert "the evaluator's log has the trace" in database.get(run.id).error
    assert "ZeroDivisionError" in caplog.text


async def test_cancelling_stops_the_work_and_keeps_an_ended_run_as_it_is(tmp_path: Path) -> None:
    stopped = False

    async def execute(run: evaluator_pb2.Run, events: Events) -> Path:
        nonlocal stopped
        try:
            await asyncio.sleep(60)
        finally:
            stopped = True
        return tmp_path

    runs, _, _ = _runs(tmp_path, execute)
    run = runs.start(_spec(tmp_path))
    await asyncio.sleep(0)
    assert (await runs.cancel(run.id)).state == CANCELLED
    assert stopped
    assert (await runs.cancel(run.id)).state == CANCELLED
    with pytest.raises(NotFound, match="ListRuns"):
        await runs.cancel("nothing")


async def test_two_runs_never_write_to_one_folder(tmp_path: Path) -> None:
    async def execute(run: evaluator_pb2.Run, events: Events) -> Path:
        await asyncio.sleep(60)
        return tmp_path

    runs, _, _ = _runs(tmp_path, execute)
    runs.start(_spec(tmp_path))
    with pytest.raises(Refused, match="a run is writing there"):
        runs.start(_spec(tmp_path))
    await runs.close()
    second = runs.start(_spec(tmp_path))
    assert second.state == RUNNING
    await runs.close()


async def test_runs_of_a_dead_evaluator_are_marked_when_the_next_one_starts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    before = Database(url)
    run = before.create(_spec(tmp_path))
    before.close()
    after = Database(url)
    assert after.end_interrupted() == 1
    assert after.get(run.id).state == FAILED
    assert "start it again" in after.get(run.id).error
    assert [listed.id for listed in after.all()] == [run.id]
