"""Engines on a CUDA device: clips a second, share of the measured bf16 peak, and latency at half load.

    python -m bench.gpu [--checkpoint folder] [--blocks N] [--context silence:32] [--seconds 3 10 30] [--rows 1 8 32]

whisper-large-v3's encoder with random weights, unless a checkpoint is given. Engines: ONNX Runtime's CUDA provider in
fp16, torch in bf16 (attention masked and folded, blocks compiled with --compile), and TensorRT where it is installed;
what cannot start is named and left out. Work is counted in closed form: matrix products and convolutions, context
tokens included. Latency: 3 s clips arrive at random (Poisson) at half the rate that the engine reached, and are served
in batches of whatever waits. Ends with one line of JSON.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.checkpoints import LARGE_V3, saved_whisper
from services.embedder.arithmetic import encoder_of
from services.embedder.backbones import Backbone, open_backbone
from services.embedder.contexts import Context
from services.embedder.runtimes import Runtime
from servox.errors import ServoxError

PEAK_SIDE = 8192
LATENCY_S = 3
PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "transformers", "onnx", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Args:
        backbone: the encoder.
        context: policy.
        blocks: depth.
        seconds: lengths of clips.
        rows: clips in a batch.
        budget_s: time for each cell.
        most_s: seconds of audio in a batch that is still run.
    """

    backbone: Backbone
    context: Context
    blocks: int
    seconds: tuple[float, ...]
    rows: tuple[int, ...]
    budget_s: float
    most_s: float

    def clips(self, rows: int, seconds: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """A batch of noise: the work does not depend on what is said."""
        width = int(seconds * self.backbone.rate_hz)
        pcm = np.random.default_rng(0).normal(0, 0.1, (rows, width)).astype(np.float32)
        return pcm, np.full(rows, width, np.int64)

    def flops(self, config: Mapping[str, Any], seconds: float) -> float:
        """Of one clip."""
        frames = int(seconds * self.backbone.rate_hz) // self.backbone.frame_step(self.blocks)
        return encoder_of("whisper", config).flops(frames, context=self.context, blocks=self.blocks)


def _options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a Whisper checkpoint instead of random weights")
    parser.add_argument("--blocks", type=int, help="depth; default: all")
    parser.add_argument("--context", default="silence:32", help="policy")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3, 10, 30], help="lengths of clips")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128], help="clips in a batch")
    parser.add_argument("--engines", nargs="+", default=["torch-masked", "torch-folded", "onnx", "tensorrt"])
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks of the torch engines")
    parser.add_argument("--budget-s", type=float, default=2.0, help="time for each cell")
    parser.add_argument("--most-s", type=float, default=2000.0, help="seconds of audio in the largest batch")
    return parser.parse_args(arguments)


def peak_flops(side: int = PEAK_SIDE, runs: int = 20) -> float:
    """The device's bf16 matrix product on random numbers, operations a second, median of `runs`."""
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        left @ right
    took_s = []
    for _ in range(runs):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(5):
            left @ right
        torch.cuda.synchronize()
        took_s.append((time.perf_counter() - began) / 5)
    return 2 * side**3 / float(np.median(took_s))


def seconds_a_run(work: Callable[[], object], budget_s: float) -> float:
    """Median time of a run after three that warm up; at least five are taken."""
    for _ in range(3):
        work()
    took: list[float] = []
    until = time.perf_counter() + budget_s
    while len(took) < 5 or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return float(np.median(took))


def throughput(runtime: Runtime, plan: Plan, config: Mapping[str, Any], peak: float) -> Iterator[dict[str, Any]]:
    """One cell for each batch size and length that fits."""
    for seconds in plan.seconds:
        for rows in plan.rows:
            if rows * seconds > plan.most_s:
                continue
            pcm, lengths = plan.clips(rows, seconds)
            took_s = seconds_a_run(lambda pcm=pcm, lengths=lengths: runtime.run(pcm, lengths), plan.budget_s)  # type: ignore[misc]
            rate = rows / took_s
            flops = rate * plan.flops(config, seconds)
            yield {
                "seconds": seconds,
                "rows": rows,
                "clips_per_s": rate,
                "tflops": flops / 1e12,
                "of_peak": flops / peak if peak else None,
            }


def latencies(serve: Callable[[int], object], *, rate: float, most: int, duration_s: float) -> NDArray[np.float64]:
    """Seconds from arrival to answer of clips that arrive at `rate` a second, served in batches of what waits."""
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, max(32, int(rate * duration_s))))
    began, first = time.perf_counter(), 0
    took: list[float] = []
    while first < len(arrivals):
        now = time.perf_counter() - began
        waiting = min(most, int(np.searchsorted(arrivals, now, side="right")) - first)
        if not waiting:
            continue  # spinning, as a thread that sleeps wakes too late to tell milliseconds
        serve(waiting)
        done = time.perf_counter() - began
        took.extend(done - arrivals[first : first + waiting])
        first += waiting
    return np.asarray(took)


