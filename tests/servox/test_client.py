# ruff: noqa: ARG002 -- servicers take what gRPC gives
import asyncio
import importlib.util
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servox.client import Client, Clip, Embedding, Failed, SyncClient, files, pcm
from servox.errors import BadAudio, BadInput, BadSetting, DeadlineExpired, NotFound, Overloaded, TooLarge, Unavailable
from servox.resending import embed_all, pause_s
from servox.rpc import Server, channel
from servox.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc, prober_pb2, prober_pb2_grpc
from servox.wire import array_to_proto, failure_to_proto

Answer = embedder_pb2.EmbedStreamResponse


def _good(request: embedder_pb2.EmbedStreamRequest) -> Answer:
    """An embedding that holds the length of the audio."""
    size = len(request.request.audio.container)
    response = embedder_pb2.EmbedResponse(
        embedding=array_to_proto(np.full((1, 2), size, np.float32)), layers=[3], bundle=common_pb2.Bundle(digest="d")
    )
    return Answer(id=request.id, response=response)


class Embedder(embedder_pb2_grpc.EmbedderServicer):
    """Answers each item as `reply` says; counts what came."""

    def __init__(self, reply: Callable[["Embedder", embedder_pb2.EmbedStreamRequest], Answer]) -> None:
        self.reply = reply
        self.came: Counter[str] = Counter()
        self.streams = 0
        self.unanswered = 0
        self.most_unanswered = 0
        self.describes = 0
        self.ends_early = False

    async def Describe(self, request: embedder_pb2.DescribeRequest, context: Any) -> embedder_pb2.DescribeResponse:  # noqa: ANN401, N802
        self.describes += 1
        if self.describes < 3:
            raise Overloaded("full", retry_after_s=0.01)
        return embedder_pb2.DescribeResponse(dims=2)

    async def EmbedStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[embedder_pb2.EmbedStreamRequest],
        context: Any,  # noqa: ANN401
    ) -> AsyncIterator[Answer]:
        self.streams += 1
        self.unanswered = 0
        if self.ends_early:
            return
        async for request in request_iterator:
            self.came[request.id] += 1
            self.unanswered += 1
            self.most_unanswered = max(self.most_unanswered, self.unanswered)
            answer = self.reply(self, request)
            self.unanswered -= 1
            yield answer


class Prober(prober_pb2_grpc.ProberServicer):
    """Full at first, then hears what came."""

    def __init__(self) -> None:
        self.calls = 0

    async def Recognize(  # noqa: N802
        self,
        request: prober_pb2.RecognizeRequest,
        context: Any,  # noqa: ANN401
    ) -> prober_pb2.RecognizeResponse:
        self.calls += 1
        if self.calls == 1:
            raise Overloaded("full", retry_after_s=0.01)
        if request.config.head == "absent":
            raise NotFound("head 'absent' is not in the registry; train it first")
        window = prober_pb2.Window(label="neutral", end_ms=len(request.audio.container))
        return prober_pb2.RecognizeResponse(overall=window, head=common_pb2.Head(name=request.config.head))


@asynccontextmanager
async def serving(folder: Path, embedder: Embedder, prober: Prober | None = None) -> AsyncIterator[str]:
    server = Server(address=f"unix:{folder / 's.sock'}", services=[], max_message_bytes=1 << 20, drain_grace_s=0)
    embedder_pb2_grpc.add_EmbedderServicer_to_server(embedder, server.grpc)  # type: ignore[no-untyped-call]
    if prober:
        prober_pb2_grpc.add_ProberServicer_to_server(prober, server.grpc)  # type: ignore[no-untyped-call]
    yield await server.start()
    await server.stop()


def _clips(count: int) -> list[Clip]:
    return [Clip(id=f"clip {n}", audio=b"x" * (n + 1)) for n in range(count)]


async def _collect(answers: AsyncIterator[Embedding | Failed]) -> dict[str, Embedding | Failed]:
    return {answer.id: answer async for answer in answers}


