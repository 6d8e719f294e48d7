"""The fastest precision that this CPU offers and that keeps its parity: measured here, not looked up.

A float32 bundle gives the others without being traced again: bf16 is the same graph under another name, int8 the same
graph with its weights rewritten. Each is compared with float32 on the clips that parity was measured on, and timed on
them, alone and on one thread, in turns, so that a busy machine slows all of them alike.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from services.embedder import parity, runtimes
from services.embedder.bundle import CPU_PRECISIONS, GRAPH, Bundle, Precision, file_sha256
from services.embedder.export import beside, check_target, disk_errors, export, publish
from services.embedder.quantise import quantise_weights
from services.embedder.runtimes import Runtime
from servox.errors import Unavailable

ROUNDS = 5

Accept = Callable[[Bundle, Bundle], str]
"""Why the first bundle must not stand for the second, the same in float32; empty where it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One precision on this CPU.

    Args:
        precision: which.
        bundle: the bundle, in a folder of its own; None where this CPU does not run it.
        error: RMS error of clip means over the spread between clips; None where it was not run.
        realtime: seconds of speech a second, one thread; None where it was not run.
        refused: why it was not chosen, empty where nothing speaks against it.
    """

    precision: Precision
    bundle: Bundle | None = None
    error: float | None = None
    realtime: float | None = None
    refused: str = ""


def export_fastest(
    source: str,
    out: Path,
    *,
    accept: Accept | None = None,
    replace_existing: bool = False,
    clips: Sequence[Path] = (),
    data_root: Path | None = None,
    **options: Any,  # noqa: ANN401 - what `export` takes besides
) -> tuple[Bundle, list[Trial]]:
    """Export `source` into `out` in the fastest precision that parity and `accept` allow, and what was tried.

    Raises:
        What `export` raises.
    """
    check_target(out, replace_existing=replace_existing)
    with disk_errors(out), beside(out) as folder:
        plain = export(source, folder / "fp32", precision="fp32", clips=clips, data_root=data_root, **options)
        speech = parity.gather(clips, data_root, plain.rate_hz)
        tried = [judged(trial, plain, accept) for trial in trials(plain, folder, speech)]
        best = fastest(tried)
        best.write_manifest()
        return replace(best, folder=publish(best.folder, out)), tried


def trials(plain: Bundle, folder: Path, clips: parity.Clips) -> list[Trial]:
    """Every precision of a float32 bundle, made in `folder`, compared with float32 and timed; slowest first."""
    with ExitStack() as stack:
        opened: dict[Precision, tuple[Bundle, Runtime]] = {}
        refused: list[Trial] = []
        for precision in CPU_PRECISIONS if plain.source_blocks else ("fp32",):
            bundle = variant(plain, precision, folder / precision)
            try:
                opened[precision] = (bundle, stack.enter_context(closing(runtimes.choose(bundle, "cpu", threads=1))))
            except Unavailable as error:
                refused.append(Trial(precision=precision, refused=str(error)))
        means = _means(opened["fp32"][1], clips)
        measured = [_compared(bundle, runtime, clips, means) for bundle, runtime in opened.values()]
        rates = _rates([runtime for _, runtime in opened.values()], clips, plain.rate_hz)
    timed = [replace(trial, realtime=rate) for trial, rate in zip(measured, rates, strict=True)]
    return refused + sorted(timed, key=lambda trial: trial.realtime or 0.0)


def variant(plain: Bundle, precision: Precision, folder: Path) -> Bundle:
    """A float32 bundle in another precision, its files in `folder`."""
    if precision == "fp32":
        return plain
    shutil.copytree(plain.folder, folder)
    if precision == "int8":
        quantise_weights(folder / GRAPH)
    files = {path.name: file_sha256(path) for path in sorted(folder.glob(f"{GRAPH}*"))}
    return replace(plain, folder=folder, precision=precision, files=files)


def judged(trial: Trial, plain: Bundle, accept: Accept | None) -> Trial:
    """The trial with what `accept` says of it; float32 itself is never refused."""
    if trial.bundle is None or trial.refused or accept is None or trial.precision == "fp32":
        return trial
    return replace(trial, refused=accept(trial.bundle, plain))


def fastest(tried: Sequence[Trial]) -> Bundle:
    """The bundle of the fastest trial that nothing speaks against."""
    fit = [(trial.realtime or 0.0, trial.bundle) for trial in tried if trial.bundle is not None and not trial.refused]
    return max(fit, key=lambda pair: pair[0])[1]  # never empty: float32 is not refused


def _compared(bundle: Bundle, runtime: Runtime, clips: parity.Clips, means: list[parity.Samples]) -> Trial:
    figure = parity.precision(runtime, clips, means, bundle.precision)
    if bundle.precision == "fp32":  # its own figure is against transformers, and stands
        return Trial(precision="fp32", bundle=bundle, error=figure.value)
    figures = tuple(figure if held.name == "precision" else held for held in bundle.parity)
    refused = "" if figure.passed else f"its error is {figure.value:.3g} and must be at most {figure.bound:g}"
    measured = replace(bundle, parity=figures)
    return Trial(precision=bundle.precision, bundle=measured, error=figure.value, refused=refused)


def _means(runtime: Runtime, clips: parity.Clips) -> list[parity.Samples]:
    """Each clip's mean vector as a layer of one frame [1, 1, d], which is how parity takes a reference."""
    found = [runtime.run(pcm, lengths).statistics[:, -1:, :1] for _, pcm, lengths in clips.batches()]
    return list(np.concatenate(found))


def _rates(engines: Sequence[Runtime], clips: parity.Clips, rate_hz: int) -> list[float]:
    """Seconds of speech a second of each, by its fastest round; the first round, which prepares shapes, aside."""
    speech_s = sum(len(clip) for clip in clips.samples) / rate_hz
    took: list[list[float]] = [[] for _ in engines]
    for _ in range(ROUNDS + 1):
        for times, engine in zip(took, engines, strict=True):
            began = time.perf_counter()
            for clip in clips.samples:
                engine.run(clip[None], np.array([len(clip)], np.int64))
            times.append(time.perf_counter() - began)
    return [speech_s / min(times[1:]) for times in took]
