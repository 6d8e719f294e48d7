"""Peak memory of exporting and serving an encoder, over the bytes of its weights: whisper-large-v3, random weights.

    python -m bench.memory [--blocks 16 32] [--precision fp32 bf16] [--folder scratch] [--checkpoint folder]

Each export and each server is a process of its own. A ratio is what the process took on top of its imports, over the
float32 weights that the bundle keeps: `peak` counts every resident page, those of mapped files too, which the system
takes back when it needs them; `own` counts the process's own pages alone; `apart` is the
process that traces a large graph, all of its pages. Ends with one line of JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from bench.checkpoints import LARGE_V3, random_whisper, saved_whisper
from services.embedder import bundle as bundles
from services.embedder.export import export
from services.embedder.runtimes import choose
from services.embedder.speechlike import speechlike

RATE_HZ = 16_000
CLIP_S = (1.2, 2.0, 3.0, 3.7)  # that parity is measured on, and of the served batch
SAMPLE_S = 0.005
GIB = 1 << 30


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[16, 32], help="depths to export")
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="precisions to export")
    parser.add_argument("--folder", type=Path, help="scratch folder; default: a temporary one")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint instead of random weights")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def _pages(key: str) -> int:
    """Bytes of one line of the process's status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


@contextmanager
def _watched() -> Iterator[dict[str, int]]:
    """Bytes at the start, and the highest that were seen until the block ends."""
    seen = {"base_own": _pages("RssAnon"), "base": _pages("VmRSS"), "own": 0, "peak": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            seen["own"] = max(seen["own"], _pages("RssAnon"))
            seen["peak"] = max(seen["peak"], _pages("VmRSS"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def _export(source: str, out: str, blocks: str, precision: str, clips: str) -> dict[str, Any]:
    steps: dict[str, int] = {}
    # Of random weights nobody can ask that silence tokens stand for padding; the padded encoder is run all the same.
    recipe: dict[str, Any] = {"context": "exact", "blocks": int(blocks), "precision": precision}

    def tell(step: str, _done: float) -> None:
        steps.setdefault(step, seen["own"] if steps else 0)

    with _watched() as seen:
        bundle = export(source, out, clips=[Path(clips)], progress=tell, **recipe)
    parity = {figure.name: figure.value for figure in bundle.parity}
    apart = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # of the process that traces, if one did
    return {**seen, "apart": apart, "own_when_a_step_began": steps, "digest": bundle.digest, "parity": parity}


def _serve(folder: str, engine: str) -> dict[str, Any]:
    import onnxruntime  # noqa: F401 - part of the base, as openvino is
    import openvino  # noqa: F401

    clips = [speechlike(seed, duration_s=seconds, rate_hz=RATE_HZ) for seed, seconds in enumerate(CLIP_S)]
    pcm = np.zeros((len(clips), max(map(len, clips))), np.float32)
    for row, clip in zip(pcm, clips, strict=True):
        row[: len(clip)] = clip
    lengths = np.array([len(clip) for clip in clips], np.int64)
    with _watched() as seen:
        runtime = choose(bundles.load(folder), engine=engine)
        statistics = runtime.run(pcm, lengths).statistics
    settled = _pages("VmRSS")
    return {**seen, "settled": settled, "finite": bool(np.isfinite(statistics).all())}


CHILDREN: Mapping[str, Callable[..., dict[str, Any]]] = {"export": _export, "serve": _serve}


def _child(*arguments: str) -> dict[str, Any]:
    """What a child process printed last, or how it ended."""
    command = [sys.executable, "-m", "bench.memory", "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"failed": done.returncode, "why": done.stderr.strip().splitlines()[-1:] or ["killed"]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _row(what: str, weights: int, found: Mapping[str, Any]) -> dict[str, Any]:
    if "failed" in found:
        print(f"{what:36} failed ({found['failed']}): {found['why']}", flush=True)
        return {"what": what, "weights_bytes": weights, **found}
    highest = max(found["peak"], found.get("apart", 0))
    ratios = {
        "peak_ratio": (found["peak"] - found["base"]) / weights,
        "own_ratio": (found["own"] - found["base_own"]) / weights,
        "apart_ratio": max(0.0, found.get("apart", 0) - found["base"]) / weights,
    }
    print(f"{what:36} {weights / GIB:8.2f} {highest / GIB:8.2f}", *(f"{v:8.2f}" for v in ratios.values()), flush=True)
    return {"what": what, "weights_bytes": weights, **ratios, **found}


def _weights_bytes(blocks: int) -> int:
    """Float32 bytes of large-v3's encoder with `blocks` blocks."""
    shapes = random_whisper({**LARGE_V3, "encoder_layers": blocks}, device="meta")
    return 4 * sum(tensor.numel() for tensor in shapes.values())


def _write_clips(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for seed, seconds in enumerate(CLIP_S):
        soundfile.write(folder / f"{seed}.wav", speechlike(seed, duration_s=seconds, rate_hz=RATE_HZ), RATE_HZ)
    return folder


def _measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    source = options.checkpoint or saved_whisper(folder / "large-v3-random", LARGE_V3)
    clips = _write_clips(folder / "clips")
    rows = []
    heads = ("weights", "highest", "peak/w", "own/w", "apart/w")
    print(f"{'GiB, and ratios':36}", *(f"{head:>8}" for head in heads), flush=True)
    for precision in options.precision:
        for blocks in options.blocks:
            weights, out = _weights_bytes(blocks), folder / f"{precision}-{blocks}"
            found = _child("export", str(source), str(out), str(blocks), precision, str(clips))
            rows.append(_row(f"export {precision}, {blocks} blocks", weights, found))
            if "failed" in found:
                continue
            for engine in ("openvino", "onnx"):
                if not (engine == "onnx" and precision == "bf16"):
                    what = f"serve {precision}, {blocks} blocks, {engine}"
                    rows.append(_row(what, weights, _child("serve", str(out), engine)))
    return rows


def main() -> None:
    """Measure every export and every server, print a table and one line of JSON."""
    options = _options()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](*options.child[1:])))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = _measure(options, Path(folder))
    print(json.dumps({"bench": "memory", "blocks": options.blocks, "precision": options.precision, "rows": rows}))


if __name__ == "__main__":
    main()
