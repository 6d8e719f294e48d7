"""The API's description in OpenAPI 3.1: the routes, what they take, every status that they answer, with examples."""

from services.prober.settings import Settings
from services.prober.windows import MAX_WINDOW_MS, MIN_HOP_MS, MIN_WINDOW_MS
from servox import __version__

from . import examples
from .components import components, parameters, problem
from .embeddings import POOLINGS
from .media import BINARY, JSON, LINES
from .queries import NAMED
from .schemas import Schema, ref

_ABOUT = """Emotions in speech: audio in, probabilities out.

Times of audio are whole milliseconds from its start, durations of work whole microseconds, probabilities are in
full precision. Names of fields are those of the gRPC API, which answers the same numbers. An error is
`application/problem+json` (RFC 9457): `kind` names it, `detail` says what is wrong, its value and the remedy,
`retryable` whether another try can help. Every answer has an `X-Request-Id`: the caller's own, if it sent one of 1 to
128 letters, digits and `-._~:/+=`."""
_STREAM = """A WebSocket. The caller sends a config as text, then binary messages of raw samples (up to 1 MiB each, of
any length), then `{"type": "end"}`. The server sends `{"type": "ready", "head", "bundle", "prior", "classes", …}`, then
one `{"type": "window", …}` with the fields of `Window` for each window, then `{"type": "end", "windows": N}` and closes
with 1000. An error is `{"type": "error", "problem": {…}}`, then 1008 (what the caller did), 1013 (it may work later) or
1011. A stream that broke off is resumed with `next_window` in the config: samples then begin where the window before it
began.

Config: `head`, `window_ms` and `rate_hz` are needed; `hop_ms` is the window's length, `channels` 1, `format` `s16le`
(or `f32le`), `prior` `train` (or `uniform`, or an object of class and probability), `every_window` and `uncalibrated`
false, `tenant`, `purpose` and `session` empty, `next_window` 0."""

# Narrower than what is read: any JSON object of numbers.
_PRIOR: Schema = {
    "type": "string",
    "pattern": f"^({'|'.join(NAMED)}|" + r'\{"[a-z ]+": ?(0|1|0\.[0-9]+)(, ?"[a-z ]+": ?(0|1|0\.[0-9]+))*\})$',
    "default": "train",
}
_DOOR = (401, 403, 429, 503)
_AUDIO_STATUSES = (400, 401, 403, 406, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507)
_HEAD_STATUSES = (400, 404, 406, 500, 504, *_DOOR)
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
        "components": components(),
        "security": [{"bearer": []}] if settings.asks_callers else [],
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
        "/metrics": {"get": _metrics()},
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
            _query("prior", _PRIOR, f'The class prior: {", ".join(NAMED)}, or a JSON object {{"class": share}}.'),
            _query("tenant", {"type": "string"}, "Whose calibration answers; the caller's own where it is left out."),
            _query("uncalibrated", {"type": "boolean"}, "Answer also what the head says without that calibration."),
            _query("purpose", {"type": "string"}, "What the answers are for; needed where the policy asks."),
            _query("session", {"type": "string"}, "Who is asking, so that a canary stays with them."),
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
        "responses": _responses(answers, (400, 406, 422, 500, 504, *_DOOR)),
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
            **{str(status): problem(status) for status in (400, 401, 403, 426, 429, 500, 503, 504)},
        },
    }


def _metrics() -> Schema:
    operation = _plain("metrics", "Metrics as Prometheus reads them.", "text/plain", {"type": "string"})
    del operation["security"]
    operation["responses"] |= {str(status): problem(status) for status in _DOOR}
    return operation


def _ready() -> Schema:
    operation = _plain("ready", "Whether to send requests here, as gRPC's health says it.", JSON, ref("Status"))
    operation["responses"]["503"] = problem(503)
    return operation


def _plain(name: str, summary: str, media_type: str, schema: Schema, example: object = None) -> Schema:
    shown = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {
        "operationId": name,
        "summary": summary,
        "security": [],
        "responses": _responses({media_type: shown}, _PROBE_STATUSES),
    }


def _query(name: str, schema: Schema, words: str, *, needed: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": needed, "schema": schema, "description": words}


def _times(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _headers() -> list[Schema]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in parameters()]


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
    return {"200": good, **{str(status): problem(status) for status in sorted(statuses)}}
