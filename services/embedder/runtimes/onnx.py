"""ONNX Runtime: the portable CPU engine, and CUDA where the GPU build is installed.

ONNX Runtime falls back to the CPU when CUDA fails to start, with a logged line: a server asked for CUDA must refuse
to start instead, so the provider that really runs is checked.
"""

from typing import Literal

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from services.embedder.bundle import Bundle
from services.embedder.runtimes import Lengths, Pcm, Result, check_batch
from servox import cpus
from servox.errors import BundleError, Unavailable

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
LOG_FATAL_ONLY = 4  # what is wrong with a graph is raised; a logged copy would name paths
UNREADABLE = (states.Fail, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf, states.NotImplemented)


class OnnxRuntime:
    """A bundle's graph in an ONNX Runtime session.

    Raises:
        Unavailable: when the device or the bundle's precision is not to be had.
        BundleError: when the graph cannot be read.
    """

    name = "onnx"

    def __init__(self, bundle: Bundle, *, device: Literal["cpu", "cuda"] = "cpu", threads: int | None = None) -> None:
        if bundle.precision == "bf16":
            raise Unavailable(
                "ONNX Runtime does not execute bf16 bundles: use OpenVINO on a CPU that has bf16, "
                "or a bundle exported with --precision fp32"
            )
        provider = PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise Unavailable(f"ONNX Runtime has no {provider} here: install servox[gpu], or use device cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cpus.here()
        options.log_severity_level = LOG_FATAL_ONLY
        # Spinning threads would eat the CPU share that decoding needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(bundle.graph), options, providers=[provider])
        except UNREADABLE as error:
            raise BundleError(f"ONNX Runtime cannot read {bundle.graph}: export the bundle again") from error
        if session.get_providers()[0] != provider:
            raise Unavailable(
                f"{provider} did not start, although it is installed: check the driver, or use device cpu"
            )
        self.device = device
        self._max_samples = bundle.max_samples
        self._session: onnxruntime.InferenceSession | None = session

    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
        """Embed a batch; the frames are not fetched unless asked for."""
        if self._session is None:
            raise Unavailable("this runtime is closed: choose a new one")
        names = ["statistics", "frames"] if frames else ["statistics"]
        outputs = self._session.run(names, {"pcm": check_batch(pcm, lengths, self._max_samples), "lengths": lengths})
        return Result(statistics=outputs[0], frames=outputs[1] if frames else None)

    def close(self) -> None:
        """Free the session."""
        self._session = None
