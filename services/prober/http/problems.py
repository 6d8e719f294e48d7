"""Errors as HTTP says them: `application/problem+json` (RFC 9457), one mapping for every route and for the stream.

- An error of ours keeps its class: `kind` is the name that gRPC sends as `servox-error`, `status` the class's own.
- What only HTTP can get wrong (a media type, a query parameter, a method) is a `Refusal`.
- An error that is not ours is answered as 500 without its text; the log has its trace.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import Response

from servox.errors import Overloaded, OverQuota, ServoxError, Unauthenticated

from .encoding import dumps

MEDIA_TYPE = "application/problem+json"
GONE = 499  # in metrics and logs: the caller left before its answer
CHALLENGE = 'Bearer realm="servox"'
RETRY_AFTER_S = 1.0  # where the error itself knows no better
_NAMED = re.compile(r"(?P<field>[a-z][a-z0-9_]*)(?: = (?P<value>'[^']*'|[^\s:]+))?: ")


class Refusal(HTTPException):
    """A request that is wrong as HTTP, whatever the service behind it.

    Args:
        status: of the answer.
        detail: what is wrong, its value, and the remedy.
        name: of the query parameter or header that is meant.
        value: of it, as it came.
        headers: of the answer, such as `Allow`.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        name: str | None = None,
        value: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(int(status), detail, headers)
        self.name, self.value = name, value


class Gone(ConnectionAbortedError):
    """The caller closed the connection: there is nobody to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem, ready to be shown.

    Attributes:
        status: of the answer.
        kind: class name in servox.errors, or the phrase of the status in one word.
        detail: what is wrong, its value, and the remedy.
        name: of the parameter or header that is meant, where one is.
        value: of it, as it came.
        retry_after_s: when another try has a chance; None where none has.
        retryable: whether that is soon.
        headers: of the answer.
    """

    status: int
    kind: str
    detail: str
    name: str | None = None
    value: str | None = None
    retry_after_s: float | None = None
    retryable: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    def members(self, request_id: str) -> dict[str, object]:
        """The JSON object."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.kind)
        shown: dict[str, object] = {
            "type": f"urn:servox:problem:{words.lower().replace(' ', '-')}",
            "title": words.capitalize(),
            "status": self.status,
            "detail": self.detail,
            "kind": self.kind,
            "retryable": self.retryable,
            "request_id": request_id,
        }
        if self.name is not None:
            shown["field"] = self.name
        if self.value is not None:
            shown["value"] = self.value
        if self.retry_after_s is not None:
            shown["retry_after_ms"] = math.ceil(self.retry_after_s * 1000)
        return shown

    def response(self, request_id: str) -> Response:
        """The answer."""
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        body = dumps(self.members(request_id))
        return Response(body, status_code=self.status, headers=headers, media_type=MEDIA_TYPE)


def problem_of(error: Exception) -> Problem:
    """Any error as a problem; one that is not ours tells nothing of itself."""
    if isinstance(error, ServoxError):
        named = _NAMED.match(str(error))
        after_s = error.retry_after_s if isinstance(error, Overloaded | OverQuota) else RETRY_AFTER_S
        return Problem(
            status=int(error.http_status),
            kind=type(error).__name__,
            detail=str(error),
            name=named["field"] if named else None,
            value=named["value"].strip("'") if named and named["value"] else None,
            retry_after_s=after_s if error.retryable or isinstance(error, OverQuota) else None,
            retryable=error.retryable,
            headers={"WWW-Authenticate": CHALLENGE} if isinstance(error, Unauthenticated) else {},
        )
    if isinstance(error, HTTPException):
        kind = HTTPStatus(error.status_code).phrase.title().replace(" ", "").replace("-", "")
        return Problem(
            status=error.status_code,
            kind=kind,
            detail=_detail(error),
            name=getattr(error, "name", None),
            value=getattr(error, "value", None),
            headers=error.headers or {},
        )
    return Problem(status=500, kind="InternalError", detail="internal error; the server's log has the trace")


def _detail(error: HTTPException) -> str:
    """The router names the methods of a route only in a header."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and error.headers:
        return f"this route answers {error.headers['Allow']}: use one of them"
    return error.detail
