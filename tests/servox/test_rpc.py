# ruff: noqa: ARG002 -- servicers take what gRPC gives
import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from servox.errors import BadInput, BadSetting, Overloaded, ServoxError, StorageFull, TooLarge, Unavailable, leaves
from servox.rpc import MAX_CALLS, Server, Tls, channel, translated
from servox.v1 import embedder_pb2, embedder_pb2_grpc

SERVICE = "servox.v1.Embedder"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Embedder(embedder_pb2_grpc.EmbedderServicer):
    """Does in every call what `act` says."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.calls = 0
        self.entered = asyncio.Event()
        self.leave = asyncio.Event()
        self.leave.set()

    async def Describe(self, request: Any, context: Any) -> embedder_pb2.DescribeResponse:  # noqa: ANN401, N802
        self.calls += 1
        self.entered.set()
        await self.leave.wait()
        self.act()
        return embedder_pb2.DescribeResponse(dims=7)

    async def EmbedStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401, N802
        async for request in request_iterator:
            yield embedder_pb2.EmbedStreamResponse(id=request.id)
            self.act()


def _raising(error: Exception) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


@asynccontextmanager
async def serving(
    embedder: Embedder,
    address: str = "127.0.0.1:0",
    *,
    max_message_bytes: int = 1 << 20,
    **options: Any,  # noqa: ANN401
) -> AsyncIterator[tuple[Server, str]]:
    server = Server(address=address, services=[SERVICE], max_message_bytes=max_message_bytes, **options)
    embedder_pb2_grpc.add_EmbedderServicer_to_server(embedder, server.grpc)  # type: ignore[no-untyped-call]
    try:
        yield server, await server.start()
    finally:
        embedder.leave.set()
        await server.stop()


def _stub(opened: grpc.aio.Channel) -> Any:  # noqa: ANN401 -- generated stubs have no types
    return embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]


def _plain(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)])


def _secure(address: str, tls: Tls) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(address, tls.client(), options=[("grpc.enable_retries", 0)])


async def _describe(opened: grpc.aio.Channel) -> embedder_pb2.DescribeResponse:
    with translated("embedder"):
        answer: embedder_pb2.DescribeResponse = await _stub(opened).Describe(embedder_pb2.DescribeRequest())
    return answer


# ---- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", leaves())
async def test_every_error_crosses_the_wire_as_itself(cls: type[ServoxError]) -> None:
    async with serving(Embedder(_raising(cls("what, which, remedy")))) as (_, address), _plain(address) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await _stub(opened).Describe(embedder_pb2.DescribeRequest())
        assert raw.value.code() is cls.grpc_code
        with pytest.raises(cls, match="what, which, remedy") as caught:
            await _describe(opened)
        assert type(caught.value) is cls


async def test_errors_of_streams_come_after_what_was_answered() -> None:
    async with serving(Embedder(_raising(StorageFull("disk full")))) as (_, address), _plain(address) as opened:
        call = _stub(opened).EmbedStream(iter([embedder_pb2.EmbedStreamRequest(id="a")]))
        assert (await call.read()).id == "a"
        with pytest.raises(StorageFull), translated("embedder"):
            await call.read()


async def test_an_error_that_is_not_ours_is_logged_and_keeps_its_text_to_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    act = _raising(LookupError("a secret"))
    async with serving(Embedder(act)) as (_, address), _plain(address) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await _stub(opened).Describe(embedder_pb2.DescribeRequest())
        call = _stub(opened).EmbedStream(iter([embedder_pb2.EmbedStreamRequest(id="a")]))
        await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as streaming:
            await call.read()
    for caught in (unary, streaming):
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(caught.value.details())
    assert caplog.text.count("LookupError: a secret") == 2


async def test_push_back_carries_its_time_in_both_forms() -> None:
    act = _raising(Overloaded("full", retry_after_s=0.75))
    async with serving(Embedder(act)) as (_, address), _plain(address) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await _stub(opened).Describe(embedder_pb2.DescribeRequest())
        details = dict(raw.value.trailing_metadata() or ())["grpc-status-details-bin"]
        info = error_details_pb2.RetryInfo()
        assert status_pb2.Status.FromString(details).details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() == 750
        with pytest.raises(Overloaded) as caught:
            await _describe(opened)
    assert caught.value.retry_after_s == 0.75


async def test_a_channel_retries_what_a_retry_can_help() -> None:
    embedder = Embedder(lambda: None)

    def act() -> None:
        if embedder.calls < 3:
            raise Overloaded("full", retry_after_s=0.01)

    embedder.act = act
    async with serving(embedder) as (_, address), channel(address) as opened:
        assert (await _describe(opened)).dims == 7
        assert embedder.calls == 3
        embedder.act = _raising(BadInput("never"))
        with pytest.raises(BadInput):
            await _describe(opened)
        assert embedder.calls == 4


async def test_a_message_over_the_limit_is_too_large_on_either_side() -> None:
    async with serving(Embedder(lambda: None), max_message_bytes=1 << 16) as (_, address):
        request = embedder_pb2.EmbedStreamRequest(id="x" * (1 << 17))
        for opened in (channel(address, max_message_bytes=1 << 16), _plain(address)):
            async with opened:
                call = _stub(opened).EmbedStream(iter([request]))
                with pytest.raises((TooLarge, Unavailable)), translated("embedder"):
                    await call.read()


async def test_nobody_there_names_the_peer(tmp_path: Path) -> None:
    async with _plain(f"unix:{tmp_path / 'none'}") as opened:
        with pytest.raises(Unavailable, match=r"^embedder: "):
            await _describe(opened)


# ---- health, reflection, addresses ---------------------------------------------------------------------------


async def _health(opened: grpc.aio.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(opened)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def test_health_is_per_service_and_off_until_it_is_said_to_be_on() -> None:
    async with serving(Embedder(lambda: None)) as (server, address), _plain(address) as opened:
        assert await _health(opened, "") == await _health(opened, SERVICE) == NOT_SERVING
        await server.serving(True)
        assert await _health(opened, "") == await _health(opened, SERVICE) == SERVING
        await server.serving(False, service=SERVICE)
        assert await _health(opened, "") == SERVING
        assert await _health(opened, SERVICE) == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _health(opened, "servox.v1.Nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services() -> None:
    async with serving(Embedder(lambda: None)) as (_, address), _plain(address) as opened:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(opened)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_the_system_chooses_the_port_and_a_taken_one_is_refused() -> None:
    async with serving(Embedder(lambda: None)) as (_, address):
        port = int(address.rsplit(":", 1)[1])
        assert port > 0
        other = Server(address=f"127.0.0.1:{port}", services=[], max_message_bytes=1 << 20)
        with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{port}"):
            await other.start()
        await other.stop()


async def test_a_server_made_outside_a_loop_runs_in_the_one_that_starts_it() -> None:
    server = await asyncio.to_thread(
        lambda: Server(address="127.0.0.1:0", services=[SERVICE], max_message_bytes=1 << 20)
    )
    async with _plain(await server.start()) as opened:
        assert await _health(opened, SERVICE) == NOT_SERVING
    await server.stop()


# ---- drain ---------------------------------------------------------------------------------------------------


async def test_a_path_that_is_not_text_is_told_and_a_stop_is_no_failure() -> None:
    """gRPC's accepting loop dies of such a path (grpcio 1.85)."""
    for stops in (True, False):
        async with serving(Embedder(lambda: None)) as (server, address):
            watching = asyncio.create_task(server.wait_failed())
            if stops:
                await server.stop()
                await asyncio.wait_for(watching, 10)
                continue
            async with _plain(address) as opened:
                path: Any = b"/servox.v1.\x89mbedder/Embed"
                ask: Any = opened.unary_unary(path)
                call = ask(b"", timeout=10)
                with pytest.raises(Unavailable, match=r"ended by itself.*UnicodeDecodeError"):
                    await asyncio.wait_for(watching, 10)
                with pytest.raises(grpc.aio.AioRpcError):
                    await call