def _check(found: dict[str, Embedding | Failed], count: int) -> None:
    assert set(found) == {f"clip {n}" for n in range(count)}
    for n in range(count):
        answer = found[f"clip {n}"]
        assert isinstance(answer, Embedding)
        assert answer.array.tolist() == [[n + 1, n + 1]]
        assert answer.layers == (3,)


async def test_answers_are_those_of_their_clips(tmp_path: Path) -> None:
    embedder = Embedder(lambda _, request: _good(request))
    async with serving(tmp_path, embedder) as address, Client(embedder=address, in_flight=4) as client:
        _check(await _collect(client.embed(_clips(50))), 50)
    assert 1 <= embedder.streams <= 4
    assert embedder.most_unanswered <= 4


async def test_one_clip_takes_one_stream(tmp_path: Path) -> None:
    embedder = Embedder(lambda _, request: _good(request))
    async with serving(tmp_path, embedder) as address, Client(embedder=address) as client:
        _check(await _collect(client.embed(_clips(1))), 1)
    assert embedder.streams == 1


@asynccontextmanager
async def replica(embedder: Embedder, port: int = 0) -> AsyncIterator[int]:
    server = Server(address=f"127.0.0.1:{port}", services=[], max_message_bytes=1 << 20, drain_grace_s=0)
    embedder_pb2_grpc.add_EmbedderServicer_to_server(embedder, server.grpc)  # type: ignore[no-untyped-call]
    yield int((await server.start()).rpartition(":")[2])
    await server.stop()


async def test_bulk_is_spread_over_replicas_and_reaches_one_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servox.resending.CLIPS_PER_STREAM", 10)
    first, second, third = (Embedder(lambda _, request: _good(request)) for _ in range(3))
    async with AsyncExitStack() as stack:
        async with replica(third) as free:
            pass  # its port, for later
        ports = [await stack.enter_async_context(replica(each)) for each in (first, second)]
        address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in (*ports, free))
        client = await stack.enter_async_context(Client(embedder=address))

        async def source() -> AsyncIterator[Clip]:
            since_both = 0
            for clip in _clips(4000):
                since_both += bool(first.came and second.came)
                if since_both == 400:
                    assert len(first.came) > 50
                    assert len(second.came) > 50
                    await stack.enter_async_context(replica(third, free))
                if not since_both or (since_both > 400 and not third.came):
                    await asyncio.sleep(0.005)  # a channel connects to all
                if len(third.came) > 20:
                    return
                yield clip

        await _collect(client.embed(source()))
    assert len(third.came) > 20


async def test_nothing_to_embed_is_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, Embedder(lambda _, r: _good(r))) as address, Client(embedder=address) as client:
        assert await _collect(client.embed([])) == {}


async def test_clips_are_drawn_as_answers_come_back(tmp_path: Path) -> None:
    drawn: list[str] = []

    async def source() -> AsyncIterator[Clip]:
        for clip in _clips(40):
            drawn.append(clip.id)
            yield clip

    async with (
        serving(tmp_path, Embedder(lambda _, r: _good(r))) as address,
        Client(embedder=address, in_flight=3) as client,
    ):
        answers = client.embed(source())
        await anext(answers)
        assert len(drawn) <= 3 + 3 + 1 + 1  # in flight, one answer each stream and one between them, the one seen
        await _collect(answers)
    assert len(drawn) == 40


async def test_what_is_pushed_back_is_sent_again(tmp_path: Path) -> None:
    def reply(embedder: Embedder, request: embedder_pb2.EmbedStreamRequest) -> Answer:
        if embedder.came[request.id] == 1:
            return Answer(id=request.id, failure=failure_to_proto(Overloaded("full", retry_after_s=0.01)))
        return _good(request)

    embedder = Embedder(reply)
    async with serving(tmp_path, embedder) as address, Client(embedder=address) as client:
        _check(await _collect(client.embed(_clips(20))), 20)
    assert set(embedder.came.values()) == {2}


