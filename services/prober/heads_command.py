"""`servox heads …`: the registry of heads at hand, without a prober; a running one sees every change at once."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from servox.errors import ServoxError

from .command_options import AsJson, Folder, Named, at_work, open_registry, print_last
from .exchange import Imported, archives_at, export_head, import_head
from .promotion import Promotions
from .promotion_command import COMMANDS
from .registry import Entry

heads_app = typer.Typer(no_args_is_help=True, help="Heads: what the registry holds, and the way in and out of it.")

for _name, _command in COMMANDS.items():
    heads_app.command(_name)(_command)


@heads_app.command("list")
def list_heads(
    prefix: Annotated[str, typer.Argument(help="Beginning of the names; folds of evaluations begin with fold.")] = "",
    heads: Folder = None,
    as_json: AsJson = False,
) -> None:
    """List heads, the oldest version of a name first."""
    registry = open_registry(heads)
    entries = list(map(Promotions(registry).staged, registry.entries(prefix)))
    table = Table("head", "version", "kind", "classes", "F1", "bundle", "made", "", box=None, pad_edge=False)
    for entry in entries:
        card, scores = entry.card, entry.card.out_of_fold
        score = f"{scores.macro_f1:.3f}" if scores else "–"
        made, stage = card.created[:16].replace("T", " "), "" if entry.stage == "candidate" else entry.stage
        cells = (card.name, card.version, card.kind, ", ".join(card.classes), score, card.bundle[:12], made, stage)
        table.add_row(*map(escape, cells))
    Console().print(table)
    print_last({"heads": [document_of(entry) for entry in entries]}, as_json=as_json)


@heads_app.command("show")
def show_head(name: Named, heads: Folder = None, as_json: AsJson = False) -> None:
    """Show a head's card: what it was trained on, for which bundle, how far it can be trusted."""
    promotions = Promotions(open_registry(heads))
    entry = promotions.entry(name)
    known = promotions.evaluation(entry)
    document = {**document_of(entry), "evaluation": json.loads(known.to_json()) if known else None}
    for key, value in document.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for inner, each in value.items():
                typer.echo(f"  {inner}: {_text(each)}")
        else:
            typer.echo(f"{key}: {_text(value)}")
    print_last(document, as_json=as_json)


@heads_app.command("delete")
def delete_head(
    name: Named,
    heads: Folder = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also the promoted version.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a version for good; calls that name it are answered NOT_FOUND from then on."""
    registry = open_registry(heads)
    tag = ":".join(registry.resolve(name)) if ":" in name else name
    if tag != name.partition(":")[0] and not yes:
        typer.confirm(f"Delete {tag} for good?", abort=True)
    with at_work():
        gone = Promotions(registry).delete(tag, force=force)
    typer.echo(f"deleted {gone}")
    print_last({"deleted": gone}, as_json=as_json)


@heads_app.command("export")
def export_heads(
    name: Named,
    url: Annotated[str, typer.Argument(help="Folder or .bentomodel file: a path or any fsspec URL (s3://…).")],
    heads: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Write a head to a folder or an object store, as one sealed archive."""
    written = export_head(open_registry(heads), name, url)
    typer.echo(f"wrote {written}")
    print_last({"exported": written}, as_json=as_json)


@heads_app.command("import")
def import_heads(
    url: Annotated[str, typer.Argument(help="An archive, or a folder of them: a path or any fsspec URL (s3://…).")],
    heads: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Read heads that `servox heads export` wrote; exit code 1 if any archive was refused."""
    registry = open_registry(heads, make=True)
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
    print_last({"imported": list(_tags(found)), "refused": refused}, as_json=as_json)
    raise typer.Exit(int(bool(refused)))


def document_of(entry: Entry) -> dict[str, Any]:
    """One head for `--json`: its card, its digest, whether its name answers with it."""
    facts = {"digest": entry.digest, "production": entry.production, "stage": entry.stage}
    return {**json.loads(entry.card.to_json()), **facts}


def _tags(found: Iterable[Imported]) -> Iterable[dict[str, Any]]:
    return ({"head": each.entry.card.tag, "digest": each.entry.digest, "new": each.new} for each in found)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
