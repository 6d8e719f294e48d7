"""How a corpus is divided into training and test clips.

- A split is a function of the clips' keys, labels and speakers and of the seed, never of their order: whatever is
  shuffled is sorted by a SHA-256 of seed and name, which no library version can change.
- `random_split` is SER Evals' 80/20 by utterance (seed 34). The paper shuffled with torch's generator over the order
  of its own files; neither is available here, so ours is another draw of the same protocol. Speakers are on both sides.
- `speaker_folds` is what `sound` uses: five folds (fewer with fewer speakers), no speaker on both sides, every class
  of the test fold in its training part.
  Rule: speakers are shuffled into folds of equally many speakers (GroupKFold). Where they are *uneven*, they are dealt
  greedily so that classes spread evenly over the folds (StratifiedGroupKFold). Uneven means: more than 0.3 of the
  clips would have to move for every speaker to say the same number of clips of every class in the corpus's proportions
  (RAVDESS 0.00, nEMO 0.02, TurEV-DB 0.08, EmoDB 0.15; URDU 0.75).
- A class that one speaker alone says cannot be tested on unheard speakers: its clips are left out and counted.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from servox.errors import BadInput, Refused

Indices = NDArray[np.intp]
Rule = Literal["random-by-utterance", "speakers-shuffled", "speakers-stratified", "one-speaker-out", "official"]

PAPER_SEED = 34
PAPER_TRAIN_SHARE = 0.8
FOLDS = 5
UNEVEN = 0.3
ATTEMPTS = 20  # draws before leaving one speaker out at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Indices of the training and test clips, each sorted, in the order that the caller gave the clips."""

    train: Indices
    test: Indices


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The folds of a corpus and how they came about.

    Attributes:
        rule: how clips were divided.
        folds: one or more; the test parts are disjoint.
        excluded: index of a clip in no fold → why.
    """

    rule: Rule
    folds: tuple[Fold, ...]
    excluded: Mapping[int, str] = field(default_factory=dict)


def random_split(keys: Sequence[str], *, seed: int = PAPER_SEED, train_share: float = PAPER_TRAIN_SHARE) -> Splits:
    """One fold: the first int(share x n) clips in shuffled order train, the others test.

    Raises:
        BadInput: a share outside (0, 1), or too few clips for one on each side.
    """
    number = int(train_share * len(keys))
    if not 0 < train_share < 1 or not 0 < number < len(keys):
        raise BadInput(f"{len(keys)} clips at a training share of {train_share} leave a side empty; give more clips")
    ordered = np.asarray(_shuffled(range(len(keys)), seed=seed, name=lambda i: keys[i]), dtype=np.intp)
    fold = Fold(train=np.sort(ordered[:number]), test=np.sort(ordered[number:]))
    return Splits(rule="random-by-utterance", folds=(fold,))


def official_folds(parts: Sequence[str]) -> Splits:
    """The folds of a published split, from the part that each clip is in.

    With a part "test": one fold, "train" against "test"; other parts ("dev") are in neither. Without: each part is the
    test of one fold and the rest its training. A clip in no part has the empty string.

    Raises:
        BadInput: no "train" beside "test", or fewer than two parts.
    """
    names = sorted({part for part in parts if part})
    where = {name: np.flatnonzero([part == name for part in parts]) for name in names}
    if "test" in where:
        if "train" not in where:
            raise BadInput(f"the published split has the parts {names} and no 'train'; correct the corpus card")
        excluded = {i: f"in part {part or 'none'!r}" for i, part in enumerate(parts) if part not in ("train", "test")}
        return Splits(rule="official", folds=(Fold(train=where["train"], test=where["test"]),), excluded=excluded)
    if len(names) < 2:
        raise BadInput(f"the published split has the parts {names}; a split needs two at least")
    folds = tuple(
        Fold(train=np.sort(np.concatenate([where[other] for other in names if other != name])), test=where[name])
        for name in names
    )
    return Splits(rule="official", folds=folds, excluded={i: "in no part" for i, part in enumerate(parts) if not part})


def require_disjoint_speakers(splits: Splits, speakers: Sequence[str]) -> None:
    """Refuse folds, such as published ones, that have a speaker on both sides.

    Raises:
        Refused: a speaker is on both sides, or clips have none, so that nobody can tell.
    """
    for number, fold in enumerate(splits.folds):
        sides = [{speakers[i] for i in side} for side in (fold.train, fold.test)]
        shared = sorted(sides[0] & sides[1] | {"" for side in sides if "" in side})
        if shared:
            named = ", ".join(repr(speaker) for speaker in shared[:3])
            raise Refused(
                f"fold {number} has {len(shared)} speakers on both sides or unknown ({named}); use speaker folds"
            )


def speaker_folds(
    keys: Sequence[str],
    labels: Sequence[str],
    speakers: Sequence[str],
    *,
    corpus: str = "the corpus",
    folds: int = FOLDS,
    seed: int = 0,
) -> Splits:
    """Speaker-disjoint folds by the rule of this module.

    Args:
        keys: one name a clip, such as its digest.
        labels: unified label of each clip.
        speakers: speaker of each clip, the empty string where unknown (such clips are left out and counted).
        corpus: what to call it in a message.
        folds: how many folds are wanted; fewer come with fewer speakers.
        seed: another seed, another draw.

    Raises:
        BadInput: lengths that differ, or fewer than 2 folds wanted.
        Refused: no speakers, one speaker, or fewer than 2 classes that two speakers say.
    """
    if not len(keys) == len(labels) == len(speakers) or folds < 2:
        raise BadInput(
            f"{len(keys)} keys, {len(labels)} labels, {len(speakers)} speakers, {folds} folds; lengths must "
            "agree and 2 folds are the least"
        )
    excluded = _excluded(labels, speakers, corpus=corpus)
    kept = [i for i in range(len(keys)) if i not in excluded]
    table, names = _table([labels[i] for i in kept], [speakers[i] for i in kept])
    rule, assigned = _assigned(table, names, folds=min(folds, len(names)), seed=seed)
    fold_of = dict(zip(names, assigned, strict=True))
    member = np.full(len(keys), -1)
    member[kept] = [fold_of[speakers[i]] for i in kept]
    parts = tuple(
        Fold(train=np.flatnonzero((member >= 0) & (member != number)), test=np.flatnonzero(member == number))
        for number in range(max(assigned) + 1)
    )
    return Splits(rule=rule, folds=parts, excluded=excluded)


def unevenness(labels: Sequence[str], speakers: Sequence[str]) -> float:
    """How far speakers are from saying the same: total variation, 0 (crossed design) to 1.

    Half the L1 distance between the joint shares of (speaker, class) and 1/S x the corpus's class shares.
    """
    table, _ = _table(labels, speakers)
    return _unevenness(table)


def _unevenness(table: NDArray[np.int64]) -> float:
    shares = table / table.sum()
    return float(np.abs(shares - shares.sum(axis=0) / len(table)).sum() / 2)


def _table(labels: Sequence[str], speakers: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Clips `[speakers, classes]`, and the speakers' names in order."""
    names, who = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
    classes, what = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    flat = np.bincount(who * len(classes) + what, minlength=len(names) * len(classes))
    return flat.reshape(len(names), len(classes)).astype(np.int64), [str(name) for name in names]


