"""OpenVINO on CPUs: fp32, bf16 and int8 weights from the same ONNX file.

bf16 needs a CPU that has it (AVX-512 BF16 or AMX); elsewhere OpenVINO would compute in float32 without a word, four
times slower than sized for, so a bf16 bundle is refused there instead.
"""

import openvino

from services.embedder.bundle import Bundle, Precision
from services.embedder.runtimes import Lengths, Pcm, Result, check_batch
from services.embedder.runtimes.cpus import usable_cpus
from servox.errors import BundleError, Unavailable


class OpenVinoRuntime:
    """A bundle's graph compiled for this CPU.

    Raises:
        Unavailable: when the CPU lacks the bundle's precision.
        BundleError: when the graph cannot be read.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        core = openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {
            "INFERENCE_NUM_THREADS": threads or usable_cpus(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": inference_precision(bundle.precision, capabilities),
        }
        try:
            compiled = core.compile_model(bundle.graph, "CPU", settings)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot read {bundle.graph}: export the bundle again") from error
        self._max_samples = bundle.max_samples
        self._request: openvino.InferRequest | None = compiled.create_infer_request()

    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
        """Embed a batch; only what is asked for is copied out of the engine."""
        if self._request is None:
            raise Unavailable("this runtime is closed: choose a new one")
        inputs = {"pcm": check_batch(pcm, lengths, self._max_samples), "lengths": lengths}
        outputs = self._request.infer(inputs, share_inputs=True, share_outputs=True)
        return Result(
            statistics=outputs["statistics"].copy(),
            frames=outputs["frames"].copy() if frames else None,
        )

    def close(self) -> None:
        """Free the compiled graph."""
        self._request = None


def inference_precision(precision: Precision, capabilities: list[str]) -> str:
    """OpenVINO's precision hint for a bundle: int8 weights are multiplied in bf16 where the CPU has it.

    Raises:
        Unavailable: for bf16 on a CPU without it.
    """
    has_bf16 = "BF16" in capabilities
    if precision == "bf16" and not has_bf16:
        raise Unavailable(
            "this CPU has no bf16 (AVX-512 BF16 or AMX), which the bundle's precision needs: "
            "use a bundle exported with --precision fp32 or int8, or another machine"
        )
    return "bf16" if precision != "fp32" and has_bf16 else "f32"
