"""The report: one HTML file that needs nothing else, and CSV files of the same figures beside it.

- Every value is escaped by the template engine; the data for the script is JSON without `<`, `>` or `&`.
- The page's policy allows its own script by digest and no request at all, so an opened report tells nobody.
- Tables are written here and stand without scripts; the script adds the choice of series, correction and cell.
"""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from services.evaluator.report import exports, figures, words
from services.evaluator.report.figures import Estimate
from services.evaluator.report.grid import embedded, grid
from services.evaluator.report.run import Run, Series, load

NAME = "report.html"
_PLOT_LEFT, _PLOT_WIDTH = 4, 128  # pixels, as in templates/macros.html


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """One of the few figures on top of the page."""

    name: str
    estimate: Estimate
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What is said of some cells."""

    name: str
    lines: list[str]


def render(out: Path, *, title: str | None = None) -> Path:
    """Writes `report.html` and `tables/*.csv` into a run's folder and returns the path of the page.

    Raises:
        BadInput: no `run.json` in the folder, or a result that cannot be read.
        StorageFull: the disk refused.
    """
    run = load(out)
    exports.write_tables(run)
    path = out / NAME
    exports.write_whole(path, page(run, title=title))
    return path


def page(run: Run, *, title: str | None = None) -> str:
    """The page as text."""
    script = _part("map.js") + _part("classes.js")
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    return (
        _templates()
        .get_template("page.html")
        .render(
            run=run,
            title=title
            or f"Cross-corpus speech emotion recognition with {Path(run.manifest['bundle']['source']).name}",
            style=Markup(_part("style.css")),  # noqa: S704 -- a file of this package
            script=Markup(script),  # noqa: S704 -- files of this package
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            data=Markup(embedded(run)),  # noqa: S704 -- JSON without `<`, `>` and `&`
            cells=sum(len(series.cells) for series in run.series),
            several_bundles=len({series.bundle["digest"] for series in run.series}) > 1,
            brief=_brief(run),
            leaders=figures.leaderboard(run),
            corrections=figures.all_corrections(run) or (figures.ORACLE,),
            in_domain=[(series, figures.in_domain(series)) for series in run.series],
            ladders=[(series, figures.ladder(series), figures.mean_floor(series.pairs)) for series in run.series],
            any_pairs=any(series.pairs for series in run.series),
            grid=grid(run),
            scores=words.SCORE_NAMES,
            notes=_notes(run),
            refused=_refused(run),
            others=[series for series in run.series if not _of_last_run(series, run)],
        )
    )


def _brief(run: Run) -> list[Brief]:
    """In-domain mean, and out of domain without correction, with the best label-free one, and the floor."""
    series = next(iter(run.series), None)
    if series is None:
        return []
    row = figures.leaderboard(run)[0]
    own = (
        f"mean macro-F1 of {row.corpora} {'corpus' if row.corpora == 1 else 'corpora'}, {words.head_name(series.head)}"
    )
    entries = [Brief(name="In domain", estimate=row.in_domain, note=own)]
    rungs = figures.ladder(series)
    plain = next((rung for rung in rungs if rung.gain is None), None)
    if plain is None:
        return entries
    entries.append(Brief(name="Out of domain, no correction", estimate=plain.macro_f1, note=f"{row.pairs} pairs"))
    best = figures.best_unlabelled(rungs)
    if best is not None:
        note = f"{words.correction_name(best.correction)}: the highest of those that use no labels"
        entries.append(Brief(name="Out of domain, best without labels", estimate=best.macro_f1, note=note))
    floor = Estimate(value=figures.mean_floor(series.pairs))
    entries.append(
        Brief(
            name="Floor, out of domain",
            estimate=floor,
            note="mean of the highest floor of each pair: answers that never listen",
        )
    )
    return entries


def _notes(run: Run) -> list[Note]:
    """What the cells say of their splits and intervals, each text once, with the test corpora it is said of."""
    said: dict[str, dict[str, dict[str, str]]] = {}
    several = len({series.protocol for series in run.series}) > 1
    for series in run.series:
        suffix = f", {words.protocol_name(series.protocol)}" if several else ""
        for cell in series.cells.values():
            kind = "in domain" if cell["train"] == cell["test"] else "across corpora"
            name = run.names.get(cell["test"], cell["test"])
            said.setdefault(f"Split {kind}{suffix}", {}).setdefault(cell["split"], {})[name] = ""
            said.setdefault(f"Intervals {kind}{suffix}", {}).setdefault(cell["interval"], {})[name] = ""
    return [
        Note(
            name=name,
            lines=[f"{text} ({', '.join(names)})" if len(texts) > 1 else text for text, names in texts.items()],
        )
        for name, texts in sorted(said.items(), key=lambda entry: entry[0].startswith("Intervals"))
    ]


def _refused(run: Run) -> list[tuple[str, str]]:
    """Refused corpora and pairs by their names, with the reason."""
    rows = []
    for key, why in run.manifest["refused"].items():
        parts = [part.strip() for part in key.split("→")]
        rows.append((" → ".join(run.names.get(part, part) for part in parts), why.removeprefix(f"{key}: ")))
    return rows


def _of_last_run(series: Series, run: Run) -> bool:
    manifest = run.manifest
    return (series.protocol, series.bundle["digest"]) == (manifest["protocol"], manifest["bundle"]["digest"])


def _part(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _plot_x(value: float) -> str:
    return f"{_PLOT_LEFT + _PLOT_WIDTH * min(1.0, max(0.0, value)):.1f}"


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_part),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        correction=words.correction_name,
        correction_words=words.correction_words,
        count=words.count,
        duration=words.duration,
        figure=words.figure,
        head=words.head_name,
        highest=figures.floor_of,
        interval=words.interval,
        moment=words.moment,
        plot_x=_plot_x,
        protocol=words.protocol_name,
        short=lambda value: f"{value:.4g}",
        signed=words.signed,
        signed_interval=words.signed_interval,
    )
    return made