def _excluded(labels: Sequence[str], speakers: Sequence[str], *, corpus: str) -> dict[int, str]:
    """Clips that no speaker-disjoint fold can hold, each with the reason; refuses a corpus where too little is left."""
    known = {speaker for speaker in speakers if speaker}
    if len(known) < 2:
        said = f"has one speaker ({next(iter(known))!r})" if known else "says no speakers"
        raise Refused(
            f"{corpus} {said}, so no speaker-disjoint fold exists; score it under `ser-evals`, or as a target"
        )
    voices = {
        label: {s for s, said in zip(speakers, labels, strict=True) if said == label and s} for label in set(labels)
    }
    reasons = {}
    for i, (label, speaker) in enumerate(zip(labels, speakers, strict=True)):
        if not speaker:
            reasons[i] = "speaker unknown"
        elif len(voices[label]) < 2:
            reasons[i] = f"class {label!r} is said by one speaker only"
    left = Counter(label for i, label in enumerate(labels) if i not in reasons)
    if len(left) < 2:
        raise Refused(
            f"{corpus} has {len(left)} classes that two speakers say ({', '.join(sorted(left)) or 'none'}), and 2 are "
            "needed; check how its card reads speakers"
        )
    return reasons


def _assigned(table: NDArray[np.int64], names: Sequence[str], *, folds: int, seed: int) -> tuple[Rule, list[int]]:
    """Fold of each speaker: the first draw whose training parts hold every class, else one speaker a fold."""
    uneven = _unevenness(table) > UNEVEN
    for attempt in range(ATTEMPTS):
        order = _shuffled(range(len(names)), seed=f"{seed}/{attempt}", name=lambda i: names[i])
        assigned = _stratified(table, order, folds=folds) if uneven else _dealt(order, folds=folds)
        if _covers(table, assigned):
            return ("speakers-stratified" if uneven else "speakers-shuffled"), assigned
    # Always possible: every class left is said by two speakers.
    return "one-speaker-out", list(range(len(names)))


def _dealt(order: Sequence[int], *, folds: int) -> list[int]:
    assigned = [0] * len(order)
    for place, speaker in enumerate(order):
        assigned[speaker] = place * folds // len(order)
    return assigned


def _stratified(table: NDArray[np.int64], order: Sequence[int], *, folds: int) -> list[int]:
    """Each speaker, the most one-sided first, goes where the classes' shares then vary least between the folds.

    The greedy rule of scikit-learn's StratifiedGroupKFold, with one addition: the last speakers fill folds that are
    still empty.
    """
    totals = table.sum(axis=0)
    assigned, load = [0] * len(order), np.zeros((folds, len(totals)))
    spread = table.std(axis=1)
    queue = sorted(order, key=lambda speaker: -spread[speaker])  # stable: ties stay shuffled
    for left, speaker in zip(range(len(queue), 0, -1), queue, strict=True):
        empty = np.flatnonzero(load.sum(axis=1) == 0)
        candidates = empty if len(empty) >= left else np.arange(folds)
        costs = []
        for fold in candidates:
            after = load.copy()
            after[fold] += table[speaker]
            costs.append((round(float((after / totals).std(axis=0).mean()), 12), after[fold].sum()))
        chosen = int(candidates[min(range(len(candidates)), key=lambda i: costs[i])])
        assigned[speaker] = chosen
        load[chosen] += table[speaker]
    return assigned


def _covers(table: NDArray[np.int64], assigned: Sequence[int]) -> bool:
    """Whether every fold's training part holds every class."""
    held = np.asarray(assigned)
    return all((table[held != fold].sum(axis=0) > 0).all() for fold in range(max(assigned) + 1))


def _shuffled(items: Iterable[int], *, seed: int | str, name: Callable[[int], str]) -> list[int]:
    """`items` in the order of a SHA-256 of seed and name."""
    return sorted(items, key=lambda i: hashlib.sha256(f"{seed}/{name(i)}".encode()).digest())
