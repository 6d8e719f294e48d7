"""What a study leaves: curve.csv for machines, curve.md to paste, curve.svg and curve.png to look at."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.study.curve import MEAN, Point, Span, of_mean
from servox.errors import BadInput

COLUMNS = (
    "corpus", "policy", "blocks", "layers", "relative_flops", "gflop_a_clip",
    "macro_f1", "macro_f1_low", "macro_f1_high", "difference", "difference_low", "difference_high",
    "transfer_f1", "transfer_f1_low", "transfer_f1_high", "transfer_loss", "transfer_loss_low", "transfer_loss_high",
)  # fmt: skip
HEADINGS = ("policy", "blocks", "layers", "cost", "macro-F1", "difference", "transfer")


def csv_text(rows: Sequence[Point]) -> str:
    """Every row, figures in full; what was not computed is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        spans = (row.f1, row.difference, row.transfer, row.transfer_loss)
        figures = [row.cost, row.gflop, *(figure for span in spans for figure in _figures(span))]
        written = ["" if figure is None else f"{figure:.6g}" for figure in figures]
        writer.writerow([row.corpus, row.policy, row.blocks, row.layers, *written])
    return text.getvalue()


def cells_of(row: Point, corpora: Sequence[str], rows: Sequence[Point]) -> list[str]:
    """One row of the table that people read: the mean, then each corpus."""
    here = {each.corpus: each for each in rows if _place(each) == _place(row)}
    moved = "" if row.transfer_loss is None else _signed(row.transfer_loss.value)
    return [
        row.policy,
        str(row.blocks),
        str(row.layers),
        f"{100 * row.cost:.1f} %",
        written(row.f1),
        difference(row.difference),
        moved,
        *(f"{here[corpus].f1.value:.3f}" for corpus in corpora),
    ]


def table(rows: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows; the columns of layers and transfers only where there is something to say."""
    corpora = [key for key in dict.fromkeys(row.corpus for row in rows) if key != MEAN]
    shown = corpora if len(corpora) > 1 else []
    headings, body = [*HEADINGS, *shown], [cells_of(row, shown, rows) for row in of_mean(rows)]
    dull = {
        HEADINGS.index("layers"): all(row.layers == 1 for row in rows),
        HEADINGS.index("transfer"): not any(row.transfer_loss for row in rows),
    }
    kept = [place for place in range(len(headings)) if not dull.get(place, False)]
    return [headings[place] for place in kept], [[line[place] for place in kept] for line in body]


def _place(row: Point) -> tuple[str, int, int]:
    return row.policy, row.blocks, row.layers


def markdown(rows: Sequence[Point]) -> str:
    """The table as Markdown."""
    headings, body = table(rows)
    lines = [headings, ["---"] * len(headings), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def written(span: Span) -> str:
    """A figure with its interval, as in .753 [.721 .780]."""
    ends = "" if span.low is None or span.high is None else f" [{_short(span.low)} {_short(span.high)}]"
    return f"{_short(span.value)}{ends}"


def difference(span: Span) -> str:
    """A difference with its interval, as in +.012 [-.004 +.027]."""
    ends = "" if span.low is None or span.high is None else f" [{_signed(span.low)} {_signed(span.high)}]"
    return f"{_signed(span.value)}{ends}"


def plot(rows: Sequence[Point], folder: Path, *, title: str, chosen: tuple[str, int, int]) -> list[Path]:
    """F1 against cost, one line a policy, depths as numbers, the rule's choice ringed; as SVG and PNG.

    Raises:
        BadInput: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise BadInput("the plot needs the package 'matplotlib': pip install it; the tables are written") from None
    with mpl.rc_context({"svg.hashsalt": "servox", "svg.fonttype": "path"}):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.subplots()
        shown = of_mean(rows)
        for policy, layers in dict.fromkeys((row.policy, row.layers) for row in shown):
            _line(axes, [row for row in shown if (row.policy, row.layers) == (policy, layers)])
        for row in shown:
            if _place(row) == chosen:
                axes.plot(100 * row.cost, row.f1.value, "o", ms=14, mfc="none", mec="black", label="the rule's choice")
        axes.set(xscale="log", xlabel="operations, % of the padded encoder of full depth", ylabel="macro-F1 by speaker")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_title(title, fontsize=10)
        axes.grid(visible=True, which="both", alpha=0.2)
        axes.legend(fontsize=8, frameon=False)
        paths = [folder / "curve.svg", folder / "curve.png"]
        for path in paths:
            figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _line(axes: Any, rows: Sequence[Point]) -> None:  # noqa: ANN401 -- matplotlib has no types
    costs, values = [100 * row.cost for row in rows], [row.f1.value for row in rows]
    (line,) = axes.plot(
        costs,
        values,
        "o-",
        ms=4,
        lw=1.2,
        label=rows[0].policy + (f", {rows[0].layers} layers" if rows[0].layers > 1 else ""),
    )
    for row, cost, value in zip(rows, costs, values, strict=True):
        axes.annotate(
            str(row.blocks),
            (cost, value),
            xytext=(0, 5),
            textcoords="offset points",
            fontsize=7,
            color=line.get_color(),
        )


def _figures(span: Span | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if span is None else (span.value, span.low, span.high)


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1)
