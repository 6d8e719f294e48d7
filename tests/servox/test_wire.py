import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from servox.errors import BadInput, NotFound, Overloaded, ServoxError, Unavailable, leaves
from servox.v1 import common_pb2
from servox.wire import Floats, array_from_proto, array_to_proto, failure_from_proto, failure_to_proto

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@given(data=st.data())
def test_arrays_come_back_bit_for_bit(dtype: str, data: st.DataObject) -> None:
    array: Floats = data.draw(npst.arrays(dtype, SHAPES))
    back = array_from_proto(common_pb2.Array.FromString(array_to_proto(array).SerializeToString()))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_views_and_foreign_byte_orders_travel_as_little_endian_rows() -> None:
    values = np.arange(12, dtype=">f4").reshape(3, 4)
    message = array_to_proto(values.T)
    assert message.data == np.ascontiguousarray(values.T).astype("<f4").tobytes()
    np.testing.assert_array_equal(array_from_proto(message), values.T)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (common_pb2.Array(shape=[1], data=b"1234"), "dtype 0 is unknown"),
        (common_pb2.Array(dtype=common_pb2.DTYPE_FLOAT32, shape=[2, 3], data=b"1234"), "needs 24 bytes, 4 came"),
        (common_pb2.Array(dtype=common_pb2.DTYPE_FLOAT32, shape=[-1, -1], data=b"1234"), "negative"),
    ],
)
def test_messages_that_contradict_themselves_are_refused_by_name(message: common_pb2.Array, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        array_from_proto(message, name="embeddings")
    assert str(caught.value).startswith("embeddings")


def test_integers_do_not_travel() -> None:
    with pytest.raises(BadInput, match="int64"):
        array_to_proto(np.arange(3))  # type: ignore[arg-type]  # what a caller without types may do


@pytest.mark.parametrize("cls", leaves())
def test_every_error_survives_the_wire(cls: type[ServoxError]) -> None:
    error = cls("what, which value, what to do")
    back = failure_from_proto(failure_to_proto(error))
    assert type(back) is cls
    assert str(back) == str(error)


def test_push_back_keeps_its_time() -> None:
    back = failure_from_proto(failure_to_proto(Overloaded("full", retry_after_s=0.25)))
    assert isinstance(back, Overloaded)
    assert back.retry_after_s == 0.25


def test_classes_from_a_newer_server_keep_their_meaning() -> None:
    assert type(failure_from_proto(common_pb2.Failure(kind="Novel", retryable=True))) is Unavailable
    assert type(failure_from_proto(common_pb2.Failure(kind="Novel"))) is BadInput
    assert type(failure_from_proto(common_pb2.Failure(kind="NotFound"))) is NotFound
