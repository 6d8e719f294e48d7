"""Which fits are trained together as one batched model, and how such a stack is run.

- MLPs on vectors are stacked where they have the same shape. A step of a small head costs as much in calls as in sums,
  and 8 heads share the calls. On a CPU more are slower, since what they compute leaves the cache; a GPU takes hundreds.
- Frames are their own batch, and a logistic regression is one call: a stack of one.
- Fits of the same clips share their standardised vectors and axes, so a stack ends where clips end, if it can.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from servox.errors import ServoxError, StorageFull

from .fits import Fit
from .fitting import Fitting, Space
from .jobs import Job
from .specs import recipe_of

AT_ONCE = 8

Refuse = Callable[[Job, ServoxError], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One fit of a job: without a fold, or (None) on all its clips."""

    fitting: Fitting
    fold: int | None

    @property
    def job(self) -> Job:
        """Whose fit it is."""
        return self.fitting.job

    @property
    def source(self) -> str:
        """What it learns from."""
        return self.job.spec.clip_set_url

    @property
    def stackable(self) -> bool:
        """Whether it can share a stack with others."""
        return self.job.spec.kind == "mlp"

    @property
    def alike(self) -> tuple[object, ...]:
        """What fits that may share a stack have in common; their exact shape shows once their vectors are read."""
        spec, recipe = self.job.spec, recipe_of(self.job.spec)
        read = (spec.bundle, len(spec.layers), recipe.mix, recipe.components)
        return *read, recipe.hidden, recipe.batch, len(self.job.classes)


def stacked(parts: Iterable[Part], *, threads: int, at_once: int = AT_ONCE) -> list[list[Part]]:
    """Every part once, in stacks of at most `at_once`, as even as can be and a multiple of the threads in number."""
    alone: list[list[Part]] = []
    alike: dict[tuple[object, ...], list[Part]] = defaultdict(list)
    for part in parts:
        if part.stackable:
            alike[part.alike].append(part)
        else:
            alone.append([part])
    for group in alike.values():
        group.sort(key=lambda part: part.source)  # seeds of the same clips side by side: they share their space
    return [stack for group in alike.values() for stack in _dealt(group, threads, at_once)] + alone


def _dealt(group: list[Part], threads: int, at_once: int) -> list[list[Part]]:
    rounds = -(-len(group) // (threads * at_once))
    count = min(len(group), rounds * threads)
    even = [round(len(group) * number / count) for number in range(count + 1)]
    ends = [at for at, (one, other) in enumerate(pairwise(group), 1) if one.source != other.source]
    ends = [0, *ends, len(group)]
    near = sorted({min(ends, key=lambda end: abs(end - edge)) for edge in even})
    fits = len(near) == len(even) and max(end - start for start, end in pairwise(near)) <= at_once
    return [group[start:end] for start, end in pairwise(near if fits else even)]


def run(parts: Sequence[Part], *, refuse: Refuse, device: str = "cpu") -> None:
    """Fits the parts of one stack; a part that cannot be fitted is refused, and its job with it.

    Raises:
        StorageFull: frames cannot be written.
        Stopped: the training is to stop.
    """
    spaces: dict[tuple[object, ...], Space] = {}
    ready: list[tuple[Part, Space]] = []
    for part in parts:
        try:
            if part.job.spec.kind == "logistic":
                part.fitting.logistic(part.fold)
            else:
                ready.append((part, _space(part, spaces)))
        except StorageFull:
            raise
        except ServoxError as error:
            refuse(part.job, error)
    if ready:
        _fit(ready, device)


def _space(part: Part, spaces: dict[tuple[object, ...], Space]) -> Space:
    address = part.fitting.address(part.fold)
    if address not in spaces:
        spaces[address] = part.fitting.space(part.fold)
    return spaces[address]


def _fit(ready: Sequence[tuple[Part, Space]], device: str) -> None:
    from .training import fit_mlps  # imports torch, which only a training needs

    shapes: dict[tuple[int, ...], list[tuple[Part, Space, Fit]]] = defaultdict(list)
    for part, space in ready:
        fit = part.fitting.fit(part.fold, space)
        shapes[fit.shape].append((part, space, fit))
    for group in shapes.values():
        tick = group[0][0].fitting.tick  # fits of one shape cost the same a step, and stop together
        fitted = fit_mlps([fit for _, _, fit in group], tick=tick, device=device)
        for (part, space, _), found in zip(group, fitted, strict=True):
            part.fitting.take(part.fold, space, found)
