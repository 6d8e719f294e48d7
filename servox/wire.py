"""Between protobuf messages and Python values: arrays and failures, the same in every service and client.

Arrays travel as little-endian, row-major bytes with dtype and shape; a message whose bytes and shape disagree is bad
input, never a crash.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from servox.errors import BadInput, Overloaded, ServoxError, Unavailable, leaves
from servox.v1 import common_pb2

Floats = npt.NDArray[np.floating[Any]]

_TO_WIRE = {("f", 4): common_pb2.DTYPE_FLOAT32, ("f", 2): common_pb2.DTYPE_FLOAT16}
_FROM_WIRE: dict[int, np.dtype[Any]] = {
    common_pb2.DTYPE_FLOAT32: np.dtype("<f4"),
    common_pb2.DTYPE_FLOAT16: np.dtype("<f2"),
}


def array_to_proto(array: Floats) -> common_pb2.Array:
    """An array of float32 or float16, of any shape, as a message.

    Raises:
        BadInput: another dtype.
    """
    dtype = _TO_WIRE.get((array.dtype.kind, array.dtype.itemsize))
    if dtype is None:
        raise BadInput(f"array of {array.dtype.name}: only float32 and float16 travel; convert it first")
    little = array.astype(_FROM_WIRE[dtype], copy=False)
    return common_pb2.Array(dtype=dtype, shape=array.shape, data=little.tobytes())


def array_from_proto(message: common_pb2.Array, *, name: str = "array") -> Floats:
    """The array in a message, as a read-only view of its bytes.

    Args:
        message: dtype, shape and little-endian bytes.
        name: what the array is, for the error.

    Raises:
        BadInput: an unknown dtype, a negative dimension, or bytes that do not fit the shape.
    """
    dtype = _FROM_WIRE.get(message.dtype)
    shape = tuple(message.shape)
    if dtype is None:
        raise BadInput(f"{name}: dtype {message.dtype} is unknown; send DTYPE_FLOAT32 or DTYPE_FLOAT16")
    if any(size < 0 for size in shape):
        raise BadInput(f"{name}: shape {list(shape)} has a negative dimension")
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(message.data):
        raise BadInput(
            f"{name}: shape {list(shape)} of {dtype.name} needs {needed} bytes, {len(message.data)} came; "
            "send little-endian bytes in row-major order"
        )
    array: Floats = np.frombuffer(message.data, dtype=dtype).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def failure_to_proto(error: ServoxError) -> common_pb2.Failure:
    """An error as one item's answer in a stream."""
    after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
    return common_pb2.Failure(
        kind=type(error).__name__,
        message=str(error),
        retryable=error.retryable,
        retry_after_ms=math.ceil(after_s * 1000),
    )


def failure_from_proto(message: common_pb2.Failure) -> ServoxError:
    """The error that a server meant; a class that this client does not know becomes `BadInput` or `Unavailable`."""
    by_name = {cls.__name__: cls for cls in leaves()}
    cls = by_name.get(message.kind, Unavailable if message.retryable else BadInput)
    if cls is Overloaded:
        return Overloaded(message.message, retry_after_s=message.retry_after_ms / 1000)
    return cls(message.message)
