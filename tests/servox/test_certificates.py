"""Certificates that change while a server runs, and certificates that say who calls."""
# ruff: noqa: ANN401, ARG002, N802 -- gRPC names methods and arguments, and its stubs have no types

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from servox.callers import Caller, caller
from servox.certificates import Certificates
from servox.doors import Door
from servox.errors import BadSetting, Forbidden, Unauthenticated, Unavailable
from servox.keys import Key, Keys, document_of, minted
from servox.rpc import Server, Tls, channel, client_tls, translated
from servox.v1 import embedder_pb2, embedder_pb2_grpc
from servox.watched import Watched


class Embedder(embedder_pb2_grpc.EmbedderServicer):
    def __init__(self) -> None:
        self.callers = list[Caller]()

    async def Describe(self, request: Any, context: Any) -> embedder_pb2.DescribeResponse:
        self.callers.append(caller())
        return embedder_pb2.DescribeResponse(dims=7)

    async def EmbedStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.callers.append(caller())
        async for request in request_iterator:
            yield embedder_pb2.EmbedStreamResponse(id=request.id)


@pytest.fixture(autouse=True)
def looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "_due", lambda *_: True)


@asynccontextmanager
async def serving(tls: Tls, **options: Any) -> AsyncIterator[tuple[str, Embedder]]:
    server = Server(address="127.0.0.1:0", services=[], max_message_bytes=1 << 20, tls=tls, drain_grace_s=1, **options)
    embedder = Embedder()
    embedder_pb2_grpc.add_EmbedderServicer_to_server(embedder, server.grpc)  # type: ignore[no-untyped-call]
    try:
        yield await server.start(), embedder
    finally:
        await server.stop()


@asynccontextmanager
async def stub(address: str, tls: Tls) -> AsyncIterator[Any]:
    """On a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(address, tls.client(), options=options) as opened:
        yield embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]


async def describe(address: str, tls: Tls) -> None:
    async with stub(address, tls) as asked:
        with translated("embedder"):
            await asked.Describe(embedder_pb2.DescribeRequest(), timeout=10)


async def shown(address: str, ca: Path) -> bytes:
    """The certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    host, port = address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


async def test_a_stream_lives_through_a_rotation_and_new_connections_get_the_new_certificate(
    authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ours = authority("ours")
    certificate, key = ours.issue("server")
    async with serving(Tls(certificate=certificate, key=key)) as (address, _), stub(address, Tls(ca=ours.ca)) as asked:
        stream = asked.EmbedStream()

        async def alive(name: str) -> None:
            await stream.write(embedder_pb2.EmbedStreamRequest(id=name))
            assert (await asyncio.wait_for(stream.read(), 10)).id == name

        await alive("before")
        first = await shown(address, ours.ca)
        ours.issue("server")
        second = await shown(address, ours.ca)
        assert second != first
        await alive("after a rotation")

        whole = certificate.read_bytes()
        for broken in (b"", whole[: len(whole) // 2], b"no certificate"):
            certificate.write_bytes(broken)
            assert await shown(address, ours.ca) == second
        certificate.write_bytes(whole)
        other = key.read_bytes()
        ours.issue("another")
        key.write_bytes((ours.folder / "another.key").read_bytes())
        assert await shown(address, ours.ca) == second, "a key that does not fit"
        certificate.unlink()
        assert await shown(address, ours.ca) == second
        assert caplog.text.count("cannot be used") == 5
        assert other.decode()[60:90] not in caplog.text

        ours.issue("server")
        assert await shown(address, ours.ca) not in (first, second)
        await describe(address, Tls(ca=ours.ca))
        await alive("to the end")
        await stream.done_writing()


async def test_an_authority_that_is_replaced_lets_its_callers_in_no_more(authority: Any) -> None:
    old, new = authority("old"), authority("new")
    certificate, key = old.issue("server")
    clients = {each.name: each.issue(f"client of {each.name}") for each in (old, new)}
    trusted = old.folder / "trusted.pem"
    trusted.write_bytes(old.ca.read_bytes())
    async with serving(Tls(certificate=certificate, key=key, ca=trusted)) as (address, _):
        held = {name: Tls(ca=old.ca, certificate=pair[0], key=pair[1]) for name, pair in clients.items()}
        await describe(address, held["old"])
        with pytest.raises(Unavailable):
            await describe(address, held["new"])
        trusted.write_bytes(new.ca.read_bytes())
        await describe(address, held["new"])
        with pytest.raises(Unavailable):
            await describe(address, held["old"])


async def test_a_certificate_says_who_calls(authority: Any, tmp_path: Path) -> None:
    ours = authority("ours")
    certificate, key = ours.issue("server")
    (path := tmp_path / "keys.json").write_text('{"keys": []}')
    door = Door(keys=Keys(path), certificate_scopes=frozenset({"embed"}))
    client = ours.issue("prober-7")
    held = Tls(ca=ours.ca, certificate=client[0], key=client[1])
    async with serving(Tls(certificate=certificate, key=key, ca=ours.ca), door=door) as (address, embedder):
        await describe(address, held)
        async with stub(address, held) as asked:
            stream = asked.EmbedStream(iter([embedder_pb2.EmbedStreamRequest(id="a")]))
            assert [answer.id async for answer in stream] == ["a"]
        assert embedder.callers == [Caller(name="prober-7", scopes=frozenset({"embed"}))] * 2
        text, name, digest = minted()
        path.write_text(document_of([Key(id=name, name="shop", sha256=digest, scopes=("heads",))]))
        async with channel(address, tls=held, key=text) as opened:
            with pytest.raises(Forbidden, match="shop"), translated("embedder"):  # what is shown decides, not both
                await embedder_pb2_grpc.EmbedderStub(opened).Describe(embedder_pb2.DescribeRequest())  # type: ignore[no-untyped-call]


async def test_a_certificate_alone_does_not_count_where_it_may_nothing(authority: Any, tmp_path: Path) -> None:
    ours = authority("ours")
    certificate, key = ours.issue("server")
    (path := tmp_path / "keys.json").write_text('{"keys": []}')
    client = ours.issue("prober")
    async with serving(Tls(certificate=certificate, key=key, ca=ours.ca), door=Door(keys=Keys(path))) as (address, _):
        with pytest.raises(Unauthenticated):
            await describe(address, Tls(ca=ours.ca, certificate=client[0], key=client[1]))


def test_files_that_do_not_fit_stop_the_start(authority: Any, tmp_path: Path) -> None:
    ours = authority("ours")
    certificate, key = ours.issue("server")
    _, other = ours.issue("other")
    for one, two in ((certificate, other), (certificate, tmp_path / "none"), (key, key)):
        with pytest.raises(BadSetting, match="TLS files"):
            Certificates(one, two, None)
    with pytest.raises(BadSetting):
        Certificates(certificate, key, key)
    for given in ((None, certificate, key), (ours.ca, certificate, None)):
        with pytest.raises(BadSetting, match="give all"):
            client_tls(*given)
    assert client_tls(None, None, None) is None
