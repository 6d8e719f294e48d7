import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics

from services.evaluator import published, statistics
from services.evaluator.scoring import confusion, macro_scores, score
from services.evaluator.statistics import (
    Interval,
    intervals,
    mean_over_pairs,
    paired,
    paired_over_pairs,
    percentile,
    tables,
)
from servox.errors import BadInput
from servox.priors import softmax

Array = NDArray[np.float64]
Ints = NDArray[np.intp]


def _corpus(seed: int, *, speakers: int = 12, each: int = 30, classes: int = 4) -> tuple[Ints, Array, list[str]]:
    """Labels, probabilities and speakers; some speakers are much easier than others."""
    generator = np.random.default_rng(seed)
    clips = speakers * each
    labels, who = generator.integers(0, classes, clips), np.repeat(np.arange(speakers), each)
    clarity = generator.gamma(1.5, size=speakers)[who]
    logits = generator.normal(size=(clips, classes)) + np.eye(classes)[labels] * clarity[:, None]
    return labels, softmax(logits), [f"s{i}" for i in who]


def _by_loop(labels: Ints, posterior: Array, speakers: list[str], *, resamples: int, seed: int) -> dict[str, Array]:
    """The plain bootstrap: gather the clips of the drawn speakers and score them with our scorer."""
    names, who = np.unique(speakers, return_inverse=True)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(names), size=(resamples, len(names)))
    found = []
    for chosen in drawn:
        clips = np.concatenate([np.flatnonzero(who == speaker) for speaker in chosen])
        scores = score(labels[clips], posterior[clips])
        found.append((scores.macro_f1, scores.uar, scores.accuracy, scores.ece))
    return dict(zip(("macro_f1", "uar", "accuracy", "ece"), np.asarray(found).T, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_the_matrix_product_equals_a_loop_over_clips(seed: int) -> None:
    labels, posterior, speakers = _corpus(seed)
    found = intervals(tables(labels, posterior, speakers=speakers), resamples=100, seed=seed, expand=False)
    for name, values in _by_loop(labels, posterior, speakers, resamples=100, seed=seed).items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name].low == pytest.approx(low), name
        assert found[name].high == pytest.approx(high), name


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 9))
def test_an_interval_holds_its_estimate_and_is_ordered(seed: int, speakers: int) -> None:
    labels, posterior, who = _corpus(seed, speakers=speakers, each=10)
    found = intervals(tables(labels, posterior, speakers=who), resamples=400)
    estimate = score(labels, posterior)
    for name in ("macro_f1", "uar", "accuracy"):
        low, high = found[name].low, found[name].high
        assert low is not None
        assert high is not None
        assert 0 <= low <= getattr(estimate, name) <= high <= 1


def test_summed_tables_are_the_confusion_matrix() -> None:
    labels, posterior, speakers = _corpus(0)
    data = tables(labels, posterior, speakers=speakers)
    answers = posterior.argmax(axis=1)
    assert np.array_equal(data.confusions.sum(axis=(0, 1)), confusion(labels, answers, classes=4))
    assert data.gaps is not None
    assert np.abs(data.gaps.sum(axis=(0, 1))).sum() / len(labels) == pytest.approx(score(labels, posterior).ece)
    by_answers = tables(labels, answers=answers, classes=4, speakers=speakers)
    assert np.array_equal(by_answers.confusions, data.confusions)
    assert by_answers.gaps is None
    assert set(intervals(by_answers, resamples=10)) == {"macro_f1", "uar", "accuracy"}


def test_the_same_seed_gives_the_same_interval_whatever_the_order_of_clips() -> None:
    labels, posterior, speakers = _corpus(0)
    order = np.random.default_rng(1).permutation(len(labels))
    first = intervals(tables(labels, posterior, speakers=speakers), seed=5)
    again = intervals(tables(labels[order], posterior[order], speakers=[speakers[i] for i in order]), seed=5)
    for name in ("macro_f1", "uar", "accuracy"):
        assert first[name] == again[name]
    assert first["macro_f1"] != intervals(tables(labels, posterior, speakers=speakers), seed=6)["macro_f1"]


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tables(*_corpus(0)[:2], speakers=_corpus(0)[2])
    whole = intervals(data, resamples=300)
    monkeypatch.setattr(statistics, "CHUNK_CELLS", 100)
    assert intervals(data, resamples=300) == whole


def test_one_speaker_has_no_interval_rather_than_a_narrow_one() -> None:
    labels, posterior, _ = _corpus(0)
    found = intervals(tables(labels, posterior, speakers=["only"] * len(labels)))
    assert set(found) == {"macro_f1", "uar", "accuracy", "ece"}
    for interval in found.values():
        assert (interval.low, interval.high, interval.resamples) == (None, None, 0)
        assert "1 speaker has no spread" in interval.reason


