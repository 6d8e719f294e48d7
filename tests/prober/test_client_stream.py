"""The client's streams against real probers: the windows of an upload, over connections that are lost on the way."""
# ruff: noqa: ANN401, ARG002, ASYNC240 -- small files; fixtures of this package have no types to import

import asyncio
import dataclasses
import io
import signal
import subprocess
import sys
import time
import wave
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile

from services.prober.registry import Registry
from services.prober.server import ProberServer
from services.prober.settings import Settings
from servox.client import Abstention, Client, Heard, SyncClient, Window, pcm, together
from servox.errors import BadAudio, BadInput, BadSetting, DeadlineExpired, NotFound, Unavailable
from servox.rpc import Server
from servox.telemetry import Metrics
from servox.v1 import embedder_pb2_grpc, prober_pb2, prober_pb2_grpc

RATE = 8000
ASKED: dict[str, Any] = {"head": "toy", "window_ms": 500, "hop_ms": 210}


def sound(seconds: float = 4.0, channels: int = 1) -> Any:
    """Int16 noise [n, channels] that becomes louder, with a silent second in it."""
    count = int(seconds * RATE)
    values = np.random.default_rng(3).normal(size=(count, channels)) * np.linspace(0.02, 0.2, count)[:, None]
    values[RATE : 2 * RATE] = 0
    return (values * 32767).astype(np.int16)


def cut(samples: Any, *sizes: int) -> Iterator[Any]:
    """Chunks of these sizes, over and over."""
    start, turn = 0, 0
    while start < len(samples):
        size = sizes[turn % len(sizes)]
        yield samples[start : start + size]
        start, turn = start + size, turn + 1


def wav(samples: Any) -> bytes:
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return sink.getvalue()


async def train(stub: Any, corpus: Any) -> None:
    spec = corpus.spec(kind=prober_pb2.HEAD_KIND_LOGISTIC, calibrate=True)
    request = prober_pb2.TrainRequest(store_url=corpus.store, heads=[spec])
    async for _ in stub.Train(request, wait_for_ready=True):  # a socket is there before it is listened on
        pass


@pytest.fixture
def toy(pair: Any) -> Any:
    """An embedder that is not served yet."""
    return type(pair.embedder)()


@pytest.fixture
async def client(pair: Any, corpus: Any) -> AsyncIterator[Client]:
    await train(pair.prober, corpus)
    async with Client(prober=pair.address) as client:
        yield client


async def heard(stream: AsyncIterator[Heard]) -> list[Window]:
    return [each.window async for each in stream]


def plain(windows: Any) -> list[tuple[Any, ...]]:
    """Windows as they must not differ, to the last bit."""
    return [dataclasses.astuple(window) for window in windows]


async def test_a_stream_answers_what_an_upload_does(client: Client, tmp_path: Path) -> None:
    samples = sound()
    upload = await client.recognize(wav(samples), **ASKED)
    (tmp_path / "a.wav").write_bytes(wav(samples))
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    sources: list[Any] = [
        str(tmp_path / "a.wav"),
        wav(samples),
        tmp_path / "a.flac",
        (tmp_path / "a.flac").read_bytes(),
    ]
    for source in sources:
        assert plain(await heard(client.stream(source, **ASKED))) == plain(upload.windows), source
    chunks = cut(samples, 1, 700, 33, 4000)
    assert plain(await heard(client.stream(chunks, rate_hz=RATE, **ASKED))) == plain(upload.windows)
    floats = (chunk.astype(np.float32) / 32768 for chunk in cut(samples, 2500))
    assert plain(await heard(client.stream(floats, rate_hz=RATE, **ASKED))) == plain(upload.windows)
    flat = (chunk[:, 0] for chunk in cut(samples, 999))
    assert plain(await heard(client.stream(flat, rate_hz=RATE, **ASKED))) == plain(upload.windows)
    assert [window.index for window in upload.windows] == list(range(len(upload.windows)))
    silent = [window for window in upload.windows if window.abstention is Abstention.SILENCE]
    assert silent
    assert all(window.start_ms >= 1000 and window.end_ms <= 2000 for window in silent)


