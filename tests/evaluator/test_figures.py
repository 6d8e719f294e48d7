import numpy as np
import pytest
from sklearn import metrics

from services.evaluator import figures

CLASSES = ["happiness", "sadness", "anger"]


def _case(repeats: int, clips: int = 60) -> tuple[np.ndarray, list[str], list[str]]:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, size=clips)
    probabilities = rng.dirichlet(np.ones(3), size=(repeats, clips))
    probabilities[:, np.arange(clips), truth] += 0.6
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return probabilities, [CLASSES[i] for i in truth], [f"s{i % 6}" for i in range(clips)]


def _report(probabilities: np.ndarray, labels: list[str], speakers: list[str], *, name: str = "none", seeds: int = 2):  # type: ignore[no-untyped-def]  # noqa: ANN202
    return figures.report(
        name, probabilities, labels=labels, speakers=speakers, classes=CLASSES, seeds=seeds, macro="truth"
    )


def test_a_figure_is_the_mean_over_seeds_of_scikit_learns_scores() -> None:
    probabilities, labels, speakers = _case(2)
    correction, said = _report(probabilities, labels, speakers)
    answers = [[CLASSES[i] for i in each.argmax(axis=1)] for each in probabilities]
    f1 = [metrics.f1_score(labels, each, average="macro") for each in answers]
    uar = [metrics.balanced_accuracy_score(labels, each) for each in answers]
    assert correction["macro_f1"]["per_seed"] == pytest.approx(f1)
    assert correction["macro_f1"]["mean"] == pytest.approx(np.mean(f1))
    assert correction["uar"]["mean"] == pytest.approx(np.mean(uar))
    low, high = correction["macro_f1"]["low"], correction["macro_f1"]["high"]
    assert low is not None
    assert high is not None
    assert low < np.mean(f1) < high
    assert said.startswith("95 % percentile bootstrap over 6 speakers")
    assert np.sum(correction["confusion"]) == pytest.approx(len(labels))
    assert [row["clips"] for row in correction["per_class"]] == [labels.count(label) for label in CLASSES]


def test_calibration_draws_belong_to_their_seed_and_their_clips_are_not_scored() -> None:
    probabilities, labels, speakers = _case(4)
    probabilities[0, :10] = np.nan
    correction, _ = _report(probabilities, labels, speakers, name="standardise-16", seeds=2)
    answers = probabilities.argmax(axis=2)
    truth = np.array([CLASSES.index(label) for label in labels])
    first = [
        metrics.f1_score(truth[10:], answers[0, 10:], average="macro"),
        metrics.f1_score(truth, answers[1], average="macro"),
    ]
    assert len(correction["macro_f1"]["per_seed"]) == 2
    assert correction["macro_f1"]["per_seed"][0] == pytest.approx(np.mean(first))
    assert correction["target_clips"] == 16
    assert not correction["target_labels"]


def test_one_speaker_has_no_interval_and_says_so() -> None:
    probabilities, labels, _ = _case(2)
    correction, said = _report(probabilities, labels, ["only"] * len(labels))
    assert correction["macro_f1"]["low"] is None
    assert said.startswith("none; undefined")
