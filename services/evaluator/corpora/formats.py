"""Readers of the table formats that corpora come with; each yields rows of column → text.

Formats: delimited text, XLSX (every sheet, first row as header), YAML and JSON (a list of objects, or an object of
objects), Praat TextGrid (one row a file, a column a tier), lines of text by pattern, Parquet (text columns only).
Every row also has `table_stem`, the stem of the file it came from.
"""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from servox.errors import BadCorpus

from .card import Table
from .spreadsheet import sheets

Row = Mapping[str, str]
MAX_TABLE_BYTES = 256 * 1024 * 1024

_TIER = re.compile(r'name\s*=\s*"(?P<name>[^"]*)"')
_MARK = re.compile(r'(?:text|mark)\s*=\s*"(?P<mark>(?:[^"]|"")*)"')


def read_rows(table: Table, file: Path) -> Iterator[Row]:
    """The rows of one file of a table.

    Raises:
        BadCorpus: the file cannot be read in the format that the card names.
    """
    try:
        if file.stat().st_size > MAX_TABLE_BYTES:
            raise BadCorpus(f"table {file}: larger than {MAX_TABLE_BYTES} bytes; this is not an annotation table.")
        for row in _READERS[table.format](table, file):
            yield {**row, "table_stem": file.stem}
    except (OSError, ValueError, KeyError, csv.Error, zipfile.BadZipFile, re.error, RecursionError) as problem:
        # Parsers of formats spread their messages over lines.
        cause = " ".join(str(problem).split())
        message = f"table {file}: cannot be read as {table.format} ({cause}). Restore the original file."
        raise BadCorpus(message) from problem


def _text(table: Table, file: Path) -> str:
    data = file.read_bytes()
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return data.decode("utf-16")
    for encoding in table.encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError(f"none of the encodings {', '.join(table.encodings)} fits")


def _delimited(table: Table, file: Path) -> Iterator[Row]:
    text = io.StringIO(_text(table, file), newline="")
    # Tab and bar tables hold quotation marks as text; only comma tables quote.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if table.delimiter in "\t|" else csv.QUOTE_MINIMAL
    rows = csv.reader(text, delimiter=table.delimiter, quoting=quoting)
    header = list(table.header) or next(rows, [])
    for row in rows:
        if row:
            yield dict(zip(header, row + [""] * (len(header) - len(row)), strict=False))


def _xlsx(table: Table, file: Path) -> Iterator[Row]:
    if file.suffix.lower() != ".xlsx":
        # The same sheet saved as text.
        yield from _delimited(replace(table, delimiter="\t" if file.suffix.lower() == ".tsv" else ","), file)
        return
    for rows in sheets(file):
        header = next(rows, None)
        if header is None:
            continue
        for row in rows:
            yield dict(zip(header, row, strict=False))


def _objects(value: object) -> Iterator[Row]:
    """Rows of a list of objects, or of an object of objects whose keys become the column `key`."""
    if isinstance(value, dict):
        items = [{"key": key, **item} for key, item in value.items() if isinstance(item, dict)]
    elif isinstance(value, list):
        items = [item for item in value if isinstance(item, dict)]
    else:
        raise ValueError("expected a list of objects or an object of objects")  # noqa: TRY004 - bad data, not a bad call
    for item in items:
        yield {str(name): _plain(field) for name, field in item.items() if not isinstance(field, dict | list)}


def _plain(value: object) -> str:
    return "" if value is None else str(value)


def _json(table: Table, file: Path) -> Iterator[Row]:
    yield from _objects(json.loads(_text(table, file)))


def _yaml(table: Table, file: Path) -> Iterator[Row]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        loaded = yaml.load(_text(table, file), Loader=loader)  # noqa: S506 - a safe loader, the C one where built
    except yaml.YAMLError as problem:
        raise ValueError(str(problem)) from problem
    yield from _objects(loaded)


def _textgrid(table: Table, file: Path) -> Iterator[Row]:
    """One row: each tier's first mark that is not empty."""
    text = _text(table, file)
    tiers = list(_TIER.finditer(text))
    row: dict[str, str] = {}
    for number, tier in enumerate(tiers):
        end = tiers[number + 1].start() if number + 1 < len(tiers) else len(text)
        marks = [m["mark"].strip() for m in _MARK.finditer(text, tier.end(), end)]
        row[tier["name"]] = next((mark for mark in marks if mark), "")
    if not row:
        raise ValueError("no tier with a name")
    yield row


def _lines(table: Table, file: Path) -> Iterator[Row]:
    line_pattern = re.compile(table.line)
    each = re.compile(table.each) if table.each else None
    for line in _text(table, file).splitlines():
        match = line_pattern.match(line)
        if match is None:
            continue
        fields = {name: value or "" for name, value in match.groupdict().items()}
        if each is None:
            yield fields
            continue
        for part in each.finditer(line, match.end()):
            yield {**fields, **{name: value or "" for name, value in part.groupdict().items()}}


def _parquet(_table: Table, file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        names = [field.name for field in schema if not pa.types.is_nested(field.type)]
        names = [name for name in names if not pa.types.is_binary(schema.field(name).type)]
        for batch in parquet.iter_batches(columns=names):
            for item in batch.to_pylist():
                yield {name: _plain(value) for name, value in item.items()}


_READERS: Mapping[str, Callable[[Table, Path], Iterator[Row]]] = {
    "delimited": _delimited,
    "xlsx": _xlsx,
    "json": _json,
    "yaml": _yaml,
    "textgrid": _textgrid,
    "lines": _lines,
    "parquet": _parquet,
}