async def _listens(address: str) -> bool:
    try:
        _, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    except OSError:
        return False
    writer.close()
    return True


async def test_draining_says_so_first_and_lets_calls_end() -> None:
    embedder = Embedder(lambda: None)
    async with serving(embedder, drain_wait_s=2.5, drain_grace_s=20) as (server, address), _plain(address) as opened:
        await server.serving(True)
        embedder.leave.clear()
        call = asyncio.create_task(_describe(opened))
        await embedder.entered.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.05)
        assert await _health(opened, SERVICE) == NOT_SERVING, "while endpoints notice, calls are still served"
        async with asyncio.timeout(30):
            while await _listens(address):  # noqa: ASYNC110 -- a socket has no event
                await asyncio.sleep(0.02)
        embedder.leave.set()
        assert (await call).dims == 7
        await stopping
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=5)


async def test_a_call_that_outlives_the_grace_is_cut() -> None:
    embedder = Embedder(lambda: None)
    async with serving(embedder, drain_grace_s=0.05) as (server, address), _plain(address) as opened:
        embedder.leave.clear()
        call = asyncio.create_task(_describe(opened))
        await embedder.entered.wait()
        await server.stop()
        with pytest.raises((Unavailable, asyncio.CancelledError)):
            await call


# ---- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca, server, client and stranger (signed by another) as .pem and .key."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make certificates with")
    folder = tmp_path_factory.mktemp("pki")
    for authority, names in (("ca", ("server", "client")), ("other", ("stranger",))):
        _openssl(folder, f"req -x509 -newkey rsa:2048 -nodes -keyout {authority}.key -out {authority}.pem "
                 f"-days 2 -subj /CN={authority}")  # fmt: skip
        for name in names:
            _openssl(folder, f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN=localhost "
                     "-addext subjectAltName=DNS:localhost,IP:127.0.0.1")  # fmt: skip
            _openssl(folder, f"x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial "
                     f"-out {name}.pem -days 2 -copy_extensions copy")  # fmt: skip
    return folder


