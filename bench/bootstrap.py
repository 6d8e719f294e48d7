"""The speaker bootstrap against a plain loop with scikit-learn, on the same corpus: time and agreement.

    python -m bench.bootstrap [--clips 7000] [--speakers 90] [--classes 7] [--resamples 2000] [--loop 50]

The loop gathers the clips of the drawn speakers and scores them, as one would write it first. It is run for `--loop`
resamples and its time scaled up. Ends with one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from services.evaluator.statistics import Interval, intervals, tables
from servox.priors import softmax

Ints = NDArray[np.intp]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in (("clips", 7000), ("speakers", 90), ("classes", 7), ("resamples", 2000), ("loop", 50)):
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


def _loop(labels: Ints, answers: Ints, who: Ints, *, resamples: int) -> None:
    """Macro-F1, UAR and accuracy of resampled speakers, one resample after another."""
    generator = np.random.default_rng(0)
    speakers = int(who.max()) + 1
    clips_of = [np.flatnonzero(who == speaker) for speaker in range(speakers)]
    for _ in range(resamples):
        clips = np.concatenate([clips_of[s] for s in generator.integers(0, speakers, speakers)])
        metrics.f1_score(labels[clips], answers[clips], average="macro")
        metrics.recall_score(labels[clips], answers[clips], average="macro")
        metrics.accuracy_score(labels[clips], answers[clips])


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Time both, print a table and one line of JSON."""
    options = _options()
    generator = np.random.default_rng(0)
    who = generator.integers(0, options.speakers, options.clips)
    labels = generator.integers(0, options.classes, options.clips)
    clarity = generator.gamma(1.5, size=options.speakers)[who]
    logits = (
        generator.normal(size=(options.clips, options.classes)) + np.eye(options.classes)[labels] * clarity[:, None]
    )
    posterior, speakers = softmax(logits), [f"s{i}" for i in who]

    def ours(named: list[str] | None) -> dict[str, Interval]:
        return intervals(tables(labels, posterior, speakers=named), resamples=options.resamples)

    ours_s = min(_timed(lambda: ours(speakers)) for _ in range(5))
    by_clip_s = min(_timed(lambda: ours(None)) for _ in range(2))
    sampled_s = _timed(lambda: _loop(labels, posterior.argmax(axis=1), who, resamples=options.loop))
    loop_s = sampled_s * options.resamples / options.loop
    print(
        f"{options.resamples} resamples: {options.clips} clips, {options.speakers} speakers, {options.classes} classes"
    )
    print(f"  by speaker, matrix product (with ECE)   {ours_s:9.3f} s")
    print(f"  by clip, matrix product (with ECE)      {by_clip_s:9.3f} s")
    print(f"  by speaker, plain loop (without ECE)    {loop_s:9.3f} s  ({options.loop} resamples timed)")
    print(f"  ratio loop / ours                       {loop_s / ours_s:9.0f}")
    found = {"ours_s": ours_s, "by_clip_s": by_clip_s, "loop_s": loop_s, "ratio": loop_s / ours_s}
    print(json.dumps({"bench": "bootstrap", **vars(options), **{key: round(value, 4) for key, value in found.items()}}))


if __name__ == "__main__":
    main()
