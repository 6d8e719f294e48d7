"""The guards of a tenant's state: each as a property, and the hour of one class that must not poison it."""
# ruff: noqa: ANN401 -- fields of any kind are changed

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.prober.tenants.rules import Rules
from services.prober.tenants.statistics import (
    BURST,
    HEADS,
    HOUR_MS,
    Clip,
    Space,
    State,
    allowed,
    drift,
    frozen,
    learned,
    new_state,
    refusal,
    unbiased_shift,
    unready,
)
from servox.priors import divide_by_mean, em_prior, minus_shown, softmax
from servox.standardisation import shift

Array = npt.NDArray[np.float64]

DIMS, CLASSES = 12, ("anger", "happiness", "neutral", "sadness")
SPACE = Space(bundle="ab" * 32, layers=(3,), dims=DIMS)
STD, TRAINING = np.full(DIMS, 2.0), np.zeros(DIMS)
CENTRES = np.random.default_rng(3).normal(size=(len(CLASSES), DIMS)) * 2
RULES = Rules()


def clip(values: Array, *, of: int | None = None, **changes: Any) -> Clip:
    """A clip that the head hears rightly, mostly."""
    shown = np.full(len(CLASSES), 0.25) if of is None else np.full(len(CLASSES), 0.1) + 0.6 * np.eye(len(CLASSES))[of]
    given: dict[str, Any] = {
        "values": values,
        "std": STD,
        "weight": 1.0,
        "head": "toy:1",
        "classes": CLASSES,
        "train": (10, 10, 10, 10),
        "raw": shown,
        "shown": shown,
    }
    return Clip(**{**given, **changes})


def speech(labels: Sequence[int], *, seed: int = 0, room: float = 5.0) -> list[Clip]:
    """Clips of these classes from another room than the training's."""
    random = np.random.default_rng(seed)
    return [clip(CENTRES[each] + room + random.normal(size=DIMS), of=each) for each in labels]


def after(clips: Sequence[Clip], state: State | None = None, *, each_ms: int = HOUR_MS, rules: Rules = RULES) -> State:
    """The state once clips have come, so slowly that all may count."""
    state = state or new_state("t", SPACE)
    for number, each in enumerate(clips):
        now_ms = state.allowance_ms + each_ms if each_ms else number
        state, _ = learned(state, each, rules, now_ms=now_ms, training_mean=TRAINING)
    return state


def mixed(count: int, seed: int = 0) -> list[int]:
    return list(np.random.default_rng(seed).integers(0, len(CLASSES), count))


def test_the_mean_of_few_clips_is_their_mean() -> None:
    clips = speech(mixed(12))
    state = after(clips, rules=Rules(deviations=1e6))
    np.testing.assert_allclose(state.mean, np.mean([each.values for each in clips], axis=0))
    np.testing.assert_allclose(state.recent, state.mean)
    assert (state.clips, state.weight, state.phase, state.version) == (12, 12.0, "collecting", 0)


def test_the_spread_is_the_variance_of_the_clips_in_training_deviations() -> None:
    clips = speech(mixed(200))
    state = after(clips[:15])
    values = np.array([each.values for each in clips[:15]])
    assert state.spread == pytest.approx(np.mean(np.var(values / STD, axis=0)), rel=0.02)


def test_from_sixteen_clips_on_it_answers_and_every_clip_makes_a_version() -> None:
    state = after(speech(mixed(15)))
    assert state.phase == "collecting"
    state = after(speech(mixed(3), seed=5), state)
    assert (state.phase, state.version, state.clips) == ("ready", 3, 18)


def test_half_a_clip_weighs_half() -> None:
    clips = [replace(each, weight=0.5) for each in speech(mixed(31))]
    assert after(clips).phase == "collecting"
    assert after([*clips, replace(clips[0], weight=0.5)]).phase == "ready"


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-1e6, 1e6), min_size=DIMS, max_size=DIMS), st.integers(16, 80))
def test_one_clip_moves_what_answers_by_a_bounded_step(values: list[float], count: int) -> None:
    before = after(speech(mixed(count)))
    now, _ = learned(
        before, clip(np.array(values)), RULES, now_ms=before.allowance_ms + HOUR_MS, training_mean=TRAINING
    )
    moved = np.abs(now.mean - before.mean) / STD
    assert moved.max() <= RULES.deviations / RULES.settled_clips + 1e-9
    assert np.isfinite(now.mean).all()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 3), st.integers(16, 80), st.integers(100, 3000))