async def test_a_clip_that_is_pushed_back_for_ever_fails_alone(tmp_path: Path) -> None:
    def reply(_: Embedder, request: embedder_pb2.EmbedStreamRequest) -> Answer:
        if request.id == "0":
            return Answer(id=request.id, failure=failure_to_proto(Unavailable("no")))
        return _good(request)

    async with serving(tmp_path, Embedder(reply)) as address, channel(address) as opened:
        stub: Any = embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]
        requests = [(str(n), embedder_pb2.EmbedRequest()) for n in range(3)]
        found = {name: outcome async for name, outcome in embed_all(stub, requests, attempts=2)}
    assert isinstance(found["0"], Unavailable)
    assert isinstance(found["1"], embedder_pb2.EmbedResponse)


async def test_a_bad_clip_fails_alone_and_is_not_sent_again(tmp_path: Path) -> None:
    def reply(_: Embedder, request: embedder_pb2.EmbedStreamRequest) -> Answer:
        if request.id == "clip 2":
            return Answer(id=request.id, failure=failure_to_proto(BadAudio("silent")))
        return _good(request)

    embedder = Embedder(reply)
    async with serving(tmp_path, embedder) as address, Client(embedder=address) as client:
        found = await _collect(client.embed(_clips(5)))
    failed = found.pop("clip 2")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, BadAudio)
    assert all(isinstance(answer, Embedding) for answer in found.values())
    assert embedder.came["clip 2"] == 1


async def test_a_stream_that_breaks_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def reply(embedder: Embedder, request: embedder_pb2.EmbedStreamRequest) -> Answer:
        if embedder.streams < 4 and sum(embedder.came.values()) % 5 == 0:
            raise Unavailable("stopping")
        return _good(request)

    embedder = Embedder(reply)
    async with serving(tmp_path, embedder) as address, Client(embedder=address, in_flight=4) as client:
        _check(await _collect(client.embed(_clips(30))), 30)
    assert 4 <= embedder.streams <= 3 + 4
    assert sum(embedder.came.values()) < 30 + 4 * 4, "only what was unanswered is sent again"


async def test_a_server_that_ends_early_is_asked_again_and_then_given_up(tmp_path: Path) -> None:
    embedder = Embedder(lambda _, request: _good(request))
    embedder.ends_early = True
    async with serving(tmp_path, embedder) as address, channel(address) as opened:
        stub: Any = embedder_pb2_grpc.EmbedderStub(opened)  # type: ignore[no-untyped-call]
        # A write that crosses the end makes grpc.aio report an internal error instead.
        with pytest.raises(Unavailable, match=r"unanswered|Internal error from Core"):
            async for _ in embed_all(stub, [("a", embedder_pb2.EmbedRequest())], attempts=2):
                pass
    assert embedder.streams == 2


async def test_a_refusal_of_the_whole_stream_is_raised_as_what_it_is(tmp_path: Path) -> None:
    def reply(_: Embedder, __: embedder_pb2.EmbedStreamRequest) -> Answer:
        raise BadInput("id '' is empty")

    embedder = Embedder(reply)
    async with serving(tmp_path, embedder) as address, Client(embedder=address) as client:
        with pytest.raises(BadInput, match="is empty"):
            await _collect(client.embed(_clips(3)))
    # A write that crosses the refusal makes grpc.aio report an internal error instead; the next stream hears it.
    assert embedder.streams <= 3 * 3


async def test_one_id_for_two_clips_is_refused(tmp_path: Path) -> None:
    def reply(_: Embedder, request: embedder_pb2.EmbedStreamRequest) -> Answer:
        return _good(request)

    twice = [Clip(id="a", audio=b"x"), Clip(id="a", audio=b"y")]
    async with serving(tmp_path, Embedder(reply)) as address, Client(embedder=address) as client:
        with pytest.raises(BadInput, match="'a' comes twice"):
            await _collect(client.embed(twice))


async def test_what_the_source_raises_is_raised(tmp_path: Path) -> None:
    async def source() -> AsyncIterator[Clip]:
        yield _clips(1)[0]
        raise LookupError("the list ended badly")

    async with serving(tmp_path, Embedder(lambda _, r: _good(r))) as address, Client(embedder=address) as client:
        with pytest.raises(LookupError, match="ended badly"):
            await _collect(client.embed(source()))


