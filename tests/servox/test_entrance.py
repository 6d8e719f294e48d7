"""The door of gRPC: who is let in, as whom, for how long, and what they may use up."""
# ruff: noqa: ARG002, ANN401, N802 -- gRPC names methods and arguments, and its stubs have no types

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from servox import scopes, visits
from servox import watched as files
from servox.callers import ANYBODY, Caller, caller
from servox.client import Client
from servox.doors import Door
from servox.errors import BadSetting, Forbidden, Overloaded, OverQuota, Unauthenticated
from servox.inference import open_inference_pb2
from servox.keys import Key, Keys, document_of, key_of_environment, minted
from servox.rpc import Server, channel, translated
from servox.v1 import embedder_pb2, embedder_pb2_grpc, evaluator_pb2, evaluator_pb2_grpc, prober_pb2
from servox.visits import visit

SOON_S = 0.05


class Embedder(embedder_pb2_grpc.EmbedderServicer):
    """Notes who calls; a stream is answered item by item."""

    def __init__(self) -> None:
        self.callers = list[Caller]()
        self.act: Callable[[], object] = lambda: None

    async def Describe(self, request: Any, context: Any) -> embedder_pb2.DescribeResponse:
        self.callers.append(caller())
        self.act()
        return embedder_pb2.DescribeResponse(dims=7)

    async def Embed(self, request: Any, context: Any) -> embedder_pb2.EmbedResponse:
        self.callers.append(await asyncio.create_task(self._inside()))
        return embedder_pb2.EmbedResponse(duration_ms=len(request.audio.container))

    async def _inside(self) -> Caller:
        return caller()

    async def EmbedStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for request in request_iterator:
            self.callers.append(caller())
            yield embedder_pb2.EmbedStreamResponse(id=request.id)


class Evaluator(evaluator_pb2_grpc.EvaluatorServicer):
    """Has nothing to tell, for ever."""

    def __init__(self) -> None:
        self.watched = asyncio.Event()
        self.left = asyncio.Event()

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.watched.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        yield evaluator_pb2.WatchRunResponse()


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """A server behind a door, and the file of its keys."""

    address: str
    path: Path
    embedder: Embedder
    evaluator: Evaluator
    counted: list[tuple[str, str]]
    keys: dict[str, Key] = field(default_factory=dict)

    def key(self, **changes: Any) -> str:
        """A key that counts from here on."""
        text, name, digest = minted()
        self.keys[name] = Key(**{"id": name, "name": "shop", "sha256": digest, "scopes": ("*",), **changes})
        self.written()
        return text

    def written(self, **changes: Any) -> None:
        """Keys as they are, or changed."""
        entries = json.loads(document_of(self.keys.values()))["keys"]
        other = self.path.with_suffix(".new")
        other.write_text(json.dumps({"keys": [{**entry, **changes} for entry in entries]}))
        other.replace(self.path)

    @asynccontextmanager
    async def stub(self, key: str | None = None) -> AsyncIterator[Any]:
        async with channel(self.address, key=key) as opened:
            yield embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """Files are looked at in every call, visits every 50 ms."""
    monkeypatch.setattr(visits, "CHECK_EVERY_S", SOON_S)
    monkeypatch.setattr(files.Watched, "_due", lambda *_: True)
    (path := tmp_path / "keys.json").write_text('{"keys": []}')
    counted = list[tuple[str, str]]()
    door = Door(keys=Keys(path), counted=lambda shown, outcome: counted.append((shown, outcome)))
    server = Server(address=f"unix:{tmp_path}/s", services=["servox.v1.Embedder"], max_message_bytes=1 << 26, door=door)
    embedder, evaluator = Embedder(), Evaluator()
    embedder_pb2_grpc.add_EmbedderServicer_to_server(embedder, server.grpc)  # type: ignore[no-untyped-call]
    evaluator_pb2_grpc.add_EvaluatorServicer_to_server(evaluator, server.grpc)  # type: ignore[no-untyped-call]
    try:
        address = await server.start()
        yield House(address=address, path=path, embedder=embedder, evaluator=evaluator, counted=counted)
    finally:
        await server.stop()


async def _describe(stub: Any) -> Any:
    with translated("embedder"):
        return await stub.Describe(embedder_pb2.DescribeRequest(), timeout=10)


# ---- who is let in -------------------------------------------------------------------------------------------------


