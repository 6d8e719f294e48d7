"""Which clips run next, together: a pure function of what waits, the budget and the time.

- A batch's cost is what the device computes: its longest clip, padded, times its clips. Only clips of one length
  bucket share a batch, so padding stays small.
- Nothing waits for company: a free device takes what is there, and batches grow by themselves under load.
- On a GPU company is free, and a batch takes all of a bucket that it can. On a CPU it saves a few hundredths of the
  time, makes the first answer wait for the second, and more padding changes the last bits of an answer: clips of one
  padded length share a batch there, once several wait and none of them is urgent.
- The next clip is the one whose turn was first: its arrival, its patience and `STRETCH` times its cost later. Among
  clips that came together the short ones go first, and none is overtaken by what came more than that after it (an
  earliest virtual deadline, Stoica & Abdel-Wahab 1995, with a size-proportional one). For speech the clip's length is a
  good proxy of its cost (arXiv 2603.11273).
- What has used most of its time goes before all others, the earliest deadline first, so that long clips that short ones
  overtook are still in time. A clip whose caller is patient is due within `PATIENCE_S`, so nothing starves.
- What is expired or cancelled is never run. What can hardly be answered by its deadline any more goes last: work on it
  would take the time of clips that can. It is not dropped, because the cost is an estimate: a wrong one must not stop
  the device, whose next batch corrects it.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from servox.errors import BadSetting


class Waiting(Protocol):
    """What the former knows of a clip; times are of the monotonic clock, infinite where there is no deadline."""

    @property
    def samples(self) -> int:
        """Length at the encoder's rate."""

    @property
    def frames(self) -> bool:
        """Whether frames were asked for; they are computed for a whole batch or not at all."""

    @property
    def arrived_s(self) -> float:
        """When it was enqueued."""

    @property
    def patience_s(self) -> float:
        """How much later others may come and still go before it; bulk work says so."""

    @property
    def deadline_s(self) -> float:
        """When its answer is of no more use."""

    @property
    def cancelled(self) -> bool:
        """Whether its caller left."""


T = TypeVar("T", bound=Waiting)

# Simulated on lengths of real clips: the 50th percentile of the response ratio (HRRN), and a 99th at saturation that is
# a third lower; 0, first come first served, holds everything up where clips of 30 s are among the short ones.
STRETCH = 2.0
# Simulated at 80 to 300 % load: with .2 to .6 no admitted clip is late.
URGENT_SHARE = 0.4  # of a clip's time; with less than this left, it is urgent
PORTION = 0.5  # of what waits, most that one batch takes where company costs time
PATIENCE_S = 10.0  # in this time a clip is due that has no closer deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bounds of one batch.

    Args:
        samples: most samples after padding, all clips together.
        clips: most clips.
        buckets: upper bounds of the length buckets in samples, ascending; the last is the longest clip.
        step: padded lengths are multiples of this many samples, so that shapes come again.
        cost_s: seconds that the device needs for one sample, for the order.
        alike: whether company costs time, so that only clips of one padded length share a batch; for CPUs.

    Raises:
        BadSetting: the longest clip alone would exceed the budget, or the buckets are not ascending.
    """

    samples: int
    clips: int
    buckets: tuple[int, ...]
    step: int
    cost_s: float
    alike: bool = False

    def __post_init__(self) -> None:
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 1:
            raise BadSetting(f"length buckets {self.buckets}: they must be positive and ascending")
        if self.samples < self.buckets[-1] or self.clips < 1:
            raise BadSetting(
                f"a batch of at most {self.clips} clips and {self.samples} samples cannot hold one clip of "
                f"{self.buckets[-1]} samples, which would wait forever; raise batch_budget_s to max_duration_s or more"
            )

    def bucket(self, samples: int) -> int:
        """Index of the bucket that a length belongs to."""
        return bisect_left(self.buckets, samples)

    def padded(self, samples: int) -> int:
        """The length that a clip is padded to when it is the longest of its batch."""
        return min(-(-samples // self.step) * self.step, self.buckets[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Generic[T]):
    """Clips to run together, each padded to `samples`; and those that must not run any more."""

    clips: tuple[T, ...]
    samples: int
    dropped: tuple[T, ...]

    @property
    def padding(self) -> float:
        """Share of the batch that is padding, 0 to 1."""
        return 1 - sum(clip.samples for clip in self.clips) / (self.samples * len(self.clips)) if self.clips else 0.0


def form(pending: Sequence[T], budget: Budget, *, now: float) -> Batch[T]:
    """The batch to run at `now`: empty only if nothing that may run is pending."""
    dropped = tuple(clip for clip in pending if clip.cancelled or clip.deadline_s <= now)
    gone = set(map(id, dropped))
    ranked = sorted((clip for clip in pending if id(clip) not in gone), key=lambda clip: _rank(clip, budget, now))
    chosen: list[T] = ranked[:1]
    most = _most(ranked, budget, now)
    for clip in ranked[1:]:
        if len(chosen) == most:
            break
        if _may_join(clip, chosen, budget):
            chosen.append(clip)
    return Batch(clips=tuple(chosen), samples=_width(chosen, budget), dropped=dropped)


def _most(ranked: Sequence[Waiting], budget: Budget, now: float) -> int:
    """How many clips the batch may hold."""
    if not budget.alike or not ranked:
        return budget.clips
    return 1 if _urgent(ranked[0], budget, now) else min(budget.clips, max(1, int(len(ranked) * PORTION)))


def _may_join(clip: Waiting, chosen: Sequence[Waiting], budget: Budget) -> bool:
    """Whether a clip may run with those that are chosen."""
    if _lane(clip, budget) != _lane(chosen[0], budget):
        return False
    return _width([*chosen, clip], budget) * (len(chosen) + 1) <= budget.samples


def _width(clips: Sequence[Waiting], budget: Budget) -> int:
    return max((budget.padded(clip.samples) for clip in clips), default=0)


def _rank(clip: Waiting, budget: Budget, now: float) -> tuple[bool, bool, float]:
    """The first runs first: what is in time, what is urgent, then the earliest due or the earliest turn."""
    cost_s = _cost_s(clip, budget)
    late = now + cost_s > clip.deadline_s
    if _urgent(clip, budget, now):
        return late, False, _due_s(clip)
    return late, True, clip.arrived_s + clip.patience_s + STRETCH * cost_s


def _urgent(clip: Waiting, budget: Budget, now: float) -> bool:
    due_s = _due_s(clip)
    return due_s - now - _cost_s(clip, budget) < URGENT_SHARE * (due_s - clip.arrived_s)


def _due_s(clip: Waiting) -> float:
    return min(clip.deadline_s, clip.arrived_s + PATIENCE_S)


def _cost_s(clip: Waiting, budget: Budget) -> float:
    return budget.padded(clip.samples) * budget.cost_s


def _lane(clip: Waiting, budget: Budget) -> tuple[int, bool]:
    return budget.padded(clip.samples) if budget.alike else budget.bucket(clip.samples), clip.frames
