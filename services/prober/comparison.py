"""How a canary and a shadow differ from production, as figures of this process and as metrics.

- Only names that are rolled out are counted, so label sets stay as small as what operators have set.
- A canary and production answer different callers: each has its own figures, and an operator compares them.
- A shadow is scored on the very embeddings that production answered on, under the same prior and calibration, in a
  thread of its own. It never slows an answer down: its queue is bounded, and a window that finds it full is dropped.
- Divergence is Jensen-Shannon's, in nats (0 to ln 2; Lin 1991, eq. 3.1), over the classes of both heads.
"""

import logging
import queue
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from servox.errors import ServoxError
from servox.priors import divergence

from .answers import Window
from .embedder import Embedded
from .heads import Head
from .metrics import ProberMetrics
from .rollout import Chosen

if TYPE_CHECKING:
    from .posterior import Listener, Posterior, Stage

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]
CAPACITY = 512  # windows that wait for the shadow: well under a second of its work
WAITING_BYTES = 64 << 20  # of their embeddings: a window for a head that reads frames has megabytes
DEATH_S = 5.0


@dataclass(slots=True, kw_only=True)
class StageFigures:
    """What one stage of a name answered; sums, so that means can be made.

    Attributes:
        stage: whose.
        version: that answers as it.
        windows: with probabilities.
        confidence: sum over them.
        labels: answers, and why there was none.
        calls: that ended, by outcome.
    """

    stage: "Stage"
    version: str
    windows: int = 0
    confidence: float = 0.0
    labels: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, kw_only=True)
class ShadowFigures:
    """A shadow beside production; sums.

    Attributes:
        version: of the shadow.
        beside: version in production that it was compared with.
        windows: that both scored.
        disagreed: of those, another most probable class.
        divergence: sum, nats.
        difference: sum of the shadow's confidence less production's.
        dropped: windows that found the queue full.
        unfit: windows that the shadow could not score.
    """

    version: str
    beside: str
    windows: int = 0
    disagreed: int = 0
    divergence: float = 0.0
    difference: float = 0.0
    dropped: int = 0
    unfit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Task:
    """One window for the shadow."""

    figures: ShadowFigures
    shadow: "Posterior"
    head: Head
    probabilities: Array
    embedded: Embedded


