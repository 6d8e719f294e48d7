from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from sklearn.metrics import f1_score

from services.study.feature_heads import answers, counted, gap, macro_f1


@dataclass(frozen=True)
class Made:
    name: str
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    speakers: tuple[str, ...]


def made() -> Made:
    rows = [(label, speaker, take) for label, speaker, take in product("abc", "uvwxyz", range(4))]
    return Made(
        name="made",
        keys=tuple("".join(map(str, row)) for row in rows),
        labels=tuple(row[0] for row in rows),
        speakers=tuple(row[1] for row in rows),
    )


def features(corpus: Made, noise: float, seed: int = 0) -> np.ndarray:
    centres = {label: np.eye(8)[number] for number, label in enumerate(sorted(set(corpus.labels)))}
    clean = np.stack([centres[label] for label in corpus.labels])
    return (clean + noise * np.random.default_rng(seed).normal(size=clean.shape)).astype(np.float32)


def test_scores_are_scikit_learns() -> None:
    corpus = made()
    chosen = answers(corpus, features(corpus, 0.5))
    truth = [sorted(set(corpus.labels)).index(label) for label in corpus.labels]
    expected = np.mean([f1_score(truth, row, average="macro") for row in chosen])
    assert macro_f1(counted(corpus, chosen)) == pytest.approx(expected)
    assert 0.5 < expected < 1


def test_no_head_hears_the_speaker_that_it_answers() -> None:
    corpus = made()
    # Every speaker has labels of its own order written into the features: a head that heard the speaker would be right.
    vectors = np.zeros((len(corpus.keys), 18), np.float32)
    for row, (label, speaker) in enumerate(zip(corpus.labels, corpus.speakers, strict=True)):
        vectors[row, "abc".index(label) + 3 * "uvwxyz".index(speaker)] = 1.0
    assert macro_f1(counted(corpus, answers(corpus, vectors))) < 0.5


def test_the_same_features_differ_by_nothing_and_worse_ones_by_what_they_lose() -> None:
    corpus = made()
    good, bad = (counted(corpus, answers(corpus, features(corpus, noise))) for noise in (0.3, 2.0))
    same = gap([good, good], [good, good])
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    worse = gap([bad], [good])
    assert worse.mean == pytest.approx(macro_f1(bad) - macro_f1(good))
    assert worse.low is not None
    assert worse.high is not None
    assert worse.low < worse.mean < worse.high < 0
