"""`servox recognize`: through a prober that runs somewhere, or one started here on the heads of `SERVOX_HOME`."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from servox.client import Client
from servox.errors import BadInput, BadSetting, BundleError, NotFound
from servox.keys import key_of_environment

from .hearing import FORMATS, NAMED, Answer, Asked, hear, json_text, prior_of


def recognize(
    files: Annotated[list[Path], typer.Argument(help="Audio files.", show_default=False)],
    head: Annotated[str, typer.Option(help="Head: NAME or NAME:VERSION.", show_default=False)],
    bundle: Annotated[Path | None, typer.Option(help="Bundle of the head; found by its digest if not given.")] = None,
    address: Annotated[str, typer.Option(help="Address of a prober; one is started here if empty.")] = "",
    window: Annotated[float, typer.Option(help="Length of a window in seconds; 0 for the whole file.")] = 0.0,
    hop: Annotated[float, typer.Option(help="Seconds from window to window; 0 for side by side.")] = 0.0,
    prior: Annotated[str, typer.Option(help=f"{', '.join(NAMED)}, or label=probability,…")] = "train",
    every_window: Annotated[bool, typer.Option("--every-window", help="Answer windows without speech too.")] = False,
    tenant: Annotated[str, typer.Option(help="Whose calibration answers; the caller's own if empty.")] = "",
    uncalibrated: Annotated[bool, typer.Option("--uncalibrated", help="Also answer without that calibration.")] = False,
    purpose: Annotated[str, typer.Option(help="What the answers are for, where the prober's policy asks.")] = "",
    timeout: Annotated[float, typer.Option(help="Most seconds for a file; 0 for as long as it takes.")] = 0.0,
    form: Annotated[str, typer.Option("--format", help="table, csv, json or ndjson.")] = "table",
    out: Annotated[Path | None, typer.Option(help="Where to write it; the screen if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")] = False,
) -> None:
    """Recognise emotions in audio files; exit code 1 if any of them could not be heard."""
    if form not in FORMATS:
        raise BadSetting(f"--format {form!r}: give {', '.join(FORMATS)}")
    asked = Asked(
        head=head,
        prior=prior_of(prior),
        window_ms=_ms("--window", window),
        hop_ms=_ms("--hop", hop),
        every_window=every_window,
        tenant=tenant,
        uncalibrated=uncalibrated,
        purpose=purpose,
        timeout_s=_ms("--timeout", timeout) / 1000 or None,
    )
    if asked.hop_ms and not asked.window_ms:
        raise BadSetting(f"--hop {hop:g} without --window: give both, or neither for whole files")
    answers = asyncio.run(_collect(files, asked, address, bundle))
    _write(FORMATS[form](answers), out)
    if as_json:
        typer.echo(json_text(answers), nl=False)
    failed = [answer for answer in answers if answer.error is not None]
    for answer in failed if out or form == "csv" else []:
        why = str(answer.error).removeprefix(f"{answer.path}: ")
        typer.secho(f"error: {answer.path}: {why}", fg=typer.colors.RED, err=True)
    raise typer.Exit(int(bool(failed)))


async def _collect(files: list[Path], asked: Asked, address: str, bundle: Path | None) -> list[Answer]:
    async with (
        _prober(address, asked.head, bundle) as reachable,
        Client(prober=reachable, key=key_of_environment()) as client,
    ):
        return [answer async for answer in hear(client, files, asked)]


def _ms(flag: str, seconds: float) -> int:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise BadSetting(f"{flag} {seconds:g}: give seconds, 0 or more")
    return round(seconds * 1000)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise BadSetting(f"--out {out}: {error.strerror}; choose another place") from None


@asynccontextmanager
async def _prober(address: str, head: str, bundle: Path | None) -> AsyncIterator[str]:
    if address:
        yield address  # the client's own packages are enough
        return
    try:
        from .house import running

        folder = bundle or bundle_of(head)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("services", "servox"):
            raise
        raise BadInput(
            f"a prober of one's own needs the package {error.name!r}: pip install 'servox[embedder,prober]', or name a "
            "running one with --address"
        ) from None
    async with running(bundle=folder) as house:
        yield house.prober


def bundle_of(head: str) -> Path:
    """The bundle below `SERVOX_HOME` whose embeddings a head reads.

    Raises:
        NotFound: no such head, or its bundle is not there.
    """
    from servox.settings import home

    from .embedder import bundle as bundles
    from .prober.registry import Registry
    from .prober.settings import Settings

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
