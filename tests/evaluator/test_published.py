"""The paper's numbers, as tests: what the shipped tables must give, and what our own code makes of the class counts."""

import csv
from pathlib import Path

import numpy as np
import pytest

from services.evaluator import published, scoring
from services.evaluator.floors import floors
from services.evaluator.published import PAPER_CLUSTER
from servox import priors
from servox.emotions import PAPER_CLASSES
from servox.errors import NotFound

V2 = "openai/whisper-large-v2"
OTHER = PAPER_CLASSES.index("other")


def test_headline_of_whisper_large_v2() -> None:
    assert round(published.in_domain_mean(V2), 4) == 0.7819
    assert round(published.out_of_domain_mean(V2), 4) == 0.1942
    assert round(published.out_of_domain_mean(V2, cluster=None), 4) == 0.2005


@pytest.mark.parametrize(
    ("backbone", "in_domain", "out_of_domain", "recall"),
    [
        ("facebook/w2v-bert-2.0", 0.668, 0.1416, 0.190),
        ("facebook/wav2vec2-large-robust", 0.274, 0.0884, 0.159),
        ("facebook/hubert-large-ll60k", 0.733, 0.1565, 0.209),
        ("microsoft/wavlm-large", 0.765, 0.1611, 0.211),
        ("laion/larger_clap_music_and_speech", 0.743, 0.1481, 0.195),
        ("m-a-p/MERT-v1-330M", 0.708, 0.1275, 0.183),
        ("openai/whisper-medium", 0.757, 0.1968, 0.238),
        ("openai/whisper-large", 0.781, 0.1979, 0.239),
        ("openai/whisper-large-v3", 0.777, 0.1930, 0.234),
        ("emotionwhisper", 0.740, 0.2225, 0.265),
    ],
)
def test_means_of_every_backbone(backbone: str, in_domain: float, out_of_domain: float, recall: float) -> None:
    assert round(published.in_domain_mean(backbone), 3) == in_domain
    assert published.out_of_domain_mean(backbone) == pytest.approx(out_of_domain, abs=5.1e-5)
    assert published.out_of_domain_mean(backbone, metric="macro_recall") == pytest.approx(recall, abs=5.1e-4)


def test_sets_and_pairs() -> None:
    assert len(published.corpora()) == 19
    assert len(published.eligible_pairs(PAPER_CLUSTER)) == 72
    assert len(published.eligible_pairs()) == 76
    assert set(published.eligible_pairs(1)) == {("emodb", "resd"), ("resd", "emodb")}
    assert set(published.eligible_pairs(3)) == {("urdu", "eekk"), ("eekk", "urdu")}
    assert len(published.scores()) == 11 * (19 + 76)
    assert len(published.backbones()) == 11


def test_every_backbone_has_every_cell() -> None:
    cells = {(key, key) for key in published.corpora()} | set(published.eligible_pairs())
    for backbone in published.backbones():
        assert {(cell.train, cell.test) for cell in published.scores() if cell.backbone == backbone} == cells
        assert published.display_name(backbone) != backbone


def _mesd_row(target: str, *, seed: int) -> scoring.Scores:
    """An arbitrary MESD head on a target, by the paper's formula: logits are noise of the size that heads give."""
    counts = published.corpora()["mesd"].counts, published.corpora()[target].counts
    labels = np.repeat(np.arange(8), counts[1])
    logits = np.random.default_rng(seed).normal(scale=2.0, size=(len(labels), 8))
    scored = labels != OTHER
    adjusted = priors.adjust_paper(logits[scored], train_counts=counts[0], target_counts=counts[1], other=OTHER)
    return scoring.score_logits(labels[scored], adjusted, macro="appearing")


@pytest.mark.parametrize("target", [test for train, test in published.eligible_pairs(2) if train == "mesd"])
def test_mesd_row_follows_from_class_counts_alone(target: str) -> None:
    scores = _mesd_row(target, seed=1)
    for backbone in published.backbones():
        cell = published.score(backbone, "mesd", target)
        assert round(scores.macro_f1, 5) == cell.macro_f1
        assert round(scores.uar, 5) == cell.macro_recall


def test_mesd_row_refutes_an_average_over_all_eight_classes() -> None:
    scores = _mesd_row("emovo", seed=2)
    f1 = [value or 0.0 for value in scores.per_class_f1]
    assert round(float(np.mean(f1)), 5) != published.score(V2, "mesd", "emovo").macro_f1


def test_floors_over_the_paper_pairs() -> None:
    """Uniform: over the seven classes of the cluster, also for MESD; matched: the fair floor of an oracle prior."""
    answerable = np.arange(8) != OTHER
    found = [
        floors(np.where(answerable, published.corpora()[test].counts, 0), answerable=answerable)
        for _, test in published.eligible_pairs(2)
    ]
    assert round(float(np.mean([f.matched.macro_f1 for f in found])), 4) == 0.1455
    assert round(float(np.mean([f.uniform.macro_f1 for f in found])), 3) == 0.133
    assert round(float(np.mean([f.majority.macro_f1 for f in found])), 3) == 0.056


def test_matrix_has_nan_where_the_paper_has_no_cell() -> None:
    found = published.matrix(V2, train=["baum", "emodb"], test=["baum", "cafe"])
    assert found[0, 0] == published.score(V2, "baum", "baum").macro_f1
    assert np.isnan(found).tolist() == [[False, False], [True, True]]


def test_leaderboard_is_ranked_and_marks_the_fine_tuned_model() -> None:
    rows = published.leaderboard()
    assert [row.out_of_domain for row in rows] == sorted((row.out_of_domain for row in rows), reverse=True)
    assert [row.backbone for row in rows if row.contaminated] == ["emotionwhisper"]
    clean = [row.backbone for row in rows if not row.contaminated]
    assert clean[:3] == ["openai/whisper-large", "openai/whisper-medium", V2]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(NotFound, match="whisper-base"):
        published.in_domain_mean("openai/whisper-base")
    with pytest.raises(NotFound, match="'emodb'"):
        published.score(V2, "emodb", "urdu")


def _reference(data_root: Path, name: str) -> list[dict[str, str]]:
    path = data_root / "reference" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_shipped_scores_equal_the_reference(data_root: Path) -> None:
    rows = _reference(data_root, "ser_evals_scores.csv")
    assert len(rows) == len(published.scores())
    for row in rows:
        cell = published.score(row["backbone"], row["train"], row["test"])
        assert (cell.macro_f1, cell.macro_recall) == (float(row["macro_f1"]), float(row["macro_recall"]))


def test_shipped_counts_equal_the_reference(data_root: Path) -> None:
    rows = _reference(data_root, "ser_evals_corpora.csv")
    assert {row["corpus"] for row in rows} == set(published.corpora())
    for row in rows:
        corpus = published.corpora()[row["corpus"]]
        assert corpus.counts == tuple(int(row[label]) for label in PAPER_CLASSES)
        assert (corpus.language, str(corpus.cluster or "")) == (row["language"], row["cluster"])
