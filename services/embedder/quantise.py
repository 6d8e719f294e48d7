"""Weight-only int8: each weight matrix as int8 with one scale an output channel, dequantised inside the graph.

Plain dynamic int8 quantises activations too and ruins Whisper's, which have outliers; weights have none to speak of.
The log-mel front end keeps float32, and so does whatever is small.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

MIN_VALUES = 1 << 12
FRONT_END = "mel."


def quantise_weights(path: Path) -> None:
    """Rewrite the graph at `path` with int8 weights wherever a matrix product reads a large constant."""
    model = onnx.load(path)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    chosen = [
        node.input[1] for node in graph.node if node.op_type == "MatMul" and _worth_it(weights.get(node.input[1]))
    ]
    dequantise = []
    for name in dict.fromkeys(chosen):
        values, scale = quantised(numpy_helper.to_array(weights[name]))
        graph.initializer.remove(weights[name])
        graph.initializer.append(numpy_helper.from_array(values, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        dequantise.append(helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=1))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*dequantise, *rest])
    for old in path.parent.glob(f"{path.name}.data"):
        old.unlink()
    onnx.save(model, path)


def quantised(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 [in, out] and scales [out] such that int8 · scale is nearest to `weight`."""
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    scale[scale == 0] = 1.0
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


def _worth_it(tensor: onnx.TensorProto | None) -> bool:
    if tensor is None or len(tensor.dims) != 2 or FRONT_END in tensor.name:
        return False
    return int(np.prod(tensor.dims)) >= MIN_VALUES
