"""`servox train`: a folder or a table of one's own speech becomes a head with one command.

Clips are checked before anything is computed; what the store holds already is not embedded again; the embedder and the
prober are the same servers as anywhere else, started here for the purpose.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from servox import audio
from servox.arrays import EmbeddingStore, Floats, LabelledClip, write_clip_set
from servox.client import Client, Clip, Embedding
from servox.errors import BadCorpus, BadInput, BadSetting
from servox.keys import key_of_environment
from servox.settings import home
from servox.v1 import prober_pb2

from .embedder import bundle as bundles
from .embedder.bundle import Bundle
from .house import running
from .own_speech import Checked, OwnClip, check, read
from .prober.specs import NAME
from .prober.training_command import WIRE_KINDS, Trained, settings_from, table_of, train_head

POOLING, DURATION = "mean", "duration"  # where the evaluator looks as well
PART_CLIPS = 64

console = Console(stderr=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The head that is wanted."""

    name: str
    kind: str
    layer: int
    seed: int
    settings: dict[str, float]


def train(
    source: Annotated[Path, typer.Argument(help="Folder EMOTION/SPEAKER/clip.wav, or a .csv or .parquet table.")],
    bundle: Annotated[Path, typer.Option(help="Bundle to embed with.", show_default=False)],
    name: Annotated[str, typer.Option(help="Of the head; the source's own name if empty.")] = "",
    kind: Annotated[str, typer.Option(help="mlp or logistic.")] = "mlp",
    layer: Annotated[int, typer.Option(help="Of the bundle; -1 for its default.", min=-1)] = -1,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    setting: Annotated[list[str] | None, typer.Option("--set", help="NAME=NUMBER; see docs/training.md.")] = None,
    store: Annotated[str, typer.Option(help="Of embeddings: folder or URL; below SERVOX_HOME if empty.")] = "",
    any_label: Annotated[bool, typer.Option("--any-label", help="Accept labels outside the vocabulary.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out clips with a fault.")] = False,
    check_only: Annotated[bool, typer.Option("--check", help="Say what is wrong, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")] = False,
) -> None:
    """Train a head on your own speech; exit code 1 if something is wrong with it."""
    held = bundles.load(bundle)
    order = Order(
        name=name or _name_of(source),
        kind=kind,
        layer=held.default_layer if layer < 0 else layer,
        seed=seed,
        settings=settings_from(kind, setting or ()),
    )
    if not NAME.fullmatch(order.name):
        raise BadSetting(f"--name {order.name!r}: use lower-case letters, digits, '.', '-' and '_'")
    held.layer_index(order.layer)
    found = checked(source, held, any_label=any_label, skip_bad=skip_bad)
    if check_only:
        raise typer.Exit(int(not found.usable))
    if not found.usable:
        raise BadCorpus(f"{source}: see above; mend it, or leave bad clips out with --skip-bad")
    trained = asyncio.run(_train(found.clips, held, order, store or str(home() / "store")))
    Console().print(table_of(trained.card))
    if as_json:
        typer.echo(json.dumps({"digest": trained.digest, "reused": trained.reused, "card": asdict(trained.card)}))


def _name_of(source: Path) -> str:
    kept = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in source.stem.lower())
    return kept.strip("-")[:63].strip("-") or "own"


def checked(source: Path, bundle: Bundle, *, any_label: bool, skip_bad: bool) -> Checked:
    """Reads and checks the source, and prints what was found.

    Raises:
        BadCorpus: the source is no folder or table of clips.
    """
    rows = read(source)
    limits = audio.Limits(min_duration_ms=bundle.min_duration_ms, max_duration_ms=bundle.max_duration_ms)
    with _progress() as bar:
        task = bar.add_task("check", total=len(rows))
        found = check(
            rows,
            rate_hz=bundle.rate_hz,
            limits=limits,
            any_label=any_label,
            skip_bad=skip_bad,
            tick=lambda: bar.advance(task),
        )
    for finding in found.findings:
        colour = "red" if finding.severity == "error" else "yellow"
        console.print(f"[{colour}]{finding.severity}[/]: {escape(str(finding))}", highlight=False, soft_wrap=True)
    speakers = len({clip.speaker for clip in found.clips if clip.speaker})
    classes = sorted({clip.label for clip in found.clips})
    console.print(f"{len(found.clips)} of {len(rows)} clips, {speakers} speakers, classes {', '.join(classes)}")
    return found


async def _train(clips: Sequence[OwnClip], bundle: Bundle, order: Order, store: str) -> Trained:
    async with running(bundle=bundle.folder) as house:
        await embed_missing(clips, bundle, store=EmbeddingStore(store), address=house.embedder)
        labelled = [LabelledClip(key=clip.key, label=clip.label, speaker=clip.speaker) for clip in clips]
        spec = prober_pb2.HeadSpec(
            name=order.name,
            kind=WIRE_KINDS[order.kind][1],
            bundle_digest=bundle.digest,
            layer=order.layer,
            clip_set_url=write_clip_set(f"{store.rstrip('/')}/sets", labelled),
            seed=order.seed,
            calibrate=True,
            settings=order.settings,
        )
        with _progress() as bar:
            task = bar.add_task("train", total=100)
            request = prober_pb2.TrainRequest(store_url=store, heads=[spec])
            return await train_head(
                house.prober, request, tell=lambda share: bar.update(task, completed=round(100 * share))
            )


async def embed_missing(clips: Sequence[OwnClip], bundle: Bundle, *, store: EmbeddingStore, address: str) -> int:
    """Embeds what the store does not hold yet, in parts; returns how many that were.

    Raises:
        BadInput: a clip that was whole when it was checked cannot be embedded.
        StorageFull: the store refused a part.
    """
    known = store.keys(bundle=bundle.digest, pooling=POOLING)
    missing = {clip.key: clip for clip in clips if clip.key not in known}
    arrays, seconds = dict[str, Floats](), dict[str, Floats]()

    def flush() -> None:
        if arrays:
            store.write(bundle=bundle.digest, pooling=DURATION, arrays=seconds)
            store.write(bundle=bundle.digest, pooling=POOLING, arrays=arrays)
            arrays.clear()
            seconds.clear()

    with _progress() as bar:
        task = bar.add_task("embed", total=len(clips), completed=len(clips) - len(missing))
        async with Client(embedder=address, key=key_of_environment()) as client:
            wanted = (Clip(id=key, audio=clip.path) for key, clip in missing.items())
            async for answer in client.embed(wanted, pooling="mean", layers=bundle.layers):
                if not isinstance(answer, Embedding):
                    flush()  # what is done is kept
                    raise BadInput(f"{missing[answer.id].path}: {answer.error}")
                arrays[answer.id] = np.asarray(answer.array, dtype=np.float32)
                seconds[answer.id] = np.array([answer.duration_ms / 1000], dtype=np.float32)
                bar.advance(task)
                if len(arrays) >= PART_CLIPS:
                    await asyncio.to_thread(flush)
    flush()
    return len(missing)


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        yield bar
