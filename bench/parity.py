"""How far every family's graph is from transformers: small random models of the true architectures, largest errors.

    python -m bench.parity [--models whisper-80 clap …] [--precisions]

For each model, on speech-like clips of four lengths: the graph as torch runs it, cut after every block in turn, each
layer's frames in a batch of mixed lengths whose padding is noise; then the whole model exported, by ONNX Runtime and
OpenVINO, every layer's mean and deviation and the last layer's frames, for clips alone and in the same batch. The other
side is transformers on the clip alone. `--precisions` adds bf16 and int8 by the figure that an export is held to.
Ends with one line of JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
import transformers
from numpy.typing import NDArray

from bench.small_models import SMALL_MODELS, save
from services.embedder.backbones import Backbone, Hidden, open_backbone
from services.embedder.bundle import Bundle, Precision
from services.embedder.contexts import Context
from services.embedder.export import export
from services.embedder.runtimes import Result, Runtime
from services.embedder.runtimes.onnx import OnnxRuntime
from services.embedder.runtimes.openvino import OpenVinoRuntime
from services.embedder.runtimes.torch import TorchRuntime
from services.embedder.speechlike import speechlike
from servox.errors import BundleError, Unavailable

SECONDS = (0.4, 3.0, 1.49, 1.0001)
NOISE = 0.1
LOSSY: tuple[Precision, ...] = ("bf16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Clips, and the same in one batch."""

    clips: list[NDArray[np.float32]]
    pcm: NDArray[np.float32]
    lengths: NDArray[np.int64]

    def alone(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Each clip as a batch of its own."""
        for clip in self.clips:
            yield clip[None], np.array([len(clip)], np.int64)


def main() -> None:
    """Measure, print a table and one line of JSON."""
    options = _options()
    models = options.models or [*SMALL_MODELS, "logmel"]
    found: dict[str, dict[str, float | int | str]] = {}
    print(f"{'model':<17}{'policy':<12}{'layers':>6}  {'worst layer, torch':<22}", end="")
    print("".join(f"{head:>11}" for head in ("ort alone", "ort mixed", "ov alone", "ov mixed")))
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            source = name if name == "logmel" else str(save(Path(folder), name))
            for policy in _policies(open_backbone(source)):
                row = measure(open_backbone(source), source, policy, Path(folder), precisions=options.precisions)
                found[f"{name} {policy}"] = row
                _show(name, policy, row)
    worst = max(float(row[key]) for row in found.values() for key in row if key.endswith(("alone", "mixed", "torch")))
    print(json.dumps({"bench": "parity", "worst": worst, "versions": _versions(), "models": found}))


def measure(
    backbone: Backbone, source: str, context: Context, folder: Path, *, precisions: bool
) -> dict[str, float | int | str]:
    """One row of the table: largest absolute errors."""
    batch = _batch(backbone.rate_hz)
    states = [backbone.reference(context, backbone.blocks)(clip) for clip in batch.clips]
    layer, error = _worst_layer(backbone, context, batch, states)
    row: dict[str, float | int | str] = {"layers": len(states[0]), "worst layer": layer, "torch": error}
    bundle = export(source, folder / "bundle", context=str(context), blocks="all", replace_existing=True)
    for engine, kind in (("ort", OnnxRuntime), ("ov", OpenVinoRuntime)):
        runtime: Runtime = kind(bundle, threads=1)
        alone = [
            _error(runtime.run(*one, frames=True), [state]) for one, state in zip(batch.alone(), states, strict=True)
        ]
        row[f"{engine} alone"] = max(alone)
        row[f"{engine} mixed"] = _error(runtime.run(batch.pcm, batch.lengths, frames=True), states)
        runtime.close()
    if precisions and backbone.blocks:
        row |= {kind: _precision(source, bundle, kind, folder) for kind in LOSSY}
    return row


def _worst_layer(backbone: Backbone, context: Context, batch: Batch, states: Sequence[Hidden]) -> tuple[str, float]:
    """The layer whose frames are farthest off, and by how much."""
    worst = ("", 0.0)
    for blocks in range(backbone.blocks + 1):
        result = TorchRuntime(backbone.graph(context, blocks)).run(batch.pcm, batch.lengths, frames=True)
        last = len(backbone.layers(blocks)) - 1
        error = _error(result, [[state[k] for k in range(last + 1)] for state in states])
        worst = max(worst, (backbone.layers(blocks)[last], error), key=lambda found: found[1])
    return worst


def _error(result: Result, states: Sequence[Hidden]) -> float:
    """Largest absolute error of every layer's mean and deviation, and of the last one's own frames."""
    assert result.frames is not None
    worst = 0.0
    for row, state in enumerate(states):
        pooled = np.stack([[layer.mean(axis=0), layer.std(axis=0)] for layer in state])
        frames = np.abs(result.frames[row, : len(state[-1])] - state[-1]).max()
        worst = max(worst, float(np.abs(result.statistics[row] - pooled).max()), float(frames))
    return worst


def _precision(source: str, bundle: Bundle, kind: Precision, folder: Path) -> float | str:
    """The `precision` figure of an export, whether it is kept or refused."""
    try:
        made = export(
            source, folder / "lossy", context=str(bundle.context), blocks="all", precision=kind, replace_existing=True
        )
    except Unavailable:
        return "not on this CPU"
    except BundleError as error:
        return f"refused: {str(error).partition('parity figure ')[2].partition(';')[0]}"
    return next(figure.value for figure in made.parity if figure.name == "precision")


def _policies(backbone: Backbone) -> list[Context]:
    """The family's own, and for one that has others the padded encoder too."""
    padded = Context(kind="padded")
    default = backbone.default_context
    return [default] if default == padded or not backbone.pads else [padded, default]


def _batch(rate_hz: int) -> Batch:
    clips = [speechlike(n, duration_s=s, rate_hz=rate_hz) for n, s in enumerate(SECONDS)]
    lengths = np.array([len(clip) for clip in clips], np.int64)
    pcm = np.random.default_rng(0).normal(0, NOISE, (len(clips), int(lengths.max()))).astype(np.float32)
    for row, clip in zip(pcm, clips, strict=True):
        row[: len(clip)] = clip
    return Batch(clips=clips, pcm=pcm, lengths=lengths)


def _show(name: str, policy: Context, row: dict[str, float | int | str]) -> None:
    layer = f"{row['worst layer']} {row['torch']:.1e}"
    errors = "".join(f"{row[key]:>11.1e}" for key in ("ort alone", "ort mixed", "ov alone", "ov mixed"))
    lossy = "".join(f"  {kind} {row[kind]}" for kind in LOSSY if kind in row)
    print(f"{name:<17}{policy!s:<12}{row['layers']:>6}  {layer:<22}{errors}{lossy}", flush=True)


def _versions() -> dict[str, str]:
    return {"transformers": transformers.__version__, "openvino": openvino.__version__}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=[*SMALL_MODELS, "logmel"], help="default: all")
    parser.add_argument("--precisions", action="store_true", help="bf16 and int8 as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
