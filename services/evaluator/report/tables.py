"""The report's figures as plain tables, for the terminal and for whoever wants them as data.

The figures are those of `figures`, so the page and the terminal cannot disagree; here they only get their text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from services.evaluator.report import figures, words
from services.evaluator.report.figures import Estimate, LeaderRow
from services.evaluator.report.run import NONE, Run, Series

MISSING = Estimate(value=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A titled table of text.

    Attributes:
        columns: headings; the first column names the row.
        rows: text of every row, as long as `columns`.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> RichTable:
        """For a terminal; names may hold anything, so nothing in them is taken for markup."""
        table = RichTable(
            title=Text(self.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1)
        )
        for index, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if index else "left", no_wrap=not index)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def leaderboard(run: Run) -> Table:
    """Mean macro-F1 in domain and out of it, published rows last."""
    return Table(
        title="Mean macro-F1 in domain; out of domain with no correction, the oracle prior, the best label-free one",
        columns=("leaderboard", "in domain", "none", "oracle", "best", "of"),
        rows=[_leader(row) for row in figures.leaderboard(run)],
    )


def in_domain(series: Series) -> Table:
    """Every corpus within itself, with intervals, floors and the paper's figure."""
    return Table(
        title=f"In domain: {series_name(series)}",
        columns=("corpus", "macro-F1, 95 %", "UAR", "accuracy", "ECE", "floor", "published"),
        rows=[
            (
                row.corpus["key"],
                _with_interval(row.scores["macro_f1"]),
                *(words.figure(row.scores[score].value) for score in figures.SCORES[1:]),
                words.figure(figures.floor_of(row.floor)),
                words.figure(row.paper),
            )
            for row in figures.in_domain(series)
        ],
    )


def matrix(series: Series, correction: str) -> Table:
    """Macro-F1 of every pair after one correction, in domain on the diagonal."""
    scores = figures.matrix(series, correction)
    own = {cell["test"]: figures.score_of(cell["corrections"][NONE], "macro_f1").value for cell in series.in_domain}
    rows = []
    for i, key in enumerate(series.corpora):
        values = [f"[{words.figure(own.get(key))}]" if i == j else _known(value) for j, value in enumerate(scores[i])]
        rows.append((key, *values))
    return Table(
        title=f"Train (rows) x test, {words.correction_name(correction)}: {series_name(series)}",
        columns=("macro-F1", *series.corpora),
        rows=rows,
    )


def ladder(series: Series) -> Table:
    """Mean over the pairs after each correction, and what it takes of the target."""
    return Table(
        title=f"Corrections, mean of {len(series.pairs)} pairs: {series_name(series)}",
        columns=("correction", "target", "macro-F1", "gain, 95 %", "wins"),
        rows=[
            (
                words.correction_name(row.correction),
                row.target.removesuffix(", unlabelled").replace("clips, with labels", "labels"),
                words.figure(row.macro_f1.value),
                _gain(row.gain),
                f"{row.wins}/{row.places}" if row.gain else words.MISSING,
            )
            for row in figures.ladder(series)
        ],
    )


def tables(run: Run, *, every: bool = False) -> Iterator[Table]:
    """All tables of a run in the order of the page; matrices without correction only, or `every` one."""
    yield leaderboard(run)
    for series in run.series:
        if series.in_domain:
            yield in_domain(series)
        if series.pairs:
            yield ladder(series)
            for correction in series.corrections if every else (NONE,):
                yield matrix(series, correction)


def series_name(series: Series) -> str:
    """A series in words, as in the page."""
    return f"{series.backbone}, {words.head_name(series.head)}, {words.protocol_name(series.protocol)}, {series.depth}"


def _with_interval(estimate: Estimate) -> str:
    interval = words.interval(estimate)
    return words.figure(estimate.value) + (f" ({interval})" if interval else "")


def _gain(gain: Estimate | None) -> str:
    if gain is None:
        return words.MISSING
    interval = words.signed_interval(gain)
    return words.signed(gain.value) + (f" ({interval})" if interval else "")


def _leader(row: LeaderRow) -> tuple[str, ...]:
    best = figures.best_unlabelled(figures.ladder(row.series)) if row.series else None
    means = [row.out_of_domain.get(name, MISSING) for name in (NONE, figures.ORACLE)]
    return (
        f"{row.name}, {row.series.head}, {row.series.protocol}" if row.series else f"{row.name} (published)",
        *(words.figure(mean.value) for mean in (row.in_domain, *means, best.macro_f1 if best else MISSING)),
        f"{row.corpora}/{row.pairs}",
    )


def _known(value: float) -> str:
    return words.figure(None if value != value else float(value))  # noqa: PLR0124 -- only NaN differs from itself
