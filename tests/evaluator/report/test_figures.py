import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.evaluator.corrections import LADDER
from services.evaluator.report import figures
from services.evaluator.report.run import load
from servox.errors import BadInput


def stored(run: Path, *, head: str = "mlp") -> dict[tuple[str, str], dict[str, Any]]:
    """The cells as they lie on disk, read without the code under test."""
    cells = [json.loads(path.read_text()) for path in (run / "results" / "sound").glob(f"*/{head}/*.json")]
    return {(cell["train"], cell["test"]): cell for cell in cells}


def change(run: Path, name: str, **fields: object) -> None:
    (path,) = (run / "results" / "sound").glob(f"*/mlp/{name}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_series_follow_the_manifest(sample_run: Path) -> None:
    run = load(sample_run)
    assert [(one.protocol, one.head) for one in run.series] == [
        ("sound", "mlp"), ("sound", "logistic"), ("ser-evals", "frame-mlp"),
    ]  # fmt: skip
    assert run.series[0].corrections == tuple(LADDER)
    assert run.series[0].corpora == ("emodb", "nemo", "ravdess", "turev", "urdu")
    assert len(run.series[0].pairs) == 20


def test_leaderboard_means_are_those_of_the_cells(sample_run: Path) -> None:
    row = figures.leaderboard(load(sample_run))[0]
    cells = stored(sample_run)
    own = [cell["corrections"]["none"]["macro_f1"]["mean"] for (train, test), cell in cells.items() if train == test]
    assert row.in_domain.value == pytest.approx(np.mean(own))
    assert (row.corpora, row.pairs) == (5, 20)
    for name in LADDER:
        pairs = [c["corrections"][name]["macro_f1"]["mean"] for (train, test), c in cells.items() if train != test]
        estimate = row.out_of_domain[name]
        assert estimate.value == pytest.approx(np.mean(pairs))
        assert estimate.low is not None
        assert estimate.high is not None
        assert min(pairs) <= estimate.low < np.mean(pairs) < estimate.high <= max(pairs)


def test_published_rows_are_the_papers(sample_run: Path) -> None:
    rows = [row for row in figures.leaderboard(load(sample_run)) if row.series is None]
    assert len(rows) == 11
    large = next(row for row in rows if row.name == "Whisper large-v2")
    assert large.in_domain.value == pytest.approx(0.7819, abs=5e-5)
    assert large.out_of_domain["oracle-prior"].value == pytest.approx(0.1942, abs=5e-5)
    assert "none" not in large.out_of_domain
    assert (large.corpora, large.pairs) == (19, 72)
    assert [row.contaminated for row in rows] == [False] * 10 + [True]


def test_ladder_counts_wins_and_names_what_it_takes(sample_run: Path) -> None:
    rows = {row.correction: row for row in figures.ladder(load(sample_run).series[0])}
    pairs = [cell for (train, test), cell in stored(sample_run).items() if train != test]

    def scores(name: str) -> list[float]:
        return [cell["corrections"][name]["macro_f1"]["mean"] for cell in pairs]

    assert list(rows) == list(LADDER)
    assert rows["none"].gain is None
    for name in list(LADDER)[1:]:
        gains = np.subtract(scores(name), scores("none"))
        row = rows[name]
        assert row.gain is not None
        assert row.gain.value == pytest.approx(gains.mean())
        assert (row.wins, row.places) == ((gains > 0).sum(), 20)
    assert rows["none"].target == rows["minus-train-prior"].target == "nothing"
    assert rows["oracle-prior"].target == "all clips, with labels"
    assert rows["standardise-16"].target == "16 clips, unlabelled"
    best = figures.best_unlabelled(list(rows.values()))
    assert best is not None
    assert best.macro_f1.value == pytest.approx(
        max(np.mean(scores(name)) for name in LADDER if name not in {"none", "oracle-prior"})
    )


def test_in_domain_rows_stand_beside_the_papers(sample_run: Path) -> None:
    rows = {row.corpus["key"]: row for row in figures.in_domain(load(sample_run).series[0])}
    assert rows["emodb"].paper == pytest.approx(0.97195)
    best = rows["urdu"].paper_best
    assert best is not None
    assert best[0] == pytest.approx(0.949, abs=5e-4)
    assert best[1] == "CLAP (music and speech)"
    assert rows["nemo"].paper is None
    assert rows["nemo"].paper_best is None
    assert (
        rows["ravdess"].scores["macro_f1"].value
        == stored(sample_run)["ravdess", "ravdess"]["corrections"]["none"]["macro_f1"]["mean"]
    )


def test_a_missing_pair_is_missing_not_zero(sample_run: Path) -> None:
    before = figures.leaderboard(load(sample_run))[0].out_of_domain["none"].value
    (path,) = (sample_run / "results" / "sound").glob("*/mlp/urdu→nemo.json")
    lost = json.loads(path.read_text())["corrections"]["none"]["macro_f1"]["mean"]
    path.unlink()
    row = figures.leaderboard(load(sample_run))[0]
    assert row.pairs == 19
    assert before is not None
    assert row.out_of_domain["none"].value == pytest.approx((20 * before - lost) / 19)
    assert math.isnan(figures.matrix(load(sample_run).series[0], "none")[4, 1])


def test_a_score_that_is_not_a_number_is_missing(sample_run: Path) -> None:
    held = stored(sample_run)["urdu", "nemo"]["corrections"]
    held["none"]["macro_f1"] = {"mean": math.nan, "low": None, "high": None, "per_seed": []}
    change(sample_run, "urdu→nemo", corrections=held)
    series = load(sample_run).series[0]
    assert figures.score_of(series.cells["urdu", "nemo"]["corrections"]["none"], "macro_f1").value is None
    assert np.isnan(figures.matrix(series, "none")).sum() == 6


def test_one_corpus_has_no_interval_and_no_pairs(build_run: Callable[..., Path], tmp_path: Path) -> None:
    run = build_run(tmp_path, heads=("mlp",))
    for path in (run / "results").glob("*/*/*/*.json"):
        if path.stem != "emodb→emodb":
            path.unlink()
    row = figures.leaderboard(load(run))[0]
    assert (row.corpora, row.pairs, row.out_of_domain) == (1, 0, {})
    assert row.in_domain.low is None
    assert figures.ladder(load(run).series[0]) == []


@pytest.mark.parametrize("content", [None, "", "[]", '{"schema": 999}'])
def test_a_folder_without_a_run_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(BadInput, match=r"run\.json"):
        load(tmp_path)