async def test_a_key_lets_in_and_says_who_calls(house: House) -> None:
    key = house.key(scopes=("embed",), tenant="acme")
    async with house.stub(key) as stub:
        assert (await _describe(stub)).dims == 7
        await stub.Embed(embedder_pb2.EmbedRequest())
        call = stub.EmbedStream(iter([embedder_pb2.EmbedStreamRequest(id="a")]))
        assert [answer.id async for answer in call] == ["a"]
    assert house.embedder.callers == [Caller(name="shop", tenant="acme", scopes=frozenset({"embed"}))] * 3
    assert caller() == ANYBODY
    assert house.counted == [("key", "admitted")] * 3


@pytest.mark.parametrize("shown", [None, "a-word-of-no-meaning", "sxk_0123456789ab_" + "x" * 43])
async def test_nobody_else_is_let_in(house: House, shown: str | None) -> None:
    house.key()
    async with house.stub(shown) as stub:
        with pytest.raises(Unauthenticated) as refused:
            await _describe(stub)
        call = stub.EmbedStream(iter([embedder_pb2.EmbedStreamRequest(id="a")]))
        with pytest.raises(Unauthenticated), translated("embedder"):
            await call.read()
    assert house.embedder.callers == []
    assert shown is None or shown not in str(refused.value)


@pytest.mark.parametrize("header", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "", "sxk_a"])
async def test_a_header_of_another_kind_is_refused(house: House, header: str) -> None:
    async with house.stub() as stub:
        with pytest.raises(Unauthenticated), translated("embedder"):
            await stub.Describe(embedder_pb2.DescribeRequest(), metadata=(("authorization", header),))


async def test_a_scope_that_is_lacking_is_named(house: House) -> None:
    async with house.stub(house.key(scopes=("recognize", "heads"))) as stub:
        with pytest.raises(Forbidden, match="shop lacks the scope 'embed'"):
            await _describe(stub)
    assert house.counted == [("key", "Forbidden")]


async def test_strangers_are_refused_before_their_message_is_read(house: House) -> None:
    async def endless() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield embedder_pb2.EmbedStreamRequest()

    async with house.stub() as stub, asyncio.timeout(30):
        call = stub.EmbedStream(endless())
        with pytest.raises(Unauthenticated), translated("embedder"):
            await call.read()
        huge = common(b"x" * (32 << 20))
        with pytest.raises(Unauthenticated), translated("embedder"):
            await stub.Embed(huge)


def common(data: bytes) -> embedder_pb2.EmbedRequest:
    request = embedder_pb2.EmbedRequest()
    request.audio.container = data
    return request


async def test_probes_and_reflection_need_no_key(house: House) -> None:
    async with channel(house.address) as opened:
        health: Any = health_pb2_grpc.HealthStub(opened)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(opened)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        assert [answer async for answer in reflection.ServerReflectionInfo(iter([request]))]
        ready: Any = opened.unary_unary("/inference.GRPCInferenceService/ServerReady")
        with pytest.raises(grpc.aio.AioRpcError) as there:
            await ready(b"")
    assert there.value.code() is grpc.StatusCode.UNIMPLEMENTED, "let in, and not served here"


def test_every_rpc_has_its_scope_and_what_is_forgotten_is_closed() -> None:
    for file in (embedder_pb2, prober_pb2, evaluator_pb2, open_inference_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"/{service.full_name}/{method.name}" in scopes.METHODS
    assert set(scopes.METHODS.values()) - {scopes.OPEN} <= set(scopes.SCOPES)
    assert set(scopes.ROUTES.values()) - {scopes.OPEN} <= set(scopes.SCOPES)
    assert scopes.of_method("/servox.v1.Prober/Tomorrow") == scopes.ALL
    opened = {method for method, scope in scopes.METHODS.items() if scope == scopes.OPEN}
    assert {method.rsplit("/", 1)[1] for method in opened} == {"ServerLive", "ServerReady", "ModelReady"}


# ---- for how long --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"revoked": "2026-01-01"}, {"expires": "2026-01-01"}, {"id": "another"}])
async def test_a_stream_ends_with_its_key_after_what_came_before(house: House, changes: dict[str, str]) -> None:
    async with house.stub(house.key()) as stub:
        call = stub.EmbedStream()
        await call.write(embedder_pb2.EmbedStreamRequest(id="a"))
        assert (await call.read()).id == "a"
        house.written(**changes)
        with pytest.raises(Unauthenticated, match="ask for another one"), translated("embedder"):
            await asyncio.wait_for(call.read(), 30)  # nothing is sent: it is looked after all the same


async def test_who_only_listens_is_cut_off_as_well(house: House) -> None:
    async with channel(house.address, key=house.key()) as opened:
        stub: Any = evaluator_pb2_grpc.EvaluatorStub(opened)  # type: ignore[no-untyped-call]
        call = stub.WatchRun(evaluator_pb2.WatchRunRequest(id="x"))
        reading = asyncio.ensure_future(call.read())
        await asyncio.wait_for(house.evaluator.watched.wait(), 30)
        house.written(revoked="2026-01-01")
        with pytest.raises(Unauthenticated, match="revoked"), translated("evaluator"):
            await asyncio.wait_for(reading, 30)
        await asyncio.wait_for(house.evaluator.left.wait(), 30)


async def test_a_caller_who_leaves_is_not_taken_for_one_who_was_cut_off(house: House) -> None:
    async with channel(house.address, key=house.key()) as opened:
        stub: Any = evaluator_pb2_grpc.EvaluatorStub(opened)  # type: ignore[no-untyped-call]
        call = stub.WatchRun(evaluator_pb2.WatchRunRequest(id="x"))
        await asyncio.wait_for(house.evaluator.watched.wait(), 30)
        call.cancel()
        await asyncio.wait_for(house.evaluator.left.wait(), 30)


async def test_a_client_shows_the_key_that_its_file_has_now(house: House) -> None:
    keys = [house.key(name="old"), house.key(name="new")]
    async with channel(house.address, key=lambda: keys[0]) as opened:
        stub = embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]
        await _describe(stub)
        keys.pop(0)
        await _describe(stub)
    assert [each.name for each in house.embedder.callers] == ["old", "new"]


