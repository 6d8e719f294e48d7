"""What the routes of the API's description share: schemas, problems by status, headers."""

from http import HTTPStatus
from typing import Any

from . import examples
from .edge import MAX_TIMEOUT_MS
from .problems import MEDIA_TYPE
from .schemas import Schema, message_schemas, ref

LAST_LINE = ("head", "bundle", "prior", "calibration", "stage", "notice")  # beside the whole
BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key (`sxk_…`) or a token (JWT). A page, which can set no headers of a WebSocket, offers the "
    "subprotocols `servox` and `bearer.` with the key after it.",
}
# What each status means here; every one that a route answers is in its list.
MEANINGS = {
    400: "The request cannot be read: a query parameter, a header, or the multipart body is malformed or unknown.",
    401: "Nobody knows who calls: no key or token came, or one that is unknown, expired or revoked.",
    403: "The caller may not do this, or nobody may for the purpose that was named; or a page of another origin.",
    404: "There is no such head, or no such path.",
    405: "The route has other methods, named in Allow.",
    406: "The caller accepts nothing that this route answers.",
    408: "The caller stopped sending in the middle of the body.",
    409: "The head reads embeddings of another bundle than the embedder makes.",
    413: "The body, the audio or the number of windows is over a limit.",
    415: "The body is no audio by its Content-Type, or has a Content-Encoding.",
    422: "Well formed, and wrong: audio that cannot be decoded, a length out of range, an impossible prior.",
    426: "This is a WebSocket.",
    429: "As much is under way as may be, or as the caller may use; Retry-After says when to come again.",
    500: "A fault of the server; its log has the trace.",
    503: "The embedder or the keys that sign tokens are not there, or the server starts or stops; see Retry-After.",
    504: "The request's own time, or the server's longest, is over.",
    507: "The server's disk is full.",
}


def components() -> Schema:
    """All of it."""
    return {
        "schemas": _schemas(),
        "responses": _problems(),
        "parameters": parameters(),
        "securitySchemes": {"bearer": BEARER},
    }


def parameters() -> Schema:
    """Headers that every route of the API reads."""
    return {
        "timeout": {
            "name": "X-Request-Timeout-Ms",
            "in": "header",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
            "description": "Answer within this time from the headers on, or with 504.",
        },
        "request_id": {
            "name": "X-Request-Id",
            "in": "header",
            "schema": {"type": "string"},
            "description": "Comes back in the answer and is in the server's log; one of another form is replaced.",
        },
        "traceparent": {
            "name": "traceparent",
            "in": "header",
            "schema": {"type": "string"},
            "description": "The caller's trace (W3C), which the server's spans then belong to; ignored if malformed.",
        },
    }


def problem(status: int) -> Schema:
    """A reference to the answer of one status."""
    return {"$ref": f"#/components/responses/{status}"}


def _problems() -> Schema:
    return {str(status): _problem_of(status) for status in sorted(MEANINGS)}


def _problem_of(status: int) -> Schema:
    shown: dict[str, Any] = {
        "description": MEANINGS[status],
        "content": {MEDIA_TYPE: {"schema": ref("Problem")}},
    }
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        shown["content"][MEDIA_TYPE]["example"] = examples.PROBLEM
    if status == HTTPStatus.UNAUTHORIZED:
        shown["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "Bearer."}}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        shown["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return shown


def _schemas() -> Schema:
    text, whole = {"type": "string"}, {"type": "integer"}
    array = {
        "type": "object",
        "properties": {
            "dtype": {"const": "float32"},
            "shape": {"type": "array", "items": whole},
            "values": {
                "type": "array",
                "description": "[layers, d], [layers, 2, d] or [frames, d].",
            },
        },
        "required": ["dtype", "shape", "values"],
    }
    last = message_schemas()["RecognizeResponse"]["properties"]
    return {
        **message_schemas(),
        "RecognizeLine": {
            "description": "One line: a window, the last one with the whole, or a problem on the way.",
            "oneOf": [
                _object({"window": ref("Window")}),
                _object({name: last[name] for name in ("overall", *LAST_LINE)}),
                _object({"problem": ref("Problem")}),
            ],
        },
        "EmbedResponse": _object(
            {
                "embedding": array,
                "layers": {"type": "array", "items": whole, "description": "First axis of it, unless it is frames."},
                "bundle": ref("Bundle"),
                "timings": ref("Timings"),
                "duration_ms": {**whole, "description": "Of the audio that was embedded."},
                "truncated": {"type": "boolean"},
            }
        ),
        "HeadList": _object({"heads": {"type": "array", "items": ref("HeadSummary")}}),
        "HeadDescription": _object(
            {"summary": ref("HeadSummary"), "card": {"type": "object", "description": "All that is known of the head."}}
        ),
        "Status": _object({"status": {"const": "ok"}}),
        "Problem": {
            **_object(
                {
                    "type": {**text, "description": "urn:servox:problem:… for each kind."},
                    "title": text,
                    "status": whole,
                    "detail": {**text, "description": "What is wrong, its value, and the remedy."},
                    "kind": {**text, "description": "Class of the error, the same as over gRPC."},
                    "retryable": {"type": "boolean", "description": "Whether the same request may succeed later."},
                    "request_id": text,
                }
            ),
            "description": "RFC 9457. `field` and `value` say what was meant, where one thing was.",
        },
    }


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}