def test_few_speakers_are_said_to_be_few() -> None:
    labels, posterior, speakers = _corpus(0, speakers=4)
    assert (
        intervals(tables(labels, posterior, speakers=speakers))["uar"].reason
        == "only 4 speakers: the interval is rough"
    )
    labels, posterior, speakers = _corpus(0, speakers=12)
    assert intervals(tables(labels, posterior, speakers=speakers))["uar"].reason == ""


@pytest.mark.parametrize("speakers", [None, [""] * 360])
def test_without_speakers_clips_are_drawn_and_it_says_so(speakers: list[str] | None) -> None:
    labels, posterior, known = _corpus(0)
    by_clip = intervals(tables(labels, posterior, speakers=speakers))["macro_f1"]
    by_speaker = intervals(tables(labels, posterior, speakers=known))["macro_f1"]
    assert (by_clip.unit, by_clip.units) == ("clip", len(labels))
    assert "too narrow" in by_clip.reason
    assert _width(by_clip) < _width(by_speaker)


def _width(interval: Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def test_repeats_are_averaged_after_scoring() -> None:
    labels, posterior, speakers = _corpus(0)
    twice = tables(labels, np.stack([posterior, posterior]), speakers=speakers)
    assert intervals(twice, resamples=200) == intervals(tables(labels, posterior, speakers=speakers), resamples=200)
    other = _corpus(1)[1]
    data = tables(labels, np.stack([posterior, other]), speakers=speakers)
    each = macro_scores(data.confusions.sum(axis=1))["macro_f1"]
    assert each.tolist() == pytest.approx([score(labels, posterior).macro_f1, score(labels, other).macro_f1])


def test_a_clip_that_was_not_scored_in_a_repeat_is_left_out_of_it() -> None:
    labels, posterior, speakers = _corpus(0)
    partly = posterior.copy()
    partly[:50] = np.nan
    found = tables(labels, partly, speakers=speakers).confusions.sum(axis=(0, 1))
    assert np.array_equal(found, confusion(labels[50:], posterior[50:].argmax(axis=1), classes=4))
    answers = posterior.argmax(axis=1)
    answers[:50] = -1
    assert np.array_equal(tables(labels, answers=answers, classes=4).confusions.sum(axis=(0, 1)), found)


@pytest.mark.parametrize(("speakers", "least"), [(10, 0.91), (40, 0.92)])
def test_intervals_cover_the_truth(speakers: int, least: float) -> None:
    """300 corpora from one population of speakers: about 95 % of the intervals must hold its UAR.

    By clip, as if clips were independent, far fewer do.
    """
    truth = _uar(*_simulated(0, speakers=20_000))
    hits = {"speaker": 0, "clip": 0}
    for seed in range(1, 301):
        labels, answers, who = _simulated(seed, speakers=speakers)
        for unit, named in (("speaker", [str(i) for i in who]), ("clip", None)):
            data = tables(labels, answers=answers, classes=2, speakers=named)
            found = intervals(data, resamples=300, seed=seed)["uar"]
            assert found.low is not None
            assert found.high is not None
            hits[unit] += found.low <= truth <= found.high
    assert least <= hits["speaker"] / 300 <= 0.985
    assert hits["clip"] / 300 < 0.8


def _simulated(seed: int, *, speakers: int) -> tuple[Ints, Ints, Ints]:
    """Labels, answers and speakers of a corpus whose speakers differ in how well they are understood."""
    generator = np.random.default_rng(seed)
    who = np.repeat(np.arange(speakers), 20)
    labels = generator.integers(0, 2, len(who))
    right = generator.random(len(who)) < generator.beta(4, 2, speakers)[who]
    return labels, np.where(right, labels, 1 - labels), who


def _uar(labels: Ints, answers: Ints, _who: Ints) -> float:
    return float(metrics.balanced_accuracy_score(labels, answers))


def test_paired_difference_is_tighter_than_two_intervals() -> None:
    labels, posterior, speakers = _corpus(0)
    better = posterior.copy()
    wrong = np.flatnonzero(posterior.argmax(axis=1) != labels)[::3]
    better[wrong] = np.eye(4)[labels[wrong]]
    a, b = (tables(labels, p, speakers=speakers) for p in (better, posterior))
    found = paired(a, b, score="accuracy")
    assert found.estimate == pytest.approx(len(wrong) / len(labels))
    assert (found.wins, found.places) == (1, 1)
    assert found.interval.low is not None
    assert found.interval.low > 0
    assert _width(found.interval) < _width(intervals(a)["accuracy"])
    same = paired(a, a)
    assert (same.estimate, same.interval.low, same.interval.high, same.wins) == (0, 0, 0, 0)


def test_paired_of_one_speaker_is_undefined_and_of_other_clips_refused() -> None:
    labels, posterior, speakers = _corpus(0)
    alone = tables(labels, posterior, speakers=["x"] * len(labels))
    assert paired(alone, alone).interval.low is None
    with pytest.raises(BadInput, match="same clips"):
        paired(alone, tables(labels, posterior, speakers=speakers))


def _by_loop_over_corpora(matrix: Array, *, resamples: int, seed: int) -> Array:
    generator, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = generator.integers(0, len(matrix), len(matrix))
        columns = generator.integers(0, matrix.shape[1], matrix.shape[1])
        found.append(float(np.nanmean(matrix[np.ix_(rows, columns)])))
    return np.asarray(found)


def test_mean_over_pairs_equals_a_loop() -> None:
    matrix = np.random.default_rng(0).random((7, 7)) + np.linspace(0, 1, 7)[:, None]
    np.fill_diagonal(matrix, np.nan)
    mean, interval = mean_over_pairs(matrix, resamples=20_000)
    low, high = np.quantile(_by_loop_over_corpora(matrix, resamples=20_000, seed=1), [0.025, 0.975])
    assert mean == pytest.approx(float(np.nanmean(matrix)))
    assert interval.low == pytest.approx(low, abs=0.02)
    assert interval.high == pytest.approx(high, abs=0.02)
    assert (interval.unit, interval.units, interval.reason) == ("corpus", 7, "only 7 corpora: the interval is rough")


def test_mean_over_pairs_ignores_corpora_without_a_pair() -> None:
    matrix = np.full((4, 4), np.nan)
    matrix[:2, 1:3] = [[0.1, 0.2], [0.3, 0.4]]
    assert mean_over_pairs(matrix) == mean_over_pairs(matrix[:2, 1:3])
    assert mean_over_pairs([[0.5, 0.6]])[1].low is None
    with pytest.raises(BadInput, match="no eligible pair"):
        mean_over_pairs(np.full((2, 2), np.nan))


@pytest.mark.parametrize(
    ("other", "estimate", "low", "high", "wins"),
    [
        ("openai/whisper-large", -0.004, -0.025, 0.018, 25),
        ("openai/whisper-medium", -0.003, -0.028, 0.022, 29),
        ("openai/whisper-large-v3", 0.002, -0.017, 0.023, 31),
        ("microsoft/wavlm-large", 0.037, 0.007, 0.076, 48),
        ("facebook/hubert-large-ll60k", 0.043, 0.006, 0.097, 48),
    ],
)
def test_published_contrasts_are_what_an_earlier_analysis_found(
    other: str, estimate: float, low: float, high: float, wins: int
) -> None:
    """64 pairs of cluster 2 without MESD-trained rows.

    The earlier analysis rounded twice, and its ends carry the noise of fewer resamples (the skewed upper ones most).
    """
    test = [key for key, corpus in published.corpora().items() if corpus.cluster == 2]
    train = [key for key in test if key != "mesd"]
    eligible = np.array([[source != target for target in test] for source in train])
    a, b = (
        np.where(eligible, published.matrix(name, train=train, test=test), np.nan)
        for name in ("openai/whisper-large-v2", other)
    )
    found = paired_over_pairs(a, b, resamples=10_000)
    assert (found.wins, found.places) == (wins, 64)
    assert found.estimate == pytest.approx(estimate, abs=6e-4)
    assert found.interval.low == pytest.approx(low, abs=0.003)
    assert found.interval.high == pytest.approx(high, abs=0.006)


def test_expansion_widens_by_student_t_and_vanishes_with_many_units() -> None:
    drawn = np.random.default_rng(0).normal(size=200_000)
    plain = percentile(drawn, units=10, unit="speaker", expand=False)
    wide = percentile(drawn, units=10, unit="speaker")
    assert plain.low == pytest.approx(-1.96, abs=0.02)
    assert wide.low == pytest.approx(-2.262 * np.sqrt(10 / 9), abs=0.04)
    assert percentile(drawn, units=10_000, unit="speaker").low == pytest.approx(-1.96, abs=0.02)


def test_bad_input_is_named() -> None:
    labels, posterior, speakers = _corpus(0)
    with pytest.raises(BadInput, match="either probabilities or answers"):
        tables(labels)
    with pytest.raises(BadInput, match="classes \\(is None\\)"):
        tables(labels, answers=labels)
    with pytest.raises(BadInput, match="answers go from 0 to 3"):
        tables(labels, answers=labels, classes=3)
    with pytest.raises(BadInput, match="1 speakers for 360 clips"):
        tables(labels, posterior, speakers=["x"])
    with pytest.raises(BadInput, match="probabilities have shape"):
        tables(labels, posterior[0])
    with pytest.raises(BadInput, match="resamples is 0"):
        intervals(tables(labels, posterior, speakers=speakers), resamples=0)
    with pytest.raises(BadInput, match="level 95"):
        intervals(tables(labels, posterior, speakers=speakers), level=95)
    with pytest.raises(BadInput, match="same sources"):
        paired_over_pairs(np.zeros((2, 2)), np.zeros((3, 2)))