# ---- what they may use ---------------------------------------------------------------------------------------------


async def test_calls_that_come_too_fast_are_told_when_to_come(house: House) -> None:
    key = house.key(rate_per_s=0.01)
    async with grpc.aio.insecure_channel(house.address, options=[("grpc.enable_retries", 0)]) as opened:
        stub = embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]
        shown = (("authorization", f"Bearer {key}"),)
        await stub.Describe(embedder_pb2.DescribeRequest(), metadata=shown)
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await stub.Describe(embedder_pb2.DescribeRequest(), metadata=shown)
    assert raw.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = dict(raw.value.trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.RetryInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert 70_000 < info.retry_delay.ToMilliseconds() <= 100_000
    assert house.counted == [("key", "admitted"), ("key", "Overloaded")]


async def test_a_days_audio_that_is_used_up_is_not_asked_for_again(house: House) -> None:
    async with house.stub(house.key(audio_s_per_day=10)) as stub:
        house.embedder.act = lambda: visit().hear(6)
        await _describe(stub)
        with pytest.raises(OverQuota, match="6 of your 10 s") as caught:
            await _describe(stub)
    assert len(house.embedder.callers) == 2, "the channel did not try again"
    assert 0 < caught.value.retry_after_s <= 86_400


async def test_streams_at_a_time_are_counted_until_their_callers_leave(house: House) -> None:
    key = house.key(streams=1)
    async with house.stub(key) as stub:
        first = stub.EmbedStream()
        await first.write(embedder_pb2.EmbedStreamRequest(id="a"))
        await first.read()
        async with grpc.aio.insecure_channel(house.address, options=[("grpc.enable_retries", 0)]) as opened:
            hasty = embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]
            call = hasty.EmbedStream(metadata=(("authorization", f"Bearer {key}"),))
            with pytest.raises(Overloaded, match="streams are open"), translated("embedder"):
                await call.read()
        first.cancel()
        async with asyncio.timeout(30):
            again = stub.EmbedStream()
            await again.write(embedder_pb2.EmbedStreamRequest(id="b"))
            assert (await again.read()).id == "b"


async def test_keys_do_not_share_what_they_may_use(house: House) -> None:
    one, other = (house.key(audio_s_per_day=10) for _ in range(2))
    house.embedder.act = lambda: visit().hear(10)
    for key in (one, other):
        async with house.stub(key) as stub:
            await _describe(stub)
            with pytest.raises(OverQuota):
                await _describe(stub)


async def test_the_client_shows_its_key(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    key = house.key(name="client")
    async with Client(embedder=house.address, key=key) as client:
        assert (await client.describe()).dims == 7
    async with Client(embedder=house.address) as client:
        with pytest.raises(Unauthenticated):
            await client.describe()
    assert [each.name for each in house.embedder.callers] == ["client"]
    monkeypatch.delenv("SERVOX_KEY", raising=False)
    assert key_of_environment() is None
    monkeypatch.setenv("SERVOX_KEY", f"{key}\n")
    assert key_of_environment() == key
    with pytest.raises(BadSetting, match="no key"):
        Client(embedder=house.address, key="a key with spaces")
