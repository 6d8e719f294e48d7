import warnings
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import model_selection

from services.evaluator.splits import (
    Splits,
    official_folds,
    random_split,
    require_disjoint_speakers,
    speaker_folds,
    unevenness,
)
from servox.errors import BadInput, Refused

Clips = tuple[list[str], list[str], list[str]]


@st.composite
def corpora(draw: st.DrawFn) -> Clips:
    """Keys, labels and speakers of a small corpus; speakers are often one-sided and sometimes unknown."""
    labels = draw(st.lists(st.sampled_from(["anger", "calm", "fear", "joy"]), min_size=2, max_size=60))
    voices = st.sampled_from(["", "a", "b", "c", "d", "e", "f", "g", "h"])
    speakers = draw(st.lists(voices, min_size=len(labels), max_size=len(labels)))
    return [f"clip{i}" for i in range(len(labels))], labels, speakers


def _crossed(*, speakers: int, classes: int, each: int) -> Clips:
    labels = [f"class{c}" for _ in range(speakers) for c in range(classes) for _ in range(each)]
    who = [f"s{s}" for s in range(speakers) for _ in range(classes * each)]
    return [f"clip{i}" for i in range(len(labels))], labels, who


def _named(splits: Splits, keys: list[str]) -> list[tuple[frozenset[str], frozenset[str]]]:
    return [(frozenset(keys[i] for i in f.train), frozenset(keys[i] for i in f.test)) for f in splits.folds]


def _tested(splits: Splits) -> NDArray[np.intp]:
    return np.sort(np.concatenate([fold.test for fold in splits.folds]))


@settings(max_examples=300)
@given(corpora(), st.integers(0, 5), st.integers(2, 6))
def test_speaker_folds_hold_what_they_promise(clips: Clips, seed: int, folds: int) -> None:
    keys, labels, speakers = clips
    try:
        found = speaker_folds(keys, labels, speakers, seed=seed, folds=folds)
    except Refused:
        return
    scored = np.asarray([i for i in range(len(keys)) if i not in found.excluded])
    assert np.array_equal(_tested(found), scored)
    for fold in found.folds:
        assert np.array_equal(np.sort(np.concatenate([fold.train, fold.test])), scored)
        assert len(fold.test)
        assert not {speakers[i] for i in fold.train} & {speakers[i] for i in fold.test}
        assert {labels[i] for i in fold.test} <= {labels[i] for i in fold.train}
    require_disjoint_speakers(found, speakers)
    voices = len({speakers[i] for i in scored})
    assert len(found.folds) == (voices if found.rule == "one-speaker-out" else min(folds, voices))


@given(corpora(), st.randoms(use_true_random=False))
def test_speaker_folds_do_not_depend_on_the_order_of_the_clips(clips: Clips, shuffler: Random) -> None:
    order = list(range(len(clips[0])))
    shuffler.shuffle(order)
    keys, labels, speakers = ([column[i] for i in order] for column in clips)
    try:
        first = speaker_folds(*clips, seed=3)
    except Refused:
        with pytest.raises(Refused):
            speaker_folds(keys, labels, speakers, seed=3)
        return
    assert _named(first, clips[0]) == _named(speaker_folds(keys, labels, speakers, seed=3), keys)


def test_seeds_give_other_folds_and_the_same_seed_the_same() -> None:
    clips = _crossed(speakers=10, classes=3, each=2)
    draws = [tuple(_named(speaker_folds(*clips, seed=seed), clips[0])) for seed in (0, 1, 2, 0)]
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3


def test_even_speakers_are_shuffled_and_folds_are_equal() -> None:
    found = speaker_folds(*_crossed(speakers=24, classes=4, each=2), seed=0)
    assert found.rule == "speakers-shuffled"
    assert sorted(len(fold.test) for fold in found.folds) == [32, 40, 40, 40, 40]


def _talk_shows(seed: int) -> Clips:
    """Like URDU: a few speakers hold most clips, most say one or two of four classes."""
    generator = np.random.default_rng(seed)
    clips: list[tuple[str, str]] = []
    for speaker, size in enumerate(generator.permutation([80, 48, 40, 38, 28, 28, 22, 14, 14, 12, 12] + [4] * 18)):
        said = generator.choice(["anger", "happiness", "neutral", "sadness"], size=generator.integers(1, 3))
        clips += [(str(generator.choice(said)), f"s{speaker}") for _ in range(size)]
    return [f"clip{i}" for i in range(len(clips))], [c for c, _ in clips], [s for _, s in clips]


def _imbalance(folds: list[NDArray[np.intp]], labels: list[str]) -> float:
    """Mean std of the classes' shares over folds: what stratification makes small."""
    names, coded = np.unique(labels, return_inverse=True)
    shares = [np.bincount(coded[fold], minlength=len(names)) / np.bincount(coded) for fold in folds]
    return float(np.std(shares, axis=0).mean())


@pytest.mark.parametrize("seed", range(5))
def test_uneven_speakers_are_stratified_as_well_as_scikit_learn_does(seed: int) -> None:
    keys, labels, speakers = _talk_shows(seed)
    found = speaker_folds(keys, labels, speakers, seed=seed)
    assert found.rule == "speakers-stratified"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        peer = model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        theirs = [test for _, test in peer.split(keys, labels, speakers)]
    assert _imbalance([fold.test for fold in found.folds], labels) <= _imbalance(theirs, labels) + 0.01