class Comparison:
    """All figures of one process.

    Args:
        metrics: told the same.
        capacity: most windows that wait for a shadow.
    """

    def __init__(self, metrics: ProberMetrics, capacity: int = CAPACITY) -> None:
        self._metrics = metrics
        self._stages: dict[tuple[str, Stage], StageFigures] = {}
        self._shadows: dict[str, ShadowFigures] = {}
        self._queue: queue.Queue[_Task | None] = queue.Queue(capacity)
        self._waiting_bytes = 0
        self._lock = threading.Lock()  # around the bytes, which both threads count
        self._thread: threading.Thread | None = None

    def listeners(self, chosen: Chosen, shadow: Callable[[Head], "Posterior"]) -> "Sequence[Listener]":
        """Who is told of the windows of a call; nobody, unless the name is rolled out.

        Args:
            chosen: who answers it.
            shadow: makes what the shadow says of the same call.
        """
        rollout, card = chosen.rollout, chosen.head.card
        if not rollout.canary and not rollout.shadow:
            return ()
        figures = self._stages.get((card.name, chosen.stage))
        if figures is None or figures.version != card.version:
            figures = StageFigures(stage=chosen.stage, version=card.version)
            self._stages[card.name, chosen.stage] = figures
        counting = _Counting(figures, chosen.head, self._metrics)
        if chosen.shadow is None or not rollout.shadow_share:
            return (counting,)
        try:
            beside = shadow(chosen.shadow)
        except ServoxError as error:  # a prior for other classes than the shadow has
            log.info("a shadow cannot be asked the same", extra={"head": chosen.shadow.card.tag, "why": str(error)})
            self._metrics.shadow_windows.labels(card.name, "unfit").inc()
            return (counting,)
        figures_of_both = self._beside(card.name, chosen.shadow.card.version, card.version)
        return counting, _Shadowing(self, figures_of_both, beside, chosen.head, rollout.shadow_share)

    @contextmanager
    def call(self, posterior: "Posterior") -> Iterator[None]:
        """Counts one call of a name that is rolled out, with its outcome."""
        card = posterior.head.card
        figures = self._stages.get((card.name, posterior.stage))
        if figures is None or figures.version != card.version:
            yield
            return
        outcome = "cancelled"
        try:
            yield
            outcome = "ok"
        except ServoxError as error:
            outcome = type(error).__name__
            raise
        except Exception:
            outcome = "crash"
            raise
        finally:
            figures.calls[outcome] += 1
            self._metrics.stage_calls.labels(card.name, posterior.stage, outcome).inc()

    def stages(self, name: str) -> list[StageFigures]:
        """The figures of a name's stages."""
        return [figures for (held, _), figures in sorted(self._stages.items()) if held == name]

    def shadow(self, name: str) -> ShadowFigures | None:
        """The figures of a name's shadow; None where none was ever asked."""
        return self._shadows.get(name)

    def put(self, task: _Task) -> None:
        """Leaves a window to the shadow's thread, or drops it."""
        size = task.embedded.values.nbytes
        if self._waiting_bytes + size > WAITING_BYTES or not self._queued(task):
            task.figures.dropped += 1
            self._metrics.shadow_windows.labels(task.head.card.name, "dropped").inc()
            return
        self._wait(size)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="servox-shadow", daemon=True)
            self._thread.start()

    def _queued(self, task: _Task) -> bool:
        try:
            self._queue.put_nowait(task)
        except queue.Full:
            return False
        return True

    def _wait(self, size: int) -> None:
        with self._lock:
            self._waiting_bytes += size

    def settle(self) -> None:
        """Returns once the shadow has scored all that waits."""
        self._queue.join()

    def close(self) -> None:
        """Ends the shadow's thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(DEATH_S)
            self._thread = None

    def _beside(self, name: str, shadow: str, production: str) -> ShadowFigures:
        found = self._shadows.get(name)
        if found is None or (found.version, found.beside) != (shadow, production):
            found = ShadowFigures(version=shadow, beside=production)
            self._shadows[name] = found
        return found

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            try:
                self._compare(task)
            except (ServoxError, ValueError, ArithmeticError) as error:
                task.figures.unfit += 1
                self._metrics.shadow_windows.labels(task.head.card.name, "unfit").inc()
                log.debug("a shadow could not be scored", extra={"why": str(error)})
            finally:
                self._wait(-task.embedded.values.nbytes)
                self._queue.task_done()
        self._queue.task_done()

    def _compare(self, task: _Task) -> None:
        ours, theirs = task.head.card.classes, task.shadow.head.card.classes
        p, q = task.probabilities, task.shadow.probabilities(task.embedded)
        name, figures, metrics = task.head.card.name, task.figures, self._metrics
        disagreed = ours[int(p.argmax())] != theirs[int(q.argmax())]
        apart = divergence(*_aligned(p, ours, q, theirs))
        figures.disagreed += disagreed
        figures.divergence += apart
        figures.difference += float(q.max() - p.max())
        figures.windows += 1  # last: whoever sees it counted, from another thread, sees the sums of it
        metrics.shadow_windows.labels(name, "disagreed" if disagreed else "agreed").inc()
        metrics.shadow_divergence.labels(name).observe(apart)
        metrics.shadow_confidence.labels(name, "production").observe(float(p.max()))
        metrics.shadow_confidence.labels(name, "shadow").observe(float(q.max()))


def _aligned(p: Array, ours: Sequence[str], q: Array, theirs: Sequence[str]) -> tuple[Array, Array]:
    """Both over the classes of both."""
    if ours == theirs:
        return p, q
    both = list(dict.fromkeys((*ours, *theirs)))
    wide = np.zeros((2, len(both)))
    wide[0, [both.index(label) for label in ours]] = p
    wide[1, [both.index(label) for label in theirs]] = q
    return wide[0], wide[1]


class _Counting:
    """Counts the windows of one stage."""

    def __init__(self, figures: StageFigures, head: Head, metrics: ProberMetrics) -> None:
        self._figures, self._classes = figures, head.card.classes
        self._windows, self._labels = metrics.stage_windows, (head.card.name, figures.stage)
        self._confidence = metrics.stage_confidence.labels(*self._labels)

    def scored(self, embedded: Embedded, window: Window) -> None:  # noqa: ARG002 -- of Listener
        """One more."""
        if window.probabilities is None:
            return
        best = int(window.probabilities.argmax())
        confidence, label = float(window.probabilities[best]), window.abstention or self._classes[best]
        self._figures.windows += 1
        self._figures.confidence += confidence
        self._figures.labels[label] += 1
        self._confidence.observe(confidence)
        self._windows.labels(*self._labels, label).inc()


class _Shadowing:
    """Leaves a share of the windows to the shadow."""

    def __init__(
        self, comparison: Comparison, figures: ShadowFigures, shadow: "Posterior", head: Head, share: float
    ) -> None:
        self._comparison, self._figures = comparison, figures
        self._shadow, self._head, self._share = shadow, head, share

    def scored(self, embedded: Embedded, window: Window) -> None:
        """One more."""
        if window.probabilities is None or random.random() >= self._share:  # noqa: S311 -- a sample, no secret
            return
        self._comparison.put(
            _Task(
                figures=self._figures,
                shadow=self._shadow,
                head=self._head,
                probabilities=window.probabilities,
                embedded=embedded,
            )
        )
