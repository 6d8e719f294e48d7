"""`servox demo`: the whole benchmark on what speech there is, from a checkpoint to a report.

Where the input comes from, in this order: `SERVOX_DATA` (or `../shared` when it exists), a folder with `corpora/` and
`models/`; else the model hub and the small corpora that anyone may download; else, without a network, generated speech
and the weight-free log-mel backbone, said loudly to be a smoke run.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from servox.errors import BadSetting, NotFound, ServoxError, Unavailable
from servox.settings import home
from servox.v1 import evaluator_pb2

from .embedder import bundle as bundles
from .evaluating import evaluate
from .evaluator.corpora import discover, load_cards
from .evaluator.corpora.download import download
from .evaluator.protocols import PROTOCOLS, to_wire
from .evaluator.report.command import report_command

console = Console(stderr=True)

CHECKPOINT = "whisper-base"
HUB = f"openai/{CHECKPOINT}"
SMALL = ("emodb", "urdu", "turev-db", "ravdess")  # direct downloads of at most a few hundred MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a demo gets its input."""

    data: Path
    checkpoint: str
    note: str
    synthetic: bool = False


def demo(
    protocol: Annotated[str, typer.Option(help="sound or ser-evals")] = "sound",
    seeds: Annotated[int, typer.Option(help="how many seeds; 0: the protocol's default")] = 0,
    smoke: Annotated[
        bool, typer.Option(help="generated speech and the log-mel backbone, whatever else there is")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON last")] = False,
) -> None:
    """Export whisper-base, embed every corpus that is found, train, score, and write the report."""
    if protocol not in PROTOCOLS:
        raise BadSetting(f"--protocol {protocol!r}: give one of {', '.join(PROTOCOLS)}")
    began = time.monotonic()
    source = _smoke() if smoke else _source()
    console.print(Panel(source.note, style="bold red" if source.synthetic else "green", title="speech"))
    bundle = _bundle(source, protocol)
    out = home() / "runs" / (f"smoke-{protocol}" if source.synthetic else protocol)
    spec = evaluator_pb2.RunSpec(
        data_dir=str(source.data.absolute()),
        protocol=to_wire(protocol),
        corpora=["emodb"] if source.synthetic and protocol == "ser-evals" else [],
        seeds=seeds,
        out_dir=str(out.absolute()),
    )
    run = asyncio.run(evaluate(spec, bundle=bundle))
    report_command(out, json_line=False, every=False, title=None)
    seconds = round(time.monotonic() - began, 1)
    console.print(f"done in {seconds} s")
    if as_json:
        typer.echo(json.dumps({"report": run.report, "seconds": seconds, "synthetic": source.synthetic}))


def _source() -> Source:
    root = data_root()
    if root is not None and discover(root):
        local = root / "models" / CHECKPOINT
        where = str(local) if local.is_dir() else HUB
        return Source(data=root, checkpoint=where, note=f"corpora in {root / 'corpora'}, checkpoint {where}")
    try:
        return _downloaded()
    except ServoxError as error:
        console.print(f"[yellow]no speech could be fetched:[/yellow] {error}", highlight=False)
        return _smoke()


def data_root() -> Path | None:
    """The folder that `SERVOX_DATA` names, else `../shared` where it exists, else None.

    Raises:
        NotFound: `SERVOX_DATA` names no folder.
    """
    named = os.environ.get("SERVOX_DATA")
    if named and not Path(named).is_dir():
        raise NotFound(f"SERVOX_DATA = {named!r}: there is no such folder; name one with corpora/ and models/")
    root = Path(named) if named else Path("../shared")
    return root.resolve() if root.is_dir() else None


def _downloaded() -> Source:
    folder, cards = home() / "data", load_cards()
    with _bar() as bar:
        for key in SMALL:
            task = bar.add_task(f"download {key}", total=None)
            try:
                download(cards[key], folder, progress=_file_progress(bar, task))
            except Unavailable as error:
                # One host that is down must not cost the others; none at all ends in a smoke run.
                console.print(f"[yellow]{key} was left out:[/yellow] {error}", highlight=False)
    if not discover(folder):
        raise Unavailable("none of the corpora that anyone may download could be fetched")
    note = f"corpora downloaded to {folder / 'corpora'}, checkpoint {HUB} from the model hub"
    return Source(data=folder, checkpoint=HUB, note=note)


def _smoke() -> Source:
    from . import synthesis  # scipy's filters, which real speech does without

    folder = home() / "synthetic"
    if not (folder / synthesis.MARK).exists():
        synthesis.write(folder)
    note = "SMOKE RUN on generated speech with the log-mel backbone: the scores say nothing about real speech."
    return Source(data=folder, checkpoint="logmel", note=note, synthetic=True)


def _bundle(source: Source, protocol: str) -> Path:
    name = Path(source.checkpoint).name
    padded = protocol == "ser-evals" and not source.synthetic
    folder = home() / "bundles" / (f"{name}-padded" if padded else name)
    if folder.is_dir():
        bundles.load(folder)
        return folder
    from .embedder.export import export  # torch and transformers, which a second run does without

    with _bar() as bar:
        task = bar.add_task(f"export {name}", total=1.0)
        export(
            source.checkpoint,
            folder,
            context="padded" if padded else None,
            blocks="all" if padded else None,
            data_root=None if source.synthetic else source.data,
            progress=lambda step, done: bar.update(task, completed=done, description=f"export {name}: {step}"),
        )
    return folder


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _file_progress(bar: Progress, task: int) -> Callable[[str, int, int | None], None]:
    def update(_name: str, done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total)  # type: ignore[arg-type]  # a TaskID is an int

    return update
