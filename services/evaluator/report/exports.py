"""The figures as CSV, one row an observation, full precision, for whoever computes further."""

import csv
import io
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from services.evaluator.report.figures import SCORES, Estimate, cell_floor, paper_score, score_of
from services.evaluator.report.run import Run, Series
from services.evaluator.results import Cell, Correction
from servox.arrays import storing

FOLDER = "tables"
_SERIES = ("protocol", "bundle", "backbone", "context", "layer", "head")
_SCORES = tuple(f"{score}{end}" for score in SCORES for end in ("", "_low", "_high"))
IN_DOMAIN = (
    *_SERIES, "corpus", "classes", "clips", "speakers", *_SCORES,
    "floor_majority", "floor_uniform", "floor_prior_matched", "published_macro_f1",
)  # fmt: skip
CROSS_CORPUS = (
    *_SERIES, "train", "test", "correction", "target_clips", "target_labels", "classes", "clips", "dropped_clips",
    *_SCORES, "floor_macro_f1", "floor_uar", "published_macro_f1",
)  # fmt: skip
PER_CLASS = (*_SERIES, "train", "test", "correction", "label", "clips", "f1", "recall")

Value = str | int | float | bool | None


def write_tables(run: Run) -> list[Path]:
    """Writes `tables/in_domain.csv`, `cross_corpus.csv` and `per_class.csv` into the run's folder.

    Raises:
        StorageFull: the disk refused.
    """
    tables = {
        "in_domain.csv": (IN_DOMAIN, [row for series in run.series for row in _in_domain(series)]),
        "cross_corpus.csv": (CROSS_CORPUS, [row for series in run.series for row in _cross_corpus(series)]),
        "per_class.csv": (PER_CLASS, [row for series in run.series for row in _per_class(series)]),
    }
    paths = []
    for name, (columns, rows) in tables.items():
        path = run.folder / FOLDER / name
        write_whole(path, _csv(columns, rows))
        paths.append(path)
    return paths


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        StorageFull: the disk refused.
    """
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with storing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            hidden.write_text(text, encoding="utf-8", newline="")
            hidden.replace(path)
        finally:
            hidden.unlink(missing_ok=True)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _series(series: Series) -> tuple[Value, ...]:
    bundle = series.bundle
    return series.protocol, bundle["digest"], bundle["source"], bundle["context"], bundle["layer"], series.head


def _estimate(estimate: Estimate) -> tuple[Value, ...]:
    return estimate.value, estimate.low, estimate.high


def _scores(correction: Correction) -> tuple[Value, ...]:
    return tuple(value for score in SCORES for value in _estimate(score_of(correction, score)))


def _corrected(series: Series) -> Iterator[tuple[Cell, str, Correction]]:
    for cell in series.cells.values():
        for name in series.corrections:
            if name in cell["corrections"]:
                yield cell, name, cell["corrections"][name]


def _in_domain(series: Series) -> Iterator[tuple[Value, ...]]:
    for cell, _, held in _corrected(series):
        if cell["train"] != cell["test"]:
            continue
        clips = sum(row["clips"] for row in held["per_class"])
        floor = cell["floor"]
        yield (
            *_series(series), cell["test"], len(cell["classes"]), clips, cell["test_facts"]["speakers"], *_scores(held),
            floor["majority"], floor["uniform"], floor["prior_matched"], paper_score(cell["test"], cell["test"]),
        )  # fmt: skip


def _cross_corpus(series: Series) -> Iterator[tuple[Value, ...]]:
    for cell, name, held in _corrected(series):
        if cell["train"] == cell["test"]:
            continue
        clips = sum(row["clips"] for row in held["per_class"])
        yield (
            *_series(series), cell["train"], cell["test"], name, held["target_clips"], held["target_labels"],
            len(cell["classes"]), clips, sum(cell["dropped"].values()), *_scores(held), cell_floor(cell, "macro_f1"),
            cell_floor(cell, "uar"), paper_score(cell["train"], cell["test"]),
        )  # fmt: skip


def _per_class(series: Series) -> Iterator[tuple[Value, ...]]:
    for cell, name, held in _corrected(series):
        for row in held["per_class"]:
            yield (
                *_series(series),
                cell["train"],
                cell["test"],
                name,
                row["label"],
                row["clips"],
                row["f1"],
                row["recall"],
            )
