"""`servox recognize`: through a prober that runs somewhere, or one started here on the heads of `SERVOX_HOME`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from servox.errors import BundleError, NotFound
from servox.settings import home

from .embedder import bundle as bundles
from .house import running
from .prober.commands import Heard, prior_of, show
from .prober.commands import recognize as recognize_files
from .prober.registry import Registry
from .prober.settings import Settings


def recognize(
    files: Annotated[list[Path], typer.Argument(help="Audio files.", show_default=False)],
    head: Annotated[str, typer.Option(help="Head: NAME or NAME:VERSION.", show_default=False)],
    bundle: Annotated[Path | None, typer.Option(help="Bundle of the head; found by its digest if not given.")] = None,
    prober: Annotated[str, typer.Option(help="Address of a prober; one is started here if empty.")] = "",
    window_ms: Annotated[int, typer.Option(help="Length of a window; 0 for the whole file.", min=0)] = 0,
    hop_ms: Annotated[int, typer.Option(help="From window to window; 0 for side by side.", min=0)] = 0,
    prior: Annotated[str, typer.Option(help="train, uniform, or label=probability,…")] = "train",
    as_json: Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")] = False,
) -> None:
    """Recognise emotions in audio files; exit code 1 if any of them could not be heard."""
    prior_of(prior)

    async def collect() -> list[Heard]:
        async with _prober(prober, head, bundle) as address:
            heard = recognize_files(files, head=head, address=address, window_ms=window_ms, hop_ms=hop_ms, prior=prior)
            return [each async for each in heard]

    raise typer.Exit(show(asyncio.run(collect()), as_json=as_json))


@asynccontextmanager
async def _prober(address: str, head: str, bundle: Path | None) -> AsyncIterator[str]:
    if address:
        yield address
        return
    folder = bundle or bundle_of(head)
    async with running(bundle=folder) as house:
        yield house.prober


def bundle_of(head: str) -> Path:
    """The bundle below `SERVOX_HOME` whose embeddings a head reads.

    Raises:
        NotFound: no such head, or its bundle is not there.
    """
    digest = Registry(Settings.load().heads).get(head).card.bundle
    for folder in sorted((home() / "bundles").glob("*/")):
        try:
            if bundles.load(folder).digest == digest:
                return folder
        except BundleError:
            continue  # a half-made bundle is not the one we look for
    raise NotFound(
        f"head {head!r} reads embeddings of bundle {digest[:12]}, and there is none such in {home() / 'bundles'}; "
        "name its folder with --bundle"
    )
