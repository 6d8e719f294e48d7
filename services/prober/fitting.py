"""The fits of one head: on all its clips, and on all but each fold of speakers."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import calibration
from .fits import Fit, Fitted
from .frames import FrameFile
from .heads import Floats, Head, Weights
from .inputs import Frames, Inputs
from .inputs import Vectors as Rows
from .jobs import Ints, Job, card_of, cost_of, cost_of_step
from .novelty import distances
from .progress import Meter, Stopped
from .specs import recipe_of
from .subspace import Axes, axes_of
from .vectors import Vectors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """Standardised vectors of some clips, and how to get there from embeddings.

    Attributes:
        rows: [n, p], or [n, layers, p] to be mixed.
        statistics: `mean` and `std`, [d] each; empty for frames.
        axes: [d, p], the same for every layer of a mix; None where p is d.
    """

    rows: Inputs
    statistics: Weights
    axes: Axes | None

    def whole(self, fitted: Fitted) -> Weights:
        """Weights over embeddings of what was learned in here: axes and mix are products that the first layer takes."""
        into = fitted.weights["hidden.weight"]
        if self.axes is not None:
            into = into @ self.axes.T
        if fitted.mix.size:
            into = np.concatenate([share * into for share in fitted.mix], axis=1)
        return {**self.statistics, **fitted.weights, "hidden.weight": into}


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
        self.job, self._vectors, self._store_url = job, vectors, store_url
        self._meter, self._stop = meter, stop
        self._keys = [clip.key for clip in job.clips]
        self._file = FrameFile(scratch)

    def chosen(self, fold: int | None) -> Ints:
        """The clips of a fit, by their numbers: all, or all but those of a fold."""
        return np.arange(len(self._keys)) if fold is None else np.flatnonzero(self.job.folds != fold)

    def logistic(self, fold: int | None) -> None:
        """Fits a logistic regression."""
        from .logistic import fit_logistic

        job, chosen = self.job, self.chosen(fold)
        vectors = self._pooled()[chosen]
        statistics, c = statistics_of(vectors), job.spec.settings["c"]
        weights = fit_logistic(standardised(vectors, statistics), job.labels[chosen], classes=len(job.classes), c=c)
        self._meter.add(cost_of(job, len(chosen)))
        self.accept(fold, {**statistics, **weights}, epoch=None)

    def address(self, fold: int | None) -> tuple[object, ...]:
        """Fits of equal addresses have the same space."""
        spec, recipe = self.job.spec, recipe_of(self.job.spec)
        clips = (spec.clip_set_url, self.chosen(fold).tobytes(), self.held_back(fold).tobytes())
        return spec.kind, spec.bundle, spec.layers, recipe.mix, recipe.components, *clips

    def space(self, fold: int | None) -> Space:
        """What an MLP learns from: frames as they are, or vectors in a few directions of theirs.

        Raises:
            NotFound: a clip is not in the store.
            BadInput: an embedding that makes no sense.
        """
        chosen = self.chosen(fold)
        if self.job.spec.kind == "frame-mlp":
            values, lengths = self._frames()
            return Space(rows=Frames(values, lengths, chosen), statistics={}, axes=None)
        learned = np.setdiff1d(np.arange(len(chosen)), self.held_back(fold))
        vectors = self._pooled()[chosen]
        statistics = statistics_of(vectors[learned])
        vectors = standardised(vectors, statistics)
        recipe = recipe_of(self.job.spec)
        if recipe.mix:
            vectors = vectors.reshape(len(vectors), len(self.job.spec.layers), -1)
        axes = axes_of(vectors[learned].reshape(-1, vectors.shape[-1]), recipe.components)
        rows = vectors if axes is None else vectors @ axes
        return Space(rows=Rows(rows), statistics=statistics, axes=axes)

    def fit(self, fold: int | None, space: Space) -> Fit:
        """An MLP to be fitted in a space."""
        job, chosen = self.job, self.chosen(fold)
        return Fit(
            inputs=space.rows,
            labels=job.labels[chosen],
            classes=len(job.classes),
            recipe=recipe_of(job.spec),
            seed=job.spec.seed,
            held_back=self.held_back(fold),
        )

    def held_back(self, fold: int | None) -> Ints:
        """Clips of the speakers that decide when to stop, numbered within the fit; empty where nothing stops early.

        Raises:
            BadInput: the fit has one speaker only.
        """
        recipe, chosen = recipe_of(self.job.spec), self.chosen(fold)
        if not recipe.patience:
            return np.empty(0, dtype=np.int64)
        labels, group = self.job.labels[chosen], self.job.group[chosen]
        return calibration.held_back(labels, group, share=recipe.validation, seed=self.job.spec.seed)

    def accept(self, fold: int | None, weights: Weights, *, epoch: int | None) -> None:
        """Takes the weights of a fit: the head's own, or those that score a fold."""
        job = self.job
        if fold is None:
            job.weights, job.epoch = weights, epoch
            return
        head = Head(card=card_of(job, weights, store=""), weights=weights)
        scored = np.flatnonzero(job.folds == fold)
        for row, logits in zip(scored, self._score(head, scored), strict=True):
            job.logits[row] = logits
        if "mean" in weights:
            job.distances[scored] = distances(standardised(self._pooled()[scored], weights))

    def take(self, fold: int | None, space: Space, fitted: Fitted) -> None:
        """Takes a fitted MLP."""
        self.accept(fold, space.whole(fitted), epoch=fitted.epoch)

    def tick(self, steps: int) -> None:
        """Counts steps of an MLP's fit.

        Raises:
            Stopped: the training is to stop.
        """
        self._meter.add(cost_of_step(self.job) * steps)
        if self._stop.is_set():
            raise Stopped

    def close(self) -> None:
        """Frees what the fits shared."""
        self._file.close()

    def _score(self, head: Head, scored: Ints) -> Iterator[Floats]:
        if head.card.kind != "frame-mlp":
            yield from head.logits(self._pooled()[scored])
            return
        values, lengths = self._frames()
        starts = np.concatenate([[0], np.cumsum(lengths)])
        for clip in scored:
            yield head.logits(values[starts[clip] : starts[clip + 1]])[0]

    def _pooled(self) -> Floats:
        spec = self.job.spec
        return self._vectors.pooled(self._store_url, bundle=spec.bundle, layers=spec.layers, keys=self._keys)

    def _frames(self) -> tuple[Floats, Ints]:
        bundle = self.job.spec.bundle
        return self._file.open(lambda: self._vectors.frames(self._store_url, bundle=bundle, keys=self._keys))


def statistics_of(x: Floats) -> dict[str, Floats]:
    """Mean and deviation [d] of vectors [n, d], as `mean` and `std`."""
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    std[std < 1e-6] = 1.0  # a constant dimension says nothing, whatever it is divided by
    return {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}


def standardised(x: Floats, statistics: Weights) -> Floats:
    """Vectors [n, d] by these statistics."""
    return (x - statistics["mean"]) / statistics["std"]
