"""TLS of HTTP: certificates that change while streams are open, and callers who show one."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_ws import AsyncWebSocketSession, WebSocketDisconnect, aconnect_ws

from servox.doors import Door
from servox.keys import Key, Keys, document_of, minted
from servox.rpc import Server, Tls
from servox.v1 import embedder_pb2_grpc
from servox.watched import Watched

CONFIG = {"head": "toy", "window_ms": 1000, "rate_hz": 16_000, "format": "f32le"}


@pytest.fixture(autouse=True)
def looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "_due", lambda *_: True)


@asynccontextmanager
async def http(face: Any, context: ssl.SSLContext) -> AsyncIterator[httpx.AsyncClient]:
    """On connections of its own."""
    transport = httpx.AsyncHTTPTransport(uds=str(face.socket), verify=context)
    async with httpx.AsyncClient(transport=transport, base_url="https://localhost", timeout=30) as client:
        yield client


async def shown(face: Any, ca: Path, *, name: str = "localhost") -> bytes:
    """The certificate that a new connection gets; an empty name sends none."""
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = bool(name)
    _, writer = await asyncio.open_unix_connection(str(face.socket), ssl=context, server_hostname=name)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


async def to_the_end(socket: AsyncWebSocketSession) -> None:
    try:
        while True:
            await socket.receive_text(timeout=10)
    except WebSocketDisconnect:
        return


async def test_a_stream_lives_through_a_rotation_and_new_connections_get_the_new_certificate(
    opened: Any, authority: Any
) -> None:
    ours = authority("ours")
    certificate, key = ours.issue("server")
    context = ssl.create_default_context(cafile=str(ours.ca))
    async with opened(tls_certificate=certificate, tls_key=key) as face, http(face, context) as client:
        socket: AsyncWebSocketSession
        async with aconnect_ws("https://localhost/v1/stream", client) as socket:
            await socket.send_text(json.dumps(CONFIG))
            assert json.loads(await socket.receive_text(timeout=10))["type"] == "ready"
            first = await shown(face, ours.ca)
            ours.issue("server")
            second = await shown(face, ours.ca)
            assert second != first
            assert await shown(face, ours.ca, name="") == second, "also to who names nobody"
            certificate.write_bytes(certificate.read_bytes()[:100])
            assert await shown(face, ours.ca) == second, "half a file changes nothing"
            assert face.count("servox_credentials_stale", source="certificates") == 1
            await socket.send_bytes(face.samples(1.1).tobytes())
            assert json.loads(await socket.receive_text(timeout=10))["type"] == "window"
            await socket.send_text('{"type": "end"}')
            await to_the_end(socket)


async def test_a_certificate_says_who_calls(opened: Any, authority: Any, caplog: pytest.LogCaptureFixture) -> None:
    ours, others = authority("ours"), authority("others")
    certificate, key = ours.issue("server")
    trusted = ours.folder / "trusted.pem"
    trusted.write_bytes(ours.ca.read_bytes())
    caplog.set_level(logging.INFO)
    given = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": trusted, "tls_client_scopes": "heads"}
    async with opened(**given) as face:
        contexts = {}
        for one in (ours, others):
            contexts[one.name] = ssl.create_default_context(cafile=str(ours.ca))
            contexts[one.name].load_cert_chain(*one.issue(f"client of {one.name}"))
        async with http(face, contexts["ours"]) as client:
            assert (await client.get("/v1/heads")).status_code == 200
            refused = await client.post("/v1/embeddings", content=face.wav(1), headers={"content-type": "audio/wav"})
            assert (refused.status_code, "client of ours" in refused.text) == (403, True)
        lines = [each for each in caplog.records if each.message == "request"]
        assert [getattr(each, "caller", "") for each in lines] == ["client of ours", ""], "nobody, once refused"
        for context in (contexts["others"], ssl.create_default_context(cafile=str(ours.ca))):
            async with http(face, context) as client:
                with pytest.raises(httpx.TransportError):
                    await client.get("/v1/heads")
        trusted.write_bytes(others.ca.read_bytes())
        for name, status in (("others", 200), ("ours", None)):
            async with http(face, contexts[name]) as client:
                if status:
                    assert (await client.get("/v1/heads")).status_code == status
                else:
                    with pytest.raises(httpx.TransportError):
                        await client.get("/v1/heads")


async def test_the_prober_shows_the_embedder_its_certificate_and_its_key(
    alone: Any, toys: Any, authority: Any, tmp_path: Path
) -> None:
    ours = authority("ours")
    certificate, key = ours.issue("embedder")
    client = ours.issue("prober-1")
    text, name, digest = minted()
    (keys := tmp_path / "keys.json").write_text(
        document_of([Key(id=name, name="prober", sha256=digest, scopes=("embed",))])
    )
    (own := tmp_path / "own").write_text(text)
    server = Server(
        address="127.0.0.1:0",
        services=[],
        max_message_bytes=1 << 24,
        tls=Tls(certificate=certificate, key=key, ca=ours.ca),
        door=Door(keys=Keys(keys)),
    )
    embedder_pb2_grpc.add_EmbedderServicer_to_server(toys(), server.grpc)  # type: ignore[no-untyped-call]
    address = await server.start()
    peer = {"embedder": address, "embedder_ca": ours.ca}
    mutual = {"embedder_certificate": client[0], "embedder_private_key": client[1]}
    try:
        async with alone(**peer, **mutual, embedder_api_key=own) as face:
            assert (await face.recognize(face.wav(1))).status_code == 200
        async with alone(**peer, **mutual, grpc_socket=tmp_path / "q.sock") as face:
            for query in ({}, {"window_ms": 500}):
                refused = await face.recognize(face.wav(1), **query)
                assert (refused.status_code, refused.json()["kind"]) == (503, "Unavailable"), "not the caller's to mend"
    finally:
        await server.stop()