async def test_unreadable_files_fail_alone(tmp_path: Path) -> None:
    (here := tmp_path / "here.wav").write_bytes(b"12345")
    async with serving(tmp_path, Embedder(lambda _, r: _good(r))) as address, Client(embedder=address) as client:
        found = await _collect(client.embed(files(tmp_path / "gone.wav", here, tmp_path)))
    gone, kept, folder = (found[str(path)] for path in (tmp_path / "gone.wav", here, tmp_path))
    assert isinstance(gone, Failed)
    assert isinstance(gone.error, NotFound)
    assert isinstance(folder, Failed)
    assert isinstance(kept, Embedding)
    assert kept.array[0, 0] == 5


async def test_a_clip_over_the_message_limit_fails_alone(tmp_path: Path) -> None:
    large = Clip(id="large", audio=b"x" * (1 << 20))
    embedder = Embedder(lambda _, request: _good(request))
    async with serving(tmp_path, embedder) as address, Client(embedder=address, max_message_bytes=1 << 20) as client:
        found = await _collect(client.embed([*_clips(3), large, *[Clip(id="last", audio=b"x")]]))
        alone = await _collect(client.embed([large]))
    for answers in (found, alone):
        failed = answers.pop("large")
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, TooLarge)
    assert all(isinstance(answer, Embedding) for answer in found.values())
    assert len(found) == 4


async def test_grpcs_own_refusal_of_a_large_message_is_not_retried(tmp_path: Path) -> None:
    prober = Prober()
    prober.calls = 1
    async with serving(tmp_path, Embedder(lambda _, r: _good(r)), prober) as address, Client(prober=address) as client:
        with pytest.raises(TooLarge, match="larger than max"):
            await client.recognize(b"x" * (2 << 20), head="mine")


async def test_leaving_early_leaves_nothing_behind(tmp_path: Path) -> None:
    async with serving(tmp_path, Embedder(lambda _, r: _good(r))) as address, Client(embedder=address) as client:
        answers = client.embed(_clips(100))
        await anext(answers)
        await answers.aclose()
        await asyncio.sleep(0.05)
        others = {task for task in asyncio.all_tasks() if "resending" in repr(task)}
    assert others == set()


