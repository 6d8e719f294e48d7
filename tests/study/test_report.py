"""Rows of a curve as CSV, Markdown and a picture."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.study.curve import Cost, Key, Point, points
from services.study.draws import Score
from services.study.report import csv_text, markdown, plot


def scored(value: float, seed: int) -> Score:
    return Score(value=value, draws=value + np.random.default_rng(seed).normal(0, 0.02, 300), units=8)


@pytest.fixture(scope="module")
def rows() -> list[Point]:
    """Two corpora, two policies, two depths; heads on two layers where there are two."""
    values = {("padded", 1, 1): 0.5, ("padded", 2, 1): 0.6, ("exact", 1, 1): 0.4, ("exact", 2, 2): 0.7}
    keys = [Key(corpus=c, policy=p, blocks=b, layers=n) for c in ("a", "b") for p, b, n in values]
    scores = {k: scored(values[k.policy, k.blocks, k.layers], seed=k.corpus == "b") for k in keys}
    costs = {k: Cost(relative=(1.0 if k.policy == "padded" else 0.05) * k.blocks / 2, gflop=2.0) for k in keys}
    moved = {k: scored(0.3, seed=5) for k in keys if k.policy == "exact" and k.layers == 1}
    return points(scores, costs, transfers=moved, reference="padded")


def test_a_row_a_corpus_and_one_of_their_mean(rows: list[Point]) -> None:
    assert [row.corpus for row in rows] == ["a"] * 4 + ["b"] * 4 + ["mean"] * 4
    mean = next(row for row in rows if (row.corpus, row.policy, row.layers) == ("mean", "exact", 2))
    assert mean.f1.value == pytest.approx(0.7)
    assert mean.difference.value == pytest.approx(0.1)  # to padded at full depth on one layer
    assert mean.cost == pytest.approx(0.05)


def test_a_transfer_is_compared_with_the_reference_at_its_own_depth(rows: list[Point]) -> None:
    moved = [row for row in rows if row.transfer]
    assert {(row.policy, row.blocks, row.layers) for row in moved} == {("exact", 1, 1)}
    assert all(row.transfer_loss and row.transfer_loss.value == pytest.approx(-0.2) for row in moved)


def test_the_csv_holds_every_figure_and_leaves_out_what_there_is_not(rows: list[Point]) -> None:
    read = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert len(read) == len(rows)
    for row, line in zip(rows, read, strict=True):
        assert float(line["macro_f1"]) == pytest.approx(row.f1.value, rel=1e-5)
        assert (line["transfer_f1"] == "") == (row.transfer is None)


def test_the_markdown_shows_the_mean_and_each_corpus(rows: list[Point]) -> None:
    lines = markdown(rows).splitlines()
    assert lines[0] == "| policy | blocks | layers | cost | macro-F1 | difference | transfer | a | b |"
    assert len(lines) == 2 + 4
    assert lines[-1].startswith("| exact | 2 | 2 | 5.0 % | .700 [")
    assert "+.100" in lines[-1]


def test_columns_that_say_nothing_are_left_out(rows: list[Point]) -> None:
    plain = [replace(row, layers=1, transfer=None, transfer_loss=None) for row in rows if row.corpus == "a"]
    assert markdown(plain).splitlines()[0] == "| policy | blocks | cost | macro-F1 | difference |"


def test_the_picture_is_the_same_each_time(rows: list[Point], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        plot(rows, folder, title="corpora", chosen=("exact", 2, 2))
    first, second = ((folder / "curve.svg").read_bytes() for folder in folders)
    assert first == second
    assert b"svg" in first[:200]
