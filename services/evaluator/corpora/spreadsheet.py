"""A light reader of XLSX: the text of every sheet's cells, nothing else; no dependency, no formula is run.

XML is parsed by the standard library after refusing document type declarations, which Office never writes and which
every known entity attack needs.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

MAX_PART_BYTES = 256 * 1024 * 1024

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_SHEET = re.compile(r"xl/worksheets/sheet(\d+)\.xml")
_COLUMN = re.compile(r"[A-Z]+")


def sheets(file: Path) -> Iterator[Iterator[list[str]]]:
    """The rows of each sheet in order, a row as a list of cell texts.

    Raises:
        ValueError: not a spreadsheet, or one that this reader refuses.
        zipfile.BadZipFile: not a zip archive at all.
    """
    with zipfile.ZipFile(file) as archive:
        names = sorted((n for n in archive.namelist() if _SHEET.fullmatch(n)), key=_sheet_number)
        if not names:
            raise ValueError("no worksheet in the file")
        shared = _shared_strings(archive)
        for name in names:
            yield iter([_cells(row, shared) for row in _part(archive, name).iter(f"{_MAIN}row")])


def _sheet_number(name: str) -> int:
    match = _SHEET.fullmatch(name)
    return int(match[1]) if match else 0


def _part(archive: zipfile.ZipFile, name: str) -> ET.Element:
    if archive.getinfo(name).file_size > MAX_PART_BYTES:
        raise ValueError(f"{name} is larger than {MAX_PART_BYTES} bytes")
    data = archive.read(name)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError(f"{name} declares a document type")
    try:
        return ET.fromstring(data)  # noqa: S314 - see above
    except ET.ParseError as problem:
        raise ValueError(f"{name} is not XML: {problem}") from problem


def _shared_strings(archive: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    return [_texts(item) for item in _part(archive, "xl/sharedStrings.xml").iter(f"{_MAIN}si")]


def _texts(element: ET.Element) -> str:
    return "".join(part.text or "" for part in element.iter(f"{_MAIN}t"))


def _cells(row: ET.Element, shared: list[str]) -> list[str]:
    cells: list[str] = []
    for cell in row.iter(f"{_MAIN}c"):
        position = _position(cell.get("r", ""), fallback=len(cells))
        cells += [""] * (position - len(cells))
        cells.append(_cell_text(cell, shared))
    return cells


def _position(reference: str, *, fallback: int) -> int:
    """Column number from a reference such as `AB12`, counted from 0."""
    letters = _COLUMN.match(reference)
    if letters is None or len(letters[0]) > 3:
        return fallback
    number = 0
    for letter in letters[0]:
        number = number * 26 + ord(letter) - ord("A") + 1
    return max(number - 1, fallback)


def _cell_text(cell: ET.Element, shared: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return _texts(cell)
    value = cell.findtext(f"{_MAIN}v") or ""
    if cell.get("t") == "s":
        return shared[int(value)] if value.isdigit() and int(value) < len(shared) else ""
    return value.removesuffix(".0")
