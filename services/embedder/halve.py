"""A float32 graph to float16, for GPUs: matrix products and convolutions in half precision, everything else as it was.

- Half: `MatMul`, `Gemm` and `Conv` behind the front end, with their weights, and what follows one of them without
  mixing anything else in (bias, GELU, a change of shape), so that it need not be cast back at once.
- Float32: the front end, whose spectrum spans more than 16 bits hold; the attention's bias and softmax (a key that must
  not be seen weighs -1e9, which float16 has not); the residual stream; LayerNorm; the statistics.
- An engine without float16 arithmetic (ONNX Runtime on a CPU) casts around each product: the weights' rounding is the
  same, the activations' is not quite.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from services.embedder.bundle import FRONT_END
from services.embedder.graphs import Editing, edited

PRODUCTS = {"MatMul": (0, 1), "Gemm": (0, 1, 2), "Conv": (0, 1, 2)}  # and which of their inputs are numbers
FOLLOWERS = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity", "Gelu", "Flatten"}
LARGEST = float(np.finfo(np.float16).max)


def halve(path: Path) -> None:
    """Rewrite the graph at `path` in place."""
    with edited(path) as graph:
        Halving(graph).run()


class Halving:
    """One graph on its way to half precision; nodes stand in the order in which they run.

    Args:
        graph: what to change.
    """

    def __init__(self, graph: Editing) -> None:
        self._graph = graph
        self._front = front_end(graph.model.graph.node)
        self._half: dict[str, str] = {}  # of a float32 value, its half; of a half value, itself
        self._nodes: list[Any] = []
        self._promised = {output.name for output in graph.model.graph.output} | set(FRONT_END)

    def run(self) -> None:
        """Decide node by node, then drop the weights that nothing reads in float32 any more."""
        proto = self._graph.model.graph
        for node in proto.node:
            numbers = self._numbers(node)
            if numbers:
                self._lower(node, numbers)
            else:
                self._nodes.append(node)
        nodes = [*self._nodes]
        del proto.node[:], proto.value_info[:]
        proto.node.extend(nodes)
        self._drop_unread()

    def _numbers(self, node: Any) -> tuple[int, ...]:  # noqa: ANN401 - onnx ships no usable types
        """Which inputs are to be half; none where the node stays as it is."""
        if node.name in self._front:
            return ()
        if node.op_type in PRODUCTS:
            return tuple(place for place in PRODUCTS[node.op_type] if place < len(node.input))
        if node.op_type in FOLLOWERS and self._is_half(node.input[0]):
            return (0,)
        if node.op_type == "Add" and any(map(self._is_half, node.input)) and any(map(self._is_bias, node.input)):
            return (0, 1)
        return ()

    def _is_half(self, name: str) -> bool:
        """Whether a value was made by a node that is half already."""
        return self._half.get(name) == f"{name}.half" and name not in self._graph

    def _is_bias(self, name: str) -> bool:
        return name in self._graph and self._graph.is_float(name) and len(self._graph.shape(name)) <= 1

    def _lower(self, node: Any, numbers: Iterable[int]) -> None:  # noqa: ANN401
        """The node in half precision; a float32 twin of what it makes is there for whoever reads that."""
        lowered = type(node)()
        lowered.CopyFrom(node)
        for place in numbers:
            lowered.input[place] = self._half_of(node.input[place])
        made = node.output[0]
        lowered.output[0] = f"{made}.half"
        self._nodes.append(lowered)
        self._half[made] = f"{made}.half"
        back = helper.make_node("Cast", [f"{made}.half"], [made], name=f"{made}.single", to=TensorProto.FLOAT)
        self._nodes.append(back)

    def _half_of(self, name: str) -> str:
        if name not in self._half:
            half = f"{name}.half"
            if name in self._graph:
                values = np.clip(self._graph.read(name), -LARGEST, LARGEST).astype(np.float16)
                self._graph.write(half, values)
            else:
                cast = helper.make_node("Cast", [name], [half], name=f"{half}.cast", to=TensorProto.FLOAT16)
                self._nodes.append(cast)
            self._half[name] = half
        return self._half[name]

    def _drop_unread(self) -> None:
        """Casts back to float32 and float32 weights that nobody reads."""
        proto = self._graph.model.graph
        read = {name for node in proto.node for name in node.input} | self._promised
        unread = [n for n in proto.node if n.name.endswith(".single") and n.output[0] not in read]
        for node in unread:
            proto.node.remove(node)
        for name in [half.removesuffix(".half") for half in self._half.values()]:
            if name in self._graph and name not in read:
                self._graph.remove(name)


def front_end(nodes: Iterable[Any]) -> set[str]:
    """Names of the nodes that the front end's tensors come from; none where the graph names no such tensors."""
    made_by = {output: node for node in nodes for output in node.output}
    waiting = [name for name in FRONT_END if name in made_by]
    found: set[str] = set()
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting.extend(node.input)
    return found
