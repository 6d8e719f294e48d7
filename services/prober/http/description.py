"""The API's description in OpenAPI 3.1: the routes, what they take, every status that they answer, with examples."""

from http import HTTPStatus
from typing import Any

from services.prober.settings import Settings
from services.prober.windows import MAX_WINDOW_MS, MIN_HOP_MS, MIN_WINDOW_MS
from servox import __version__

from . import examples
from .edge import MAX_TIMEOUT_MS
from .embeddings import POOLINGS
from .media import BINARY, JSON, LINES
from .problems import MEDIA_TYPE
from .schemas import Schema, message_schemas, ref

_ABOUT = """Emotions in speech: audio in, probabilities out.

Times of audio are whole milliseconds from its start, durations of work whole microseconds, probabilities are in
full precision. Names of fields are those of the gRPC API, which answers the same numbers. An error is
`application/problem+json` (RFC 9457): `kind` names it, `detail` says what is wrong, its value and the remedy,
`retryable` whether another try can help. Every answer has an `X-Request-Id`: the caller's own, if it sent one of 1 to
128 letters, digits and `-._~:/+=`."""
_STREAM = """A WebSocket. The caller sends a config as text, then binary messages of raw samples (up to 1 MiB each, of
any length), then `{"type": "end"}`. The server sends `{"type": "ready", "head", "bundle", "prior", "classes"}`, then
one `{"type": "window", …}` with the fields of `Window` for each window, then `{"type": "end", "windows": N}` and closes
with 1000. An error is `{"type": "error", "problem": {…}}`, then 1008 (what the caller did), 1013 (it may work later) or
1011. A stream that broke off is resumed with `next_window` in the config: samples then begin where the window before it
began.

Config: `head`, `window_ms` and `rate_hz` are needed; `hop_ms` is the window's length, `channels` 1, `format` `s16le`
(or `f32le`), `prior` `train` (or `uniform`, or an object of class and probability), `every_window` false,
`next_window` 0."""

# What each status means here; every one that a route answers is in its list.
MEANINGS = {
    400: "The request cannot be read: a query parameter, a header, or the multipart body is malformed or unknown.",
    404: "There is no such head, or no such path.",
    405: "The route has other methods, named in Allow.",
    406: "The caller accepts nothing that this route answers.",
    408: "The caller stopped sending in the middle of the body.",
    409: "The head reads embeddings of another bundle than the embedder makes.",
    413: "The body, the audio or the number of windows is over a limit.",
    415: "The body is no audio by its Content-Type, or has a Content-Encoding.",
    422: "Well formed, and wrong: audio that cannot be decoded, a length out of range, an impossible prior.",
    426: "This is a WebSocket.",
    429: "As much is under way as may be; Retry-After says when to come again.",
    500: "A fault of the server; its log has the trace.",
    503: "The embedder is not there, or the server starts or stops; Retry-After says when to come again.",
    504: "The request's own time, or the server's longest, is over.",
    507: "The server's disk is full.",
}
# Narrower than what is read: any JSON object of numbers.
_PRIOR: Schema = {
    "type": "string",
    "pattern": r'^(train|uniform|\{"[a-z ]+": ?(0|1|0\.[0-9]+)(, ?"[a-z ]+": ?(0|1|0\.[0-9]+))*\})$',
    "default": "train",
}
_AUDIO_STATUSES = (400, 406, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507)
_HEAD_STATUSES = (400, 404, 406, 500, 504)
_PROBE_STATUSES = (400, 500, 504)  # a header of the deadline is read everywhere


