import csv
import json
from pathlib import Path

import pytest

from services.evaluator.corrections import LADDER
from services.evaluator.report import exports
from services.evaluator.report.run import load


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_tables_hold_every_cell_in_full_precision(sample_run: Path) -> None:
    paths = exports.write_tables(load(sample_run))
    assert [path.relative_to(sample_run).as_posix() for path in paths] == [
        "tables/in_domain.csv", "tables/cross_corpus.csv", "tables/per_class.csv",
    ]  # fmt: skip
    own, cross, classes = (rows(path) for path in paths)
    assert len(own) == 5 + 5 + 2
    assert len(cross) == 2 * 20 * len(LADDER)
    row = next(r for r in cross if (r["head"], r["train"], r["test"], r["correction"]) == (
        "logistic", "nemo", "urdu", "standardise-16"))  # fmt: skip
    (path,) = (sample_run / "results").glob("sound/*/logistic/nemo→urdu.json")
    cell = json.loads(path.read_text())
    held = cell["corrections"]["standardise-16"]
    assert float(row["macro_f1"]) == held["macro_f1"]["mean"]
    assert float(row["ece_high"]) == held["ece"]["high"]
    assert (row["target_clips"], row["target_labels"]) == ("16", "False")
    assert int(row["clips"]) == sum(entry["clips"] for entry in held["per_class"])
    assert float(row["floor_macro_f1"]) == max(cell["floor"].values())
    assert row["published_macro_f1"] == ""
    found = [r for r in classes if (r["head"], r["train"], r["test"], r["correction"]) == (
        "logistic", "nemo", "urdu", "standardise-16")]  # fmt: skip
    assert [(r["label"], float(r["f1"])) for r in found] == [(e["label"], e["f1"]) for e in held["per_class"]]


def test_published_scores_stand_in_their_own_column(sample_run: Path) -> None:
    own, _, _ = (rows(path) for path in exports.write_tables(load(sample_run)))
    found = {row["corpus"]: row["published_macro_f1"] for row in own}
    assert float(found["emodb"]) == pytest.approx(0.97195)
    assert found["nemo"] == ""


def test_commas_and_quotes_survive(tmp_path: Path) -> None:
    text = exports._csv(("a", "b"), [('x,"y"\n', None), ("z", 0.1)])
    path = tmp_path / "table.csv"
    exports.write_whole(path, text)
    assert rows(path) == [{"a": 'x,"y"\n', "b": ""}, {"a": "z", "b": "0.1"}]
