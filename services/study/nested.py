"""What the rule picks, and what it is worth: picked without the fold that it is then scored on.

For every seed and held-out fold the rule sees the answers on the other folds, in every corpus, by heads that heard
neither; what it picks is scored on the held-out speakers of each corpus. One choice serves all corpora, as one bundle
does.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.study.cells import LEAST_FOLDS, Cell, Ints
from services.study.curve import Cost, Key
from services.study.draws import Score, mean, score
from services.study.rule import Candidate, choose

RESAMPLES = 500  # a standard error needs fewer than the ends of an interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A policy and depth."""

    policy: str
    blocks: int
    layers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """The outcome of the rule.

    Attributes:
        choice: by all folds: what to export.
        picked: how often each choice was made without a fold.
        scores: of the choices made without it, on the held-out speakers of each corpus; empty where no corpus has
            folds enough.
        cost: of these choices, relative, mean over folds.
    """

    choice: Choice
    picked: Mapping[Choice, int]
    scores: Mapping[str, Score]
    cost: float


def judge(
    cells: Mapping[Key, Cell], costs: Mapping[Key, Cost], *, folds: Mapping[str, Ints], scores: Mapping[Key, Score]
) -> Verdict:
    """Applies the rule to every fold and to the whole.

    Args:
        cells: of every corpus, policy and depth.
        costs: of the same.
        folds: [seeds, speakers] of each corpus: which fold tests a speaker, -1 for none.
        scores: by the outer folds, which the choice for export is made by.
    """
    corpora = list(folds)
    options = [
        Choice(policy=key.policy, blocks=key.blocks, layers=key.layers) for key in cells if key.corpus == corpora[0]
    ]
    price = {each: float(np.mean([costs[_key(corpus, each)].relative for corpus in corpora])) for each in options}
    final = options[choose(_candidates(options, price, {c: {o: scores[_key(c, o)] for o in options} for c in corpora}))]
    able = [corpus for corpus in corpora if int(folds[corpus].max()) + 1 >= LEAST_FOLDS]
    if not able:
        return Verdict(choice=final, picked={}, scores={}, cost=price[final])
    picks = {(seed, fold): _pick(cells, options, price, able, folds, seed, fold) for seed, fold in _held_out(folds)}
    return Verdict(
        choice=final,
        picked=Counter(picks.values()),
        scores={corpus: _nested(cells, corpus, folds[corpus], picks, seed=n) for n, corpus in enumerate(able)},
        cost=float(np.mean([price[each] for each in picks.values()])),
    )


def _held_out(folds: Mapping[str, Ints]) -> list[tuple[int, int]]:
    """Every seed and fold of the corpus that has most folds."""
    seeds = len(next(iter(folds.values())))
    return [
        (seed, fold)
        for seed in range(seeds)
        for fold in range(max(int(each[seed].max()) for each in folds.values()) + 1)
    ]


def _pick(
    cells: Mapping[Key, Cell],
    options: Sequence[Choice],
    price: Mapping[Choice, float],
    corpora: Sequence[str],
    folds: Mapping[str, Ints],
    seed: int,
    fold: int,
) -> Choice:
    """The choice without a fold; a corpus with fewer folds takes turns."""
    seen = {
        corpus: {
            option: score(
                cells[_key(corpus, option)].inner[seed, fold % (int(folds[corpus][seed].max()) + 1)][None],
                seed=number,
                resamples=RESAMPLES,
            )
            for option in options
        }
        for number, corpus in enumerate(corpora)
    }
    return options[choose(_candidates(options, price, seen))]


def _candidates(
    options: Sequence[Choice], price: Mapping[Choice, float], seen: Mapping[str, Mapping[Choice, Score]]
) -> list[Candidate]:
    return [
        Candidate(
            policy=each.policy,
            blocks=each.blocks,
            cost=price[each],
            score=mean([scores[each] for scores in seen.values()]),
        )
        for each in options
    ]


def _nested(
    cells: Mapping[Key, Cell], corpus: str, folds: Ints, picks: Mapping[tuple[int, int], Choice], *, seed: int
) -> Score:
    """Every speaker's counts under the choice that was made without the speaker."""
    taken = np.zeros_like(cells[_key(corpus, next(iter(picks.values())))].outer)
    for repeat, speaker in np.argwhere(folds >= 0):
        choice = picks[int(repeat), int(folds[repeat, speaker])]
        taken[repeat, speaker] = cells[_key(corpus, choice)].outer[repeat, speaker]
    return score(taken, seed=seed)


def _key(corpus: str, choice: Choice) -> Key:
    return Key(corpus=corpus, policy=choice.policy, blocks=choice.blocks, layers=choice.layers)
