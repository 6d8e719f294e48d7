"""A training: many heads from stored embeddings, several at a time, each with its out-of-fold scores.

- A head is one fit on all its clips and, where it is calibrated, one more for each fold of speakers. Fits of one shape
  are stacked into batched models (`stacks`); threads take stacks in order, so heads finish one after the other and are
  saved at once.
- A head that cannot be trained fails alone. A full disk or a fault of our own ends the training.
- Everything here runs in a worker thread: progress goes out through `report`, and `stop` is looked at after each epoch.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from servox.errors import BadInput, ServoxError, Unavailable

from .fitting import Fitting
from .heads import Head
from .jobs import Job, card_of, clip_set_at, cost_of, held_out, job_of, judge
from .metrics import ProberMetrics
from .progress import Event, Failed, Meter, Progress, Stopped, Trained
from .registry import Registry
from .specs import Spec
from .stacks import Part, run, stacked
from .vectors import Vectors

REPORT_S = 0.5  # longest silence while fits are running

Order = Spec | BadInput  # a head to train, or why it cannot even be asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What a training works with.

    Attributes:
        registry: where heads are kept.
        vectors: where embeddings are read.
        threads: fits at a time.
        scratch: folder of the frames of a head that is being trained; None for the system's.
        metrics: counters.
        device: of torch, for MLPs.
    """

    registry: Registry
    vectors: Vectors
    threads: int
    scratch: Path | None
    metrics: ProberMetrics
    device: str = "cpu"


def train(
    workshop: Workshop,
    store_url: str,
    orders: Sequence[Order],
    *,
    report: Callable[[Event], None],
    stop: threading.Event,
) -> None:
    """Trains heads, or answers them from the registry; returns when the last one has been reported.

    Args:
        workshop: what to work with.
        store_url: where the embeddings lie.
        orders: the heads.
        report: called from several threads, with every event.
        stop: ends the training early.

    Raises:
        StorageFull: a head cannot be written.
        Unavailable: torch or scikit-learn is not installed.
        Stopped: `stop` was set.
    """
    started = time.monotonic()
    training = _Training(workshop, store_url, report, stop)
    training.plan(orders)
    training.work()
    workshop.metrics.train_seconds.observe(time.monotonic() - started)


class _Training:
    def __init__(
        self, workshop: Workshop, store_url: str, report: Callable[[Event], None], stop: threading.Event
    ) -> None:
        self._workshop, self._store_url, self._report, self._stop = workshop, store_url, report, stop
        self._jobs: list[Job] = []
        self._done = self._total = 0
        self._meter, self._lock = Meter(), threading.Lock()

    def plan(self, orders: Sequence[Order]) -> None:
        """Answers what is in the registry already and what cannot be trained; the rest become jobs."""
        self._total = len(orders)
        jobs: dict[tuple[str, str], Job] = {}
        read = cache(clip_set_at)  # many heads learn from few sets
        for index, order in enumerate(orders):
            if isinstance(order, BadInput):
                self._fail([index], "unknown", order)
                continue
            try:
                job = job_of(index, order, read(order.clip_set_url))
            except ServoxError as error:
                self._fail([index], order.kind, error)
                continue
            tag = (order.name, job.version)
            if tag in jobs:
                jobs[tag].indices.append(index)
            elif head := self._workshop.registry.find(*tag):
                self._finish([index], head, reused=True)
            else:
                jobs[tag] = job
        self._jobs = list(jobs.values())

    def work(self) -> None:
        """Runs every fit of every job."""
        if not self._jobs:
            return
        self._prefetch()
        self._meter.begin(sum(cost_of(job, clips) for job in self._jobs for clips in held_out(job).values()))
        with _one_thread_each(), ThreadPoolExecutor(self._workshop.threads, "servox-train") as pool:
            parts = [part for job in self._jobs for part in self._parts(job)]
            futures = [pool.submit(self._fit, each) for each in stacked(parts, threads=self._workshop.threads)]
            try:
                self._follow(futures)
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _follow(self, futures: list[Future[None]]) -> None:
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=REPORT_S, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            if self._stop.is_set():
                raise Stopped
            fraction, eta_s = self._meter.read() if waiting else (1.0, 0.0)
            self._report(Progress(done=self._done, total=self._total, fraction=fraction, eta_s=eta_s))

    def _prefetch(self) -> None:
        """Reads the clips of all pooled heads at once: their clip sets overlap, and a part of a store is read whole."""
        wanted: dict[tuple[str, tuple[int, ...]], dict[str, None]] = {}
        for job in self._jobs:
            if job.spec.kind != "frame-mlp":
                keys = wanted.setdefault((job.spec.bundle, job.spec.layers), {})
                keys.update(dict.fromkeys(clip.key for clip in job.clips))
        for (bundle, layers), keys in wanted.items():
            try:
                self._workshop.vectors.pooled(self._store_url, bundle=bundle, layers=layers, keys=list(keys))
            except ServoxError:
                continue  # the heads that lack a clip will say so, each for itself

    def _parts(self, job: Job) -> list[Part]:
        shop = self._workshop
        fitting = Fitting(
            job,
            vectors=shop.vectors,
            store_url=self._store_url,
            scratch=shop.scratch,
            meter=self._meter,
            stop=self._stop,
        )
        folds = held_out(job)
        job.waiting = len(folds)
        return [Part(fitting=fitting, fold=fold) for fold in folds]

    def _fit(self, parts: Sequence[Part]) -> None:
        if self._stop.is_set():
            raise Stopped
        run([part for part in parts if not part.job.broken], refuse=self._refuse, device=self._workshop.device)
        for part in parts:
            with self._lock:
                part.job.waiting -= 1
                last = part.job.waiting == 0
            if last:
                part.fitting.close()
                self._conclude(part.job)

    def _refuse(self, job: Job, error: ServoxError) -> None:
        with self._lock:
            first, job.broken = not job.broken, True
        if first:
            self._fail(job.indices, job.spec.kind, error)

    def _conclude(self, job: Job) -> None:
        if job.broken:
            return
        scaling, scores = judge(job)
        card = card_of(job, job.weights, store=self._store_url, scaling=scaling, scores=scores)
        head = Head(card=card, weights=job.weights)
        self._workshop.registry.save(head)
        self._finish(job.indices[:1], head, reused=False)
        self._finish(job.indices[1:], head, reused=True)
        job.weights = {}  # the registry has them; hundreds of heads need not stay in memory

    def _finish(self, indices: Sequence[int], head: Head, *, reused: bool) -> None:
        for index in indices:
            self._count(head.card.kind, "reused" if reused else "trained")
            self._report(Trained(index=index, head=head, reused=reused))

    def _fail(self, indices: Sequence[int], kind: str, error: ServoxError) -> None:
        for index in indices:
            self._count(kind, "failed")
            self._report(Failed(index=index, error=error))

    def _count(self, kind: str, outcome: str) -> None:
        self._workshop.metrics.heads_trained.labels(kind, outcome).inc()
        with self._lock:
            self._done += 1


def _one_thread_each() -> AbstractContextManager[None]:
    try:
        from .training import one_thread_each
    except ModuleNotFoundError as error:
        raise Unavailable(f"training needs the package {error.name!r}: pip install 'servox[train]'") from None
    return one_thread_each()
