"""ONNX Runtime: the portable CPU engine, and CUDA where the GPU build is installed.

- ONNX Runtime falls back to the CPU when CUDA fails to start, with a logged line: a server asked for CUDA must refuse
  to start instead, so the provider that really runs is checked.
- On CUDA a batch's inputs and statistics stay on the device; what comes back is the statistics. Small batches are
  padded to a few shapes, and each shape's run is captured once as a CUDA graph and replayed.
- Capturing needs every node on the GPU, and of a graph that takes any shape ONNX Runtime computes the shapes on the
  CPU. So each captured shape has a session of its own in which its shape is fixed and folds away; each holds the
  weights once more, so there are only as many as `CAPTURED_BYTES` allows. The other batches run in the first session.
"""

import logging
from pathlib import Path
from typing import Any, Literal

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from services.embedder.bundle import Bundle
from services.embedder.runtimes import Lengths, Pcm, Result, check_batch, gpu
from services.embedder.runtimes.binding import Buffers, captured_shape, padded_batch
from servox import cpus
from servox.errors import BundleError, Unavailable

log = logging.getLogger(__name__)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DIMENSIONS = ("batch", "samples")  # as the export names them
LOG_FATAL_ONLY = 4  # what is wrong with a graph is raised; a logged copy would name paths
UNREADABLE = (states.Fail, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf, states.NotImplemented)
UNCAPTURABLE = "graph capture"  # in ONNX Runtime's words where it cannot capture
CAPTURED_BYTES = 16 << 30  # of weights in all sessions with a captured shape


class OnnxRuntime:
    """A bundle's graph in an ONNX Runtime session.

    Args:
        bundle: what to run.
        device: `cpu` or `cuda`.
        threads: on the CPU; None takes what the container's limit allows.
        bound: whether small batches run from buffers in sessions of a fixed shape; None does so on a GPU alone.

    Raises:
        Unavailable: when the device or the bundle's precision is not to be had.
        BundleError: when the graph cannot be read.
    """

    name = "onnx"

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Literal["cpu", "cuda"] = "cpu",
        threads: int | None = None,
        bound: bool | None = None,
    ) -> None:
        if bundle.precision == "bf16":
            raise Unavailable(
                "ONNX Runtime does not execute bf16 bundles: use OpenVINO on a CPU that has bf16, "
                "or a bundle exported with --precision fp32, or fp16 for a GPU"
            )
        provider = PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise Unavailable(f"ONNX Runtime has no {provider} here: install servox[gpu], or use device cpu")
        if device == "cuda":
            gpu.find()
            onnxruntime.preload_dlls()  # CUDA's libraries, where they came as Python packages
        self.device = device
        self._bundle, self._threads = bundle, threads
        try:
            session = session_of(bundle, self._providers(captures=False), threads)
        except UNREADABLE as error:
            raise BundleError(f"ONNX Runtime cannot read {bundle.graph}: export the bundle again") from error
        if session.get_providers()[0] != provider:
            raise Unavailable(
                f"{provider} did not start, although it is installed: check the driver, or use device cpu"
            )
        self.captures = device == "cuda" if bound is None else bound
        weights_bytes = sum((bundle.folder / name).stat().st_size for name in bundle.files)
        self._most_shapes = CAPTURED_BYTES // max(1, weights_bytes)
        self._buffers: dict[tuple[int, int], Buffers] = {}
        self._session: onnxruntime.InferenceSession | None = session

    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
        """Embed a batch; the frames are not fetched unless asked for."""
        if self._session is None:
            raise Unavailable("this runtime is closed: choose a new one")
        pcm = check_batch(pcm, lengths, self._bundle.max_samples)
        shape = captured_shape(len(lengths), pcm.shape[1], self._bundle) if self.captures and not frames else None
        if shape is not None and (buffers := self._buffers_of(shape)) is not None:
            statistics = buffers.run(*padded_batch(pcm, lengths, shape))
            return Result(statistics=statistics[: len(lengths)], frames=None)
        names = ["statistics", "frames"] if frames else ["statistics"]
        outputs = self._session.run(names, {"pcm": pcm, "lengths": lengths})
        return Result(statistics=outputs[0], frames=outputs[1] if frames else None)

    def close(self) -> None:
        """Free the sessions."""
        self._buffers.clear()
        self._session = None

    def _buffers_of(self, shape: tuple[int, int]) -> Buffers | None:
        if shape in self._buffers:
            return self._buffers[shape]
        if len(self._buffers) >= self._most_shapes:
            return None
        try:
            session = session_of(self._bundle, self._providers(captures=True), self._threads, shape=shape)
        except UNREADABLE as error:
            if UNCAPTURABLE not in str(error):
                raise
            log.warning("CUDA graphs are off: ONNX Runtime places part of this graph on the CPU")
            self.captures = False
            return None
        statistics = len(self._bundle.layers), self._bundle.dims
        self._buffers[shape] = Buffers(session, shape=shape, statistics=statistics, device=self.device)
        return self._buffers[shape]

    def _providers(self, *, captures: bool) -> list[Any]:
        if self.device == "cpu":
            return [PROVIDERS["cpu"]]
        return [(PROVIDERS["cuda"], cuda_options(self._bundle, captures=captures))]


def cuda_options(bundle: Bundle, *, captures: bool) -> dict[str, str]:
    """Settings of the CUDA provider."""
    return {
        "enable_cuda_graph": "1" if captures else "0",
        "arena_extend_strategy": "kSameAsRequested",  # a doubling arena would take half a GPU for one large batch
        "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search runs anew for each shape
        "use_tf32": "0" if bundle.precision == "fp32" else "1",  # TF32 keeps 10 bits: not what fp32 promises
    }


def session_of(
    bundle: Bundle,
    providers: list[Any],
    threads: int | None = None,
    *,
    file: Path | None = None,
    shape: tuple[int, int] | None = None,
) -> onnxruntime.InferenceSession:
    """A session of the bundle's graph, or of a `file` made from it; with `shape` it takes that alone."""
    options = onnxruntime.SessionOptions()
    for name, size in zip(DIMENSIONS, shape or (), strict=False):
        options.add_free_dimension_override_by_name(name, size)
    options.intra_op_num_threads = threads or cpus.here()
    options.log_severity_level = LOG_FATAL_ONLY
    # Spinning threads would eat the CPU share that decoding needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file or bundle.graph), options, providers=providers)
