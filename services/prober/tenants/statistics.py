"""What is known of one tenant's speech in one feature space, and how one more clip changes it.

- A state is a value: every change makes another one, so whoever holds one goes on with what they had.
- Memory is bounded: two means `[d]`, and for a few heads some vectors `[K]`. No clip, and no embedding of one, is kept.
- Two time scales. The *mean* is what answers: all clips so far, older ones fading beyond `horizon_clips`. *Recent* is
  what came last, whether it counted or not: drift is the distance between the two.
- Guards are pure functions (`refusal`, `unready`): a refused clip moves what is recent and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from services.prober.prior import Prior
from servox.priors import class_prior, divergence, effective_classes, em_step
from servox.standardisation import clipped, moved_mean, shift

from .rules import Rules

Array = npt.NDArray[np.float64]
Phase = Literal["collecting", "ready", "frozen"]
Refusal = Literal["frozen", "far", "leaning", "hourly"]

HEADS = 4  # whose probabilities a state keeps; a canary and a predecessor beside the one in production
FOUND_CLIPS = 4.0  # from which on the mean is good enough to judge a clip by
HEARD_CLIPS = 16.0  # of a head, from which on what it hears lately can be compared
HOUR_MS = 3_600_000
BURST = 4.0  # clips that may come at once after a quiet time


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The features that statistics are of: those of one bundle's layers, one after the other."""

    bundle: str
    layers: tuple[int, ...]
    dims: int

    @property
    def name(self) -> str:
        """Unique among the spaces that one prober meets, and fit for a file."""
        return f"{self.bundle[:24]}-{'.'.join(map(str, self.layers))}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shares:
    """What one head heard of a tenant. All `[K]` are means of probabilities under the head's training prior.

    Attributes:
        head: name:version.
        classes: of the head.
        train: clips of each class in its training set.
        weight: of what counted.
        raw: standardised as in training.
        shown: standardised as the tenant is.
        usual: like `shown`, and slow to change once there is enough: a day of one class must not become what is usual.
        em: prior estimated by expectation maximisation, step by step.
        recent: like `shown`, of what came lately, counted or not.
        recent_weight: of that.
    """

    head: str
    classes: tuple[str, ...]
    train: tuple[int, ...]
    weight: float
    raw: Array
    shown: Array
    usual: Array
    em: Array
    recent: Array
    recent_weight: float

    @property
    def lean(self) -> float:
        """Divergence of what is heard lately from what is usual, nats; 0 where either is too little."""
        if min(self.weight, self.recent_weight) < HEARD_CLIPS:
            return 0.0
        return divergence(self.recent, self.usual)

    @property
    def prior(self) -> Array:
        """The training prior, without a zero."""
        return class_prior(self.train, smoothing=0.0 if all(self.train) else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip:
    """One clip or window that may teach.

    Attributes:
        values: `[d]`.
        std: training deviation of the head that heard it, `[d]`.
        weight: of it, at most one.
        head: name:version of that head.
        classes: of the head.
        train: clips of each class in its training set.
        raw: probabilities `[K]`, standardised as in training.
        shown: probabilities `[K]`, standardised as the tenant is.
        far: whether it is unlike all that was heard of this tenant.
    """

    values: Array
    std: Array
    weight: float
    head: str
    classes: tuple[str, ...]
    train: tuple[int, ...]
    raw: Array
    shown: Array
    far: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """Statistics of one tenant in one space.

    Attributes:
        phase: collecting (the training statistics answer), ready (the tenant's do, and learn), frozen (and do not).
        version: counts the changes of what answers; 0 while nothing does.
        clips: how many counted, ever.
        refused: how many a guard kept out, ever.
        weight: what the mean stands for, at most the horizon.
        mean: `[d]`.
        spread: mean square of clips around the mean, in training deviations.
        recent: mean `[d]` of what came lately.
        recent_weight: of that.
        distance: of the mean from the training mean (`standardisation.shift`), by the head that was heard last.
        drift: of what came lately from what answers, likewise.
        shares: of the heads that were heard last, the latest last.
        allowance: clips that may still count at once.
        allowance_ms: Unix time at which that was so.
        alarm: why a guard holds the state back; empty where none does.
        prior: what the tenant's own prior is; None where none was set.
        changed_ms: Unix time of the last change of what answers.
    """

    tenant: str
    space: Space
    phase: Phase = "collecting"
    version: int = 0
    clips: int = 0
    refused: int = 0
    weight: float = 0.0
    mean: Array
    spread: float = 0.0
    recent: Array
    recent_weight: float = 0.0
    distance: float = 0.0
    drift: float = 0.0
    shares: tuple[Shares, ...] = ()
    allowance: float = BURST
    allowance_ms: int = 0
    alarm: str = ""
    prior: Prior | None = None
    changed_ms: int = 0

    def share(self, head: str) -> Shares | None:
        """What a head heard."""
        return next((each for each in self.shares if each.head == head), None)

    @property
    def diversity(self) -> float:
        """Effective number of classes that the head heard that heard most, uncalibrated; 0 before anything counted."""
        heard = max(self.shares, key=lambda each: each.weight, default=None)
        return effective_classes(heard.raw) if heard and heard.weight else 0.0


def new_state(tenant: str, space: Space) -> State:
    """Of a tenant who was never heard."""
    return State(tenant=tenant, space=space, mean=np.zeros(space.dims), recent=np.zeros(space.dims))


def learned(state: State, clip: Clip, rules: Rules, *, now_ms: int, training_mean: Array) -> tuple[State, str]:
    """The state after one more clip, and why it did not count; empty where it did.

    Args:
        state: before.
        clip: what was heard.
        rules: limits.
        now_ms: Unix time.
        training_mean: of the head that heard it, `[d]`.
    """
    state = _watched(state, clip, rules)
    state = replace(state, drift=drift(state, clip.std))
    if reason := refusal(state, clip, rules, now_ms=now_ms):
        kept_out = int(reason != "frozen")
        lean = LEANING if reason == "leaning" else state.alarm
        return replace(state, refused=state.refused + kept_out, alarm=lean), reason
    state = _counted(state, clip, rules, now_ms=now_ms)
    away = unbiased_shift(state, training_mean, clip.std)
    return _judged(replace(state, distance=away), rules, now_ms=now_ms), ""


LEANING = "what is heard lately leans to other classes than is usual here: nothing is learned until it is alike again"


def refusal(state: State, clip: Clip, rules: Rules, *, now_ms: int) -> Refusal | None:
    """Why a clip may not count; None where it may."""
    if state.phase == "frozen":
        return "frozen"
    if clip.far:
        return "far"
    share = state.share(clip.head)
    if state.phase == "ready" and share is not None and share.lean > rules.lean_nats:
        return "leaning"
    if state.phase == "ready" and allowed(state, rules, now_ms=now_ms) < clip.weight:
        return "hourly"
    return None


def allowed(state: State, rules: Rules, *, now_ms: int) -> float:
    """Clips that may count now: so many an hour, and few at once. A clock that is set back allows nothing more."""
    passed_ms = max(0, now_ms - state.allowance_ms)
    return min(BURST, state.allowance + rules.hourly_clips * passed_ms / HOUR_MS)


def unready(state: State, rules: Rules) -> str:
    """Why statistics may not answer that are no longer too few; empty where they may."""
    if state.distance > rules.most_shift:
        return (
            f"the mean is {state.distance:.1f} from the training mean, over {rules.most_shift:g}: "
            "this is hardly speech, or the audio is damaged on its way"
        )
    heard = max(state.shares, key=lambda each: each.weight)
    least = rules.least_diversity * len(heard.classes)
    if state.diversity < least:
        return (
            f"what was heard is {state.diversity:.1f} classes in effect, under {least:.1f}: "
            "other speech is awaited; freeze the state to use it as it is"
        )
    return ""


def unbiased_shift(state: State, training_mean: npt.ArrayLike, std: npt.ArrayLike) -> float:
    """Shift of the tenant's mean from the training mean, less what so few clips have by chance."""
    if not state.weight:
        return 0.0
    return max(0.0, shift(state.mean, training_mean, std) - state.spread / state.weight)


def drift(state: State, std: npt.ArrayLike) -> float:
    """Shift of what came lately from what answers, less what so few clips have by chance."""
    few = min(state.recent_weight, state.weight)
    return max(0.0, shift(state.recent, state.mean, std) - state.spread / few) if few >= FOUND_CLIPS else 0.0


def _watched(state: State, clip: Clip, rules: Rules) -> State:
    share = state.share(clip.head) or _unheard(clip)
    cut = clipped(clip.values, state.mean, clip.std, deviations=rules.deviations) if _found(state) else clip.values
    before = min(state.recent_weight, rules.recent_clips)
    heard = min(share.recent_weight, rules.recent_clips)
    share = replace(
        share,
        recent=moved_mean(share.recent, clip.shown, before=heard, weight=clip.weight),
        recent_weight=min(heard + clip.weight, rules.recent_clips),
    )
    return replace(
        state,
        recent=moved_mean(state.recent, cut, before=before, weight=clip.weight),
        recent_weight=min(before + clip.weight, rules.recent_clips),
        shares=_latest(state.shares, share),
    )


def _counted(state: State, clip: Clip, rules: Rules, *, now_ms: int) -> State:
    cut = clipped(clip.values, state.mean, clip.std, deviations=rules.deviations) if _found(state) else clip.values
    before, ready = min(state.weight, rules.horizon_clips), state.phase == "ready"
    steady = max(before, rules.settled_clips) if ready else before
    mean = moved_mean(state.mean, cut, before=steady, weight=clip.weight)
    # The product of the distances before and after is unbiased (Welford 1962), where either square is not.
    square = float(np.mean((cut - mean) * (cut - state.mean) / np.square(clip.std))) if state.weight else 0.0
    share = state.share(clip.head) or _unheard(clip)
    return replace(
        state,
        clips=state.clips + 1,
        weight=min(before + clip.weight, rules.horizon_clips),
        mean=mean,
        spread=(state.spread * before + square * clip.weight) / (before + clip.weight),
        shares=_latest(state.shares, _taught(share, clip, rules)),
        allowance=allowed(state, rules, now_ms=now_ms) - (clip.weight if ready else 0.0),
        allowance_ms=max(now_ms, state.allowance_ms),
    )


def _taught(share: Shares, clip: Clip, rules: Rules) -> Shares:
    before = min(share.weight, rules.horizon_clips)
    after = before + clip.weight
    slow = rules.horizon_clips if before >= rules.settled_clips else before
    return replace(
        share,
        weight=min(after, rules.horizon_clips),
        raw=moved_mean(share.raw, clip.raw, before=before, weight=clip.weight),
        shown=moved_mean(share.shown, clip.shown, before=before, weight=clip.weight),
        usual=moved_mean(share.usual, clip.shown, before=slow, weight=clip.weight),
        # One clip of the training prior before the first, so that no class is lost to the first clip.
        em=em_step(share.em, clip.shown, train=share.prior, share=clip.weight / (after + 1)),
    )


def _judged(state: State, rules: Rules, *, now_ms: int) -> State:
    """What answers after the mean has moved."""
    if state.phase == "ready":
        return replace(state, version=state.version + 1, alarm="", changed_ms=now_ms)
    if state.weight < rules.ready_clips:
        return state
    if alarm := unready(state, rules):
        return replace(state, alarm=alarm)
    return replace(state, phase="ready", version=state.version + 1, alarm="", changed_ms=now_ms)


def _found(state: State) -> bool:
    return state.weight >= FOUND_CLIPS


def _unheard(clip: Clip) -> Shares:
    nothing = np.zeros(len(clip.classes))
    share = Shares(
        head=clip.head,
        classes=clip.classes,
        train=clip.train,
        weight=0.0,
        raw=nothing,
        shown=nothing,
        usual=nothing,
        em=nothing,
        recent=nothing,
        recent_weight=0.0,
    )
    return replace(share, em=share.prior)


def _latest(shares: Sequence[Shares], share: Shares) -> tuple[Shares, ...]:
    return (*(each for each in shares if each.head != share.head), share)[-HEADS:]


def frozen(state: State, rules: Rules, *, thaw: bool, now_ms: int) -> State:
    """A state that stays as it is, or goes on learning; what is frozen answers whatever a guard says of it."""
    if thaw == (state.phase != "frozen"):
        return state
    thawed: Phase = "ready" if state.weight >= rules.ready_clips else "collecting"
    phase = thawed if thaw else "frozen"
    return replace(state, phase=phase, version=state.version + 1, alarm="", changed_ms=now_ms)
