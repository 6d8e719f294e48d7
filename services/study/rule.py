"""Which policy and depth to export: the cheapest that is not shown to be worse than the best.

The one-standard-error rule (Breiman et al. 1984, section 3.4.3), with the error of the paired difference to the best
in place of the best's own: speakers who are hard are hard for every candidate, and the difference does not see them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.study.draws import Score

ERRORS = 1.0  # standard errors that a candidate may lie below the best


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One point of the curve; `cost` is relative, `score` on clips that the rule may see."""

    policy: str
    blocks: int
    cost: float
    score: Score


def choose(candidates: Sequence[Candidate], *, errors: float = ERRORS) -> int:
    """Index of the cheapest candidate whose deficit is within `errors` standard errors; the better one on a tie."""
    best = max(candidates, key=lambda each: each.score.value)
    near = [index for index, each in enumerate(candidates) if _is_near(each, best, errors)]
    return min(near, key=lambda index: (candidates[index].cost, -candidates[index].score.value))


def _is_near(candidate: Candidate, best: Candidate, errors: float) -> bool:
    deficit = best.score - candidate.score
    return deficit.value <= errors * deficit.error
