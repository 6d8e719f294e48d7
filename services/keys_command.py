"""`servox keys …`: the file of API keys that servers read; a running one sees every change within a second."""

import json
import re
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from servox import key_file
from servox.errors import BadSetting
from servox.keys import Key, moment_s, read_keys
from servox.scopes import SCOPES

keys_app = typer.Typer(no_args_is_help=True, help="API keys: who may call, for what, how much.")

File = Annotated[Path, typer.Option("--file", help="File of the keys; servers are given it as `--keys`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")]
Id = Annotated[str, typer.Argument(help="Id of the key: the part between its underscores.", show_default=False)]
KEYS = Path("keys.json")
_RATE = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(/s)?")
_SPAN = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>[smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@keys_app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose it is; servers log it.", show_default=False)],
    file: File = KEYS,
    scopes: Annotated[str, typer.Option(help=f"What it lets its holder do, with commas: {', '.join(SCOPES)}.")] = (
        "recognize,heads"
    ),
    tenant: Annotated[str, typer.Option(help="Whose speech it sends; empty for any tenant's.")] = "",
    rate: Annotated[str, typer.Option(help="Calls a second, such as 10/s; 0 for any.")] = "0",
    audio_s_per_day: Annotated[float, typer.Option(min=0, help="Seconds of audio a day (UTC); 0 for any.")] = 0.0,
    streams: Annotated[int, typer.Option(min=0, help="Streams at a time; 0 for any.")] = 0,
    expires: Annotated[str, typer.Option(help="When it ends: 90d, 12h, or a date; empty for never.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once and kept nowhere: standard output has it alone, and nothing else."""
    facts = Key(
        id="",
        name=name,
        sha256="",
        scopes=tuple(word.strip() for word in scopes.split(",") if word.strip()),
        tenant=tenant,
        rate_per_s=rate_of(rate),
        audio_s_per_day=audio_s_per_day,
        streams=streams,
        expires=moment_of(expires),
    )
    text, made = key_file.create(file, facts)
    _show(text, made, file, as_json=as_json)


@keys_app.command("list")
def list_keys(file: File = KEYS, as_json: AsJson = False) -> None:
    """List keys, the oldest first; their secrets are nowhere."""
    keys = list(read_keys(file).values())
    table = Table("id", "name", "tenant", "scopes", "calls/s", "audio s/day", "streams", "state", box=None)
    for key in keys:
        limits = [f"{each:g}" if each else "any" for each in (key.rate_per_s, key.audio_s_per_day, key.streams)]
        cells = (key.id, key.name, key.tenant or "any", ",".join(key.scopes), *limits, _state(key))
        table.add_row(*map(escape, cells))
    Console().print(table)
    if as_json:
        typer.echo(json.dumps({"keys": [_public(key) for key in keys]}, ensure_ascii=False))


@keys_app.command()
def revoke(ids: Annotated[list[str], typer.Argument(help="Ids.", show_default=False)], file: File = KEYS) -> None:
    """Take keys away: calls with them are refused, and streams with them end, within a second."""
    for key in key_file.revoke(file, ids):
        typer.echo(f"key {key.id} ({key.name}) is revoked", err=True)


@keys_app.command()
def rotate(
    name: Id,
    file: File = KEYS,
    overlap: Annotated[str, typer.Option(help="How long the old one goes on: 24h, 0s for not at all.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a key with the same rights in the place of one, which goes on for a while."""
    text, made = key_file.rotate(file, name, overlap=span_of(overlap))
    _show(text, made, file, as_json=as_json)


def _show(text: str, made: Key, file: Path, *, as_json: bool) -> None:
    typer.echo(f"{file} knows key {made.id} of {made.name}; keep this, it is shown once:", err=True)
    typer.echo(json.dumps({"key": text, **_public(made)}, ensure_ascii=False) if as_json else text)


def _public(key: Key) -> dict[str, object]:
    return {name: value for name, value in asdict(key).items() if name != "sha256"}


def _state(key: Key) -> str:
    return key.ended(time.time()) or (f"until {key.expires}" if key.expires else "counts")


def rate_of(text: str) -> float:
    """Calls a second.

    Raises:
        BadSetting: no rate.
    """
    if not (found := _RATE.fullmatch(text)):
        raise BadSetting(f"--rate {text!r}: give calls a second, such as 10/s")
    return float(found["number"])


def span_of(text: str) -> timedelta:
    """A span of time.

    Raises:
        BadSetting: none.
    """
    if not (found := _SPAN.fullmatch(text)):
        raise BadSetting(f"time {text!r}: give seconds, minutes, hours or days, such as 90s, 15m, 24h or 30d")
    return timedelta(**{_UNITS[found["unit"]]: int(found["number"])})


def moment_of(text: str) -> str:
    """When something ends, as the file has it: a span from now, a date, or never.

    Raises:
        BadSetting: none of these.
    """
    if not text:
        return ""
    ends_s = time.time() + span_of(text).total_seconds() if _SPAN.fullmatch(text) else moment_s(text)
    if ends_s <= time.time():
        raise BadSetting(f"--expires {text!r} is over already: give a later time")
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(ends_s))
