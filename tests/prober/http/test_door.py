"""Who may call over HTTP and the WebSocket, for how long, how much, and for what."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from httpx_ws import AsyncWebSocketSession, WebSocketDisconnect, WebSocketUpgradeError, aconnect_ws
from starlette.datastructures import Headers

from services.prober.http.edge import Edge, Exchange
from services.prober.http.entrance import check_near, shown, spoken
from services.prober.http.problems import problem_of
from servox import scopes, visits
from servox import watched as files
from servox.errors import Forbidden, OverQuota, Unauthenticated
from servox.keys import Key, document_of, minted, read_keys
from servox.rpc import channel, translated
from servox.v1 import prober_pb2, prober_pb2_grpc

CONFIG = {"head": "toy", "window_ms": 1000, "hop_ms": 500, "rate_hz": 16_000, "format": "f32le"}
WAV = {"content-type": "audio/wav"}


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file without keys, looked at in every call; visits are looked after every 50 ms."""
    monkeypatch.setattr(visits, "CHECK_EVERY_S", 0.05)
    monkeypatch.setattr(files.Watched, "_due", lambda *_: True)
    (path := tmp_path / "keys.json").write_text('{"keys": []}')
    return path


def key(path: Path, **facts: Any) -> str:
    """One more key."""
    text, name, digest = minted()
    made = Key(**{"id": name, "name": "shop", "sha256": digest, "scopes": ("*",), **facts})
    written(path, [*read_keys(path).values(), made])
    return text


def written(path: Path, found: list[Key]) -> None:
    (other := path.with_suffix(".new")).write_text(document_of(found))
    other.replace(path)


def revoke(path: Path) -> None:
    written(path, [replace(each, revoked="2026-01-01") for each in read_keys(path).values()])


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


# ---- who is let in -------------------------------------------------------------------------------------------------


async def test_a_key_lets_in_and_nothing_else_does(opened: Any, keys: Path) -> None:
    good = key(keys, scopes=("recognize", "heads"))
    async with opened(keys=keys) as face:
        answer = await face.recognize(face.wav(1), headers=bearer(good))
        assert answer.status_code == 200
        for header in ({}, bearer("sxk_a_b"), bearer(minted()[0]), {"authorization": "Basic YTpi"}):
            refused = await face.recognize(face.wav(1), headers=header)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == 'Bearer realm="servox"'
            assert refused.json()["kind"] == "Unauthenticated"
        lacking = await face.http.post("/v1/embeddings", content=face.wav(1), headers={**WAV, **bearer(good)})
        assert (lacking.status_code, lacking.json()["kind"]) == (403, "Forbidden")
        assert "'embed'" in lacking.json()["detail"]
        assert face.count("servox_callers_total", shown="key", outcome="admitted") == 1
        assert face.count("servox_callers_total", shown="none", outcome="Unauthenticated") == 1
        assert face.count("servox_callers_total", shown="key", outcome="Forbidden") == 1


async def test_one_key_counts_at_both_faces(opened: Any, keys: Path) -> None:
    good = key(keys, rate_per_s=0.001)
    async with opened(keys=keys) as face:
        async with channel(f"unix:{keys.parent / 'p.sock'}", key=good) as connection:
            stub = prober_pb2_grpc.ProberStub(connection)  # type: ignore[no-untyped-call]
            assert (await stub.ListHeads(prober_pb2.ListHeadsRequest())).heads
        refused = await face.http.get("/v1/heads", headers=bearer(good))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 900


async def test_what_is_open_and_what_is_closed(opened: Any, keys: Path) -> None:
    async with opened(keys=keys) as face:
        for path in ("/livez", "/readyz", "/", "/static/app.js", "/docs", "/docs/style.css", "/openapi.json"):
            assert (await face.http.get(path)).status_code == 200, path
        for path in ("/v1/heads", "/v1/heads/toy", "/metrics", "/v1/stream", "/v1/tomorrow", "/static/../v1/heads"):
            assert (await face.http.get(path)).status_code == 401, path
        known = bearer(key(keys, scopes=("recognize",)))
        assert (await face.http.get("/v1/tomorrow", headers=known)).status_code == 404
        assert (await face.http.get("/metrics", headers=known)).status_code == 403
        scraper = bearer(key(keys, scopes=("metrics",)))
        assert (await face.http.get("/metrics", headers=scraper)).status_code == 200


async def test_every_route_has_its_scope(opened: Any) -> None:
    async with opened() as face:
        app: Edge = face.server._listener._config.app
        assert set(app._templates.values()) == set(scopes.ROUTES)


async def test_a_stranger_is_refused_before_their_body_is_read(opened: Any, keys: Path) -> None:
    async with opened(keys=keys) as face, asyncio.timeout(20):
        head = (
            b"POST /v1/recognize?head=toy HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\nContent-Length: 999\r\n\r\n"
        )
        reader, writer = await asyncio.open_unix_connection(str(face.socket))
        writer.write(head)
        assert b" 401 " in await reader.readline()
        writer.close()


