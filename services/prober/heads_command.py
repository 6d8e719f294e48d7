"""`servox heads …`: the registry of heads at hand, without a prober; a running one sees every change at once."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from servox.errors import BadSetting, NotFound, ServoxError

from .exchange import Imported, archives_at, export_head, import_head
from .registry import Entry, Registry
from .settings import Settings

heads_app = typer.Typer(no_args_is_help=True, help="Heads: what the registry holds, and the way in and out of it.")

Folder = Annotated[Path | None, typer.Option("--heads", help="Folder of the registry; the prober's own by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")]
Named = Annotated[str, typer.Argument(help="NAME, NAME:VERSION, NAME:latest or NAME:production.", show_default=False)]


def _registry(folder: Path | None, *, make: bool = False) -> Registry:
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


@heads_app.command("list")
def list_heads(
    prefix: Annotated[str, typer.Argument(help="Beginning of the names; folds of evaluations begin with fold.")] = "",
    heads: Folder = None,
    as_json: AsJson = False,
) -> None:
    """List heads, the oldest version of a name first."""
    entries = _registry(heads).entries(prefix)
    table = Table("head", "version", "kind", "classes", "F1", "bundle", "made", "", box=None, pad_edge=False)
    for entry in entries:
        card, scores = entry.card, entry.card.out_of_fold
        score = f"{scores.macro_f1:.3f}" if scores else "–"
        made, stage = card.created[:16].replace("T", " "), "production" if entry.production else ""
        cells = (card.name, card.version, card.kind, ", ".join(card.classes), score, card.bundle[:12], made, stage)
        table.add_row(*map(escape, cells))
    Console().print(table)
    _last({"heads": [document_of(entry) for entry in entries]}, as_json=as_json)


@heads_app.command("show")
def show_head(name: Named, heads: Folder = None, as_json: AsJson = False) -> None:
    """Show a head's card: what it was trained on, for which bundle, how far it can be trusted."""
    entry = _registry(heads).entry(name)
    for key, value in document_of(entry).items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for inner, each in value.items():
                typer.echo(f"  {inner}: {_text(each)}")
        else:
            typer.echo(f"{key}: {_text(value)}")
    _last(document_of(entry), as_json=as_json)


@heads_app.command("promote")
def promote_head(name: Named, heads: Folder = None, as_json: AsJson = False) -> None:
    """Make a version what its bare name answers with; refused unless its scores pass their floor."""
    entry = _registry(heads).promote(name)
    typer.echo(f"{entry.card.name} answers with {entry.card.tag} from now on")
    _last({"promoted": entry.card.tag, "digest": entry.digest}, as_json=as_json)


@heads_app.command("delete")
def delete_head(
    name: Named,
    heads: Folder = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also the promoted version.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a version for good; calls that name it are answered NOT_FOUND from then on."""
    registry = _registry(heads)
    tag = ":".join(registry.resolve(name)) if ":" in name else name
    if tag != name.partition(":")[0] and not yes:
        typer.confirm(f"Delete {tag} for good?", abort=True)
    gone = registry.delete(tag, force=force)
    typer.echo(f"deleted {gone}")
    _last({"deleted": gone}, as_json=as_json)


@heads_app.command("export")
def export_heads(
    name: Named,
    url: Annotated[str, typer.Argument(help="Folder or .bentomodel file: a path or any fsspec URL (s3://…).")],
    heads: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Write a head to a folder or an object store, as one sealed archive."""
    written = export_head(_registry(heads), name, url)
    typer.echo(f"wrote {written}")
    _last({"exported": written}, as_json=as_json)


@heads_app.command("import")
def import_heads(
    url: Annotated[str, typer.Argument(help="An archive, or a folder of them: a path or any fsspec URL (s3://…).")],
    heads: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Read heads that `servox heads export` wrote; exit code 1 if any archive was refused."""
    registry = _registry(heads, make=True)
    found: list[Imported] = []
    refused: dict[str, str] = {}
    for each in archives_at(url):
        try:
            found.append(import_head(registry, each))
        except ServoxError as error:
            refused[each] = str(error)
    for one in found:
        typer.echo(f"{one.entry.card.tag} {'imported' if one.new else 'was there already'}")
    for why in refused.values():
        typer.secho(f"error: {why}", fg=typer.colors.RED, err=True)
    _last({"imported": list(_tags(found)), "refused": refused}, as_json=as_json)
    raise typer.Exit(int(bool(refused)))


def document_of(entry: Entry) -> dict[str, Any]:
    """One head for `--json`: its card, its digest, whether its name answers with it."""
    return {**json.loads(entry.card.to_json()), "digest": entry.digest, "production": entry.production}


def _tags(found: Iterable[Imported]) -> Iterable[dict[str, Any]]:
    return ({"head": each.entry.card.tag, "digest": each.entry.digest, "new": each.new} for each in found)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _last(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