def test_unevenness_goes_from_a_crossed_design_to_one_class_a_speaker() -> None:
    _, labels, speakers = _crossed(speakers=6, classes=4, each=3)
    assert unevenness(labels, speakers) == pytest.approx(0)
    assert unevenness(speakers, speakers) == pytest.approx(5 / 6)


def test_real_corpora_are_told_apart(data_root: Path) -> None:
    urdu = [(path.parent.name, path.stem.split("_")[0]) for path in (data_root / "corpora").glob("URDU/*/*.flac")]
    emodb = [(path.stem[5], path.stem[:2]) for path in (data_root / "corpora").glob("EmoDB/wav/*.flac")]
    if not urdu or not emodb:
        pytest.skip("needs URDU and EmoDB")
    rules = {}
    for name, clips in (("urdu", urdu), ("emodb", emodb)):
        keys = [f"{name}{i}" for i in range(len(clips))]
        rules[name] = speaker_folds(keys, [label for label, _ in clips], [speaker for _, speaker in clips]).rule
    assert rules == {"urdu": "speakers-stratified", "emodb": "speakers-shuffled"}


def test_a_class_of_one_speaker_is_left_out_and_counted() -> None:
    keys, labels, speakers = _crossed(speakers=4, classes=2, each=2)
    found = speaker_folds([*keys, "x", "y"], [*labels, "awe", "class0"], [*speakers, "s0", ""])
    assert dict(found.excluded) == {16: "class 'awe' is said by one speaker only", 17: "speaker unknown"}


@pytest.mark.parametrize(
    ("labels", "speakers", "said"),
    [
        (["a", "b"], ["", ""], "emodb says no speakers.*`ser-evals`"),
        (["a", "b"], ["x", "x"], "emodb has one speaker"),
        (["a", "b", "a", "b"], ["x", "y", "x", "y"], "0 classes that two speakers say"),
    ],
)
def test_sound_refuses_what_has_no_speaker_disjoint_fold(labels: list[str], speakers: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        speaker_folds([str(i) for i in range(len(labels))], labels, speakers, corpus="emodb")


def test_one_speaker_is_left_out_where_no_fold_of_several_works() -> None:
    """Every pair of six speakers shares a class, so two in one fold empty its training part of that class."""
    pairs = [(a, b) for a in range(6) for b in range(a)]
    labels = [f"{a}-{b}" for a, b in pairs for _ in (a, b)]
    speakers = [f"s{s}" for pair in pairs for s in pair]
    found = speaker_folds([str(i) for i in range(len(labels))], labels, speakers)
    assert (found.rule, len(found.folds)) == ("one-speaker-out", 6)


def test_lengths_and_folds_are_checked() -> None:
    with pytest.raises(BadInput, match="1 keys, 2 labels"):
        speaker_folds(["a"], ["x", "y"], ["s"])
    with pytest.raises(BadInput, match="2 folds are the least"):
        speaker_folds(["a"], ["x"], ["s"], folds=1)


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=80), st.integers(0, 100), st.randoms())
def test_random_split_is_a_partition_of_80_20_that_ignores_order(keys: set[str], seed: int, shuffler: Random) -> None:
    ordered = sorted(keys)
    found = random_split(ordered, seed=seed)
    fold = found.folds[0]
    assert len(fold.train) == int(0.8 * len(keys))
    assert np.array_equal(np.sort(np.concatenate([fold.train, fold.test])), np.arange(len(keys)))
    again = list(ordered)
    shuffler.shuffle(again)
    assert _named(random_split(again, seed=seed), again) == _named(found, ordered)


def test_random_split_is_pinned() -> None:
    """A change here silently changes every `ser-evals` result."""
    assert random_split([f"clip{i}" for i in range(10)]).folds[0].test.tolist() == [2, 8]


def test_random_split_mixes_well() -> None:
    keys = [f"clip{i}" for i in range(2000)]
    sides = [np.isin(np.arange(2000), random_split(keys, seed=seed).folds[0].test) for seed in (0, 1)]
    assert abs(float(np.mean(sides[0][:1000])) - 0.2) < 0.04
    assert abs(float(np.mean(sides[0] & sides[1])) - 0.04) < 0.015


def test_random_split_needs_a_clip_on_each_side() -> None:
    for keys, share in ((["a"], 0.8), (["a", "b"], 0.2), (["a", "b"], 1.0)):
        with pytest.raises(BadInput, match="leave a side empty"):
            random_split(keys, train_share=share)


def test_official_train_and_test() -> None:
    found = official_folds(["train", "test", "dev", "", "train"])
    assert [(fold.train.tolist(), fold.test.tolist()) for fold in found.folds] == [([0, 4], [1])]
    assert dict(found.excluded) == {2: "in part 'dev'", 3: "in part 'none'"}


def test_official_folds_take_turns() -> None:
    found = official_folds(["1", "2", "3", "1"])
    assert [(fold.train.tolist(), fold.test.tolist()) for fold in found.folds] == [
        ([1, 2], [0, 3]),
        ([0, 2, 3], [1]),
        ([0, 1, 3], [2]),
    ]


def test_official_splits_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(BadInput, match="no 'train'"):
        official_folds(["test", "dev"])
    with pytest.raises(BadInput, match="needs two"):
        official_folds(["1", "1"])
    with pytest.raises(Refused, match="on both sides"):
        require_disjoint_speakers(official_folds(["train", "test"]), ["rachel", "rachel"])
    with pytest.raises(Refused, match="unknown"):
        require_disjoint_speakers(official_folds(["train", "test"]), ["rachel", ""])
