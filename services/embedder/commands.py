"""`servox export`: a checkpoint to a bundle, with its parity shown."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from services.embedder.bundle import Bundle, Figure
from services.embedder.contexts import SYNTAX
from servox.errors import BadInput

if TYPE_CHECKING:
    from services.embedder.precisions import Trial

MEANING = {
    "hidden": "largest error of hidden states, unit scale",
    "precision": "RMS error of clip means / spread between clips",
    "context": "standardised cosine to the padded encoder",
    "tensorrt": "RMS error of TensorRT's clip means / spread between clips",
}


def export(
    source: Annotated[str, typer.Argument(help="Hub id (openai/whisper-base), checkpoint folder, or logmel.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    context: Annotated[
        str | None,
        typer.Option(
            help=f"What follows a clip: {SYNTAX}. Default: silence:32 for Whisper, padded for CLAP, else exact."
        ),
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="Blocks to keep, or all. Default: half.")] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, int8, fp16 (GPUs), or auto: the fastest on this CPU that keeps its parity.")
    ] = "fp32",
    engine: Annotated[
        str, typer.Option(help="tensorrt: build its engines for this machine's GPU, ahead of serving; auto: none.")
    ] = "auto",
    clips: Annotated[
        Path | None, typer.Option(help="File or folder to measure parity on. Default: corpora of SERVOX_DATA.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put the bundle in place of an old one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")] = False,
) -> None:
    """Export an encoder into a bundle: one file from waveform to embedding, its parity measured."""
    try:
        # Imported here: torch and transformers take seconds, which `--help` does not wait for.
        from services.embedder.export import export as export_bundle
        from services.embedder.precisions import export_fastest
    except ModuleNotFoundError as error:
        raise BadInput(f"`export` needs the package {error.name!r}: pip install 'servox[embedder,export]'") from None

    console = Console(stderr=as_json)
    data = os.environ.get("SERVOX_DATA")
    options: dict[str, Any] = {
        "context": context,
        "blocks": blocks,
        "clips": [clips] if clips else [],
        "data_root": Path(data) if data else None,
        "replace_existing": replace,
    }
    tried: list[Trial] = []
    with _bar(console) as tell:
        if precision == "auto" and engine == "auto":
            bundle, tried = export_fastest(source, out, progress=tell, **options)
        else:
            bundle = export_bundle(source, out, precision=precision, engine=engine, progress=tell, **options)
    if tried:
        console.print(trial_table(tried, bundle))
    console.print(parity_table(bundle))
    console.print(f"[bold]{bundle.source}[/] → {out} · {bundle.context} · {bundle.blocks} blocks · {bundle.precision}")
    if as_json:
        typer.echo(json.dumps(summary(bundle), ensure_ascii=False))


def parity_table(bundle: Bundle) -> Table:
    """The parity figures beside their bounds."""
    table = Table("figure", "value", "bound", "", title=f"Parity with transformers, {bundle.parity_clips}")
    for figure in bundle.parity:
        table.add_row(MEANING[figure.name], f"{figure.value:.3g}", _bound(figure), "ok" if figure.passed else "out")
    return table


def trial_table(tried: "Sequence[Trial]", chosen: Bundle) -> Table:
    """What `--precision auto` measured."""
    table = Table("precision", "error", "seconds of speech a second", "", title="Precisions on this CPU, one thread")
    for trial in tried:
        figures = [f"{trial.error:.3g}" if trial.error is not None else "-"]
        figures.append(f"{trial.realtime:.0f}" if trial.realtime is not None else "-")
        table.add_row(
            trial.precision, *figures, "chosen" if trial.precision == chosen.precision else trial.refused or "slower"
        )
    return table


def summary(bundle: Bundle) -> dict[str, Any]:
    """What `--json` prints: the manifest and the folder."""
    return {"bundle": str(bundle.folder), **bundle.manifest()}


def _bound(figure: Figure) -> str:
    if figure.bound is None:
        return "-"
    return f"{'≤' if figure.at_most else '≥'} {figure.bound:g}"


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, float], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("start", total=1.0)

        def tell(step: str, done: float) -> None:
            bar.update(task, description=step, completed=done)

        yield tell