@pytest.mark.parametrize("seconds", [4.0, 1.5])
async def test_windows_together_are_what_the_prober_makes_of_them(client: Client, seconds: float) -> None:
    samples = sound(5.0)[: int(seconds * RATE)] if seconds > 2 else np.zeros((int(seconds * RATE), 1), np.int16)
    for options in (ASKED, {**ASKED, "every_window": True}):
        upload = await client.recognize(wav(samples), **options)
        found = together([each async for each in client.stream(wav(samples), **options)])
        assert found.overall.probabilities == pytest.approx(upload.overall.probabilities, abs=1e-12)
        assert found.overall.abstention == upload.overall.abstention
        assert found.overall.novelty == pytest.approx(upload.overall.novelty)
        assert (found.overall.start_ms, found.overall.end_ms, found.overall.label) == (
            upload.overall.start_ms,
            upload.overall.end_ms,
            upload.overall.label,
        )
        assert (found.head, found.bundle, found.prior) == (upload.head, upload.bundle, upload.prior)


async def test_channels_are_those_of_the_upload(client: Client) -> None:
    samples = sound(2.5, channels=2)
    upload = await client.recognize(wav(samples), **ASKED)
    assert plain(await heard(client.stream(cut(samples, 321), rate_hz=RATE, **ASKED))) == plain(upload.windows)


async def test_each_window_says_what_made_it(client: Client, corpus: Any) -> None:
    upload = await client.recognize(pcm(sound(1.0) / 32768, RATE), prior="uniform", **ASKED)
    async for each in client.stream(cut(sound(1.0), 800), rate_hz=RATE, prior="uniform", **ASKED):
        assert (each.head, each.bundle.digest) == (upload.head, corpus.bundle)
        assert set(each.prior.values()) == {1 / 3}


async def test_the_sync_face_streams_as_well(client: Client, pair: Any) -> None:
    def work() -> list[Window]:
        with SyncClient(prober=pair.address) as sync:
            first = next(iter(sync.stream(cut(sound(), 500), rate_hz=RATE, **ASKED)))
            assert [each.head.name for each in sync.heads()] == ["toy"]
            found = [each.window for each in sync.stream(cut(sound(), 500), rate_hz=RATE, **ASKED)]
            assert found[0] == first.window
            return found

    upload = await client.recognize(wav(sound()), **ASKED)
    assert plain(await asyncio.to_thread(work)) == plain(upload.windows)


async def test_an_empty_source_is_what_the_prober_says_of_it(client: Client) -> None:
    assert await heard(client.stream([], rate_hz=RATE, **ASKED)) == []