async def test_pages_of_other_origins_may_send_a_key(opened: Any, keys: Path) -> None:
    async with opened(keys=keys, http_origins="https://app.example.org") as face:
        asked = {"origin": "https://app.example.org", "access-control-request-method": "POST"}
        answer = await face.http.options(
            "/v1/recognize", headers={**asked, "access-control-request-headers": "authorization,content-type"}
        )
        assert answer.status_code == 200
        assert "authorization" in answer.headers["access-control-allow-headers"]


async def test_the_log_names_the_caller_and_no_secret(
    opened: Any, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = key(keys)
    caplog.set_level(logging.DEBUG)
    async with opened(keys=keys) as face:
        await face.http.get("/v1/heads", headers=bearer(good))
        await face.http.get("/v1/heads", headers=bearer(good[:-1] + "!"))
    lines = [record for record in caplog.records if record.message == "request"]
    assert [getattr(line, "caller", None) for line in lines] == ["shop", None]
    secret = good.split("_", 2)[2]
    assert secret[:-1] not in "".join(str(vars(record)) for record in caplog.records if "httpx" not in record.name
                                      and "httpcore" not in record.name)  # fmt: skip


def test_an_app_without_keys_answers_neighbours_only() -> None:
    for server in (("127.0.0.1", 8080), ("::1", 8080), ("/run/x.sock", None), None):
        check_near({"type": "http", "server": server})
    for server in (("10.0.0.7", 8080), ("example.org", 80)):
        with pytest.raises(Forbidden, match="servox keys create"):
            check_near({"type": "http", "server": server})


# ---- the WebSocket -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def talking(face: Any, *, subprotocols: list[str] | None = None, **headers: str) -> AsyncIterator[Any]:
    socket: AsyncWebSocketSession
    async with aconnect_ws("http://prober/v1/stream", face.http, headers=headers, subprotocols=subprotocols) as socket:
        yield socket


async def heard(socket: AsyncWebSocketSession) -> tuple[list[Any], int]:
    said: list[Any] = []
    try:
        async with asyncio.timeout(20):
            while True:
                said.append(json.loads(await socket.receive_text()))
    except WebSocketDisconnect as closed:
        return said, closed.code


async def test_a_page_shows_its_key_as_a_subprotocol_that_is_not_answered(opened: Any, keys: Path) -> None:
    good = key(keys, scopes=("recognize",))
    async with opened(keys=keys) as face:
        async with talking(face, subprotocols=["servox", f"bearer.{good}"]) as socket:
            assert socket.subprotocol == "servox"
            await socket.send_text(json.dumps(CONFIG))
            assert json.loads(await socket.receive_text())["type"] == "ready"
        async with talking(face, authorization=f"Bearer {good}") as socket:
            assert socket.subprotocol is None
        for offered in (["servox"], ["servox", f"bearer.{good}x"], [f"bearer.{good}", "bearer.x"]):
            with pytest.raises(WebSocketUpgradeError) as refused:
                async with talking(face, subprotocols=offered):
                    pass
            assert refused.value.response.status_code == 401


def test_a_header_goes_before_a_subprotocol() -> None:
    scope = {"type": "websocket", "subprotocols": ["servox", "bearer.one"]}
    assert shown(scope, Headers({"authorization": "Bearer two"})) == "two"
    assert shown(scope, Headers()) == "one"
    assert shown({"type": "http"}, Headers()) is None
    assert spoken(["bearer.one"]) is None
    with pytest.raises(Unauthenticated, match="several"):
        shown({"type": "websocket", "subprotocols": ["bearer.a", "bearer.b"]}, Headers())


@pytest.mark.parametrize("speaks", [True, False])
async def test_a_stream_ends_with_its_key_after_the_windows_before(opened: Any, keys: Path, speaks: bool) -> None:
    good = key(keys)
    async with opened(keys=keys) as face, talking(face, authorization=f"Bearer {good}") as socket:
        await socket.send_text(json.dumps(CONFIG))
        await socket.send_bytes(face.samples(2.1).tobytes())
        windows = [json.loads(await socket.receive_text(timeout=10)) for _ in range(4)]
        revoke(keys)
        if speaks:
            await socket.send_bytes(face.samples(1).tobytes())
        said, code = await heard(socket)
    assert [each["type"] for each in windows] == ["ready", "window", "window", "window"]
    assert code == 1008
    assert said[-1]["problem"]["kind"] == "Unauthenticated"
    assert "revoked" in said[-1]["problem"]["detail"]


async def test_streams_of_a_key_are_counted(opened: Any, keys: Path) -> None:
    good = key(keys, streams=1)
    async with opened(keys=keys) as face:
        async with talking(face, authorization=f"Bearer {good}"):
            with pytest.raises(WebSocketUpgradeError) as refused:
                async with talking(face, authorization=f"Bearer {good}"):
                    pass
            assert refused.value.response.status_code == 429
        async with talking(face, authorization=f"Bearer {key(keys)}"):
            pass


# ---- audio a day ---------------------------------------------------------------------------------------------------


async def test_audio_of_a_day_is_counted_on_every_way(opened: Any, keys: Path) -> None:
    def quota(seconds: float) -> dict[str, str]:
        return bearer(key(keys, audio_s_per_day=seconds))

    async with opened(keys=keys) as face:
        ways: dict[str, dict[str, Any]] = {
            "whole clips": {},
            "windows": {"window_ms": 1000},
            "lines": {"window_ms": 1000, "headers": {"accept": "application/x-ndjson"}},
        }
        for way, query in ways.items():
            shown_ = quota(5)
            headers = {**shown_, **query.get("headers", {})}
            first = await face.recognize(face.wav(4), **{**query, "headers": headers})
            assert first.status_code == 200, way
            await face.recognize(face.wav(4), **{**query, "headers": headers})
            last = await face.recognize(face.wav(4), **{**query, "headers": headers})
            if way == "whole clips":
                assert (last.status_code, last.json()["kind"]) == (429, "OverQuota")
                assert last.json()["retryable"] is False
                assert 1 <= int(last.headers["retry-after"]) <= 86_400
            else:
                assert "OverQuota" in last.text, way
        shown_ = {**WAV, **quota(5)}
        answers = [await face.http.post("/v1/embeddings", content=face.wav(4), headers=shown_) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]


async def test_a_stream_ends_where_the_days_audio_does(opened: Any, keys: Path) -> None:
    good = key(keys, audio_s_per_day=2.5)
    async with opened(keys=keys) as face, talking(face, authorization=f"Bearer {good}") as socket:
        await socket.send_text(json.dumps(CONFIG))
        for _ in range(4):
            await socket.send_bytes(face.samples(1).tobytes())
        said, code = await heard(socket)
    assert [each["type"] for each in said] == ["ready", "window", "window", "window", "error"]
    assert said[-1]["problem"]["kind"] == "OverQuota"
    assert code == 1008
    config = prober_pb2.StreamConfig(
        recognize=prober_pb2.RecognizeConfig(head="toy", window_ms=1000, hop_ms=500),
        rate_hz=16_000,
        channels=1,
        format="SAMPLE_FORMAT_F32",
    )
    async with opened(keys=keys, grpc_socket=keys.parent / "q.sock", http_socket=keys.parent / "i.sock") as again:
        chunk = again.samples(1).tobytes()
        async with channel(f"unix:{keys.parent / 'q.sock'}", key=good) as connection:
            stub = prober_pb2_grpc.ProberStub(connection)  # type: ignore[no-untyped-call]
            requests = [prober_pb2.RecognizeStreamRequest(config=config)]
            call = stub.RecognizeStream(iter([*requests, *[prober_pb2.RecognizeStreamRequest(chunk=chunk)] * 3]))
            assert [(await call.read()).window.index for _ in range(3)] == [0, 1, 2]
            with pytest.raises(OverQuota), translated("prober"):
                await call.read()


# ---- purposes ------------------------------------------------------------------------------------------------------


async def test_purposes_are_checked_on_every_way_and_notices_come_back(opened: Any, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('purposes = ["research"]\nrequire = true\nnotice = "A computer listens for emotions."\n')
    async with opened(policy=policy) as face:
        for purpose, status in (("workplace", 403), ("medical", 403), ("", 403), ("hiring", 422), ("research", 200)):
            answer = await face.recognize(face.wav(1), **({"purpose": purpose} if purpose else {}))
            assert answer.status_code == status, purpose
        assert answer.json()["notice"] == "A computer listens for emotions."
        for purpose, kind in (("education", "error"), ("research", "ready")):
            async with talking(face) as socket:
                await socket.send_text(json.dumps({**CONFIG, "purpose": purpose}))
                said = json.loads(await socket.receive_text(timeout=10))
                assert said["type"] == kind
        assert said["notice"] == "A computer listens for emotions."
        config = prober_pb2.RecognizeConfig(head="toy", purpose="workplace")
        request = prober_pb2.RecognizeRequest(config=config)
        with pytest.raises(Forbidden, match="2024/1689"), translated("prober"):
            await face.grpc.Recognize(request)
        assert face.count("servox_prober_purposes_total", purpose="workplace", outcome="refused") == 2
        assert face.count("servox_prober_purposes_total", purpose="research", outcome="allowed") == 2


async def test_lines_end_with_the_key_and_say_why() -> None:
    sent, left = list[Any](), [2]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Unauthenticated("key a (shop) is revoked: ask for another one")

    async def send(message: Any) -> None:
        sent.append(message)

    async def nothing() -> Any:
        return None

    exchange = Exchange({"type": "http"}, send, "an-id")
    exchange.visit = visits.Visit(check=check)
    headers = [(b"content-type", b"application/x-ndjson")]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
    line = {"type": "http.response.body", "body": b'{"window": {}}\n', "more_body": True}
    await exchange.send(dict(line))
    await exchange.send(dict(line))
    with pytest.raises(Unauthenticated) as ended:
        await exchange.send(dict(line))
    await exchange.fail(problem_of(ended.value), nothing)
    assert [message["type"].rsplit(".", 1)[1] for message in sent] == ["start", "body", "body", "body"]
    assert json.loads(sent[-1]["body"])["problem"]["kind"] == "Unauthenticated"
    assert sent[-1]["more_body"] is False