def at_half_load(runtime: Runtime, plan: Plan, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Latency of 3 s clips at half of what the engine reached with them."""
    best = max((cell for cell in cells if cell["seconds"] == LATENCY_S), key=lambda cell: cell["clips_per_s"])
    pcm, lengths = plan.clips(best["rows"], LATENCY_S)
    sizes = [1 << k for k in range(best["rows"].bit_length())]  # of captured graphs: a batch is padded to the next

    def serve(waiting: int) -> None:
        rows = min(next((size for size in sizes if size >= waiting), best["rows"]), best["rows"])
        runtime.run(pcm[:rows], lengths[:rows])

    for size in sizes:
        serve(size)
        serve(size)
    rate = best["clips_per_s"] / 2
    took = latencies(serve, rate=rate, most=best["rows"], duration_s=3 * plan.budget_s)
    p50, p99 = np.percentile(took, [50, 99]) * 1000
    return {"rate": rate, "clips": len(took), "p50_ms": p50, "p99_ms": p99}


def opened(engine: str, plan: Plan, folder: Path, *, compiled: bool) -> Runtime:
    """An engine, ready to run.

    Raises:
        ServoxError: when it cannot start here.
        ImportError: when a package is missing.
    """
    if engine.startswith("torch"):
        from services.embedder.runtimes.torch import TorchRuntime

        graph = plan.backbone.graph(plan.context, plan.blocks)
        attention: Any = engine.removeprefix("torch-")
        return TorchRuntime(
            graph, device="cuda", precision="bf16", attention=attention, captures=True, compiled=compiled
        )
    # Imported here: they need packages that a machine set up for torch alone may lack.
    from services.embedder import export as exporting
    from services.embedder import runtimes
    from services.embedder.bundle import GRAPH
    from services.embedder.halve import halve
    from services.embedder.runtimes import tensorrt

    if engine == "tensorrt":
        tensorrt.probe()
    recipe = exporting.resolve(plan.backbone, context=str(plan.context), blocks=plan.blocks, precision="fp16")
    if not (folder / GRAPH).exists():
        exporting.trace(recipe, folder / GRAPH)
        halve(folder / GRAPH)
    bundle = exporting.describe(recipe, folder)
    return runtimes.choose(tensorrt.build(bundle) if engine == "tensorrt" else bundle, "cuda", engine=engine)


def device_facts() -> dict[str, Any]:
    """The device, the driver and every version that takes part."""
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    from services.embedder.runtimes import gpu

    found = gpu.find()
    return {
        "device": found.name,
        "capability": found.capability,
        "driver": found.driver,
        "driver_cuda": found.cuda,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": versions,
    }


def measured(engine: str, plan: Plan, config: Mapping[str, Any], peak: float, runtime: Runtime) -> dict[str, Any]:
    """Every cell of one engine, printed as it comes, and its latency."""
    cells = []
    for cell in throughput(runtime, plan, config, peak):
        cells.append(cell)
        share = f"{100 * cell['of_peak']:6.1f} %" if cell["of_peak"] is not None else "      -"
        print(
            f"{engine:14} {cell['seconds']:5g} s {cell['rows']:5d} {cell['clips_per_s']:10.1f} "
            f"{cell['tflops']:8.1f} {share}",
            flush=True,
        )
    found: dict[str, Any] = {"engine": engine, "cells": cells, "captures": getattr(runtime, "captures", None)}
    if any(cell["seconds"] == LATENCY_S for cell in cells):
        found["half_load"] = at_half_load(runtime, plan, cells)
        latency = found["half_load"]
        print(f"{engine:14} half load: p50 {latency['p50_ms']:.1f} ms, p99 {latency['p99_ms']:.1f} ms", flush=True)
    return found


def _plan(options: argparse.Namespace, folder: Path) -> tuple[Plan, dict[str, Any]]:
    source = options.checkpoint or saved_whisper(folder / "large-v3-random", LARGE_V3)
    backbone = open_backbone(str(source))
    plan = Plan(
        backbone=backbone,
        context=Context.parse(options.context),
        blocks=backbone.blocks if options.blocks is None else options.blocks,
        seconds=tuple(options.seconds),
        rows=tuple(options.rows),
        budget_s=options.budget_s,
        most_s=options.most_s,
    )
    return plan, json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))


def main() -> None:
    """Measure every engine that starts here, print a table and one line of JSON."""
    options = _options()
    try:
        facts = device_facts()
    except ServoxError as error:
        sys.exit(f"bench.gpu needs a CUDA device: {error}")
    if not torch.cuda.is_available():
        sys.exit("bench.gpu needs torch with CUDA: this environment has a CPU build; `make bench-gpu` makes its own")
    print(json.dumps(facts), flush=True)
    peak = peak_flops()
    print(f"bf16 matrix product of {PEAK_SIDE}: {peak / 1e12:.0f} TFLOP/s", flush=True)
    print(f"{'engine':14} {'clip':>7} {'rows':>5} {'clips/s':>10} {'TFLOP/s':>8} {'of peak':>8}", flush=True)
    results, absent = [], {}
    with tempfile.TemporaryDirectory() as name:
        plan, config = _plan(options, Path(name))
        for engine in options.engines:
            folder = Path(name) / engine
            folder.mkdir()
            try:
                runtime = opened(engine, plan, folder, compiled=options.compile)
            except (ServoxError, ImportError) as error:
                absent[engine] = str(error)
                print(f"{engine:14} left out: {error}", flush=True)
                continue
            results.append(measured(engine, plan, config, peak, runtime))
            runtime.close()
            del runtime
            torch.cuda.empty_cache()
    recipe = {"context": str(plan.context), "blocks": plan.blocks, "compiled": options.compile}
    print(json.dumps({"bench": "gpu", **facts, "peak_flops": peak, **recipe, "engines": results, "absent": absent}))


if __name__ == "__main__":
    main()
