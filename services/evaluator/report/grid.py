"""The train × test table and the data that its controls draw from.

Colours are left to the style sheet: a cell carries its share of the scale (`--v`, 0 to 1) and whether the text on it
must be the light one, so that light and dark pages, print and the script all follow one rule.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.evaluator.report import words
from services.evaluator.report.figures import SCORES, Estimate, all_corrections, cell_floor, score_of
from services.evaluator.report.run import NONE, Run, Series
from services.evaluator.results import Cell

DEEP = 0.62  # share of the scale above which text is drawn in the other colour
DIFFERENCE_SCALE = 0.5  # differences from −0.5 to +0.5
ERROR_SCALE = 0.5  # calibration errors from 0 to 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCell:
    """One cell of the table as first shown."""

    train: str
    test: str
    value: float | None
    share: str | None
    classes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The table as first shown; corpora of every series, so that a script only fills in."""

    series: Series
    correction: str
    corpora: Sequence[str]
    rows: Sequence[Sequence[GridCell]]
    by_train: Sequence[float | None]  # means over the pairs of a row
    by_test: Sequence[float | None]
    mean: float | None


def grid(run: Run, correction: str = NONE) -> Grid | None:
    """The table of the first series with pairs (else the first of all); None where no cell is finished."""
    series = next((one for one in run.series if one.pairs), next(iter(run.series), None))
    if series is None:
        return None
    used = {key for one in run.series for key in one.corpora}
    corpora = [fact["key"] for fact in run.corpora if fact["key"] in used]
    rows = [[_grid_cell(series, train, test, correction) for test in corpora] for train in corpora]
    pairs = [[None if cell.train == cell.test else cell.value for cell in row] for row in rows]
    return Grid(
        series=series,
        correction=correction,
        corpora=corpora,
        rows=rows,
        by_train=[_mean(row) for row in pairs],
        by_test=[_mean(column) for column in zip(*pairs, strict=True)],
        mean=_mean([value for row in pairs for value in row]),
    )


def embedded(run: Run) -> str:
    """Every cell as JSON that is safe inside a script element."""
    document = {
        "names": dict(run.names),
        "scores": dict(words.SCORE_NAMES),
        "corrections": {name: {"name": words.correction_name(name)} for name in all_corrections(run)},
        "refused": {key.replace(" ", ""): why for key, why in run.manifest["refused"].items()},
        "scale": {"deep": DEEP, "difference": DIFFERENCE_SCALE, "error": ERROR_SCALE},
        "series": {series.key: _series(series) for series in run.series},
        "cells": {series.key: _cells(series.cells) for series in run.series},
    }
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _grid_cell(series: Series, train: str, test: str, correction: str) -> GridCell:
    cell = series.cells.get((train, test))
    held = cell["corrections"].get(correction if train != test else NONE) if cell else None
    value = score_of(held, "macro_f1").value if held else None
    classes = ["own"] if train == test else []
    if value is None:
        return GridCell(train=train, test=test, value=None, share=None, classes=" ".join([*classes, "void"]))
    classes += ["heat", "deep"] if value > DEEP else ["heat"]
    return GridCell(train=train, test=test, value=value, share=f"{min(1, value):.3f}", classes=" ".join(classes))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _series(series: Series) -> dict[str, Any]:
    parts = (series.backbone, words.head_name(series.head), words.protocol_name(series.protocol), series.depth)
    return {"name": " · ".join(parts), "corpora": series.corpora, "corrections": series.corrections}


def _cells(cells: Mapping[tuple[str, str], Cell]) -> dict[str, Any]:
    return {f"{train}→{test}": _cell(cell) for (train, test), cell in cells.items()}


def _cell(cell: Cell) -> dict[str, Any]:
    held = cell["corrections"]
    return {
        "own": cell["train"] == cell["test"],
        "classes": cell["classes"],
        "dropped": cell["dropped"],
        "floor": {score: _short(cell_floor(cell, score)) for score in SCORES},
        "scores": {
            name: {score: _triple(score_of(correction, score)) for score in SCORES} for name, correction in held.items()
        },
        "perClass": {
            name: [
                [row["label"], row["clips"], _short(row["f1"]), _short(row["recall"])]
                for row in correction["per_class"]
            ]
            for name, correction in held.items()
        },
        "confusion": {
            name: [[round(value, 1) for value in row] for row in correction["confusion"]]
            for name, correction in held.items()
        },
    }


def _triple(estimate: Estimate) -> list[float | None]:
    return [_short(estimate.value), _short(estimate.low), _short(estimate.high)]


def _short(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 6)  # noqa: PLR0124 -- only NaN differs from itself