@pytest.mark.parametrize(
    ("source", "options", "error", "said"),
    [
        ([], {}, BadSetting, "rate_hz: none given"),
        (b"RIFF", {"rate_hz": 8000}, BadSetting, "the file tells its own"),
        ("gone.wav", {}, NotFound, "gone.wav: No such file"),
        (b"no audio at all" * 99, {}, BadAudio, "not audio"),
        ([np.zeros((2, 2, 2))], {"rate_hz": RATE}, BadInput, r"shape \(2, 2, 2\)"),
        ([np.zeros(9, dtype=np.int32)], {"rate_hz": RATE}, BadInput, "chunk of int32"),
        ([np.zeros(9), np.zeros(9, dtype=np.int16)], {"rate_hz": RATE}, BadInput, "keeps its format"),
        ([np.zeros(9), np.zeros((9, 2))], {"rate_hz": RATE}, BadInput, "2 channels .* after chunks of 1"),
        ([np.zeros(9)], {"rate_hz": 10}, BadInput, "rate_hz = 10"),
        ([np.full(9, np.nan)], {"rate_hz": RATE}, BadAudio, "not finite"),
        ([np.zeros(9)], {"rate_hz": RATE, "head": "tou"}, NotFound, "did you mean toy"),
        ([np.zeros(9)], {"rate_hz": RATE, "window_ms": 7}, BadInput, "window_ms = 7"),
        ([np.zeros(9)], {"rate_hz": RATE, "prior": "flat"}, BadInput, "'flat' is unknown"),
        ([np.zeros(9)], {"rate_hz": RATE, "prior": {"anger": 1.0}}, BadInput, "missing classes"),
    ],
)
async def test_wrong_input_is_said_at_once(
    client: Client, source: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    began_s = time.monotonic()
    with pytest.raises(error, match=said):
        await heard(client.stream(source, **{**ASKED, **options}))
    assert time.monotonic() - began_s < 20, "it is no matter of trying again"


async def test_what_the_source_raises_is_raised(client: Client) -> None:
    async def source() -> AsyncIterator[Any]:
        yield sound(1.0)
        raise Unavailable("the microphone was pulled out")

    with pytest.raises(Unavailable, match="pulled out"):
        await heard(client.stream(source(), rate_hz=RATE, **ASKED))


async def test_leaving_early_leaves_nothing_behind(client: Client) -> None:
    closed = asyncio.Event()

    async def source() -> AsyncIterator[Any]:
        try:
            while True:
                yield sound(1.0)
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    stream = client.stream(source(), rate_hz=RATE, **ASKED)
    await anext(stream)
    await stream.aclose()
    # A task's text names the file of its coroutine.
    assert not [task for task in asyncio.all_tasks() if "/servox/live.py" in repr(task)]
    assert closed.is_set()


async def test_a_deadline_ends_a_stream_by_name(client: Client) -> None:
    async def source() -> AsyncIterator[Any]:
        while True:
            yield sound(0.1)
            await asyncio.sleep(0.05)

    with pytest.raises(DeadlineExpired, match=r"prober at .* did not finish within timeout_s = 0.7"):
        await heard(client.stream(source(), rate_hz=RATE, timeout_s=0.7, **ASKED))
    with pytest.raises(DeadlineExpired, match="timeout_s = 1e-05"):
        await client.recognize(wav(sound()), timeout_s=1e-5, **ASKED)


async def test_a_prober_that_stays_away_is_given_up(tmp_path: Path) -> None:
    async with Client(prober=f"unix:{tmp_path / 'nobody.sock'}") as client:
        with pytest.raises(Unavailable, match="prober at unix:"):
            await heard(client.stream(cut(sound(), 500), rate_hz=RATE, reconnect_s=0, **ASKED))


class Silent(prober_pb2_grpc.ProberServicer):
    """Reads as fast as it can and answers nothing."""

    async def RecognizeStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for _ in request_iterator:
            pass
        await asyncio.Event().wait()
        yield


async def test_a_source_waits_for_a_prober_that_falls_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servox.live.BEHIND_S", 1)
    server = Server(address=f"unix:{tmp_path / 's.sock'}", services=[], max_message_bytes=1 << 20, drain_grace_s=0)
    prober_pb2_grpc.add_ProberServicer_to_server(Silent(), server.grpc)  # type: ignore[no-untyped-call]
    drawn = 0

    async def source() -> AsyncIterator[Any]:
        nonlocal drawn
        for chunk in cut(sound(30), RATE // 10):
            drawn += 1
            yield chunk

    async with Client(prober=await server.start()) as client:
        with pytest.raises(DeadlineExpired):
            await heard(client.stream(source(), rate_hz=RATE, timeout_s=0.5, **ASKED))
    await server.stop()
    assert drawn * 0.1 <= 1 + 0.5 + 0.21 + 0.2


class Restartable:
    """A prober in this process that can be stopped in the middle of everything and started again."""

    def __init__(self, folder: Path, embedder: str) -> None:
        flags = {"grpc_socket": folder / "r.sock", "heads": folder / "heads", "metrics_port": 0, "http_port": 0}
        self._settings = Settings.load({**flags, "embedder": embedder, "drain_grace_s": 0})
        self.address = ""
        self.starts = 0

    async def start(self) -> None:
        self._server = ProberServer(self._settings, Metrics())
        self.address = await self._server.start()
        self.starts += 1

    async def stop(self) -> None:
        await self._server.stop()

    async def restart(self) -> None:
        await self.stop()
        await self.start()


@asynccontextmanager
async def embedder_at(folder: Path, toy: Any) -> AsyncIterator[str]:
    server = Server(address=f"unix:{folder / 'x.sock'}", services=[], max_message_bytes=1 << 26, drain_grace_s=0)
    embedder_pb2_grpc.add_EmbedderServicer_to_server(toy, server.grpc)  # type: ignore[no-untyped-call]
    yield await server.start()
    await server.stop()


@asynccontextmanager
async def restartable(folder: Path, toy: Any) -> AsyncIterator[Restartable]:
    async with embedder_at(folder, toy) as address:
        prober = Restartable(folder, address)
        await prober.start()
        try:
            yield prober
        finally:
            await prober.stop()


@pytest.mark.parametrize("kind", ["chunks", "wav", "flac"])
async def test_a_stream_that_loses_its_server_answers_what_an_unbroken_one_does(
    tmp_path: Path, corpus: Any, toy: Any, kind: str
) -> None:
    samples = sound(6.0)
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    sources: dict[str, Callable[[], tuple[Any, int | None]]] = {
        "chunks": lambda: (cut(samples, 611), RATE),
        "wav": lambda: (wav(samples), None),
        "flac": lambda: (tmp_path / "a.flac", None),
    }
    async with restartable(tmp_path, toy) as prober, Client(prober=prober.address) as client:
        async with grpc.aio.insecure_channel(prober.address) as opened:
            await train(prober_pb2_grpc.ProberStub(opened), corpus)  # type: ignore[no-untyped-call]
        upload = await client.recognize(wav(samples), **ASKED)
        source, rate_hz = sources[kind]()
        found, versions = [], set()
        async for each in client.stream(source, rate_hz=rate_hz, **ASKED):
            found.append(each.window)
            versions.add(each.head.version)
            if each.window.index in (0, 3, 4, len(upload.windows) - 2):
                if each.window.index == 3:  # another version becomes what the name means
                    registry = Registry(tmp_path / "heads")
                    head = registry.get("toy")
                    card = dataclasses.replace(head.card, version="f" * 16, temperature=9.0)
                    registry.save(dataclasses.replace(head, card=card))
                await prober.restart()
    assert prober.starts >= 4
    assert plain(found) == plain(upload.windows)
    assert versions == {upload.head.version}


def served(folder: Path, embedder: str) -> "subprocess.Popen[bytes]":
    """A prober as a process, which is ready when its socket is there."""
    socket = folder / "k.sock"
    socket.unlink(missing_ok=True)
    flags = {"grpc-socket": socket, "heads": folder / "heads", "embedder": embedder, "metrics-port": 0, "http-port": 0}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [str(Path(sys.executable).parent / "servox"), "serve", "prober", *words]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


async def there(path: Path) -> None:
    give_up_s = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < give_up_s
        await asyncio.sleep(0.05)


@pytest.mark.slow  # starts a process twice
async def test_a_killed_process_costs_nothing_but_time(tmp_path: Path, corpus: Any, toy: Any) -> None:
    samples, address = sound(5.0), f"unix:{tmp_path / 'k.sock'}"
    async with embedder_at(tmp_path, toy) as embedder:
        process = served(tmp_path, embedder)
        try:
            await there(tmp_path / "k.sock")
            async with grpc.aio.insecure_channel(address) as opened:
                await train(prober_pb2_grpc.ProberStub(opened), corpus)  # type: ignore[no-untyped-call]
            async with Client(prober=address) as client:
                upload = await client.recognize(wav(samples), **ASKED)
                found = []
                async for each in client.stream(cut(samples, 100), rate_hz=RATE, reconnect_s=120, **ASKED):
                    found.append(each.window)
                    if each.window.index == 5:
                        process.send_signal(signal.SIGKILL)
                        process.wait()
                        process = served(tmp_path, embedder)
            assert plain(found) == plain(upload.windows)
        finally:
            process.kill()
            process.wait()
