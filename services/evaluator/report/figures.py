"""The figures of a report, computed once for the page, the terminal and the CSV files.

- Means over corpora or pairs weigh each corpus or pair alike. Their intervals come from drawing corpora again (train
  and test corpora apart for pairs), so they say how far the mean depends on which corpora were at hand; a cell's own
  interval comes with the cell.
- Missing cells are missing: a mean says over how many it was taken.
- Published scores of the paper stand in rows of their own and never enter a mean of ours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.evaluator import published
from services.evaluator.report.run import NONE, Run, Series, ladder_order
from services.evaluator.results import Cell, CorpusFacts, Correction, Figure, Floor
from services.evaluator.statistics import RESAMPLES, mean_over_pairs, paired_over_pairs, percentile

Array = NDArray[np.float64]
Score = Literal["macro_f1", "uar", "accuracy", "ece"]

SCORES: tuple[Score, ...] = ("macro_f1", "uar", "accuracy", "ece")
PAPER_BACKBONE = "openai/whisper-large-v2"  # the paper's headline backbone
ORACLE = "oracle-prior"  # the correction that the published pairs were given


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A score with its 95 % interval; None where it cannot be had."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderRow:
    """One line of the leaderboard.

    Attributes:
        series: None for a published line.
        out_of_domain: mean macro-F1 over the pairs, by correction.
        corpora: how many corpora the in-domain mean covers.
        pairs: how many ordered pairs the other means cover.
        contaminated: its encoder may have been trained on the test corpora.
    """

    name: str
    series: Series | None
    in_domain: Estimate
    out_of_domain: Mapping[str, Estimate]
    corpora: int
    pairs: int
    contaminated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InDomainRow:
    """One corpus scored within itself.

    Attributes:
        scores: by name of score.
        paper: the paper's macro-F1 of its headline backbone on this corpus; None where the paper lacks it.
        paper_best: the paper's best macro-F1 of any backbone on it, and that backbone's name.
    """

    corpus: CorpusFacts
    classes: Sequence[str]
    scores: Mapping[Score, Estimate]
    floor: Floor
    floor_uar: Floor
    paper: float | None
    paper_best: tuple[float, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderRow:
    """One correction over all pairs of a series.

    Attributes:
        target: how much of the target corpus it takes, in words.
        labels: whether it takes labels of the target.
        gain: mean paired difference of macro-F1 to no correction; None for that row itself.
        wins: pairs where it beats no correction.
        places: pairs compared.
    """

    correction: str
    target: str
    labels: bool
    macro_f1: Estimate
    uar: Estimate
    ece: Estimate
    gain: Estimate | None
    wins: int
    places: int


def estimate(figure: Figure) -> Estimate:
    """A stored figure, with what is not finite taken as missing."""
    return Estimate(value=_finite(figure["mean"]), low=_finite(figure["low"]), high=_finite(figure["high"]))


def score_of(correction: Correction, score: Score) -> Estimate:
    """One score of a corrected cell."""
    return estimate(correction[score])


def floor_of(floor: Floor) -> float:
    """The highest of the floors: what a score has to beat."""
    return max(floor["majority"], floor["uniform"], floor["prior_matched"])


def target_words(correction: Correction) -> str:
    """How much of the target corpus a correction uses, and of which kind."""
    clips = correction["target_clips"]
    if clips == 0:
        return "the labels' shares" if correction["target_labels"] else "nothing"
    amount = "all clips" if clips < 0 else f"{clips} clips"
    return f"{amount}, {'with labels' if correction['target_labels'] else 'unlabelled'}"


def matrix(series: Series, correction: str, score: Score = "macro_f1") -> Array:
    """Scores `[train, test]` of the pairs in the order of `series.corpora`; NaN elsewhere."""
    filled = np.full((len(series.corpora), len(series.corpora)), np.nan)
    place = {key: index for index, key in enumerate(series.corpora)}
    for cell in series.pairs:
        held = cell["corrections"].get(correction)
        value = None if held is None else score_of(held, score).value
        if value is not None:
            filled[place[cell["train"]], place[cell["test"]]] = value
    return filled


def leaderboard(run: Run) -> list[LeaderRow]:
    """Our series in the order of the run, then the paper's backbones: best out of domain first, contaminated last."""
    return [*(_own_row(series) for series in run.series), *_published_rows()]


def in_domain(series: Series) -> list[InDomainRow]:
    """One row a corpus that was scored within itself."""
    return [_in_domain_row(cell) for cell in series.in_domain]


def best_unlabelled(rows: Sequence[LadderRow]) -> LadderRow | None:
    """The correction with the highest mean of those that take no labels; None where there is none."""
    free = [row for row in rows if row.gain and not row.labels]
    return max(free, key=lambda row: row.macro_f1.value or 0.0, default=None)


