"""ONNX files changed one weight at a time, wherever the weights lie: in the file, or in one beside it.

The weights of a large graph are never held together: each is read from the mapped file when it is asked for, and
written out before the next. Needs `onnx`, so only the export uses it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, set_external_data

ALIGNED_BYTES = 4096  # so that engines can map what lies beside the graph
SMALL_BYTES = 1024  # stays in the graph, where shapes are read


class Editing:
    """A graph and its weights.

    Args:
        path: the ONNX file.
        beside: where the weights go if they lie beside the graph, else None.
    """

    def __init__(self, path: Path, beside: BinaryIO | None) -> None:
        self.model: Any = onnx.load(path, load_external_data=False)
        self._folder, self._beside = path.parent, beside
        self._side = f"{path.name}.data"
        self._tensors: dict[str, Any] = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._written: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight, without reading it."""
        return tuple(self._tensors[name].dims)

    def is_float(self, name: str) -> bool:
        """Whether a weight is float32."""
        return bool(self._tensors[name].data_type == TensorProto.FLOAT)

    def read(self, name: str) -> NDArray[Any]:
        """A weight's values."""
        tensor = self._tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return np.asarray(numpy_helper.to_array(tensor))
        where: Any = ExternalDataInfo(tensor)
        kind: Any = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape, path = tuple(tensor.dims), self._folder / where.location
        return np.asarray(np.memmap(path, dtype=kind, mode="r", offset=where.offset or 0, shape=shape))

    def write(self, name: str, values: NDArray[Any]) -> None:
        """A new weight, or new values of one that there is."""
        if name in self._tensors:
            self.remove(name)
        if self._beside is None or values.nbytes < SMALL_BYTES:
            tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        else:
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            tensor = TensorProto(name=name, data_type=kind, dims=values.shape)
            self._put(tensor, np.ascontiguousarray(values))
        self.model.graph.initializer.append(tensor)
        self._tensors[name] = self.model.graph.initializer[-1]
        self._written.add(name)

    def remove(self, name: str) -> None:
        """A weight that nothing reads any more."""
        self.model.graph.initializer.remove(self._tensors.pop(name))

    def keep_the_rest(self) -> None:
        """Copies what was not written anew to the new place."""
        for name, tensor in self._tensors.items():
            if name not in self._written and tensor.data_location == TensorProto.EXTERNAL:
                self._put(tensor, self.read(name))

    def _put(self, tensor: Any, values: NDArray[Any]) -> None:  # noqa: ANN401 - onnx ships no usable types
        if self._beside is None:
            raise ValueError(f"{tensor.name} has no place beside the graph")  # a fault of this file
        offset = -(-self._beside.tell() // ALIGNED_BYTES) * ALIGNED_BYTES
        self._beside.write(b"\0" * (offset - self._beside.tell()))
        tensor.ClearField("external_data")
        tensor.raw_data = b""
        set_external_data(tensor, self._side, offset, values.nbytes)
        tensor.ClearField("raw_data")
        self._beside.write(values.data)


@contextmanager
def edited(path: Path) -> Iterator[Editing]:
    """The graph at `path`, written back when the block ends without an error."""
    side = path.with_name(f"{path.name}.data")
    if not side.exists():
        editing = Editing(path, None)
        yield editing
        onnx.save(editing.model, path)
        return
    fresh = side.with_name(f"{side.name}.new")
    with fresh.open("wb") as beside:
        editing = Editing(path, beside)
        yield editing
        editing.keep_the_rest()
    fresh.replace(side)
    path.write_bytes(editing.model.SerializeToString())
