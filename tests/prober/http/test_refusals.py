"""Every route and what it refuses: status, kind, the parameter that is meant, as problem+json and as described."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

WAV = {"content-type": "audio/wav"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A bad request: how it differs from a good one, and what it must be answered."""

    route: str = "/v1/recognize"
    method: str = "POST"
    query: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=lambda: dict(WAV))
    body: bytes | None = None  # a clip unless told otherwise
    status: int
    kind: str
    named: str | None = None
    says: str = ""


FORM = {"content-type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nxy\r\n'
HEAD = {"head": "toy"}

BAD = {
    "no head": Bad(status=400, kind="BadRequest", named="head"),
    "unknown head": Bad(query={"head": "tou"}, status=404, kind="NotFound", says="toy"),
    "unknown version": Bad(query={"head": "toy:00"}, status=404, kind="NotFound"),
    "head with a zero": Bad(query={"head": "a\0b"}, status=404, kind="NotFound"),
    "head out of a folder": Bad(query={"head": "../toy"}, status=404, kind="NotFound"),
    "head of another bundle": Bad(query={"head": "other"}, status=409, kind="HeadMismatch", says="cdcdcdcd"),
    "unknown parameter": Bad(query={**HEAD, "windw_ms": 1}, status=400, kind="BadRequest", named="windw_ms"),
    "parameter twice": Bad(query={"head": ["toy", "toy"]}, status=400, kind="BadRequest", named="head"),
    "window no number": Bad(query={**HEAD, "window_ms": "1s"}, status=400, kind="BadRequest", named="window_ms"),
    "window negative": Bad(query={**HEAD, "window_ms": "-1"}, status=400, kind="BadRequest", named="window_ms"),
    "window of another script": Bad(query={**HEAD, "window_ms": "٣"}, status=400, kind="BadRequest", named="window_ms"),
    "window beyond 64 bits": Bad(query={**HEAD, "window_ms": 10**30}, status=400, kind="BadRequest"),
    "window too short": Bad(query={**HEAD, "window_ms": 5}, status=422, kind="BadInput", named="window_ms"),
    "hop too long": Bad(query={**HEAD, "window_ms": 500, "hop_ms": 600}, status=422, kind="BadInput", named="hop_ms"),
    "hop alone": Bad(query={**HEAD, "hop_ms": 600}, status=422, kind="BadInput", named="hop_ms"),
    "switch no switch": Bad(query={**HEAD, "every_window": "1"}, status=400, kind="BadRequest", named="every_window"),
    "prior no prior": Bad(query={**HEAD, "prior": "flat"}, status=400, kind="BadRequest", named="prior"),
    "prior a number": Bad(query={**HEAD, "prior": "3"}, status=400, kind="BadRequest", named="prior"),
    "prior of words": Bad(query={**HEAD, "prior": '{"anger": "x"}'}, status=400, kind="BadRequest", named="prior"),
    "prior not a share": Bad(query={**HEAD, "prior": '{"anger": NaN}'}, status=422, kind="BadInput", named="prior"),
    "prior huge": Bad(query={**HEAD, "prior": '{"anger": 1%s}' % ("0" * 400)}, status=422, kind="BadInput"),
    "prior beyond Python": Bad(query={**HEAD, "prior": "1" * 5000}, status=400, kind="BadRequest"),
    "prior deep": Bad(query={**HEAD, "prior": "[" * 9000}, status=400, kind="BadRequest"),
    "prior with half a letter": Bad(query={**HEAD, "prior": '{"\\ud800": 1}'}, status=422, kind="BadInput"),
    "prior of other classes": Bad(query={**HEAD, "prior": '{"joy": 1}'}, status=422, kind="BadInput", says="joy"),
    "no type": Bad(query=HEAD, headers={}, status=415, kind="UnsupportedMediaType", named="Content-Type"),
    "type of text": Bad(query=HEAD, headers={"content-type": "text/plain"}, status=415, kind="UnsupportedMediaType"),
    "type of JSON": Bad(
        query=HEAD, headers={"content-type": "application/json"}, status=415, kind="UnsupportedMediaType"
    ),
    "coded body": Bad(
        query=HEAD,
        headers={**WAV, "content-encoding": "gzip"},
        status=415,
        kind="UnsupportedMediaType",
        named="Content-Encoding",
    ),
    "samples without a rate": Bad(
        query=HEAD, headers={"content-type": "audio/pcm"}, status=400, kind="BadRequest", named="rate"
    ),
    "samples of 99 channels": Bad(
        query=HEAD,
        headers={"content-type": "audio/pcm;rate=8000;channels=99"},
        status=400,
        kind="BadRequest",
        named="channels",
    ),
    "samples of another format": Bad(
        query=HEAD,
        headers={"content-type": "audio/pcm;rate=8000;format=s24"},
        status=400,
        kind="BadRequest",
        named="format",
    ),
    "samples cut in two": Bad(
        query={**HEAD, "window_ms": 200},
        headers={"content-type": "audio/pcm;rate=8000"},
        body=b"x" * 4001,
        status=422,
        kind="BadAudio",
    ),
    "wants a picture": Bad(
        query=HEAD, headers={**WAV, "accept": "image/png"}, status=406, kind="NotAcceptable", named="Accept"
    ),
    "wants nothing": Bad(query=HEAD, headers={**WAV, "accept": "*/*;q=0"}, status=406, kind="NotAcceptable"),
    "time no number": Bad(
        query=HEAD,
        headers={**WAV, "x-request-timeout-ms": "1s"},
        status=400,
        kind="BadRequest",
        named="x-request-timeout-ms",
    ),
    "empty body": Bad(query=HEAD, body=b"", status=422, kind="BadAudio", says="empty"),
    "no audio": Bad(query=HEAD, body=b"not audio at all", status=422, kind="BadAudio", says="16 bytes"),
    "no audio, in windows": Bad(
        query={**HEAD, "window_ms": 500}, body=b"not audio at all", status=422, kind="BadAudio"
    ),
    "no audio, in lines": Bad(
        query={**HEAD, "window_ms": 500},
        headers={**WAV, "accept": "application/x-ndjson"},
        body=b"not audio at all",
        status=422,
        kind="BadAudio",
    ),
    "what the embedder refuses": Bad(query=HEAD, body=b"clipping", status=422, kind="BadAudio", says="clipping"),
    "form without a boundary": Bad(
        query=HEAD, headers={"content-type": "multipart/form-data"}, status=400, kind="BadRequest"
    ),
    "form of nothing": Bad(query=HEAD, headers=FORM, body=b"", status=400, kind="BadRequest", says="multipart"),
    "form without its end": Bad(query=HEAD, headers=FORM, body=PART, status=400, kind="BadRequest", says="boundary"),
    "form of two parts": Bad(query=HEAD, headers=FORM, body=PART + PART + b"--b--\r\n", status=400, kind="BadRequest"),
    "form that is none": Bad(query=HEAD, headers=FORM, body=b"zzzz", status=400, kind="BadRequest"),
    "form with an empty file": Bad(
        query=HEAD,
        headers=FORM,
        body=PART.replace(b"xy", b"") + b"--b--\r\n",
        status=422,
        kind="BadAudio",
        says="empty",
    ),
    "recognise by GET": Bad(method="GET", status=405, kind="MethodNotAllowed"),
    "embeddings by PUT": Bad(route="/v1/embeddings", method="PUT", status=405, kind="MethodNotAllowed"),
    "embeddings of another pooling": Bad(
        route="/v1/embeddings", query={"pooling": "max"}, status=400, kind="BadRequest", named="pooling"
    ),
    "embeddings of no layer": Bad(
        route="/v1/embeddings", query={"layers": "1,x"}, status=400, kind="BadRequest", named="layers"
    ),
    "embeddings of layer 99": Bad(
        route="/v1/embeddings", query={"layers": "99"}, status=422, kind="BadInput", named="layers"
    ),
    "embeddings with a head": Bad(route="/v1/embeddings", query=HEAD, status=400, kind="BadRequest", named="head"),
    "embeddings of text": Bad(
        route="/v1/embeddings", headers={"content-type": "text/csv"}, status=415, kind="UnsupportedMediaType"
    ),
    "embeddings as a page": Bad(
        route="/v1/embeddings", headers={**WAV, "accept": "text/html"}, status=406, kind="NotAcceptable"
    ),
    "embeddings of nothing": Bad(route="/v1/embeddings", body=b"", status=422, kind="BadAudio"),
    "embeddings of silence": Bad(route="/v1/embeddings", body=b"silence", status=422, kind="SilentAudio"),
    "embeddings of noise": Bad(route="/v1/embeddings", body=b"nothing", status=422, kind="BadAudio"),
    "heads by POST": Bad(route="/v1/heads", status=405, kind="MethodNotAllowed"),
    "heads with a limit": Bad(
        route="/v1/heads", method="GET", query={"limit": 3}, status=400, kind="BadRequest", named="limit"
    ),
    "heads as a table": Bad(
        route="/v1/heads", method="GET", headers={"accept": "text/csv"}, status=406, kind="NotAcceptable"
    ),
    "one unknown head": Bad(route="/v1/heads/tou", method="GET", status=404, kind="NotFound", says="toy"),
    "one head by DELETE": Bad(route="/v1/heads/toy", method="DELETE", status=405, kind="MethodNotAllowed"),
    "no route": Bad(route="/v2/recognize", status=404, kind="NotFound"),
    "a slash too many": Bad(route="/v1/heads/", method="GET", status=404, kind="NotFound"),
    "a page that is not there": Bad(route="/static/none.js", method="GET", status=404, kind="NotFound"),
    "a way out of the pages": Bad(route="/static/..%2Fserver.py", method="GET", status=404, kind="NotFound"),
    "a stream that is no WebSocket": Bad(route="/v1/stream", method="GET", status=426, kind="UpgradeRequired"),
    "an unknown method": Bad(route="/v1/heads", method="BREW", status=405, kind="MethodNotAllowed"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_it_is_refused_as_a_problem(shared: Any, bad: Bad) -> None:
    face = shared
    made = {None: face.wav(1), b"clipping": face.clipping(), b"silence": face.silence()}
    body = made.get(bad.body, bad.body)
    answer = await face.http.request(
        bad.method, bad.route, params=bad.query, headers=bad.headers, content=body if bad.method == "POST" else b""
    )
    assert answer.status_code == bad.status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["kind"], problem["retryable"]) == (bad.status, bad.kind, False)
    assert problem["type"].startswith("urn:servox:problem:")
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem.get("field") == bad.named or bad.named is None
    assert bad.says in problem["detail"]
    assert (bad.status == 405) == ("allow" in answer.headers)
    await _is_described(face, bad)


async def _is_described(face: Any, bad: Bad) -> None:
    paths = (await face.http.get("/openapi.json")).json()["paths"]
    path = "/v1/heads/{name}" if bad.route.startswith("/v1/heads/t") else bad.route
    operation = paths.get(path, {}).get(bad.method.lower())
    if operation is not None:
        assert str(bad.status) in operation["responses"]


async def test_bytes_that_are_not_http_get_a_problem(face: Any) -> None:
    raw = await face.raw(b"\x00\x01\x02 hello\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"application/problem+json" in raw


async def test_headers_that_are_too_long_are_refused_as_such(face: Any) -> None:
    raw = await face.raw(b"GET /v1/heads HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * (17 << 10))
    head, body = raw.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert (problem["status"], problem["kind"]) == (431, "RequestHeaderFieldsTooLarge")
    assert "16384 bytes" in problem["detail"]
    within = await face.raw(
        b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Long: " + b"a" * (15 << 10) + b"\r\n\r\n"
    )
    assert within.startswith(b"HTTP/1.1 200 ")


async def test_a_fault_of_the_server_tells_nothing_of_itself(
    face: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(face.server._dataplane, "recognize", broken)
    answer = await face.recognize(face.wav(1))
    assert (answer.status_code, answer.json()["kind"]) == (500, "InternalError")
    assert "secret" not in answer.text
    assert answer.json()["request_id"] in {getattr(record, "request_id", "") for record in caplog.records}


async def test_without_an_embedder_the_answer_is_503_at_once_or_after_its_patience(alone: Any) -> None:
    async with alone(embed_timeout_s=0.3) as face:
        for route, query in (("/v1/recognize", HEAD), ("/v1/embeddings", {})):
            answer = await face.http.post(route, params=query, headers=WAV, content=face.wav(1))
            assert (answer.status_code, answer.json()["kind"]) == (503, "Unavailable"), answer.text
            assert answer.json()["retryable"]
            assert int(answer.headers["retry-after"]) >= 1
        assert (await face.http.get("/v1/heads")).status_code == 200
