"""What the commands of `servox heads` share: their options, the registry they work on, and who is at work."""

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from servox.callers import Caller, calling
from servox.errors import BadSetting, NotFound

from .registry import Registry
from .settings import Settings

Folder = Annotated[Path | None, typer.Option("--heads", help="Folder of the registry; the prober's own by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")]
Named = Annotated[str, typer.Argument(help="NAME, NAME:VERSION, NAME:latest or NAME:production.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the history.")]


def open_registry(folder: Path | None, *, make: bool = False) -> Registry:
    """The registry in a folder; a mistyped one must not be made by looking into it.

    Raises:
        NotFound: there is none.
        BadSetting: the folder cannot be used.
    """
    if folder is not None and not make and not folder.is_dir():
        raise NotFound(f"--heads {folder}: there is no such folder; name that of a registry")
    place = folder or Settings.load().heads
    try:
        return Registry(place)
    except OSError as error:
        raise BadSetting(f"--heads {place}: {error.strerror}; choose another folder") from None


@contextmanager
def at_work() -> Iterator[None]:
    """Inside, whoever is logged in is the one who calls: a history names them."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        name = f"uid {os.getuid()}"
    with calling(Caller(name=name)):
        yield


def print_last(document: dict[str, Any], *, as_json: bool) -> None:
    """The line for machines."""
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
