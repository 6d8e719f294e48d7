"""The rule picks the cheapest that is not shown to be worse, and never looks at the fold it is scored on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.study.cells import Cell
from services.study.curve import Cost, Key
from services.study.draws import Score, score
from services.study.nested import Choice, judge
from services.study.rule import Candidate, choose

FIGURES = st.lists(
    st.tuples(st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 0.2)), min_size=1, max_size=8, unique_by=lambda f: f[0]
)


def candidates(figures: list[tuple[float, float, float]]) -> list[Candidate]:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.1, 400)
    return [
        Candidate(
            policy=f"p{n}",
            blocks=1,
            cost=cost,
            score=Score(value=value, draws=value + common + rng.normal(0, noise, 400), units=10),
        )
        for n, (cost, value, noise) in enumerate(figures)
    ]


@given(FIGURES)
def test_what_is_picked_is_near_the_best_and_nothing_near_is_cheaper(figures: list[tuple[float, float, float]]) -> None:
    given_ = candidates(figures)
    picked = given_[choose(given_)]
    best = max(given_, key=lambda each: each.score.value)
    near = [each for each in given_ if (best.score - each.score).value <= (best.score - each.score).error]
    assert picked in near
    assert picked.cost == min(each.cost for each in near)


@given(FIGURES)
def test_without_patience_the_best_is_picked(figures: list[tuple[float, float, float]]) -> None:
    given_ = candidates(figures)
    assert given_[choose(given_, errors=0)].score.value == max(each.score.value for each in given_)


def test_the_difference_counts_and_not_the_spread_that_both_share() -> None:
    """Ten points of spread in common hide a deficit of two points from the plain rule; not from the paired one."""
    picked = choose(candidates([(1.0, 0.70, 0.001), (0.1, 0.68, 0.001)]))
    assert picked == 0


def counts(skill: float, *, speakers: int, seed: int) -> np.ndarray:
    """[3 seeds, speakers, 2, 2] of heads that are right so often."""
    right = np.random.default_rng(seed).binomial(40, skill, (3, speakers, 2))
    matrix = np.zeros((3, speakers, 2, 2), np.int64)
    for label in range(2):
        matrix[..., label, label], matrix[..., label, 1 - label] = right[..., label], 40 - right[..., label]
    return matrix


def cell(skill: float, folds: np.ndarray, *, seed: int) -> Cell:
    outer = counts(skill, speakers=folds.shape[1], seed=seed)
    inner = np.stack([np.where((folds == fold)[..., None, None], 0, outer) for fold in range(5)], axis=1)
    return Cell(outer=outer, inner=inner)


def test_the_rule_finds_the_cheap_and_good_and_its_nested_score_is_that_ones() -> None:
    folds = {"a": np.tile(np.arange(10) // 2, (3, 1)), "b": np.tile(np.arange(15) // 3, (3, 1))}
    skills = {("padded", 2): 0.9, ("exact", 2): 0.9, ("exact", 1): 0.6}
    prices = {("padded", 2): 1.0, ("exact", 2): 0.1, ("exact", 1): 0.05}
    keys = [Key(corpus=c, policy=p, blocks=b) for c in folds for p, b in skills]
    cells = {k: cell(skills[k.policy, k.blocks], folds[k.corpus], seed=7) for k in keys}
    costs = {k: Cost(relative=prices[k.policy, k.blocks], gflop=1.0) for k in keys}
    scores = {k: score(cells[k].outer, seed=int(k.corpus == "b")) for k in keys}
    verdict = judge(cells, costs, folds=folds, scores=scores)
    good = Choice(policy="exact", blocks=2)
    assert verdict.choice == good
    assert verdict.picked == {good: 15}
    assert verdict.cost == pytest.approx(0.1)
    assert verdict.scores["a"].value == scores[Key(corpus="a", policy="exact", blocks=2)].value


def test_a_candidate_that_shines_on_a_fold_alone_is_not_picked_for_that_fold() -> None:
    """Right on fold 0's speakers and wrong elsewhere: only a rule that peeks would serve it there."""
    folds = np.tile(np.arange(10) // 2, (3, 1))
    steady, peeked = cell(0.8, folds, seed=1), cell(0.4, folds, seed=2)
    shining = counts(1.0, speakers=10, seed=3)
    outer = np.where((folds == 0)[..., None, None], shining, peeked.outer)
    inner = np.stack([np.where((folds == fold)[..., None, None], 0, outer) for fold in range(5)], axis=1)
    keys = [Key(corpus="a", policy=policy, blocks=1) for policy in ("steady", "peeked")]
    cells = dict(zip(keys, (steady, Cell(outer=outer, inner=inner)), strict=True))
    costs = {keys[0]: Cost(relative=1.0, gflop=1.0), keys[1]: Cost(relative=0.5, gflop=1.0)}
    verdict = judge(cells, costs, folds={"a": folds}, scores={k: score(c.outer, seed=0) for k, c in cells.items()})
    assert verdict.picked == {Choice(policy="steady", blocks=1): 15}


def test_two_folds_give_a_choice_and_no_score_of_it() -> None:
    folds = np.tile(np.arange(4) // 2, (3, 1))
    counted = counts(0.8, speakers=4, seed=1)
    key = Key(corpus="a", policy="exact", blocks=1)
    verdict = judge(
        {key: Cell(outer=counted, inner=np.zeros((3, 2, 4, 2, 2), np.int64))},
        {key: Cost(relative=0.1, gflop=1.0)},
        folds={"a": folds},
        scores={key: score(counted, seed=0)},
    )
    assert (verdict.choice, verdict.scores) == (Choice(policy="exact", blocks=1), {})
