"""One tree of errors for every service, each with its gRPC code, its HTTP status and whether a retry can help.

    ServoxError
    ├── BadInput              the caller's data is wrong; sending it again changes nothing
    │   ├── BadAudio          undecodable, empty, not finite
    │   │   ├── SilentAudio   audio whose peak stays under the level of silence
    │   │   └── ShortAudio    audio too short to hear anything in
    │   ├── TooLarge          over a limit of bytes or duration
    │   ├── BadCorpus         a corpus folder, table or path that does not fit its card
    │   └── BadSetting        a flag, environment variable or file value out of range
    ├── NotFound              a head, run, corpus, layer or file that is not there
    ├── BundleError           a bundle that is missing, corrupt or out of its parity bound
    ├── HeadMismatch          a head asked to read embeddings of another bundle
    ├── Refused               a rule of the protocol forbids it (no speakers, gate not passed)
    ├── Unauthenticated       nobody knows who calls
    ├── Forbidden             whoever calls may not, or not for this purpose
    ├── Overloaded            admission is full; try again after `retry_after_s`
    ├── OverQuota             the caller has used up their own share; more comes with `retry_after_s`
    ├── DeadlineExpired       the caller's deadline passed before the work began
    ├── Unavailable           a peer, a device or a worker is not there
    └── StorageFull           a disk or an object store refused a write

Every message names what was wrong, its value and what to do about it. A message never holds audio or a transcript.
"""

from http import HTTPStatus

import grpc


class ServoxError(Exception):
    """Root of the tree; never raised itself."""

    grpc_code = grpc.StatusCode.INTERNAL
    http_status = HTTPStatus.INTERNAL_SERVER_ERROR
    retryable = False


class BadInput(ServoxError):
    """The caller's data is wrong."""

    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = HTTPStatus.UNPROCESSABLE_ENTITY


class BadAudio(BadInput):
    """Audio that cannot be decoded or holds nothing to embed."""


class SilentAudio(BadAudio):
    """Audio that is silent."""


class ShortAudio(BadAudio):
    """Audio too short to embed."""


class TooLarge(BadInput):
    """Audio or a message over a limit."""

    http_status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class BadCorpus(BadInput):
    """A corpus folder, table or path that does not fit its card."""


class BadSetting(BadInput):
    """A flag, environment variable or file value that cannot be used."""


class NotFound(ServoxError):
    """The thing named does not exist."""

    grpc_code = grpc.StatusCode.NOT_FOUND
    http_status = HTTPStatus.NOT_FOUND


class BundleError(ServoxError):
    """A bundle that is missing, corrupt or out of its parity bound."""

    grpc_code = grpc.StatusCode.FAILED_PRECONDITION


class HeadMismatch(ServoxError):
    """A head asked to read embeddings of another bundle."""

    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = HTTPStatus.CONFLICT


class Refused(ServoxError):
    """A rule forbids the request as it stands."""

    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = HTTPStatus.CONFLICT


class Unauthenticated(ServoxError):
    """Nobody knows who calls: no key or token, or one that is unknown, expired or revoked."""

    grpc_code = grpc.StatusCode.UNAUTHENTICATED
    http_status = HTTPStatus.UNAUTHORIZED


class Forbidden(ServoxError):
    """The caller is known and may not do this, or nobody may for the purpose that was named."""

    grpc_code = grpc.StatusCode.PERMISSION_DENIED
    http_status = HTTPStatus.FORBIDDEN


class Overloaded(ServoxError):
    """Admission is full.

    Args:
        message: what is full and at which value.
        retry_after_s: when a retry has a chance; sent as `RetryInfo` and `Retry-After`.
    """

    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = HTTPStatus.TOO_MANY_REQUESTS
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverQuota(ServoxError):
    """The caller has used up their share; a retry helps only after hours.

    Args:
        message: what is used up, how much there was.
        retry_after_s: when there is more; sent as `RetryInfo` and `Retry-After`.
    """

    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, message: str, *, retry_after_s: float = 3600.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExpired(ServoxError):
    """The deadline passed before the work began."""

    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = HTTPStatus.GATEWAY_TIMEOUT


class Unavailable(ServoxError):
    """A peer, a device or a worker is not there."""

    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = HTTPStatus.SERVICE_UNAVAILABLE
    retryable = True


class StorageFull(ServoxError):
    """A disk or an object store refused a write."""

    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = HTTPStatus.INSUFFICIENT_STORAGE


def leaves(root: type[ServoxError] = ServoxError) -> list[type[ServoxError]]:
    """Every class of the tree below `root`, in order of definition."""
    found: list[type[ServoxError]] = []
    for child in root.__subclasses__():
        found += [child, *leaves(child)]
    return found


def from_grpc(code: grpc.StatusCode, message: str, kind: str | None = None) -> ServoxError:
    """The error that a server meant: by its class name (`kind`, sent as trailing metadata), else by its code."""
    by_name = {cls.__name__: cls for cls in leaves()}
    if kind in by_name:
        return by_name[kind](message)
    by_code = {cls.grpc_code: cls for cls in reversed(leaves())}
    return by_code.get(code, Unavailable)(message)
