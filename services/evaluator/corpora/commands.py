"""`servox corpora …`: what corpora there are, what a copy holds, and what a path says."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, track
from rich.table import Table as Grid

from servox.emotions import did_you_mean, in_order
from servox.errors import BadCorpus, ServoxError

from .card import PROTOCOLS, UNUSED, Card, Protocol
from .cards import find_card, load_cards
from .checks import Check, check, shortfall
from .discovery import discover, recognise
from .download import download
from .paths import parse_path
from .scanning import Skipped, walk
from .tables import Tables, read_given, read_tables

corpora_app = typer.Typer(no_args_is_help=True, help="Corpora: what exists, what a copy holds, what a path says.")

_err = Console(stderr=True)


def _out() -> Console:
    """The console of a terminal, or a wide one where the output goes to a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 160)


DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="SERVOX_DATA", help="Folder with corpora/ in it; marks what is found.")
]
ProtocolOption = Annotated[str, typer.Option("--protocol", help="sound or ser-evals: whose label map applies.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")]


@contextmanager
def _reported() -> Iterator[None]:
    """Errors of ours become one line on stderr and exit code 1."""
    try:
        yield
    except ServoxError as problem:
        _err.print(f"[red]error:[/] {escape(str(problem))}", soft_wrap=True)
        raise typer.Exit(1) from None


def _protocol(name: str) -> Protocol:
    for protocol in PROTOCOLS:
        if protocol == name:
            return protocol
    raise BadCorpus(f"unknown protocol {name!r}.{did_you_mean(name, PROTOCOLS)} Use one of {', '.join(PROTOCOLS)}.")


@corpora_app.command("list")
def list_corpora(data: DataOption = None, as_json: JsonOption = False) -> None:
    """List every corpus that has a card."""
    with _reported():
        found = discover(data) if data is not None else {}
        cards = load_cards().values()
    grid = Grid(title=f"{len(cards)} corpora", title_justify="left")
    for heading in ("key", "language", "classes", "speakers", "licence", "obtain", "found"):
        grid.add_column(heading, overflow="fold", no_wrap=heading in {"key", "obtain"})
    for card in cards:
        where = str(found[card.key]) if card.key in found else "-"
        cells = (card.key, card.language, ", ".join(classes_of(card)), _speakers_of(card), card.licence.name)
        grid.add_row(*map(escape, (*cells, "download" if card.obtain.direct else "by hand", where)))
    _out().print(grid)
    if as_json:
        typer.echo(json.dumps([_facts(card, found.get(card.key)) for card in cards], ensure_ascii=False))


def classes_of(card: Card) -> tuple[str, ...]:
    """The classes that a corpus has under `sound`, in the taxonomy's order."""
    return in_order(label for label in card.labels.sound.values() if label != UNUSED)


def _speakers_of(card: Card) -> str:
    count = str(card.speakers.count or "?")
    return count if card.speakers.id else f"{count}, not told"


def _facts(card: Card, folder: Path | None) -> dict[str, object]:
    return {
        "key": card.key,
        "name": card.name,
        "title": card.title,
        "language": card.language,
        "year": card.year,
        "classes": classes_of(card),
        "clips": card.counts.clips,
        "speakers": card.speakers.count,
        "speaker_reason": card.speakers.reason,
        "licence": card.licence.name,
        "use": card.licence.use,
        "direct": card.obtain.direct,
        "how": card.obtain.how,
        "url": card.url,
        "found": None if folder is None else str(folder),
    }


