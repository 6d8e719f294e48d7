"""From probabilities to what a cell reports: figures with intervals, per class, confusion."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import corrections, results
from .scoring import Macro, macro_scores, per_class
from .statistics import Tables, intervals, tables

Array = NDArray[np.float64]


def report(
    name: str,
    probabilities: Array,
    *,
    labels: Sequence[str],
    speakers: Sequence[str],
    classes: Sequence[str],
    seeds: int,
    macro: Macro,
) -> tuple[results.Correction, str]:
    """Scores of one correction, and what is to be said of their intervals.

    Args:
        name: the rung of the ladder.
        probabilities: `[repeats, n, K]`; repeats are the seeds, or the calibration draws of each seed in turn; rows of
            NaN were not scored.
        labels: `[n]`, each one of `classes`.
        speakers: `[n]`, empty strings where unknown.
        classes: the K classes.
        seeds: how many seeds the repeats belong to.
        macro: which classes the macro scores average over.
    """
    index = {label: i for i, label in enumerate(classes)}
    data = tables([index[label] for label in labels], probabilities, speakers=list(speakers))
    ends = intervals(data, macro=macro)
    values = _by_seed(data, macro=macro, seeds=seeds)
    figures = {
        score: results.Figure(
            mean=float(values[score].mean()),
            low=interval.low,
            high=interval.high,
            per_seed=[float(value) for value in values[score]],
        )
        for score, interval in ends.items()
    }
    rung = corrections.correction(name)
    correction = results.Correction(
        macro_f1=figures["macro_f1"],
        uar=figures["uar"],
        accuracy=figures["accuracy"],
        ece=figures["ece"],
        per_class=_class_rows(data, classes=classes, labels=labels),
        confusion=data.confusions.sum(axis=1).mean(axis=0).tolist(),
        target_clips=rung.target_clips,
        target_labels=rung.target_labels,
    )
    first = ends["macro_f1"]
    said = f"95 % percentile bootstrap over {first.units} {first.unit}s" if first.low is not None else "none"
    return correction, f"{said}; {first.reason}" if first.reason else said


def _by_seed(data: Tables, *, macro: Macro, seeds: int) -> dict[str, Array]:
    """Each score `[seeds]`, averaged over the draws of a seed."""
    counted = data.confusions.sum(axis=1)
    scores = macro_scores(counted, macro=macro)
    if data.gaps is not None:
        scores["ece"] = np.abs(data.gaps.sum(axis=1)).sum(axis=-1) / counted.sum(axis=(1, 2))
    return {name: values.reshape(seeds, -1).mean(axis=1) for name, values in scores.items()}


def _class_rows(data: Tables, *, classes: Sequence[str], labels: Sequence[str]) -> list[results.ClassRow]:
    f1, recall = per_class(data.confusions.sum(axis=1))
    return [
        results.ClassRow(
            label=label,
            clips=sum(said == label for said in labels),
            f1=_mean(f1[:, i]),
            recall=_mean(recall[:, i]),
        )
        for i, label in enumerate(classes)
    ]


def _mean(values: Array) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
