import inspect
import re
from http import HTTPStatus

import grpc
import pytest

from servox import errors
from servox.errors import BadInput, Overloaded, ServoxError, Unavailable, from_grpc, leaves

GOOD_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}


def test_the_picture_of_the_tree_is_the_tree() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    assert drawn == {cls.__name__ for cls in leaves()}
    defined = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, ServoxError)} - {
        ServoxError
    }
    assert defined == set(leaves())


@pytest.mark.parametrize("cls", leaves())
def test_every_error_has_a_code_that_says_whose_fault_it_is(cls: type[ServoxError]) -> None:
    assert cls.grpc_code in GOOD_CODES
    # A bundle that cannot be served is the operator's to mend, not the caller's.
    assert 400 <= cls.http_status < 600
    assert cls.http_status is not HTTPStatus.OK
    assert cls.__doc__


@pytest.mark.parametrize("cls", leaves())
def test_retrying_is_advised_where_it_can_help(cls: type[ServoxError]) -> None:
    if issubclass(cls, BadInput):
        assert not cls.retryable
    if cls.retryable:
        assert cls.grpc_code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        assert cls.http_status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


@pytest.mark.parametrize("cls", leaves())
def test_a_client_raises_what_the_server_raised(cls: type[ServoxError]) -> None:
    error = from_grpc(cls.grpc_code, "what, which, remedy", cls.__name__)
    assert type(error) is cls
    assert str(error) == "what, which, remedy"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, BadInput),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.INTERNAL, Unavailable),
        (grpc.StatusCode.UNIMPLEMENTED, Unavailable),
    ],
)
def test_a_server_that_names_no_class_is_understood_by_its_code(
    code: grpc.StatusCode, expected: type[ServoxError]
) -> None:
    assert type(from_grpc(code, "text")) is expected
    assert type(from_grpc(code, "text", "NoSuchClass")) is expected
