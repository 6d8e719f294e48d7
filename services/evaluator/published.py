"""SER Evals' published scores (arXiv 2408.07851), to be shown beside ours and never mixed with them.

- Facts re-expressed from the paper's public result files: `published/scores.csv` (macro-F1 and macro recall to five
  digits for every backbone, training and test corpus) and `published/corpora.csv` (language, cluster, class counts).
- One seed, no intervals, random split by utterance in domain, oracle target prior out of domain.
- A pair is *eligible* when both corpora are in the same cluster. The paper's out-of-domain figure is the mean over the
  72 ordered pairs of cluster 2; eight of them (MESD-trained) measure a fault of the adjustment, not the backbone.
- `emotionwhisper` was fine-tuned on emotion corpora, perhaps on these: it is marked `contaminated`.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from servox.emotions import PAPER_CLASSES
from servox.errors import NotFound

Metric = Literal["macro_f1", "macro_recall"]

PAPER_CLUSTER = 2  # the paper's out-of-domain figure
DISPLAY_NAMES = {
    "facebook/hubert-large-ll60k": "HuBERT large",
    "facebook/w2v-bert-2.0": "w2v-BERT 2.0",
    "facebook/wav2vec2-large-robust": "wav2vec 2.0 large robust",
    "laion/larger_clap_music_and_speech": "CLAP (music and speech)",
    "m-a-p/MERT-v1-330M": "MERT v1 330M",
    "microsoft/wavlm-large": "WavLM large",
    "openai/whisper-medium": "Whisper medium",
    "openai/whisper-large": "Whisper large",
    "openai/whisper-large-v2": "Whisper large-v2",
    "openai/whisper-large-v3": "Whisper large-v3",
    "emotionwhisper": "EmotionWhisper (fine-tuned)",
}
CONTAMINATED = frozenset({"emotionwhisper"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCorpus:
    """A corpus of the paper.

    Attributes:
        key: the corpus key, as in our cards.
        language: in English.
        cluster: corpora of one cluster are tested on each other; None: in domain only.
        counts: clips of each of `servox.emotions.PAPER_CLASSES`, `[8]`, by the paper's own label map.
    """

    key: str
    language: str
    cluster: int | None
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedScore:
    """One cell of the paper; in domain where `train == test`."""

    backbone: str
    train: str
    test: str
    macro_f1: float
    macro_recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderboardRow:
    """One backbone's published means."""

    backbone: str
    display_name: str
    in_domain: float
    out_of_domain: float
    contaminated: bool


@cache
def corpora() -> Mapping[str, PublishedCorpus]:
    """The paper's 19 corpora by key."""
    rows = _rows("corpora.csv")
    return {
        row["corpus"]: PublishedCorpus(
            key=row["corpus"],
            language=row["language"],
            cluster=int(row["cluster"]) if row["cluster"] else None,
            counts=tuple(int(row[label]) for label in PAPER_CLASSES),
        )
        for row in rows
    }


@cache
def scores() -> tuple[PublishedScore, ...]:
    """Every published cell."""
    return tuple(
        PublishedScore(
            backbone=row["backbone"],
            train=row["train"],
            test=row["test"],
            macro_f1=float(row["macro_f1"]),
            macro_recall=float(row["macro_recall"]),
        )
        for row in _rows("scores.csv")
    )


@cache
def backbones() -> tuple[str, ...]:
    """Ids of the published backbones, in the order of `DISPLAY_NAMES`."""
    held = {score.backbone for score in scores()}
    return tuple(name for name in DISPLAY_NAMES if name in held)


def display_name(backbone: str) -> str:
    """A backbone's name for people.

    Raises:
        NotFound: not a published backbone.
    """
    if backbone not in DISPLAY_NAMES:
        raise NotFound(f"no published scores of {backbone!r}; there are: {', '.join(DISPLAY_NAMES)}")
    return DISPLAY_NAMES[backbone]


def eligible_pairs(cluster: int | None = None) -> tuple[tuple[str, str], ...]:
    """Ordered (train, test) pairs of different corpora in the same cluster; of one cluster, or of all."""
    known = corpora().values()
    return tuple(
        (train.key, test.key)
        for train in known
        for test in known
        if train.key != test.key
        and train.cluster == test.cluster
        and train.cluster in ({1, 2, 3} if cluster is None else {cluster})
    )


def score(backbone: str, train: str, test: str) -> PublishedScore:
    """One published cell.

    Raises:
        NotFound: the paper has no such cell.
    """
    found = _by_cell().get((backbone, train, test))
    if found is None:
        raise NotFound(
            f"no published score of {backbone!r} trained on {train!r} and tested on {test!r}; "
            "see eligible_pairs() and backbones()"
        )
    return found


def matrix(
    backbone: str, *, train: Sequence[str], test: Sequence[str], metric: Metric = "macro_f1"
) -> NDArray[np.float64]:
    """Published scores `[train, test]`, in domain included; NaN where the paper has no cell.

    Raises:
        NotFound: not a published backbone.
    """
    display_name(backbone)
    cells = _by_cell()
    rows = [[cells.get((backbone, source, target)) for target in test] for source in train]
    return np.asarray([[np.nan if cell is None else getattr(cell, metric) for cell in row] for row in rows])


def in_domain_mean(backbone: str, *, metric: Metric = "macro_f1") -> float:
    """Mean in-domain score over the 19 corpora.

    Raises:
        NotFound: not a published backbone.
    """
    return _mean(backbone, [(key, key) for key in corpora()], metric=metric)


def out_of_domain_mean(backbone: str, *, cluster: int | None = PAPER_CLUSTER, metric: Metric = "macro_f1") -> float:
    """Mean score over the eligible pairs of a cluster (2: the paper's 72 pairs), or of all (None: 76 pairs).

    Raises:
        NotFound: not a published backbone.
    """
    return _mean(backbone, eligible_pairs(cluster), metric=metric)


def leaderboard() -> tuple[LeaderboardRow, ...]:
    """Published backbones by out-of-domain mean, the best first."""
    rows = [
        LeaderboardRow(
            backbone=name,
            display_name=display_name(name),
            in_domain=in_domain_mean(name),
            out_of_domain=out_of_domain_mean(name),
            contaminated=name in CONTAMINATED,
        )
        for name in backbones()
    ]
    return tuple(sorted(rows, key=lambda row: -row.out_of_domain))


def _mean(backbone: str, cells: Sequence[tuple[str, str]], *, metric: Metric) -> float:
    display_name(backbone)
    return float(np.mean([getattr(score(backbone, train, test), metric) for train, test in cells]))


@cache
def _by_cell() -> Mapping[tuple[str, str, str], PublishedScore]:
    return {(cell.backbone, cell.train, cell.test): cell for cell in scores()}


def _rows(name: str) -> list[dict[str, str]]:
    table = resources.files("services.evaluator") / "published" / name
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
