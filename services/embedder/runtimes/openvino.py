"""OpenVINO on CPUs: fp32, bf16 and int8 weights from the same ONNX file.

- bf16 needs a CPU that has it (AVX-512 BF16 or AMX); elsewhere OpenVINO would compute in float32 without a word, twice
  as slow as sized for, so a bf16 bundle is refused there instead.
- Batches run asynchronously: an engine's own threads take up what waits inside it, whatever Python does meanwhile.
- Told to compute in bf16, OpenVINO lowers every matrix product, the spectrum's too, whose 80 dB of range do not fit 8
  bits. So the graph is cut where its front end ends, and the front end is compiled for float32.
"""

import sys
from collections.abc import Mapping
from copy import copy
from typing import Any

# OpenVINO's telemetry reports to a third party, from a process that it forks while gRPC's threads run: a fork that can
# hang the server. Where the package cannot be imported, OpenVINO takes its own stub instead.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how an import is barred

import numpy as np
import numpy.typing as npt
import openvino
from openvino import opset15 as opset

from services.embedder.bundle import FRONT_END, Bundle, Precision
from services.embedder.runtimes import Lengths, Pcm, Result, check_batch
from services.embedder.runtimes.first_runs import FirstRuns
from servox import cpus
from servox.errors import BundleError, Unavailable

# The binding fills its tables of types at their first use and lets go of Python's lock halfway: two threads that come
# first together, as two streams warming up do, wait for each other for ever. So they are filled while this is imported.
openvino.Type.f32.to_dtype()
openvino.Type(np.float32)

FIRST_RUNS = FirstRuns()  # of the process: what a shape needs is made once for all graphs
GROUP = 128  # activations that share an int8 scale: 64 costs 4 % and gains nothing, 512 gains 3 % and costs heads F1


class OpenVinoRuntime:
    """A bundle's graph compiled for this CPU.

    Args:
        bundle: what to run.
        threads: of one batch; None takes what the container's limit allows.
        streams: batches that its twins and it compute at a time; what they are given meanwhile waits in the engine.

    Raises:
        Unavailable: when the CPU lacks the bundle's precision.
        BundleError: when the graph cannot be read.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, streams: int = 1) -> None:
        core = openvino.Core()
        hint = inference_precision(bundle.precision, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        settings = {
            "INFERENCE_NUM_THREADS": streams * (threads or cpus.here()),
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,
            **({"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP} if bundle.precision == "int8" else {}),
        }
        try:
            encoder = core.read_model(bundle.graph)
            front = None if hint == "f32" else split_front_end(encoder)
            models = {"f32": front, hint: encoder} if front else {hint: encoder}
            self._models = [
                core.compile_model(model, "CPU", {**settings, "INFERENCE_PRECISION_HINT": precision})
                for precision, model in models.items()
            ]
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot read {bundle.graph}: export the bundle again") from error
        self._stages = [_Stage(model) for model in self._models]
        self._max_samples, self._digest = bundle.max_samples, bundle.digest

    def twin(self) -> "OpenVinoRuntime":
        """Another one, for another thread, with the same compiled graph: the weights are there once."""
        made = copy(self)
        made._stages = [_Stage(model) for model in self._models]  # noqa: SLF001 -- its own class
        return made

    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
        """Embed a batch; only what is asked for is copied out of the engine."""
        if not self._stages:
            raise Unavailable("this runtime is closed: choose a new one")
        tensors = {"pcm": _shared(check_batch(pcm, lengths, self._max_samples)), "lengths": _shared(lengths)}
        with FIRST_RUNS.turn((self._digest, *tensors["pcm"].shape)):
            for stage in self._stages:
                tensors |= stage.run(tensors)
        kept = tensors["frames"].data.copy() if frames else None
        return Result(statistics=tensors["statistics"].data.copy(), frames=kept)

    def close(self) -> None:
        """Free the compiled graphs, once all twins are closed."""
        self._stages, self._models = [], []


class _Stage:
    """A request of one compiled graph; tensors go by name, for OpenVINO's own dispatch of arrays takes far longer."""

    def __init__(self, model: openvino.CompiledModel) -> None:
        self._request = model.create_infer_request()
        self._inputs = [port.get_any_name() for port in model.inputs]
        self._outputs = [port.get_any_name() for port in model.outputs]

    def run(self, tensors: Mapping[str, openvino.Tensor]) -> dict[str, openvino.Tensor]:
        """Its outputs, which its next run overwrites."""
        for name in self._inputs:
            self._request.set_tensor(name, tensors[name])
        self._request.start_async()
        self._request.wait()
        return {name: self._request.get_tensor(name) for name in self._outputs}


def _shared(array: npt.NDArray[Any]) -> openvino.Tensor:
    """A tensor in the array's own memory."""
    return openvino.Tensor(np.require(array, requirements=["C", "W"]), shared_memory=True)


def split_front_end(model: openvino.Model) -> openvino.Model | None:
    """The front end as a model of its own; `model` is changed to read the front end's tensors as inputs.

    None, and no change, for a graph that names no such tensors: all of it may run in the lower precision.
    """
    ends = {name: end for name in FRONT_END if (end := _tensor(model, name)) is not None}
    if not ends:
        return None
    inputs = []
    for name, end in ends.items():
        parameter = opset.parameter(end.get_partial_shape(), end.get_element_type(), name=name)
        parameter.output(0).set_names({name})
        for reader in end.get_target_inputs():
            reader.replace_source_output(parameter.output(0))
        inputs.append(parameter)
    front = openvino.Model([opset.result(end) for end in ends.values()], model.get_parameters(), "front_end")
    model.add_parameters(inputs)
    return front


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


def _tensor(model: openvino.Model, name: str) -> openvino.Output | None:
    outputs = (output for node in model.get_ordered_ops() for output in node.outputs())
    return next((output for output in outputs if name in output.get_names()), None)