def _openssl(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)


def _tls(pki: Path, name: str | None, ca: str | None) -> Tls:
    pair = (pki / f"{name}.pem", pki / f"{name}.key") if name else (None, None)
    return Tls(certificate=pair[0], key=pair[1], ca=pki / f"{ca}.pem" if ca else None)


async def test_tls_lets_in_who_trusts_the_server(pki: Path) -> None:
    async with serving(Embedder(lambda: None), tls=_tls(pki, "server", None)) as (_, address):
        async with channel(address, tls=_tls(pki, None, "ca")) as opened:
            assert (await _describe(opened)).dims == 7
        for opened in (_secure(address, _tls(pki, None, "other")), _plain(address)):
            async with opened:
                with pytest.raises(Unavailable):
                    await _describe(opened)


async def test_mutual_tls_asks_callers_for_a_certificate(pki: Path) -> None:
    async with serving(Embedder(lambda: None), tls=_tls(pki, "server", "ca")) as (_, address):
        async with channel(address, tls=_tls(pki, "client", "ca")) as opened:
            assert (await _describe(opened)).dims == 7
        for name in (None, "stranger"):
            async with _secure(address, _tls(pki, name, "ca")) as opened:
                with pytest.raises(Unavailable):
                    await _describe(opened)


def test_a_pem_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"none\.pem"):
        Tls(ca=tmp_path / "none.pem").client()


async def test_a_stream_outlives_the_age_of_its_connection() -> None:
    embedder = Embedder(lambda: None)
    async with serving(embedder, max_connection_age_s=1) as (_, address), _plain(address) as opened:
        call = _stub(opened).EmbedStream()
        for number in range(8):
            await call.write(embedder_pb2.EmbedStreamRequest(id=str(number)))
            assert (await call.read()).id == str(number)
            await asyncio.sleep(0.4)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_a_connection_that_pings_all_the_time_is_closed_and_no_other() -> None:
    settings, ping = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)), bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + bytes(8)
    async with serving(Embedder(lambda: None)) as (_, address), _plain(address) as opened:
        host, port = address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + 20 * ping)
        async with asyncio.timeout(20):
            answer = await reader.read(-1)  # until the server closes
        writer.close()
        assert b"too_many_pings" in answer
        assert (await _describe(opened)).dims == 7


async def test_calls_over_the_limit_of_a_connection_wait_at_the_caller() -> None:
    embedder = Embedder(lambda: None)
    embedder.leave.clear()
    own = [("grpc.use_local_subchannel_pool", 1)]  # else both channels share a connection
    async with (
        serving(embedder) as (_, address),
        _plain(address) as opened,
        grpc.aio.insecure_channel(address, options=own) as other,
    ):
        request = embedder_pb2.DescribeRequest()
        calls = [_stub(opened).Describe(request) for _ in range(MAX_CALLS + 1)]
        async with asyncio.timeout(30):
            while embedder.calls < MAX_CALLS:  # noqa: ASYNC110 -- counted by another task
                await asyncio.sleep(0.02)
        beside = _stub(other).Describe(request)
        async with asyncio.timeout(30):
            while embedder.calls == MAX_CALLS:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert embedder.calls == MAX_CALLS + 1, "that of the other connection"
        embedder.leave.set()
        assert {(await call).dims for call in [*calls, beside]} == {7}
    assert embedder.calls == MAX_CALLS + 2


async def test_what_no_retry_can_help_is_not_retried() -> None:
    embedder = Embedder(_raising(StorageFull("the disk is full")))
    async with serving(embedder) as (_, address), channel(address) as opened:
        with pytest.raises(StorageFull), translated("embedder"):
            await _stub(opened).Describe(embedder_pb2.DescribeRequest())
    assert embedder.calls == 1