class Silent(Embedder):
    """Answers the first clip, and then nothing until the call is cancelled."""

    def __init__(self) -> None:
        super().__init__(lambda _, request: _good(request))
        self.cancelled = asyncio.Event()

    async def EmbedStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[embedder_pb2.EmbedStreamRequest],
        context: Any,  # noqa: ANN401
    ) -> AsyncIterator[Answer]:
        try:
            async for request in request_iterator:
                if request.id != "clip 0":
                    await asyncio.sleep(60)
                yield _good(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def test_what_is_not_embedded_in_time_ends_with_the_callers_deadline(tmp_path: Path) -> None:
    found = set[str]()

    async def heard(clips: Iterable[Clip]) -> None:
        async for answer in client.embed(clips, timeout_s=3.0):
            found.add(answer.id)

    embedder = Silent()
    async with serving(tmp_path, embedder) as address, Client(embedder=address, in_flight=2) as client:
        await client.describe()  # it is connected
        with pytest.raises(DeadlineExpired, match=r"embedder at .* did not finish within timeout_s = 3"):
            await heard(_clips(2))
        await asyncio.wait_for(embedder.cancelled.wait(), 10)
        with pytest.raises(DeadlineExpired, match="timeout_s = 1e-05"):
            await anext(client.embed(_clips(1), timeout_s=1e-5))
    assert found == {"clip 0"}


async def test_a_timeout_of_the_source_is_not_the_callers_deadline(tmp_path: Path) -> None:
    def source() -> Iterator[Clip]:
        yield _clips(1)[0]
        raise TimeoutError("the disk did not answer")

    async with serving(tmp_path, Embedder(lambda _, r: _good(r))) as address, Client(embedder=address) as client:
        with pytest.raises(TimeoutError, match="the disk"):
            await _collect(client.embed(source(), timeout_s=60))


async def test_calls_wait_out_an_overload(tmp_path: Path) -> None:
    embedder, prober = Embedder(lambda _, r: _good(r)), Prober()
    async with serving(tmp_path, embedder, prober) as address, Client(embedder=address, prober=address) as client:
        assert (await client.describe()).dims == 2
        heard = await client.recognize(b"abc", head="mine")
        assert (heard.overall.label, heard.overall.end_ms, heard.head.name) == ("neutral", 3, "mine")
        with pytest.raises(NotFound, match="'absent'"):
            await client.recognize(b"abc", head="absent")
    assert prober.calls == 3


async def test_nobody_there_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servox.client.CONNECT_S", 0.05)
    monkeypatch.setattr("servox.client.ATTEMPTS", 1)
    async with Client(embedder=f"unix:{tmp_path / 'none.sock'}", prober=f"unix:{tmp_path / 'none.sock'}") as client:
        with pytest.raises(Unavailable, match=r"prober at unix:.*none\.sock"):
            await client.recognize(b"abc", head="mine")


async def test_an_address_that_was_not_given_is_asked_for() -> None:
    async with Client() as client:
        with pytest.raises(BadSetting, match=r"Client\(embedder="):
            await client.describe()


async def test_an_unknown_pooling_is_refused() -> None:
    async with Client(embedder="localhost:1") as client:
        with pytest.raises(BadInput, match="'max'"):
            await _collect(client.embed([], pooling="max"))  # type: ignore[arg-type]  # what a caller may do


@pytest.mark.parametrize(("shape", "channels"), [((5,), 1), ((5, 2), 2)])
def test_samples_become_float_pcm(shape: tuple[int, ...], channels: int) -> None:
    samples = np.random.default_rng(0).normal(size=shape)
    audio = pcm(samples, 8_000)
    assert (audio.pcm.rate_hz, audio.pcm.channels) == (8_000, channels)
    np.testing.assert_allclose(np.frombuffer(audio.pcm.data, "<f4").reshape(shape), samples, rtol=1e-6)


def test_samples_of_three_dimensions_are_no_audio() -> None:
    with pytest.raises(BadInput, match=r"\(2, 2, 2\)"):
        pcm(np.zeros((2, 2, 2)), 8_000)


def test_pauses_grow_and_respect_what_the_server_asked_for() -> None:
    for attempt in range(12):
        assert min(0.1 * 2**attempt, 5) <= pause_s(Unavailable("x"), attempt) <= 7.5
    assert 9 <= pause_s(Overloaded("x", retry_after_s=9), 0) <= 13.5


async def test_the_sync_face_does_the_same_without_a_loop(tmp_path: Path) -> None:
    def work(address: str) -> tuple[dict[str, Embedding | Failed], int, str | None]:
        with SyncClient(embedder=address, prober=address) as client:
            dims = client.describe().dims
            label = client.recognize(b"abc", head="mine").overall.label
            with pytest.raises(DeadlineExpired, match="timeout_s = 1e-05"):
                next(iter(client.embed(_clips(1), timeout_s=1e-5)))
            answers = client.embed(_clips(30), timeout_s=60)
            first = next(iter(answers))
            answers.close()  # type: ignore[attr-defined]  # it is a generator
            assert isinstance(first, Embedding)
            return {answer.id: answer for answer in client.embed(_clips(30))}, dims, label

    async with serving(tmp_path, Embedder(lambda _, r: _good(r)), Prober()) as address:
        found, dims, label = await asyncio.to_thread(work, address)
    _check(found, 30)
    assert (dims, label) == (2, "neutral")


def test_the_client_needs_no_more_than_a_bare_install() -> None:
    code = textwrap.dedent("""
        import sys
        import servox.client
        heavy = {"torch", "transformers", "soundfile", "av", "pyarrow", "pydantic", "prometheus_client", "onnxruntime",
                 "pandas", "sounddevice", "typer", "rich"}
        print(sorted(heavy & set(sys.modules)))
    """)
    assert importlib.util.find_spec("soundfile"), "or this would prove nothing"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
