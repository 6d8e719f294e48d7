"""What is heard, and what callers show, is in no log, no span, no answer and no file that stays behind.

Every way in is taken with recognisable content, good and broken, at the most talkative level of the log.
"""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import asyncio
import json
import logging
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from httpx_ws import AsyncWebSocketSession, WebSocketDisconnect, aconnect_ws
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from servox.keys import Key, document_of, minted
from servox.rpc import channel
from servox.telemetry import JsonFormatter
from servox.v1 import common_pb2, prober_pb2, prober_pb2_grpc

SAID = "WORDS-THAT-SOMEBODY-SAID"  # as a transcript in a file's tags, and as the bytes of samples
RATE = 16_000
CLIENTS = ("httpx", "httpcore", "httpx_ws", "wsproto")  # ours, in this process; not the server's
CONFIG = {"head": "toy", "window_ms": 1000, "rate_hz": RATE, "format": "s16le"}


def samples() -> bytes:
    """A second and a half of words, as s16le: loud enough to be no silence."""
    return (SAID.encode() * 4000)[: RATE * 3]


def wav(data: bytes) -> bytes:
    """With a transcript in its tags."""
    tag = SAID.encode().ljust(len(SAID) + len(SAID) % 2, b"\0")
    info = b"INFO" + b"ICMT" + struct.pack("<I", len(tag)) + tag
    body = b"WAVE" + b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, RATE * 2, 2, 16)
    body += b"LIST" + struct.pack("<I", len(info)) + info + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


BODIES: dict[str, bytes] = {
    "good": wav(samples()),
    "cut": wav(samples())[:-1000],
    "no audio": SAID.encode() * 100,
    "a header of nothing": wav(b""),
    "not finite": np.full(RATE, np.nan, dtype="<f4").tobytes(),
    "empty": b"",
}


WAV, PCM = {"content-type": "audio/wav"}, {"content-type": "audio/pcm; rate=16000; channels=1; format=f32le"}
ROUTES: list[tuple[str, dict[str, str]]] = [
    ("/v1/recognize?head=toy", WAV),
    ("/v1/recognize?head=toy&window_ms=500", {**WAV, "accept": "application/x-ndjson"}),
    ("/v1/recognize?head=toy", PCM),
    ("/v1/recognize?head=none", WAV),
    ("/v1/embeddings", WAV),
    ("/v1/embeddings?pooling=none", WAV),
]


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """All that the server would have written, as it writes it."""
    caplog.set_level(logging.DEBUG)
    form = JsonFormatter("prober")

    def text() -> str:
        server = [each for each in caplog.records if each.name.split(".")[0] not in CLIENTS]
        return "\n".join(form.format(record) for record in server)

    return text


@pytest.fixture
async def served(tmp_path: Path, opened: Any, spans: InMemorySpanExporter) -> AsyncIterator[str]:
    """A prober with a key, which it gives, and a scratch folder that shows what is left."""
    assert spans.get_finished_spans() == ()
    (tmp_path / "scratch").mkdir()
    text, name, digest = minted()
    (tmp_path / "keys.json").write_text(document_of([Key(id=name, name="shop", sha256=digest, scopes=("*",))]))
    async with opened(keys=tmp_path / "keys.json", scratch=tmp_path / "scratch"):
        yield text


