"""The bench of canary and shadow on figures that are made up: what it counts, and that the truth is scikit-learn's."""

import pytest
from sklearn.metrics import f1_score

from bench.canary import Answered, macro_f1, report
from servox.v1 import prober_pb2


def test_macro_f1_is_over_the_classes_of_the_truth() -> None:
    pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "c"), ("a", "a")]
    truth, answers = zip(*pairs, strict=True)
    assert macro_f1(pairs) == pytest.approx(f1_score(truth, answers, average="macro", labels=["a", "b"]))


def test_the_report_sets_figures_beside_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    shown = prober_pb2.GetRolloutResponse(
        stages=[
            prober_pb2.StageFigures(stage=prober_pb2.STAGE_CANARY, windows=1, calls=1, labels={"a": 1}, confidence=0.8),
            prober_pb2.StageFigures(stage=prober_pb2.STAGE_PRODUCTION, windows=2, calls=3, failed=1, abstained=2),
        ],
        shadow=prober_pb2.ShadowFigures(windows=2, disagreed=1, divergence=0.1),
    )
    answered = [
        Answered(caller="one", stage="canary", truth="a", answer="a"),
        Answered(caller="two", stage="production", truth="a", answer="b"),
        Answered(caller="two", stage="canary", truth="b", answer=""),
    ]
    found = report(shown, answered, {"old": answered[:2], "new": answered[:1]})
    canary, production = found["stages"]
    assert (canary["callers"], canary["macro_f1"], canary["answers"]) == (2, 1.0, {"a": 1.0})
    assert (production["failed"], production["abstained"], production["macro_f1"]) == (1, 2, 0.0)
    assert found["shadow"]["disagreed"] == 0.5
    assert found["callers_who_met_both"] == 1
    assert found["truth"] == {"old": pytest.approx(2 / 3, abs=1e-4), "new": 1.0}
    assert "macro-F1 (truth)" in capsys.readouterr().out
