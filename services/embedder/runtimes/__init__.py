"""What executes a bundle's graph: one seam, one file an engine, chosen by device and precision.

A runtime is owned by one thread. It takes any batch and width; callers pad the sample axis to a few widths, because
engines prepare themselves anew for each shape.
"""

import importlib.util
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from services.embedder.bundle import Bundle, Precision
from servox.errors import BadSetting, Unavailable

Pcm = NDArray[np.float32]
Lengths = NDArray[np.int64]

DEVICES = ("auto", "cpu", "cuda")
ENGINES = ("auto", "openvino", "onnx", "tensorrt")
LANES = 2  # threads for each stream of an engine that queues


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Statistics [B, layers, 2, d] (mean, population std over each clip's own frames), frames [B, T, d] when asked.

    A clip's own frames come first in `frames`; what follows them means nothing.
    """

    statistics: NDArray[np.float32]
    frames: NDArray[np.float32] | None


class Runtime(Protocol):
    """One engine with one graph loaded."""

    @property
    def name(self) -> str:
        """Of the engine."""

    @property
    def device(self) -> str:
        """Where it runs."""

    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
        """Embed a batch: `pcm` float32 [B, samples], padded on the right; `lengths` int64 [B] in samples."""

    def close(self) -> None:
        """Free the graph."""


@runtime_checkable
class QueueingRuntime(Runtime, Protocol):
    """An engine that computes so many batches at a time, and keeps what else it is given until it can."""

    def twin(self) -> Runtime:
        """Another one, for another thread, with the same graph."""


def lanes(
    bundle: Bundle, device: str = "auto", *, engine: str = "auto", streams: int = 1, threads: int | None = None
) -> list[Runtime]:
    """Runtimes for the threads of a device that computes `streams` batches at a time; otherwise as `choose`.

    An engine that queues gets two for each stream, all with one graph: a batch waits inside the engine while another is
    computed, so that no processor waits for Python between the two. Elsewhere each stream has one, with its own graph.
    """
    first = choose(bundle, device, engine=engine, streams=streams, threads=threads)
    if isinstance(first, QueueingRuntime):
        return [first, *(first.twin() for _ in range(LANES * streams - 1))]
    others = (choose(bundle, device, engine=engine, threads=threads) for _ in range(streams - 1))
    return [first, *others]


def choose(
    bundle: Bundle, device: str = "auto", *, engine: str = "auto", streams: int = 1, threads: int | None = None
) -> Runtime:
    """The runtime for `bundle` on `device`: OpenVINO on a CPU where it is installed, else ONNX Runtime.

    An fp16 bundle is made for GPUs; on a CPU ONNX Runtime executes it by casts, no faster than fp32.

    Args:
        bundle: what to run.
        device: `cpu`, `cuda`, or `auto` (CPU).
        engine: `openvino`, `onnx`, `tensorrt`, or `auto`.
        streams: batches that it computes at a time, where the engine queues.
        threads: of one batch; None takes what the container's CPU limit allows.

    Raises:
        BadSetting: when `device`, `engine` or their combination is unknown.
        Unavailable: when the engine, the device or the bundle's precision is not to be had here.
        BundleError: when the bundle does not hold what the engine needs.
    """
    check(device, engine, bundle.precision)
    if engine == "tensorrt":
        _need("onnxruntime")
        from services.embedder.runtimes.tensorrt import TensorRtRuntime

        return TensorRtRuntime(bundle)
    fits = device != "cuda" and bundle.precision != "fp16"
    if engine == "openvino" or (engine == "auto" and fits and _installed("openvino")):
        from services.embedder.runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime(bundle, threads=threads, streams=streams)
    _need("onnxruntime")
    from services.embedder.runtimes.onnx import OnnxRuntime

    return OnnxRuntime(bundle, device="cuda" if device == "cuda" else "cpu", threads=threads)


def check(device: str, engine: str, precision: Precision) -> None:
    """Refuse what does not go together, before anything is loaded.

    Raises:
        BadSetting: naming the device, the engine or the precision, and what to take instead.
    """
    if device not in DEVICES:
        raise BadSetting(f"device {device!r} is unknown: use {', '.join(DEVICES)}")
    if engine not in ENGINES:
        raise BadSetting(f"engine {engine!r} is unknown: use {', '.join(ENGINES)}")
    if device == "cuda" and engine == "openvino":
        raise BadSetting("engine openvino runs on CPUs only: use engine onnx for device cuda")
    if device != "cuda" and engine == "tensorrt":
        raise BadSetting(f"engine tensorrt runs on GPUs only: use device cuda, not {device}")
    if precision == "fp16" and engine == "openvino":
        raise BadSetting("engine openvino does not run fp16 bundles: use engine onnx, or export with --precision bf16")
    if precision != "fp16" and engine == "tensorrt":
        raise BadSetting(f"engine tensorrt does not run {precision} bundles: export with --precision fp16")


def check_batch(pcm: Pcm, lengths: Lengths, max_samples: int) -> Pcm:
    """`pcm` no wider than the graph takes; what is cut can only be padding.

    Raises:
        ValueError: when shapes do not fit each other or a length is out of range: a fault of the calling code.
    """
    if pcm.ndim != 2 or lengths.shape != pcm.shape[:1] or not len(lengths):
        raise ValueError(f"pcm {pcm.shape} and lengths {lengths.shape} are not [B, samples] and [B]")
    if lengths.min() < 1 or lengths.max() > min(pcm.shape[1], max_samples):
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()} do not fit {pcm.shape[1]} samples")
    return np.ascontiguousarray(pcm[:, :max_samples], dtype=np.float32)


def _need(module: str) -> None:
    if not _installed(module):
        raise Unavailable("neither openvino nor onnxruntime is installed: install servox[embedder] or servox[gpu]")


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
