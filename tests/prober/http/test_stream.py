"""`WS /v1/stream` through a real server: the windows of gRPC, resumed streams, and every way to get it wrong."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf import json_format
from httpx_ws import AsyncWebSocketSession, WebSocketDisconnect, WebSocketUpgradeError, aconnect_ws

from servox.v1 import common_pb2, prober_pb2

CONFIG = {"head": "toy", "window_ms": 1000, "hop_ms": 500, "rate_hz": 16_000, "format": "f32le"}
END = '{"type": "end"}'


@asynccontextmanager
async def talking(face: Any, **headers: str) -> AsyncIterator[AsyncWebSocketSession]:
    socket: AsyncWebSocketSession
    async with aconnect_ws("http://prober/v1/stream", face.http, headers=headers) as socket:
        yield socket


async def heard(socket: AsyncWebSocketSession) -> tuple[list[Any], int]:
    """All that the server says, and the code of its close."""
    said: list[Any] = []
    try:
        async with asyncio.timeout(20):
            while True:
                said.append(json.loads(await socket.receive_text()))
    except WebSocketDisconnect as closed:
        return said, closed.code


async def streamed(face: Any, data: bytes, *, step: int = 4001, **config: Any) -> tuple[list[Any], int]:
    async with talking(face) as socket:
        await socket.send_text(json.dumps({**CONFIG, **config}))
        for begin in range(0, len(data), step):
            await socket.send_bytes(data[begin : begin + step])
        await socket.send_text(END)
        return await heard(socket)


async def over_grpc(face: Any, data: bytes, encoding: int, **config: Any) -> list[prober_pb2.RecognizeStreamResponse]:
    asked = prober_pb2.RecognizeConfig(head="toy", window_ms=1000, hop_ms=500)
    shape = prober_pb2.StreamConfig(
        **{"recognize": asked, "rate_hz": 16_000, "channels": 1, "format": encoding, **config}
    )
    requests = [prober_pb2.RecognizeStreamRequest(config=shape), prober_pb2.RecognizeStreamRequest(chunk=data)]
    return [each async for each in face.grpc.RecognizeStream(iter(requests))]


def window(document: Any) -> prober_pb2.Window:
    found = prober_pb2.Window()
    json_format.ParseDict({key: value for key, value in document.items() if key != "type"}, found)
    return found


@pytest.mark.parametrize("encoding", ["f32le", "s16le"])
async def test_windows_are_those_of_grpc(face: Any, encoding: str) -> None:
    samples = face.samples(3.3)
    data = samples.tobytes() if encoding == "f32le" else (samples * 32767).astype("<i2").tobytes()
    wire = common_pb2.SAMPLE_FORMAT_F32 if encoding == "f32le" else common_pb2.SAMPLE_FORMAT_S16
    expected = await over_grpc(face, data, wire)
    said, code = await streamed(face, data, format=encoding)
    assert code == 1000
    assert [each["type"] for each in said] == ["ready", *["window"] * 6, "end"]
    assert said[-1]["windows"] == 6
    assert [window(each) for each in said[1:-1]] == [each.window for each in expected]
    assert [each["index"] for each in said[1:-1]] == [0, 1, 2, 3, 4, 5]
    ready = said[0]
    assert ready["classes"] == ["anger", "happiness", "sadness"]
    assert ready["bundle"]["digest"] == face.embedder.bundle
    head, prior = common_pb2.Head(), prober_pb2.Prior()
    json_format.ParseDict(ready["head"], head)
    json_format.ParseDict(ready["prior"], prior)
    assert (head, prior) == (expected[0].head, expected[0].prior)


async def test_a_window_comes_when_it_is_whole_and_not_at_the_end(face: Any) -> None:
    async with talking(face) as socket:
        await socket.send_text(json.dumps({**CONFIG, "type": "config"}))
        assert json.loads(await socket.receive_text(timeout=10))["type"] == "ready"
        await socket.send_bytes(face.samples(1.1).tobytes())
        assert json.loads(await socket.receive_text(timeout=10))["end_ms"] == 1000


async def test_a_stream_that_broke_off_goes_on(face: Any) -> None:
    samples = face.samples(3.3)
    whole, _ = await streamed(face, samples.tobytes())
    rest, code = await streamed(face, samples[8000 * 2 :].tobytes(), next_window=3)
    assert code == 1000
    assert rest[1:-1] == whole[4:-1]


async def test_a_prior_is_assumed(face: Any) -> None:
    data = face.samples(1).tobytes()
    shares = {"anger": 0.2, "happiness": 0.3, "sadness": 0.5}
    said, _ = await streamed(face, data, prior=shares)
    assert said[0]["prior"] == {"kind": "KIND_EXPLICIT", "probabilities": shares}
    said, _ = await streamed(face, data, prior="uniform")
    assert said[0]["prior"]["kind"] == "KIND_UNIFORM"


WRONG: dict[str, tuple[list[str | bytes], str, int, str]] = {
    "samples first": ([b"\0\0"], "BadRequest", 400, ""),
    "no JSON": (["{"], "BadRequest", 400, ""),
    "a list": (["[]"], "BadRequest", 400, ""),
    "numbers beyond Python": (['{"head": ' + "1" * 5000 + "}"], "BadRequest", 400, ""),
    "another type": ([json.dumps({**CONFIG, "type": "start"})], "BadRequest", 400, "type"),
    "an unknown field": ([json.dumps({**CONFIG, "windw_ms": 1})], "BadRequest", 400, "windw_ms"),
    "no head": ([json.dumps({**CONFIG, "head": None})], "BadRequest", 400, "head"),
    "a head that is none": ([json.dumps({**CONFIG, "head": "\ud800\0"})], "NotFound", 404, ""),
    "an unknown head": ([json.dumps({**CONFIG, "head": "tou"})], "NotFound", 404, ""),
    "a head of another bundle": ([json.dumps({**CONFIG, "head": "other"})], "HeadMismatch", 409, ""),
    "no window": ([json.dumps({**CONFIG, "window_ms": None})], "BadRequest", 400, "window_ms"),
    "a window of truth": ([json.dumps({**CONFIG, "window_ms": True})], "BadRequest", 400, "window_ms"),
    "a window that is too long": ([json.dumps({**CONFIG, "window_ms": 99_000})], "BadInput", 422, "window_ms"),
    "a hop that is too long": ([json.dumps({**CONFIG, "hop_ms": 2000})], "BadInput", 422, "hop_ms"),
    "a rate of 1 Hz": ([json.dumps({**CONFIG, "rate_hz": 1})], "BadRequest", 400, "rate_hz"),
    "no channel": ([json.dumps({**CONFIG, "channels": 0})], "BadRequest", 400, "channels"),
    "another format": ([json.dumps({**CONFIG, "format": "mp3"})], "BadRequest", 400, "format"),
    "a switch of words": ([json.dumps({**CONFIG, "every_window": "yes"})], "BadRequest", 400, "every_window"),
    "a prior of other classes": ([json.dumps({**CONFIG, "prior": {"joy": 1}})], "BadInput", 422, "prior"),
    "a prior that is a list": ([json.dumps({**CONFIG, "prior": [1]})], "BadRequest", 400, "prior"),
    "a window before the first": ([json.dumps({**CONFIG, "next_window": -1})], "BadRequest", 400, "next_window"),
    "two configs": ([json.dumps(CONFIG), json.dumps(CONFIG)], "BadInput", 422, ""),
    "half a sample": ([json.dumps(CONFIG), b"\0" * 4003, END], "BadAudio", 422, ""),
    "what is no number": ([json.dumps(CONFIG), b"\0\0\xc0\x7f" * 20_000, END], "BadAudio", 422, ""),
}


@pytest.mark.parametrize(("messages", "kind", "status", "named"), WRONG.values(), ids=WRONG)
async def test_what_is_wrong_is_told_before_the_close(
    face: Any, messages: list[str | bytes], kind: str, status: int, named: str
) -> None:
    async with talking(face) as socket:
        for each in messages:
            await (socket.send_text(each) if isinstance(each, str) else socket.send_bytes(each))
        said, code = await heard(socket)
    assert code == 1008
    problem = said[-1]["problem"]
    assert said[-1]["type"] == "error"
    assert (problem["kind"], problem["status"]) == (kind, status)
    assert problem.get("field", "") == named or not named
    assert problem["request_id"]


async def test_a_stream_without_audio_has_no_windows(face: Any) -> None:
    said, code = await streamed(face, b"")
    assert ([each["type"] for each in said], said[-1]["windows"], code) == (["ready", "end"], 0, 1000)


async def test_without_an_embedder_the_caller_may_come_again(alone: Any) -> None:
    async with alone(embed_timeout_s=0.3) as face, talking(face) as socket:
        await socket.send_text(json.dumps(CONFIG))
        said, code = await heard(socket)
        assert (said[-1]["problem"]["kind"], said[-1]["problem"]["retryable"], code) == ("Unavailable", True, 1013)


async def test_silence_of_the_caller_ends_the_stream(opened: Any) -> None:
    async with opened(stream_idle_s=2) as face, talking(face) as socket:
        await socket.send_text(json.dumps(CONFIG))
        said, code = await heard(socket)
        assert (said[0]["type"], said[-1]["problem"]["kind"], code) == ("ready", "DeadlineExpired", 1008)


async def test_a_message_that_is_too_long_closes_the_stream(face: Any) -> None:
    async with talking(face) as socket:
        await socket.send_text(json.dumps(CONFIG))
        await socket.send_bytes(b"\0" * ((1 << 20) + 4))
        _, code = await heard(socket)
        assert code == 1009


async def test_a_caller_who_leaves_is_no_crash(face: Any) -> None:
    async with talking(face) as socket:
        await socket.send_text(json.dumps(CONFIG))
        await socket.receive_text(timeout=10)
        await socket.send_bytes(face.samples(0.5).tobytes())
    await face.counted("servox_prober_requests_total", method="RecognizeStream", outcome="cancelled")
    assert face.count("servox_prober_http_under_way", kind="stream") == 0


async def test_more_streams_than_may_be_are_429(opened: Any) -> None:
    async with opened(max_streams=1) as face, talking(face) as socket:
        await socket.send_text(json.dumps(CONFIG))
        await socket.receive_text(timeout=10)
        with pytest.raises(WebSocketUpgradeError) as refused:
            async with talking(face):
                pass
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("origin", "allowed", "welcome"),
    [
        ("http://prober", "", True),
        ("https://elsewhere", "", False),
        ("http://prober:81", "", False),
        ("null", "", False),
        ("https://elsewhere", "https://other, https://elsewhere/", True),
        ("https://elsewhere", "*", True),
    ],
)
async def test_pages_of_other_origins_need_leave(opened: Any, origin: str, allowed: str, welcome: bool) -> None:
    async with opened(http_origins=allowed) as face:
        if welcome:
            async with talking(face, origin=origin) as socket:
                await socket.send_text("{}")
                assert (await heard(socket))[1] == 1008
        else:
            with pytest.raises(WebSocketUpgradeError) as refused:
                async with talking(face, origin=origin):
                    pass
            assert refused.value.response.status_code == 403


async def test_a_stream_goes_on_while_the_server_stops_until_its_grace_is_over(opened: Any) -> None:
    async with opened(drain_grace_s=4) as face, talking(face) as socket:
        await socket.send_text(json.dumps(CONFIG))
        await socket.receive_text(timeout=10)
        stopping = asyncio.create_task(face.server.stop())
        await asyncio.sleep(0.1)
        await socket.send_bytes(face.samples(1.1).tobytes())
        assert json.loads(await socket.receive_text(timeout=10))["type"] == "window"
        said, code = await heard(socket)
        assert (said, code) == ([], 1012)
        await stopping


async def test_another_path_is_404(face: Any) -> None:
    with pytest.raises(WebSocketUpgradeError) as refused:
        async with aconnect_ws("http://prober/v1/other", face.http):
            pass
    assert refused.value.response.status_code == 404


async def test_a_caller_who_does_not_read_is_not_listened_to(face: Any) -> None:
    from services.prober.http import app

    taken, app_ = 0, app(face.server._dataplane, face.server._settings, face.server._counters)
    data = face.samples(10).tobytes()
    stuck = asyncio.Event()

    async def receive() -> Any:
        nonlocal taken
        taken += 1
        if taken == 1:
            return {"type": "websocket.connect"}
        if taken == 2:
            return {"type": "websocket.receive", "text": json.dumps({**CONFIG, "window_ms": 200, "hop_ms": 100})}
        await asyncio.sleep(0)
        return {"type": "websocket.receive", "bytes": data}

    async def send(message: Any) -> None:
        if "window" in message.get("text", ""):
            stuck.set()
            await asyncio.Event().wait()

    scope = {"type": "websocket", "path": "/v1/stream", "headers": [], "query_string": b"", "extensions": {}}
    talk = asyncio.create_task(app_(scope, receive, send))
    await asyncio.wait_for(stuck.wait(), 30)
    before = 0
    while before < taken < 10:  # until nothing moves any more
        before = taken
        await asyncio.sleep(0.3)
    assert taken == before
    assert taken < 10
    talk.cancel()
    await asyncio.gather(talk, return_exceptions=True)