def document(settings: Settings) -> Schema:
    """The whole description.

    Args:
        settings: limits, which its words name.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Servox",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": _paths(settings),
        "components": {"schemas": _schemas(), "responses": _problems(), "parameters": _common()},
    }


def _paths(settings: Settings) -> Schema:
    return {
        "/v1/recognize": {"post": _recognize(settings)},
        "/v1/embeddings": {"post": _embeddings(settings)},
        "/v1/heads": {"get": _heads()},
        "/v1/heads/{name}": {"get": _one_head()},
        "/v1/stream": {"get": _stream()},
        "/livez": {"get": _plain("live", "Whether the process answers.", JSON, ref("Status"), {"status": "ok"})},
        "/readyz": {"get": _ready()},
        "/metrics": {"get": _plain("metrics", "Metrics as Prometheus reads them.", "text/plain", {"type": "string"})},
        "/openapi.json": {"get": _plain("openapi", "This description.", JSON, {"type": "object"})},
        "/docs": {"get": _plain("docs", "This description, for people.", "text/html", {"type": "string"})},
    }


def _recognize(settings: Settings) -> Schema:
    words = (
        "The whole clip, or windows of it where `window_ms` is given. With `Accept: application/x-ndjson` each window "
        'is a line `{"window": …}` as soon as it is known, and the last line has the rest; an error on the way is a '
        f'line `{{"problem": …}}`. A whole clip or raw samples may have {settings.max_message_bytes >> 20} MiB; a file '
        f"that is answered in windows {settings.max_file_bytes >> 20} MiB and {settings.max_file_ms // 60_000} minutes."
    )
    answers = {
        JSON: {"schema": ref("RecognizeResponse"), "example": examples.RECOGNITION},
        LINES: {"schema": ref("RecognizeLine"), "example": {"window": examples.WINDOW}},
    }
    return {
        "operationId": "recognize",
        "summary": "Emotions of a clip or a file",
        "description": words,
        "parameters": [
            _query("head", {"type": "string", "minLength": 1}, "Name of the head, or name:version.", needed=True),
            _query("window_ms", _times(0, MAX_WINDOW_MS), f"Of a window, from {MIN_WINDOW_MS}; 0: the whole clip."),
            _query("hop_ms", _times(0, MAX_WINDOW_MS), f"From {MIN_HOP_MS}; 0: the window's length."),
            _query("every_window", {"type": "boolean"}, "Answer windows without speech as well."),
            _query("prior", _PRIOR, 'The class prior: train, uniform, or a JSON object {"class": share}.'),
            *_headers(),
        ],
        "requestBody": _audio(),
        "responses": _responses(answers, (404, *_AUDIO_STATUSES)),
    }


def _embeddings(settings: Settings) -> Schema:
    words = (
        "What the encoder makes of a clip, without a head. `application/octet-stream` is bare little-endian float32, "
        "its shape in X-Embedding-Shape. The clip may have as many bytes as one message, "
        f"{settings.max_message_bytes >> 20} MiB, and be as long as the embedder takes."
    )
    answers = {
        JSON: {"schema": ref("EmbedResponse"), "example": examples.EMBEDDING},
        BINARY: {"schema": {"type": "string", "format": "binary"}},
    }
    return {
        "operationId": "embed",
        "summary": "Embeddings of a clip",
        "description": words,
        "parameters": [
            _query("pooling", {"type": "string", "enum": list(POOLINGS)}, "Mean over time by default."),
            _query("layers", {"type": "string", "pattern": r"^[0-9]{1,4}(,[0-9]{1,4})*$"}, "Such as 0,4."),
            _query("truncate_ms", _times(0, 86_400_000), "Cut longer audio here; 0: refuse it."),
            *_headers(),
        ],
        "requestBody": _audio(),
        "responses": _responses(answers, _AUDIO_STATUSES),
    }


def _heads() -> Schema:
    answers = {JSON: {"schema": ref("HeadList"), "example": examples.HEADS}}
    return {
        "operationId": "listHeads",
        "summary": "Heads that can be asked",
        "parameters": [
            _query("prefix", {"type": "string"}, "Beginning of the name; empty: all but folds of evaluations."),
            *_headers(),
        ],
        "responses": _responses(answers, (400, 406, 422, 500, 504)),
    }


def _one_head() -> Schema:
    answers = {JSON: {"schema": ref("HeadDescription"), "example": examples.ONE_HEAD}}
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "description": "Name, or name:version.",
    }
    return {
        "operationId": "getHead",
        "summary": "One head and its card",
        "parameters": [name, *_headers()],
        "responses": _responses(answers, (*_HEAD_STATUSES, 422)),
    }


def _stream() -> Schema:
    return {
        "operationId": "stream",
        "summary": "Emotions of live audio (WebSocket)",
        "description": _STREAM,
        "x-config-example": examples.CONFIG,
        "responses": {
            "101": {"description": "The WebSocket is open."},
            **{str(status): _problem(status) for status in (400, 403, 426, 429, 500, 503, 504)},
        },
    }


def _ready() -> Schema:
    operation = _plain("ready", "Whether to send requests here, as gRPC's health says it.", JSON, ref("Status"))
    operation["responses"]["503"] = _problem(503)
    return operation


def _plain(name: str, summary: str, media_type: str, schema: Schema, example: object = None) -> Schema:
    shown = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {
        "operationId": name,
        "summary": summary,
        "responses": _responses({media_type: shown}, _PROBE_STATUSES),
    }


def _query(name: str, schema: Schema, words: str, *, needed: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": needed, "schema": schema, "description": words}


def _times(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _headers() -> list[Schema]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in _common()]


def _common() -> Schema:
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


def _audio() -> Schema:
    file = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "type": "object",
        "properties": {"audio": {"type": "string", "format": "binary", "description": "The file; any name will do."}},
        "required": ["audio"],
        "additionalProperties": False,
    }
    return {
        "required": True,
        "description": "A whole wav, flac, ogg, mp3, m4a, webm, mp4 or avi file under any audio or video type, or raw "
        "samples as audio/pcm with its rate.",
        "content": {
            "application/octet-stream": file,
            "audio/*": file,
            "video/*": file,
            "audio/pcm; rate=16000; channels=1; format=s16le": file,
            "multipart/form-data": {"schema": form},
        },
    }


def _responses(answers: Schema, statuses: tuple[int, ...]) -> Schema:
    good = {
        "description": "The answer.",
        "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
        "content": answers,
    }
    return {"200": good, **{str(status): _problem(status) for status in sorted(statuses)}}


def _problem(status: int) -> Schema:
    return {"$ref": f"#/components/responses/{status}"}


def _problems() -> Schema:
    return {str(status): _problem_of(status) for status in sorted({*MEANINGS, 403})}


def _problem_of(status: int) -> Schema:
    shown: dict[str, Any] = {
        "description": MEANINGS.get(status, "A page of another origin."),
        "content": {MEDIA_TYPE: {"schema": ref("Problem")}},
    }
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        shown["content"][MEDIA_TYPE]["example"] = examples.PROBLEM
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
                _object({name: last[name] for name in ("overall", "head", "bundle", "prior")}),
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
