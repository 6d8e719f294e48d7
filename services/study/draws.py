"""Uncertainty of a mean over corpora: each corpus's speakers are drawn anew, the same draws for all that is compared.

Differences are paired by subtracting draws, means over corpora are means of draws. Percentiles are those of
`services.evaluator.statistics`, widened by Student's t for few speakers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evaluator.scoring import macro_scores
from services.evaluator.statistics import percentile

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """A macro-F1 and what it might have been with other speakers.

    Attributes:
        value: the estimate.
        draws: [resamples]; paired with those of every score on the same corpora.
        units: speakers of the corpus that has fewest.
    """

    value: float
    draws: Array
    units: int

    def __sub__(self, other: "Score") -> "Score":
        """A paired difference."""
        return Score(value=self.value - other.value, draws=self.draws - other.draws, units=self.units)

    @property
    def error(self) -> float:
        """Standard error: deviation of the draws, widened since drawn speakers vary less than speakers do."""
        return float(np.nanstd(self.draws) * np.sqrt(self.units / max(1, self.units - 1)))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the 95 % interval; None where one speaker is no sample."""
        if self.units < 2:
            return None
        found = percentile(self.draws, units=self.units, unit="speaker")
        return None if found.low is None or found.high is None else (found.low, found.high)


def score(confusions: Ints, *, seed: int, resamples: int = RESAMPLES) -> Score:
    """Macro-F1, mean over repeats, of counts [repeats, speakers, K, K]; `seed` names the corpus whose draws these are.

    Speakers without a clip are left out, so cells of the same clips have the same draws.
    """
    held = confusions[:, confusions.sum(axis=(0, 2, 3)) > 0]
    units, k = held.shape[1], held.shape[2]
    drawn = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples)
    weights = np.concatenate([np.ones((1, units)), drawn])
    counted = weights @ held.transpose(1, 0, 2, 3).reshape(units, -1)
    values = macro_scores(counted.reshape(len(weights), len(held), k, k))["macro_f1"].mean(axis=1)
    return Score(value=float(values[0]), draws=values[1:], units=units)


def mean(scores: list[Score]) -> Score:
    """Over corpora whose draws are independent: of different `seed`s."""
    return Score(
        value=float(np.mean([each.value for each in scores])),
        draws=np.mean([each.draws for each in scores], axis=0),
        units=min(each.units for each in scores),
    )