async def over_http(folder: Path, key: str) -> list[str]:
    """Every body on every route, with a good key and with a broken one; what came back."""
    said = []
    transport = httpx.AsyncHTTPTransport(uds=str(folder / "h.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=30) as client:
        shown = {key: BODIES, key[:-3] + "...": {"": wav(b"")}, f"{SAID}.{SAID}.{SAID}": {"": wav(b"")}}
        for credential, bodies in shown.items():
            auth = {"authorization": f"Bearer {credential}"}
            for body in bodies.values():
                for route, headers in ROUTES:
                    answer = await client.post(route, content=body, headers={**headers, **auth})
                    said.append(answer.text + str(answer.headers))
                form = {"audio": (f"{SAID}.wav", body)}
                said.append((await client.post("/v1/recognize?head=toy", files=form, headers=auth)).text)
        said += await over_websocket(client, key)
    return said


async def over_websocket(client: httpx.AsyncClient, key: str) -> list[str]:
    said = []
    endings: list[str | bytes] = ['{"type": "end"}', f'{{"transcript": "{SAID}"}}', SAID, SAID.encode()[:7]]
    for ending in endings:
        protocols = ["servox", f"bearer.{key}"]
        socket: AsyncWebSocketSession
        async with aconnect_ws("http://x/v1/stream", client, subprotocols=protocols) as socket:
            await socket.send_text(json.dumps(CONFIG))
            await socket.send_bytes(samples())
            if isinstance(ending, str):
                await socket.send_text(ending)
            else:
                await socket.send_bytes(ending)
                await socket.send_text('{"type": "end"}')
            said += await heard(socket)
    return said


async def heard(socket: AsyncWebSocketSession) -> list[str]:
    said = []
    try:
        while True:
            said.append(await socket.receive_text(timeout=10))
    except WebSocketDisconnect as closed:
        return [*said, closed.reason or ""]


async def over_grpc(folder: Path, key: str) -> list[str]:
    said = []
    for shown in (key, key[:-3] + "..."):
        async with channel(f"unix:{folder}/p.sock", key=shown) as opened:
            stub: Any = prober_pb2_grpc.ProberStub(opened)  # type: ignore[no-untyped-call]
            for body in BODIES.values():
                config = prober_pb2.RecognizeConfig(head="toy")
                windows = prober_pb2.RecognizeConfig(head="toy", window_ms=500)
                pcm = common_pb2.Pcm(data=body, rate_hz=RATE, format="SAMPLE_FORMAT_F32")
                for audio in (common_pb2.Audio(container=body), common_pb2.Audio(pcm=pcm), common_pb2.Audio()):
                    requests = [prober_pb2.RecognizeRequest(audio=audio, config=asked) for asked in (config, windows)]
                    said += [await told(stub.Recognize(request)) for request in requests]
                for stream in (
                    prober_pb2.StreamConfig(recognize=windows, container=True),
                    prober_pb2.StreamConfig(recognize=windows, rate_hz=RATE, format="SAMPLE_FORMAT_S16"),
                ):
                    first = prober_pb2.RecognizeStreamRequest(config=stream)
                    call = stub.RecognizeStream(iter([first, prober_pb2.RecognizeStreamRequest(chunk=body)]))
                    said.append(await told(call.read()))
                    call.cancel()
    return said


async def told(call: Any) -> str:
    try:
        async with asyncio.timeout(20):
            return str(await call)
    except grpc.aio.AioRpcError as error:
        return f"{error.details()} {error.trailing_metadata()}"


async def test_nothing_that_was_heard_or_shown_is_told(
    served: str,
    tmp_path: Path,
    records: Callable[[], str],
    spans: InMemorySpanExporter,
    capfd: pytest.CaptureFixture[str],
) -> None:
    said = [*await over_http(tmp_path, served), *await over_grpc(tmp_path, served)]
    assert any('"probabilities"' in each for each in said), "some of it was heard"
    assert any("BadAudio" in each for each in said), "some was not"
    ended = spans.get_finished_spans()
    spanned = "\n".join(each.to_json() for each in ended)
    printed = "".join(capfd.readouterr())
    secret = served.split("_", 2)[2]
    places = {"answers": "\n".join(said), "log": records(), "spans": spanned, "output": printed}
    assert all(places[name] for name in ("answers", "log", "spans"))
    for place, text in places.items():
        for hidden in (SAID, SAID[:12], secret, secret[:12]):
            assert hidden not in text, f"{hidden} in {place}"
    assert list((tmp_path / "scratch").iterdir()) == [], "what was spooled is gone"
