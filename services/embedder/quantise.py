"""Weight-only int8: each weight matrix as int8 with one scale an output channel, dequantised inside the graph.

Plain dynamic int8 quantises activations too and ruins Whisper's, which have outliers; weights have none to speak of.
The log-mel front end keeps float32, and so does whatever is small.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from services.embedder.graphs import Editing, edited

MIN_VALUES = 1 << 12
FRONT_END = "mel."


def quantise_weights(path: Path) -> None:
    """Rewrite the graph at `path` with int8 weights wherever a matrix product reads a large constant."""
    with edited(path) as editing:
        graph = editing.model.graph
        read = [node.input[1] for node in graph.node if node.op_type == "MatMul" and _worth_it(editing, node.input[1])]
        dequantise = []
        for name in dict.fromkeys(read):
            values, scale = quantised(editing.read(name))
            editing.remove(name)
            editing.write(f"{name}.int8", values)
            editing.write(f"{name}.scale", scale)
            dequantise.append(helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=1))
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend([*dequantise, *rest])


def quantised(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 [in, out] and scales [out] such that int8 · scale is nearest to `weight`."""
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    scale[scale == 0] = 1.0
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


def _worth_it(editing: Editing, name: str) -> bool:
    if name not in editing or FRONT_END in name:
        return False
    shape = editing.shape(name)
    return len(shape) == 2 and int(np.prod(shape)) >= MIN_VALUES
