"""From a backbone's module to an ONNX file, in a process of its own where the weights are large.

torch keeps a traced program, and with it every weight, for as long as its process lives. What follows a trace needs
memory for the weights twice (the reference's, an engine's), so a third copy must go: with the process that made it.
"""

import logging
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from services.embedder.backbones import Backbone
from services.embedder.backbones.checkpoint import Checkpoint
from services.embedder.bundle import OUTPUTS
from services.embedder.contexts import Context
from servox.errors import BundleError, Unavailable

OPSET = 20
EXTERNAL_BYTES = 500_000_000  # a protobuf message ends at 2 GB, and takes its size three times over while it is written
APART_BYTES = 500_000_000  # of the checkpoint: loading torch again costs seconds, less than such a trace takes
KILLED = -9


def trace(backbone: Backbone, context: Context, blocks: int, path: Path) -> None:
    """Write the backbone's graph as float32 ONNX with dynamic batch and samples.

    Weights of more than `EXTERNAL_BYTES` lie beside it, in a file named like it and `.data`.

    Raises:
        BundleError: when the graph cannot be traced.
        Unavailable: when there is not enough memory.
    """
    checkpoint = getattr(backbone, "checkpoint", None)
    stored = sum(file.stat().st_size for file in checkpoint.weights) if isinstance(checkpoint, Checkpoint) else 0
    work = trace_apart if stored > APART_BYTES else trace_here
    work(backbone, context, blocks, path)


def trace_apart(backbone: Backbone, context: Context, blocks: int, path: Path) -> None:
    """Trace in a process that ends with its work."""
    command = [sys.executable, "-c", f"from {__name__} import answer; answer()"]
    work = pickle.dumps((backbone, context, blocks, path))
    done = subprocess.run(command, input=work, capture_output=True, check=False)  # noqa: S603 - our own code
    if done.returncode == KILLED:
        raise Unavailable(
            "the system ended the process that traced the graph, as it does when memory runs out: "
            "free memory, take fewer --blocks, or export on a larger machine"
        )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise BundleError(f"{backbone.name} cannot be traced ({last[0]}): use the torch version that Servox pins")


def answer() -> None:
    """The other process: do what stands on standard input."""
    trace_here(*pickle.loads(sys.stdin.buffer.read()))  # noqa: S301 - written by `trace_apart`, on our own pipe


def trace_here(backbone: Backbone, context: Context, blocks: int, path: Path) -> None:
    """Trace in this process."""
    graph = backbone.graph(context, blocks)
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    with _quiet():
        program = _program(backbone, graph)
    del program.model.graph.outputs[len(OUTPUTS) :]  # the front end's tensors keep their names, and leave no copies
    _strip(program.model)
    program.save(path, external_data=size > EXTERNAL_BYTES)


def _program(backbone: Backbone, graph: nn.Module) -> torch.onnx.ONNXProgram:
    rate_hz = backbone.rate_hz
    sample = torch.randn(2, 2 * rate_hz + 77, generator=torch.Generator().manual_seed(0)) * 0.1
    lengths = torch.tensor([sample.shape[1], rate_hz])
    batch = torch.export.Dim("batch")
    widest = backbone.max_duration_ms * rate_hz // 1000
    narrowest = backbone.window_samples if backbone.window_samples > 1 else None  # a bound of 1 would rename shapes
    samples = torch.export.Dim("samples", min=narrowest, max=widest)
    program: torch.onnx.ONNXProgram | None = torch.onnx.export(
        graph.eval(),
        (sample, lengths),
        dynamo=True,
        input_names=["pcm", "lengths"],
        output_names=[*OUTPUTS, *backbone.front_end],
        dynamic_shapes={"pcm": {0: batch, 1: samples}, "lengths": {0: batch}},
        opset_version=OPSET,
        verbose=False,
    )
    if program is None:
        raise BundleError("torch.onnx returned no program: use the torch version that Servox pins")
    return program


def _strip(model: Any) -> None:  # noqa: ANN401 - onnx_ir ships no usable types
    """Drop what the exporter notes about source lines: one recipe must give one file, wherever it is made."""
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals and absent optional packages; nobody can act on that."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