def ladder(series: Series) -> list[LadderRow]:
    """One row a correction, in the order of what it takes of the target; empty where there are no pairs."""
    return [_ladder_row(series, name) for name in series.corrections] if series.pairs else []


def cell_floor(cell: Cell, score: Score) -> float | None:
    """The floor that belongs to a score; None where none is defined."""
    floors = {"macro_f1": cell["floor"], "uar": cell["floor_uar"]}
    return floor_of(floors[score]) if score in floors else None


def mean_floor(cells: Sequence[Cell]) -> float | None:
    """Mean of the highest macro-F1 floors of some cells; None where there are none."""
    return float(np.mean([floor_of(cell["floor"]) for cell in cells])) if cells else None


def paper_score(train: str, test: str, backbone: str = PAPER_BACKBONE) -> float | None:
    """The paper's macro-F1 of a cell, None where it has none."""
    value = float(published.matrix(backbone, train=[train], test=[test])[0, 0])
    return None if math.isnan(value) else value


def all_corrections(run: Run) -> tuple[str, ...]:
    """Every correction of a run, in the order of the ladder."""
    return ladder_order(cell for series in run.series for cell in series.cells.values())


def _own_row(series: Series) -> LeaderRow:
    means = {name: _mean_over_pairs(matrix(series, name)) for name in series.corrections if series.pairs}
    values = [score_of(cell["corrections"][NONE], "macro_f1").value for cell in series.in_domain]
    known = np.asarray([value for value in values if value is not None])
    return LeaderRow(
        name=series.backbone,
        series=series,
        in_domain=_mean_over_corpora(known),
        out_of_domain=means,
        corpora=known.size,
        pairs=len(series.pairs),
    )


def _published_rows() -> list[LeaderRow]:
    return [
        LeaderRow(
            name=row.display_name,
            series=None,
            in_domain=Estimate(value=row.in_domain),
            out_of_domain={ORACLE: Estimate(value=row.out_of_domain)},
            corpora=len(published.corpora()),
            pairs=len(published.eligible_pairs(published.PAPER_CLUSTER)),
            contaminated=row.contaminated,
        )
        for row in sorted(published.leaderboard(), key=lambda row: row.contaminated)
    ]


def _in_domain_row(cell: Cell) -> InDomainRow:
    held = cell["corrections"][NONE]
    key = cell["test"]
    rivals = [
        (value, published.display_name(name))
        for name in published.backbones()
        if name not in published.CONTAMINATED and (value := paper_score(key, key, name)) is not None
    ]
    return InDomainRow(
        corpus=cell["test_facts"],
        classes=cell["classes"],
        scores={score: score_of(held, score) for score in SCORES},
        floor=cell["floor"],
        floor_uar=cell["floor_uar"],
        paper=paper_score(key, key),
        paper_best=max(rivals) if rivals else None,
    )


def _ladder_row(series: Series, name: str) -> LadderRow:
    held = next(cell["corrections"][name] for cell in series.cells.values() if name in cell["corrections"])
    scores = matrix(series, name)
    gain, wins, places = _gain(scores, matrix(series, NONE)) if name != NONE else (None, 0, 0)
    return LadderRow(
        correction=name,
        target=target_words(held),
        labels=held["target_labels"],
        macro_f1=_mean_over_pairs(scores),
        uar=_mean_over_pairs(matrix(series, name, "uar")),
        ece=_mean_over_pairs(matrix(series, name, "ece")),
        gain=gain,
        wins=wins,
        places=places,
    )


def _gain(scores: Array, base: Array) -> tuple[Estimate | None, int, int]:
    if np.isnan(scores - base).all():
        return None, 0, 0
    found = paired_over_pairs(scores, base)
    return (
        Estimate(value=found.estimate, low=found.interval.low, high=found.interval.high),
        found.wins,
        found.places,
    )


def _mean_over_pairs(scores: Array) -> Estimate:
    if np.isnan(scores).all():
        return Estimate(value=None)
    mean, interval = mean_over_pairs(scores)
    return Estimate(value=mean, low=interval.low, high=interval.high)


def _mean_over_corpora(values: Array) -> Estimate:
    if values.size == 0:
        return Estimate(value=None)
    if values.size == 1:
        return Estimate(value=float(values[0]))
    drawn = np.random.default_rng(0).choice(values, size=(RESAMPLES, values.size)).mean(axis=1)
    interval = percentile(drawn, units=values.size, unit="corpus", expand=False)
    return Estimate(value=float(values.mean()), low=interval.low, high=interval.high)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
