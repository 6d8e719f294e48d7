"""The bench of heads on a toy store: both sides answer every clip, and the line says so."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bench.heads import Side, Task, ours, peers, score, specs_of, table, theirs
from servox.arrays import EmbeddingStore, LabelledClip

BUNDLE = "ab" * 32
LABELS = ("anger", "fear", "sadness")


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    """Two folds and two seeds of sixty clips that are easy to tell apart."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    vectors = (random.normal(size=(60, 8)) + 3 * np.eye(8)[labels]).astype(np.float32)
    clips = [LabelledClip(key=f"{row:064x}", label=LABELS[labels[row]], speaker=f"s{row % 4}") for row in range(60)]
    arrays = {clip.key: vector[None] for clip, vector in zip(clips, vectors, strict=True)}
    EmbeddingStore(str(tmp_path / "store")).write(bundle=BUNDLE, pooling="mean", arrays=arrays)
    halves = np.split(np.arange(60), 2)
    return [
        Task(corpus="toy", seed=seed, clips=clips, vectors=vectors, labels=labels, train=train, test=test)
        for seed in range(2)
        for train, test in (halves, halves[::-1])
    ]


def test_both_sides_answer_every_clip(tasks: list[Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = specs_of(tasks, sets=str(tmp_path / "sets"), digest=BUNDLE, layers=[0], hidden=16)
    servox, others = Side(name="servox", settings={}), peers(16)
    ours(servox, tasks, specs, store=str(tmp_path / "store"), threads=2)
    for peer in others:
        theirs(peer, tasks, range(len(tasks)))
    options = argparse.Namespace(hidden=16, threads=2, rounds=1)
    line = table(servox, others, tasks, options)
    assert [row["trainer"] for row in line["rows"]][:2] == ["servox", "scikit-learn, defaults"]
    assert line["rows"][0]["macro_f1"] > 0.6
    assert line["rows"][0]["ratio"] == 1
    assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 for row in line["rows"])
    assert "4 heads, d = 8" in capsys.readouterr().out


def test_folds_are_pooled_before_they_are_scored(tasks: list[Task]) -> None:
    side = Side(name="", settings={})
    side.answers = {n: np.roll(task.labels[task.test], n) for n, task in enumerate(tasks)}
    each = []
    for pair in ((0, 1), (2, 3)):
        truth = np.concatenate([tasks[n].labels[tasks[n].test] for n in pair])
        answers = np.concatenate([side.answers[n] for n in pair])
        each.append(f1_score(truth, answers, average="macro"))
    assert score(side, tasks) == {"toy": pytest.approx(np.mean(each))}
