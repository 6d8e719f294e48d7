"""The fits of one head: on all its clips, and on all but each fold of speakers."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .frames import FrameFile
from .heads import Floats, Head, Weights
from .jobs import Ints, Job, card_of, cost_of
from .progress import Meter, Stopped
from .specs import recipe_of
from .vectors import Vectors


class Fitting:
    """Fits for one job; its methods may run in several threads at once, each for another fold.

    Args:
        job: what to fit.
        vectors: where embeddings are read.
        store_url: in which store.
        scratch: folder for the frames; None for the system's.
        meter: counts the work.
        stop: looked at after each epoch.
    """

    def __init__(
        self,
        job: Job,
        *,
        vectors: Vectors,
        store_url: str,
        scratch: Path | None,
        meter: Meter,
        stop: threading.Event,
    ) -> None:
        self._job, self._vectors, self._store_url = job, vectors, store_url
        self._meter, self._stop = meter, stop
        self._keys = [clip.key for clip in job.clips]
        self._file = FrameFile(scratch)

    def whole(self) -> None:
        """Fits all clips: the head's weights."""
        self._job.weights = self._fit(np.arange(len(self._keys)))

    def without(self, fold: int) -> None:
        """Fits all clips but those of a fold, and scores these."""
        job = self._job
        weights = self._fit(np.flatnonzero(job.folds != fold))
        head = Head(card=card_of(job, weights, store="", temperature=1.0, scores=None), weights=weights)
        scored = np.flatnonzero(job.folds == fold)
        for row, logits in zip(scored, self._score(head, scored), strict=True):
            job.logits[row] = logits

    def close(self) -> None:
        """Frees what the fits shared."""
        self._file.close()

    def _fit(self, chosen: Ints) -> Weights:
        if self._job.spec.kind == "logistic":
            return self._fit_logistic(chosen)
        return self._fit_mlp(chosen)

    def _fit_logistic(self, chosen: Ints) -> Weights:
        from .training import fit_logistic

        job = self._job
        values, statistics = standardised(self._pooled()[chosen])
        c = job.spec.settings["c"]
        weights = fit_logistic(values, job.labels[chosen], classes=len(job.classes), c=c)
        self._meter.add(cost_of(job, len(chosen)))
        return {**statistics, **weights}

    def _fit_mlp(self, chosen: Ints) -> Weights:
        from . import training

        job, statistics = self._job, dict[str, Floats]()
        if job.spec.kind == "frame-mlp":
            values, lengths = self._frames()
            inputs: training.Inputs = training.Frames(values, lengths, chosen)
        else:
            vectors, statistics = standardised(self._pooled()[chosen])
            inputs = training.Vectors(vectors)
        weights = training.fit_mlp(
            inputs,
            job.labels[chosen],
            classes=len(job.classes),
            recipe=recipe_of(job.spec),
            seed=job.spec.seed,
            tick=self._tick(len(chosen)),
        )
        return {**statistics, **weights}

    def _tick(self, clips: int) -> Callable[[int], None]:
        each = cost_of(self._job, clips) / recipe_of(self._job.spec).steps(clips)

        def tick(steps: int) -> None:
            self._meter.add(each * steps)
            if self._stop.is_set():
                raise Stopped

        return tick

    def _score(self, head: Head, scored: Ints) -> Iterator[Floats]:
        if head.card.kind != "frame-mlp":
            yield from head.logits(self._pooled()[scored])
            return
        values, lengths = self._frames()
        starts = np.concatenate([[0], np.cumsum(lengths)])
        for clip in scored:
            yield head.logits(values[starts[clip] : starts[clip + 1]])[0]

    def _pooled(self) -> Floats:
        spec = self._job.spec
        return self._vectors.pooled(self._store_url, bundle=spec.bundle, layers=spec.layers, keys=self._keys)

    def _frames(self) -> tuple[Floats, Ints]:
        bundle = self._job.spec.bundle
        return self._file.open(lambda: self._vectors.frames(self._store_url, bundle=bundle, keys=self._keys))


def standardised(x: Floats) -> tuple[Floats, dict[str, Floats]]:
    """Vectors [n, d] of zero mean and unit deviation, and the `mean` and `std` that made them so."""
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    std[std < 1e-6] = 1.0  # a constant dimension says nothing, whatever it is divided by
    statistics = {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
    return (x - statistics["mean"]) / statistics["std"], statistics
