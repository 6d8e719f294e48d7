"""The curve: for every policy and depth what it costs, what it scores, and how that differs from the reference.

The reference is the padded encoder at full depth, where it is among the policies: what the paper does. `transfer` is
the score of heads that were trained on the reference policy at the same depth and are served by this one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.study.draws import Score, mean

MEAN = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Which cell; `layers` is how many a head reads, up to the one after the last block."""

    corpus: str
    policy: str
    blocks: int
    layers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A figure and its 95 % interval by speaker."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One row of the table.

    Attributes:
        corpus: its key, or `mean` of all.
        layers: that heads read, one after the other, up to the one after the last block.
        cost: relative to the padded encoder of full depth.
        gflop: a clip, in 10⁹ operations.
        f1: macro-F1.
        difference: to the reference policy at full depth, paired.
        transfer: macro-F1 of heads of the reference policy of this depth; None where it was not asked for.
        transfer_loss: `transfer` less what these heads score at home, paired.
    """

    corpus: str
    policy: str
    blocks: int
    layers: int
    cost: float
    gflop: float
    f1: Span
    difference: Span
    transfer: Span | None = None
    transfer_loss: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Operations of a policy and depth, mean over the clips of a corpus: relative, and in 10⁹ a clip."""

    relative: float
    gflop: float


def points(
    scores: Mapping[Key, Score],
    costs: Mapping[Key, Cost],
    *,
    transfers: Mapping[Key, Score],
    reference: str,
) -> list[Point]:
    """Rows of every corpus and, where there are several, of their mean."""
    corpora = list(dict.fromkeys(key.corpus for key in scores))
    sheet = _Sheet(scores=scores, costs=costs, transfers=transfers, reference=reference)
    rows = [sheet.point(key.corpus, [key.corpus], key) for key in scores]
    if len(corpora) > 1:
        rows += [sheet.point(MEAN, corpora, key) for key in scores if key.corpus == corpora[0]]
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sheet:
    scores: Mapping[Key, Score]
    costs: Mapping[Key, Cost]
    transfers: Mapping[Key, Score]
    reference: str

    def point(self, name: str, corpora: Sequence[str], key: Key) -> Point:
        here = [replace(key, corpus=corpus) for corpus in corpora]
        base = max(self.scores, key=lambda each: (each.policy == self.reference, each.blocks, -each.layers))
        score = self._mean(here, key)
        moved = mean([self.transfers[each] for each in here]) if all(each in self.transfers for each in here) else None
        home = None if moved is None else self._mean(here, replace(key, policy=self.reference))
        return Point(
            corpus=name,
            policy=key.policy,
            blocks=key.blocks,
            layers=key.layers,
            cost=sum(self.costs[each].relative for each in here) / len(here),
            gflop=sum(self.costs[each].gflop for each in here) / len(here),
            f1=span(score),
            difference=span(score - self._mean(here, base)),
            transfer=None if moved is None else span(moved),
            transfer_loss=None if moved is None or home is None else span(moved - home),
        )

    def _mean(self, here: Sequence[Key], like: Key) -> Score:
        return mean([self.scores[replace(like, corpus=each.corpus)] for each in here])


def span(score: Score) -> Span:
    """A score as a figure."""
    ends = score.interval
    return Span(value=score.value, low=ends[0] if ends else None, high=ends[1] if ends else None)


def of_mean(rows: Sequence[Point]) -> list[Point]:
    """The rows that the plot and the console show: of the mean, or of the only corpus."""
    return [row for row in rows if row.corpus == MEAN] or list(rows)