@corpora_app.command("check")
def check_folder(
    folder: Annotated[Path, typer.Argument(help="One corpus, or a folder of corpora.")],
    key: Annotated[str, typer.Option("--key", help="Read the folder as this corpus, whatever its name.")] = "",
    protocol: ProtocolOption = "sound",
    clips: Annotated[bool, typer.Option("--clips", help="Print every clip: path, raw, unified, speaker.")] = False,
    decode: Annotated[bool, typer.Option(help="Decode every file.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Check copies of corpora: what was found, what each clip parsed to, what is wrong."""
    with _reported():
        chosen = _protocol(protocol)
        checks = [
            check(root, card, protocol=chosen, decode=decode, progress=_tracked(card))
            for card, root in _chosen(folder, key)
        ]
    for result in checks:
        _show(result, clips=clips)
    if as_json:
        typer.echo(json.dumps([_summary(result) for result in checks], ensure_ascii=False))
    if any(result.failed for result in checks):
        raise typer.Exit(1)


def _chosen(folder: Path, key: str) -> list[tuple[Card, Path]]:
    if key:
        return [(find_card(key), folder)]
    if not folder.is_dir():
        raise BadCorpus(f"no folder {folder}. Give a corpus, or a folder of corpora.")
    own = recognise(folder.resolve())
    if own is not None:
        return [(own, folder)]
    cards = load_cards()
    found = [(cards[name], root) for name, root in discover(folder).items()]
    if not found:
        raise BadCorpus(
            f"no corpus in {folder}: none of its folders has a name that a card knows. "
            f"Rename a folder to one of {', '.join(cards)}, or say --key."
        )
    return found


def _tracked(card: Card) -> Callable[[Iterable[str], int], Iterable[str]]:
    """Shows a progress bar while the files of one corpus are decoded."""
    return lambda faults, number: track(
        faults, description=f"decoding {card.key}", total=number, console=_err, transient=True
    )


def _show(result: Check, *, clips: bool) -> None:
    card, found = result.scan.card, result.scan
    _out().print(f"\n[bold]{escape(card.key)}[/]  {escape(card.title)}  {escape(str(found.root))}", soft_wrap=True)
    told = len({clip.speaker for clip in found.clips if clip.speaker is not None})
    known = f" of {card.speakers.count}" if card.speakers.count else ""
    voices = f"{told}{known} speakers" if card.speakers.id else f"no speakers: {card.speakers.reason}"
    _out().print(f"{shortfall(found)}, {len(found.skipped)} files skipped, {result.decoded} decoded; {escape(voices)}")
    if found.clips:
        _out().print(_counts(result))
        _out().print(escape(_by_speaker(result)), highlight=False)
    for problem in result.problems:
        colour = {"error": "red", "warning": "yellow", "note": "cyan"}[problem.severity]
        _out().print(f"[{colour}]{problem.severity}:[/] {escape(str(problem))}", soft_wrap=True)
    for reason, number in Counter(_reason(skipped) for skipped in found.skipped).most_common():
        _out().print(f"skipped {number}: {escape(reason)}", soft_wrap=True)
    if clips:
        for clip in found.clips:
            typer.echo("\t".join((clip.path, clip.raw, clip.label, clip.speaker or "")))


def _reason(skipped: Skipped) -> str:
    """A skipped file's reason without its own path, so that alike ones count together."""
    return skipped.reason.replace(repr(skipped.path), "the file")


def _counts(result: Check) -> Grid:
    grid = Grid("class", "clips", "expected", "raw labels", box=None)
    raws: dict[str, set[str]] = {}
    for clip in result.scan.clips:
        raws.setdefault(clip.label, set()).add(clip.raw)
    for label in in_order(result.classes):
        found, expected = result.classes[label]
        grid.add_row(label, str(found), str(expected or "?"), escape(", ".join(sorted(raws.get(label, ())))))
    return grid


def _by_speaker(result: Check) -> str:
    speakers = sorted((name or "not told", number) for name, number in result.speakers.items())
    shown = ", ".join(f"{name} {number}" for name, number in speakers[:40])
    return f"by speaker: {shown}" + (f" … {len(speakers)} in all" if len(speakers) > 40 else "")


def _summary(result: Check) -> dict[str, object]:
    return {
        "key": result.scan.card.key,
        "root": str(result.scan.root),
        "protocol": result.scan.protocol,
        "clips": len(result.scan.clips),
        "skipped": len(result.scan.skipped),
        "decoded": result.decoded,
        "classes": {label: found for label, (found, _) in result.classes.items()},
        "speakers": len({speaker for speaker in result.speakers if speaker is not None}),
        "problems": [{"severity": p.severity, "message": p.message, "files": len(p.paths)} for p in result.problems],
        "ok": not result.failed,
    }


@corpora_app.command("parse")
def parse_paths(
    key: Annotated[str, typer.Argument(help="Key of the corpus.")],
    protocol: ProtocolOption = "sound",
    table: Annotated[list[Path] | None, typer.Option("--table", help="Annotation table; may be repeated.")] = None,
    root: Annotated[Path | None, typer.Option("--root", help="Corpus folder, searched for its tables.")] = None,
) -> None:
    """Read relative paths on stdin; print path, raw label, unified label and speaker, separated by tabs.

    An unreadable path gets a row `path, (empty), error, message`, and the exit code is 1.
    """
    with _reported():
        card, chosen = find_card(key), _protocol(protocol)
        tables = _tables(card, table or [], root)
    failed = False
    for line in sys.stdin.buffer:
        path = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
        if not path:
            continue
        try:
            parsed = parse_path(card, path, tables, protocol=chosen)
            row = (path, parsed.raw, parsed.label or UNUSED, parsed.speaker or "")
        except BadCorpus as problem:
            failed = True
            row = (path, "", "error", " ".join(str(problem).split()))
        sys.stdout.buffer.write(("\t".join(row) + os.linesep).encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()
    if failed:
        raise typer.Exit(1)


def _tables(card: Card, files: list[Path], root: Path | None) -> Tables | None:
    if files:
        for file in files:
            if not file.is_file():
                raise BadCorpus(f"no table {file}. Give the annotation table of {card.key}.")
        return read_given(card, files)
    if root is None:
        return None
    if not root.is_dir():
        raise BadCorpus(f"no folder {root}. Give the root of the corpus {card.key}.")
    return read_tables(card, root, list(walk(root)))


def _shown(bar: Progress, task: TaskID) -> Callable[[str, int, int | None], None]:
    return lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


@corpora_app.command("download")
def download_corpora(
    keys: Annotated[list[str], typer.Argument(help="Keys of the corpora.")],
    data: Annotated[Path, typer.Option("--data", envvar="SERVOX_DATA", help="Folder that gets corpora/<key>.")],
) -> None:
    """Download corpora whose licence and host allow it without signing anything."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with _reported():
        for card in [find_card(key) for key in keys]:
            _out().print(
                f"{escape(card.key)}: {escape(card.licence.name)} ({escape(card.licence.source)})", soft_wrap=True
            )
            with Progress(*columns, console=_err, transient=True) as bar:
                task = bar.add_task(card.key, total=None)

                folder = download(card, data, progress=_shown(bar, task))
            _out().print(f"{escape(card.key)}: {escape(str(folder))}", soft_wrap=True)
