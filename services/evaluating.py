"""`servox evaluate run`: starts a run and watches it, on an evaluator somewhere or on one of its own."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from servox.errors import BadSetting, ServoxError, Unavailable
from servox.keys import key_of_environment
from servox.rpc import channel, translated
from servox.settings import home
from servox.v1 import evaluator_pb2, evaluator_pb2_grpc

from .evaluator.protocols import to_wire
from .evaluator.report.command import report_command
from .house import running

console = Console(stderr=True)

REWATCH_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # pauses before a broken stream is opened again


def run(
    data: Annotated[Path, typer.Option(help="folder with corpora/, one folder a corpus")],
    bundle: Annotated[Path | None, typer.Option(help="bundle to embed with; not needed with --evaluator")] = None,
    protocol: Annotated[str, typer.Option(help="sound or ser-evals")] = "sound",
    corpora: Annotated[str, typer.Option(help="keys, separated by commas; all that are found if empty")] = "",
    seeds: Annotated[int, typer.Option(help="how many seeds; 0: the protocol's default")] = 0,
    out: Annotated[Path | None, typer.Option(help="where results and the report go")] = None,
    evaluator: Annotated[str, typer.Option(help="address of an evaluator; one is started here if empty")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON last")] = False,
) -> None:
    """Train and score heads on every eligible corpus and pair, and write the report."""
    spec = evaluator_pb2.RunSpec(
        data_dir=str(data.absolute()),
        protocol=to_wire(protocol),
        corpora=[key.strip() for key in corpora.split(",") if key.strip()],
        seeds=seeds,
        out_dir=str((out or home() / "runs" / protocol).absolute()),
    )
    if not evaluator and bundle is None:
        raise BadSetting("--bundle: none given; name the folder that `servox export` wrote, or --evaluator ADDRESS")
    began = time.monotonic()
    finished = asyncio.run(evaluate(spec, bundle=bundle, address=evaluator))
    report_command(Path(spec.out_dir), json_line=False, every=False, title=None)
    if as_json:
        seconds = round(time.monotonic() - began, 1)
        typer.echo(json.dumps({"run": finished.id, "report": finished.report, "seconds": seconds}))


async def evaluate(spec: evaluator_pb2.RunSpec, *, bundle: Path | None, address: str = "") -> evaluator_pb2.Run:
    """Runs `spec` on the evaluator at `address`, or on services of our own, with progress on standard error.

    Raises:
        ServoxError: the run could not start, failed or was cancelled.
    """
    async with _evaluator(bundle, address) as reachable, channel(reachable, key=key_of_environment()) as opened:
        stub = evaluator_pb2_grpc.EvaluatorStub(opened)  # type: ignore[no-untyped-call]
        with translated(f"evaluator at {reachable}"):
            started = await stub.StartRun(evaluator_pb2.StartRunRequest(spec=spec), wait_for_ready=True, timeout=60)
            last = await _watch(stub, started.run.id)
    if last.state != evaluator_pb2.RUN_STATE_SUCCEEDED:
        raise ServoxError(last.error or "the run was cancelled; start it again to go on from what is stored")
    return last


@asynccontextmanager
async def _evaluator(bundle: Path | None, address: str) -> AsyncIterator[str]:
    if address:
        yield address
        return
    async with AsyncExitStack() as stack:
        with console.status("starting the services"):
            house = await stack.enter_async_context(running(bundle=bundle, evaluator=True))
        yield house.evaluator


async def _watch(stub: evaluator_pb2_grpc.EvaluatorStub, run_id: str) -> evaluator_pb2.Run:
    """The run once it has ended. A stream that breaks is opened again: the run goes on without its watcher."""
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[eta]}"), console=console) as bars:
        tasks: dict[str, TaskID] = {}
        for pause_s in REWATCH_S:
            try:
                last = await _follow(stub, run_id, bars, tasks)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            else:
                if last.state != evaluator_pb2.RUN_STATE_RUNNING:
                    return last
            await asyncio.sleep(pause_s)
    raise Unavailable(
        f"the evaluator stays away; run {run_id} goes on there if it lives: start it again to see its end"
    )


async def _follow(
    stub: evaluator_pb2_grpc.EvaluatorStub, run_id: str, bars: Progress, tasks: dict[str, TaskID]
) -> evaluator_pb2.Run:
    last = evaluator_pb2.Run(state=evaluator_pb2.RUN_STATE_RUNNING)
    async for message in stub.WatchRun(evaluator_pb2.WatchRunRequest(id=run_id)):
        if message.HasField("run"):
            last = message.run
        if message.WhichOneof("event") == "warning":
            bars.console.print(f"[yellow]warning:[/yellow] {escape(message.warning)}", highlight=False)
        elif message.WhichOneof("event") == "progress":
            _advance(bars, tasks, message.progress)
    return last


def _advance(bars: Progress, tasks: dict[str, TaskID], step: evaluator_pb2.Progress) -> None:
    if step.phase not in tasks:
        tasks[step.phase] = bars.add_task(step.phase, total=step.total, eta="")
    left = f"about {round(step.eta_ms / 1000)} s left" if step.done < step.total and step.eta_ms else ""
    bars.update(tasks[step.phase], completed=step.done, total=step.total, eta=left)