def test_an_hour_of_anything_moves_what_answers_by_a_bounded_share(only: int, count: int, each_ms: int) -> None:
    """The burst and the hour's allowance, each a step of one in 64 towards what was fed."""
    before = after(speech(mixed(count)))
    start = before.allowance_ms + 10 * HOUR_MS
    state, counted = before, 0
    for number, each in enumerate(speech([only] * 150, seed=9, room=50.0)):
        now_ms = start + number * min(each_ms, HOUR_MS // 150)
        state, reason = learned(state, each, RULES, now_ms=now_ms, training_mean=TRAINING)
        counted += not reason
    assert counted <= BURST + RULES.hourly_clips
    share = 1 - (1 - 1 / (RULES.settled_clips + 1)) ** counted
    assert shift(state.mean, before.mean, STD) <= (share * RULES.deviations * 1.5) ** 2
    assert share < 0.27


def test_an_hour_of_one_class_moves_scores_of_other_speakers_little() -> None:
    """The bound of docs/tenants.md: a linear head's probabilities by less than .05 on the mean of balanced clips."""
    heard = speech([*range(4)] * 20)
    before = after(heard)
    state = before
    for number, each in enumerate(speech([0] * 1200, seed=11)):
        state, _ = learned(state, each, RULES, now_ms=before.allowance_ms + 3000 * number, training_mean=TRAINING)
    others = np.array([each.values for each in speech([*range(4)] * 50, seed=12)])
    answers = [softmax((others - each.mean) / STD @ CENTRES.T) for each in (before, state)]
    assert np.abs(answers[1] - answers[0]).max(axis=1).mean() < 0.05
    everything = softmax((others - np.mean([CENTRES[0] + 5.0], axis=0)) / STD @ CENTRES.T)
    assert np.abs(everything - answers[0]).max(axis=1).mean() > 0.15  # what it would be without a guard


def test_what_leans_to_one_class_stops_counting_says_so_and_goes_on_later() -> None:
    state = after(speech([*range(4)] * 20))
    leaning = after(speech([1] * 60, seed=1), state, each_ms=60_000)
    assert "leans" in leaning.alarm
    assert leaning.clips < state.clips + 20
    assert leaning.shares[0].shown[1] < 0.4
    again = after(speech([*range(4)] * 30, seed=2), leaning)
    assert again.alarm == ""
    assert again.clips > leaning.clips


@given(st.floats(0, 1e5), st.floats(-1e9, 1e9), st.floats(-BURST, BURST))
def test_the_allowance_grows_by_waiting_up_to_the_burst(now_ms: float, then_ms: float, left: float) -> None:
    state = replace(new_state("t", SPACE), allowance=left, allowance_ms=int(then_ms))
    first = allowed(state, RULES, now_ms=int(then_ms))
    later = allowed(state, RULES, now_ms=int(then_ms + now_ms))
    assert first <= later <= BURST
    assert allowed(state, RULES, now_ms=int(then_ms - now_ms)) == first  # a clock that was set back


def test_one_kind_of_speech_is_not_enough_to_answer_unless_an_operator_says_so() -> None:
    state = after([replace(each, raw=np.array([0.97, 0.01, 0.01, 0.01])) for each in speech([0] * 30)])
    assert (state.phase, state.version) == ("collecting", 0)
    assert "1.2 classes in effect, under 2.0" in state.alarm
    held = frozen(state, RULES, thaw=False, now_ms=5)
    assert (held.phase, held.version, held.alarm, held.changed_ms) == ("frozen", 1, "", 5)
    assert frozen(held, RULES, thaw=False, now_ms=6) is held
    thawed = frozen(held, RULES, thaw=True, now_ms=7)
    assert (thawed.phase, thawed.version) == ("ready", 2)
    assert frozen(after(speech([0])), RULES, thaw=True, now_ms=1).phase == "collecting"


def test_a_mean_that_is_no_speech_does_not_answer() -> None:
    state = after(speech(mixed(20), room=500.0))
    assert state.phase == "collecting"
    assert "hardly speech" in state.alarm == unready(state, RULES)


def test_what_is_frozen_stays_and_still_sees_drift() -> None:
    state = frozen(after(speech(mixed(40))), RULES, thaw=False, now_ms=1)
    later = after(speech(mixed(60), seed=8, room=12.0), state)
    assert later.mean is state.mean
    assert (later.clips, later.version, later.refused) == (state.clips, state.version, 0)
    assert drift(later, STD) > 3
    assert drift(state, STD) < 0.1
    assert later.drift == drift(later, STD)


def test_a_clip_that_is_far_from_all_others_does_not_count() -> None:
    state = after(speech(mixed(20)))
    odd = clip(CENTRES[0] + 100, far=True)
    now, reason = learned(state, odd, RULES, now_ms=state.allowance_ms + HOUR_MS, training_mean=TRAINING)
    assert (reason, now.refused, now.clips) == ("far", 1, state.clips)
    assert refusal(state, odd, RULES, now_ms=0) == "far"


def test_slow_change_is_followed() -> None:
    rules = Rules(horizon_clips=64)
    state = after(speech(mixed(64)), rules=rules)
    rooms = np.linspace(5.0, 9.0, 400)
    changed = [
        replace(each, values=each.values + room - 5.0) for each, room in zip(speech(mixed(400)), rooms, strict=True)
    ]
    state = after(changed, state, rules=rules)
    assert state.weight == 64.0
    assert drift(state, STD) < 0.5
    assert shift(state.mean, np.full(DIMS, 9.0) + CENTRES.mean(axis=0), STD) < 0.3


@settings(deadline=None, max_examples=25)
@given(st.integers(16, 200), st.integers(0, 1000))
def test_the_shift_of_the_training_speech_itself_is_near_zero(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    state = after([clip(random.normal(size=DIMS) * STD) for _ in range(count)])
    assert unbiased_shift(state, TRAINING, STD) < 6 / count


def test_memory_is_bounded() -> None:
    state = new_state("t", SPACE)
    for number in range(40):
        state = after(speech(mixed(2), seed=number), replace(state, phase="ready", weight=64.0))
        state = after([replace(speech([0])[0], head=f"toy:{number}")], state)
    assert len(state.shares) == HEADS
    assert state.shares[-1].head == "toy:39"
    assert state.weight <= RULES.horizon_clips


def test_the_running_mean_probability_corrects_as_that_of_all_clips_at_once() -> None:
    random = np.random.default_rng(4)
    logits = random.normal(size=(15, len(CLASSES))) * 2
    shown = softmax(logits)
    clips = [replace(clip(random.normal(size=DIMS)), shown=each, raw=each) for each in shown]
    share = after(clips).shares[0]
    np.testing.assert_allclose(softmax(minus_shown(logits, np.log(share.shown))), divide_by_mean(shown), atol=1e-12)


def test_the_prior_that_is_estimated_step_by_step_nears_that_of_all_clips_at_once() -> None:
    random = np.random.default_rng(6)
    true = np.array([0.55, 0.25, 0.15, 0.05])
    labels = random.choice(len(CLASSES), 1500, p=true)
    logits = random.normal(size=(1500, len(CLASSES)))
    logits[np.arange(1500), labels] += 3  # likelihood ratios of 3 nats on the mean: posteriors under an even prior
    posteriors = softmax(3 * (logits - logits.mean(axis=1, keepdims=True)))
    rules = Rules(horizon_clips=1e9, hourly_clips=1e9, lean_nats=10.0)
    clips = [replace(clip(random.normal(size=DIMS)), shown=each, raw=each) for each in posteriors]
    found = after(clips, rules=rules).shares[0].em
    wanted = em_prior(posteriors, train=np.full(4, 0.25)).prior
    np.testing.assert_allclose(found, wanted, atol=0.03)
    assert found.sum() == pytest.approx(1)
