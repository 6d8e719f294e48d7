"""`servox embed`: files to embeddings, through a running embedder or one started here for the purpose."""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from servox.client import Client, Clip, Embedding, Failed, Pooling
from servox.errors import BadSetting
from servox.keys import key_of_environment

from .embedding_files import FORMATS, write_embeddings

console = Console(stderr=True)

SHOWN = 20


def embed(
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle to embed with; not needed with --address.")] = None,
    address: Annotated[str, typer.Option(help="Address of a running embedder; one is started here if empty.")] = "",
    pooling: Annotated[str, typer.Option(help="mean, mean_std or frames.")] = "mean",
    layers: Annotated[str, typer.Option(help="Layers by number, as in 0,2,3; or all. Default: the bundle's.")] = "",
    truncate_ms: Annotated[int, typer.Option(help="Cut longer audio here; 0 refuses it.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to write the arrays: a .npz or a .parquet file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")] = False,
) -> None:
    """Embed audio files; exit code 1 if any of them could not be embedded."""
    if pooling not in get_args(Pooling):
        raise BadSetting(f"--pooling {pooling!r}: use {', '.join(get_args(Pooling))}")
    if out is not None and out.suffix not in FORMATS:
        raise BadSetting(f"--out {out}: its name must end in {' or '.join(FORMATS)}")
    if not address and bundle is None:
        raise BadSetting(
            "--bundle: none given; name the folder that `servox export` wrote, or --address of an embedder"
        )
    began_s = time.monotonic()
    wanted = cast("Pooling", pooling)
    answers = asyncio.run(_embed(files, bundle, address, wanted, layers, truncate_ms))
    good = [answer for answer in answers if isinstance(answer, Embedding)]
    failed = {answer.id: str(answer.error) for answer in answers if isinstance(answer, Failed)}
    if out is not None and good:
        write_embeddings(out, good, frames=pooling == "frames")
    _show(good, failed, out)
    if as_json:
        summary = {
            "embedded": len(good),
            "failed": failed,
            "bundle": good[0].bundle.digest if good else None,
            "layers": list(good[0].layers) if good else [],
            "audio_s": round(sum(answer.duration_ms for answer in good) / 1000, 3),
            "seconds": round(time.monotonic() - began_s, 3),
            "out": str(out) if out is not None and good else None,
        }
        typer.echo(json.dumps(summary, ensure_ascii=False))
    if failed:
        raise typer.Exit(1)


async def _embed(
    files: list[Path], bundle: Path | None, address: str, pooling: Pooling, layers: str, truncate_ms: int
) -> list[Embedding | Failed]:
    """Answers in the order of `files`; a file named twice is embedded once."""
    clips = {str(path): Clip(id=str(path), audio=path) for path in files}
    answers: dict[str, Embedding | Failed] = {}
    async with _embedder(bundle, address) as reachable, Client(embedder=reachable, key=key_of_environment()) as client:
        chosen = _layers(layers, (await client.describe()).layers)
        with _progress() as progress:
            bar = progress.add_task("embed", total=len(clips))
            found = client.embed(clips.values(), pooling=pooling, layers=chosen, truncate_ms=truncate_ms)
            async for answer in found:
                answers[answer.id] = answer
                progress.advance(bar)
    return [answers[name] for name in clips]


@asynccontextmanager
async def _embedder(bundle: Path | None, address: str) -> AsyncIterator[str]:
    if address:
        yield address
        return
    # With an address the client's own packages are enough; a server needs the engine's.
    from servox.telemetry import Metrics

    from .server import EmbedderServer
    from .settings import Settings

    folder = tempfile.mkdtemp(prefix="servox-")
    settings = Settings.load({"bundle": bundle, "grpc_socket": f"{folder}/embedder.sock", "metrics_port": 0})
    server = EmbedderServer(settings, Metrics())
    try:
        yield await server.start()
    finally:
        await server.stop()
        await asyncio.to_thread(shutil.rmtree, folder, True)


def _layers(text: str, held: Iterable[int]) -> list[int]:
    if text == "all":
        return list(held)
    try:
        return [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise BadSetting(f"--layers {text!r}: give numbers, as in 0,2,3; or all") from None


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)


def _show(good: list[Embedding], failed: dict[str, str], out: Path | None) -> None:
    table = Table("file", "seconds", "shape", box=None, pad_edge=False)
    for answer in good[:SHOWN]:
        cut = " (cut)" if answer.truncated else ""
        table.add_row(answer.id, f"{answer.duration_ms / 1000:.2f}{cut}", str(list(answer.array.shape)))
    if good:
        console.print(table)
    if len(good) > SHOWN:
        console.print(f"… and {len(good) - SHOWN} more")
    for name, why in failed.items():
        console.print(f"[red]{name}[/]: {why}", highlight=False)
    place = f", written to {out}" if out is not None and good else ""
    console.print(f"{len(good)} embedded{place}; {len(failed)} failed")
