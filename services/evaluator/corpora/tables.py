"""Annotation tables of corpora: found below the root, read once, and looked up by the card's join rule.

A row is a mapping of column → text. Two rows with one key and different labels make the key ambiguous: looking it up
is an error, since whichever came first would be a guess.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from servox.errors import BadCorpus

from .card import Card, Table
from .formats import Row, read_rows
from .templates import fill, fold, places


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One segment of a long file, as a table lists it."""

    id: str
    start: str
    end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The rows of one corpus, ready to be joined.

    Attributes:
        rows: for each table of the card, folded key → fields.
        ambiguous: for each table, the folded keys that stand for different labels.
        spans: folded stem of an audio file → its segments in order.
        missing: the tables of the card, by their first name, of which no file was found.
        unread: what is wrong with tables that the corpus can do without.
    """

    rows: tuple[Mapping[str, Mapping[str, str]], ...]
    ambiguous: tuple[frozenset[str], ...]
    spans: Mapping[str, tuple[Span, ...]]
    missing: tuple[str, ...]
    unread: tuple[str, ...] = ()

    def row(self, table: int, key: str) -> Mapping[str, str] | None:
        """The fields that a table has for a key, `None` where it has none.

        Raises:
            BadCorpus: the table lists the key twice with different labels.
        """
        folded = fold(key)
        if folded in self.ambiguous[table]:
            raise BadCorpus(f"{key!r} is listed twice with different labels; remove one of the rows.")
        return self.rows[table].get(folded)


def matches(table: Table, path: str) -> bool:
    """Whether a path relative to the corpus root is a file of this table."""
    name = path.rsplit("/", 1)[-1].casefold()
    whole = "/" + path.casefold()
    return any(
        fnmatch(whole, f"*/{glob.casefold()}") if "/" in glob else fnmatch(name, glob.casefold())
        for glob in table.files
    )


def read_tables(card: Card, root: Path, paths: Sequence[str]) -> Tables:
    """Read the card's tables from the files of a corpus folder.

    Args:
        card: the corpus card.
        root: the corpus folder.
        paths: the folder's files, relative to it.

    Raises:
        BadCorpus: a table that cannot be read, or lacks a column that the card names.
    """
    files = [[root / path for path in paths if matches(table, path)] for table in card.tables]
    return _index(card, files)


def read_given(card: Card, files: Sequence[Path]) -> Tables:
    """Read tables given by name, each as the card's table that its name fits, a lone one as the first.

    Raises:
        BadCorpus: the card has no table, or a file fits none of them.
    """
    if not card.tables:
        raise BadCorpus(f"{card.key}: this corpus has no table; its labels are in the paths. Leave the table out.")
    chosen: list[list[Path]] = [[] for _ in card.tables]
    for file in files:
        fitting = [number for number, table in enumerate(card.tables) if matches(table, file.as_posix())]
        if not fitting and len(card.tables) > 1:
            names = ", ".join(name for table in card.tables for name in table.files)
            raise BadCorpus(f"{card.key}: {file.name!r} is none of its tables; expected one of {names}.")
        for number in fitting or [0]:
            chosen[number].append(file)
    return _index(card, chosen)


def _index(card: Card, files: Sequence[Sequence[Path]]) -> Tables:
    rows: list[dict[str, Mapping[str, str]]] = []
    ambiguous: list[frozenset[str]] = []
    spans: dict[str, list[Span]] = {}
    unread: list[str] = []
    for number, table in enumerate(card.tables):
        found: dict[str, Mapping[str, str]] = {}
        twice: set[str] = set()
        for key, fields, row in _readable(card, table, files[number], unread):
            if key in found and found[key].get("label") != fields.get("label"):
                twice.add(key)
            found.setdefault(key, fields)
            if card.segments and card.segments.table == number:
                _add_span(card, row, spans)
        rows.append(found)
        ambiguous.append(frozenset(twice))
    missing = tuple(t.files[0] for t, own in zip(card.tables, files, strict=True) if not own and not t.optional)
    return Tables(
        rows=tuple(rows),
        ambiguous=tuple(ambiguous),
        spans={stem: tuple(own) for stem, own in spans.items()},
        missing=missing,
        unread=tuple(unread),
    )


def _readable(
    card: Card, table: Table, files: Sequence[Path], unread: list[str]
) -> list[tuple[str, Mapping[str, str], Row]]:
    """The rows of a table; one that the corpus can do without may be unreadable, which is noted."""
    try:
        return list(_keyed(card, table, files))
    except BadCorpus as problem:
        if not table.optional:
            raise
        unread.append(str(problem))
        return []


def _keyed(card: Card, table: Table, files: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, str], Row]]:
    for file in sorted(files):
        for row in read_rows(table, file):
            columns = _Columns(row, place=f"{card.key}: table {file.name}")
            key = fill(table.key, columns.only(table.key))
            if key is None:
                continue
            fields = dict(table.constants)
            for name, template in table.columns.items():
                value = fill(template, columns.only(template))
                if value:
                    fields[name] = value
            yield fold(key), fields, row


def _add_span(card: Card, row: Row, spans: dict[str, list[Span]]) -> None:
    rule = card.segments
    if rule is None:
        return
    columns = _Columns(row, place=f"{card.key}: segment table")
    values = [fill(t, columns.only(t)) for t in (rule.file, rule.id, rule.start, rule.end)]
    stem, name, start, end = values
    if stem and name and start and end:
        spans.setdefault(fold(stem), []).append(Span(id=name, start=start, end=end))


class _Columns:
    """The columns of a row under the names that a template uses: `A|B` is the first of them that is there."""

    def __init__(self, row: Row, *, place: str) -> None:
        self._row = {_plain(name): value for name, value in row.items()}
        self._names = list(row)
        self._place = place

    def only(self, template: str) -> dict[str, str]:
        return {name: self._value(name) for name, _ in places(template)}

    def _value(self, name: str) -> str:
        for choice in name.split("|"):
            if _plain(choice) in self._row:
                return self._row[_plain(choice)]
        raise BadCorpus(
            f"{self._place}: no column {name!r}; it has {', '.join(map(repr, self._names)) or 'none'}. "
            "Use the original table, or rename the column."
        )


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum()) or name
