"""Faults against a running server process: whatever is done to it, it answers, or ends with a reason.

`SERVOX_FAULTS=20` does everything twenty times as often; `SERVOX_FAULTS_LOG=file` gets one line of JSON a fault: what
was tried, how often, what happened.
"""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.fuzz import Running, damaged, running, serving, whole_files
from servox.client import pcm
from servox.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc

pytestmark = pytest.mark.xdist_group("faults")

TIMES = int(os.environ.get("SERVOX_FAULTS", "1"))
COMMAND = [sys.executable, "-c", "from services.cli import main; main()", "serve", "embedder"]
MESSAGE_BYTES = 4 << 20
METHOD = b"servox.v1.Embedder/Embed"
NO_RETRY = [("grpc.enable_retries", 0)]
LOOSE = [("grpc.max_send_message_length", -1), *NO_RETRY]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and an empty SETTINGS frame
Reply = embedder_pb2.EmbedResponse


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, hold_port: Callable[[], int]) -> Iterator[Running]:
    """One process for all faults that it has to survive."""
    flags = {"decode-workers": 2, "max-inflight-audio-s": 60, "max-message-bytes": MESSAGE_BYTES}
    with running(
        tiny_bundle, *(f"--{name}={value}" for name, value in flags.items()), metrics_port=hold_port()
    ) as found:
        yield found


@pytest.fixture(scope="module")
def clip(speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]) -> bytes:
    """A good file of one second."""
    noise = np.random.default_rng(0).normal(0, 0.05, 16_000).astype(np.float32)
    return encoded(speech(1.0) + noise, kind="FLAC", subtype="PCM_16")


@pytest.fixture(scope="module")
def heavy(speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]) -> bytes:
    """A good file of 25 seconds that takes a while to decode."""
    return encoded(speech(25, rate_hz=48_000), rate_hz=48_000, kind="FLAC", subtype="PCM_16")


def _file(data: bytes) -> embedder_pb2.EmbedRequest:
    return embedder_pb2.EmbedRequest(audio=common_pb2.Audio(container=data))


@asynccontextmanager
async def _stub(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address, options=LOOSE) as channel:
        yield embedder_pb2_grpc.EmbedderStub(channel)  # type: ignore[no-untyped-call]


async def _outcome(call: Any) -> str:  # noqa: ANN401 -- gRPC's call
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "ok"


async def _well(server: Running, clip: bytes) -> None:
    """The server serves, embeds a good clip, and holds nothing."""
    assert await serving(server.address)
    # What callers left behind a moment ago may still fill the server.
    await _until(lambda metrics: metrics["servox_embedder_inflight_audio_seconds"] == 0, server)
    async with _stub(server.address) as stub:
        assert (await stub.Embed(_file(clip), timeout=30)).duration_ms == 1_000
    await _until(lambda metrics: metrics["servox_embedder_inflight_audio_seconds"] == 0, server)
    assert server.metrics()["servox_embedder_queued_audio_seconds"] == 0


async def _until(met: Callable[[dict[str, float]], bool], server: Running) -> None:
    async with asyncio.timeout(30):
        while not met(await asyncio.to_thread(server.metrics)):  # noqa: ASYNC110 -- a gauge has no event
            await asyncio.sleep(0.05)


def _record(fault: str, tried: int, **happened: object) -> None:
    if path := os.environ.get("SERVOX_FAULTS_LOG"):
        with Path(path).open("a") as file:
            file.write(json.dumps({"fault": fault, "tried": tried, **happened}) + "\n")


def _children(pid: int) -> list[int]:
    found = []
    for each in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that ended since
            found += [int(child) for child in each.read_text().split()]
    return found


def _open_files(server: Running) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


async def _gone(pids: list[int]) -> None:
    async with asyncio.timeout(20):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):  # noqa: ASYNC110, ASYNC240 -- /proc has no event
            await asyncio.sleep(0.02)


# ---- bad bytes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embed(server: Running) -> Iterator[Callable[[bytes], str]]:
    """Sends one file and waits; says what became of it."""
    with grpc.insecure_channel(server.address, options=NO_RETRY) as channel:
        stub: Any = embedder_pb2_grpc.EmbedderStub(channel)  # type: ignore[no-untyped-call]

        def send(data: bytes) -> str:
            try:
                stub.Embed(_file(data), timeout=30)
            except grpc.RpcError as error:
                call: Any = error
                assert "decoder fails on" not in call.details(), call.details()
                return str(call.code().name)
            return "ok"

        yield send


WHOLE = whole_files()


@settings(max_examples=150 * TIMES, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_files_are_answered_by_themselves(embed: Callable[[bytes], str], data: st.DataObject) -> None:
    whole = WHOLE[data.draw(st.integers(0, len(WHOLE) - 1))]
    spoilt = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    for _ in range(data.draw(st.integers(0, 8))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    assert embed(bytes(spoilt)) in ("ok", "INVALID_ARGUMENT")


@settings(max_examples=150 * TIMES)
@given(seed=st.integers(0, 1 << 32))
def test_spliced_resized_and_repeated_files_are_answered_by_themselves(
    embed: Callable[[bytes], str], seed: int
) -> None:
    assert embed(damaged(WHOLE, np.random.default_rng(seed))) in ("ok", "INVALID_ARGUMENT")


async def test_bombs_cost_their_own_clip_only(server: Running, clip: bytes, encoded: Callable[..., bytes]) -> None:
    """A FLAC of 100 kB that grows to a gigabyte, and a WAV of nothing but empty chunks."""
    bomb = encoded(np.full((12 * 655_350, 8), 0.25, np.float32), rate_hz=655_350, kind="FLAC", subtype="PCM_16")
    maze = b"RIFF\xff\xff\xff\x7fWAVE" + bytes(3 << 20)
    assert len(bomb) < 1 << 20
    good = {str(n): _file(clip) for n in range(20 * TIMES)}
    bad = {f"bad {n}": _file((bomb, maze)[n % 2]) for n in range(2 * TIMES)}
    messages = [embedder_pb2.EmbedStreamRequest(id=each, request=request) for each, request in (bad | good).items()]
    async with _stub(server.address) as stub:
        kinds = {answer.id: answer.failure.kind async for answer in stub.EmbedStream(iter(messages))}
    assert kinds == {f"bad {n}": ("TooLarge", "BadAudio")[n % 2] for n in range(2 * TIMES)} | dict.fromkeys(good, "")
    await _well(server, clip)
    assert server.metrics()['servox_embedder_decode_restarts_total{reason="memory"}'] >= 1
    _record("files that grow to gigabytes, mazes of empty chunks", len(bad), neighbours_unharmed=len(good))


async def test_a_message_over_the_limit_is_refused_and_nothing_else(server: Running, clip: bytes) -> None:
    memory_mb = server.memory_mb()
    async with _stub(server.address) as stub:
        sizes = [MESSAGE_BYTES, MESSAGE_BYTES + 1, 2 * MESSAGE_BYTES, 8 * MESSAGE_BYTES] * TIMES
        answers = await asyncio.gather(*(_outcome(stub.Embed(_file(bytes(size)))) for size in sizes))
        assert set(answers) == {"RESOURCE_EXHAUSTED"}
    await _well(server, clip)
    grown_mb = round(server.memory_mb() - memory_mb)
    assert grown_mb < 8 * MESSAGE_BYTES >> 20
    _record("messages over the limit, up to eight times", len(sizes), refused=len(answers), grown_mb=grown_mb)


# ---- bad connections -----------------------------------------------------------------------------------------


@asynccontextmanager
async def _proxy(address: str, spoil: Callable[[int, bytes], bytes]) -> AsyncIterator[str]:
    """Forwards connections; `spoil(offset, bytes)` says what goes on to the server: less of it aborts both ends."""
    host, port = address.rsplit(":", 1)

    async def pump(reader: asyncio.StreamReader, ends: list[asyncio.StreamWriter], *, spoiled: bool) -> None:
        offset = 0
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                passed = spoil(offset, data) if spoiled else data
                offset += len(data)
                ends[0].write(passed)
                await ends[0].drain()
                if len(passed) < len(data):
                    for end in ends:
                        end.transport.abort()
                    return
        for end in ends:
            end.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, onwards = await asyncio.open_connection(host, int(port))
        await asyncio.gather(
            pump(reader, [onwards, writer], spoiled=True), pump(upstream, [writer, onwards], spoiled=False)
        )

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


async def test_frames_cut_anywhere_leave_nothing_behind(server: Running, clip: bytes) -> None:
    rng, outcomes = np.random.default_rng(1), Counter[str]()
    for _ in range(60 * TIMES):
        at = int(rng.integers(0, len(clip) + 400))

        def cut(offset: int, data: bytes, at: int = at) -> bytes:
            return data[: max(0, at - offset)]

        async with _proxy(server.address, cut) as address, _stub(address) as stub:
            outcomes[await _outcome(stub.Embed(_file(clip), timeout=2))] += 1
    assert set(outcomes) <= {"ok", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert outcomes["ok"] < 60 * TIMES
    await _well(server, clip)
    _record("connections cut inside a frame", outcomes.total(), callers_saw=dict(outcomes))


async def test_flipped_bytes_of_the_protocol_harm_their_own_connection(server: Running, clip: bytes) -> None:
    rng, outcomes = np.random.default_rng(2), Counter[str]()
    async with _proxy(server.address, lambda _, data: data) as plain, _stub(plain) as stub:
        assert await _outcome(stub.Embed(_file(clip))) == "ok", "the proxy itself is harmless"
    for _ in range(60 * TIMES):
        at = int(rng.integers(0, 600))

        def flip(offset: int, data: bytes, at: int = at) -> bytes:
            path = data.find(b"servox.v1")
            if not offset <= at < offset + len(data) or path - 3 <= at - offset < path + len(METHOD):
                return data
            spoilt = bytearray(data)
            spoilt[at - offset] ^= 0xFF
            return bytes(spoilt)

        async with _proxy(server.address, flip) as address, _stub(address) as stub:
            outcomes[await _outcome(stub.Embed(_file(clip), timeout=2))] += 1
    await _well(server, clip)
    _record("frames with a flipped byte", outcomes.total(), callers_saw=dict(outcomes))


def test_a_path_that_is_not_text_ends_the_process_instead_of_leaving_it_deaf(tiny_bundle: Path) -> None:
    """gRPC's accepting loop dies of it (grpcio 1.85); a process that lived on without would be worse than none."""
    flags = ["--bundle", str(tiny_bundle), "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen([*COMMAND, *flags], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        address = next(line.split()[2] for line in process.stderr if line.startswith("serving on"))
        with grpc.insecure_channel(address, options=NO_RETRY) as channel:
            path: Any = b"/servox.v1.\x89mbedder/Embed"
            call: Any = channel.unary_unary(path)
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=10)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "error: gRPC's server ended by itself (UnicodeDecodeError" in errors
    _record("a path that is not UTF-8", 1, exit_code=process.returncode)


async def test_slow_writers_and_silent_connections_hold_nobody_up(server: Running, clip: bytes) -> None:
    """Connections that stop inside the preface or inside a frame, and a caller whose bytes come a few at a time."""
    host, port = server.address.rsplit(":", 1)
    started = PREFACE + struct.pack(">I", 20_000)[1:] + b"\0\0\0\0\0\1" + bytes(40)  # half a DATA frame
    stuck = []
    for number in range(100 * TIMES):
        each = socket.create_connection((host, int(port)))
        each.sendall((PREFACE[: number % len(PREFACE)], started)[number % 2])
        stuck.append(each)

    async def trickle() -> str:
        async with _proxy(server.address, lambda _, data: data) as address:
            slow = [("grpc.http2.max_frame_size", 16_384), ("grpc.experimental.http2.write_buffer_size", 100)]
            async with grpc.aio.insecure_channel(address, options=[*LOOSE, *slow]) as channel:
                stub: Any = embedder_pb2_grpc.EmbedderStub(channel)  # type: ignore[no-untyped-call]
                return await _outcome(stub.Embed(_file(clip), timeout=30))

    assert await trickle() == "ok"
    await _well(server, clip)
    for each in stuck:
        each.close()
    _record("writers that stop inside the preface or a frame", len(stuck), others="answered")


async def test_callers_that_do_not_read_are_slowed_down_and_hold_nobody_up(
    server: Running, clip: bytes, speech: Callable[..., np.ndarray]
) -> None:
    request = embedder_pb2.EmbedRequest(audio=pcm(speech(20), 16_000), pooling=embedder_pb2.POOLING_FRAMES)
    offered, memory_mb = 1_000, server.memory_mb()
    ok = 'servox_embedder_requests_total{method="EmbedStream",outcome="ok"}'
    before = server.metrics()[ok]
    async with _stub(server.address) as stub:
        calls = [stub.EmbedStream() for _ in range(min(3 * TIMES, 15))]

        async def write(call: Any) -> None:  # noqa: ANN401 -- gRPC's call
            for number in range(offered):
                await call.write(embedder_pb2.EmbedStreamRequest(id=str(number), request=request))

        writing = [asyncio.create_task(write(call)) for call in calls]
        last, still = -1.0, 0
        while still < 3:  # until nothing moves any more; a busy machine may hold everything up for a second
            await asyncio.sleep(1)
            now = (await asyncio.to_thread(server.metrics))[ok] - before
            last, still = now, still + 1 if now == last else 0
        assert now < offered * len(calls) / 2, "what nobody reads is not computed"
        grown_mb = round(server.memory_mb() - memory_mb)
        assert await _outcome(stub.Embed(_file(clip), timeout=30)) == "ok"
        for each in (*writing, *calls):
            each.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
    await _well(server, clip)
    assert grown_mb < 200 + 100 * len(calls), "what gRPC holds of each stream, and what waits to be read"
    _record(
        "streams whose caller never reads", len(calls), computed=now, offered=offered * len(calls), grown_mb=grown_mb
    )


async def test_a_thousand_idle_connections_cost_little(server: Running, clip: bytes) -> None:
    host, port = server.address.rsplit(":", 1)
    memory_mb, files, idle = server.memory_mb(), _open_files(server), []
    for _ in range(1_000):
        each = socket.create_connection((host, int(port)))
        each.sendall(PREFACE)
        idle.append(each)
    await _well(server, clip)
    async with asyncio.timeout(30):
        while _open_files(server) <= len(idle):  # noqa: ASYNC110 -- /proc has no event
            await asyncio.sleep(0.05)
    per_connection_kb = (server.memory_mb() - memory_mb) * 1024 / len(idle)
    for each in idle:
        each.close()
    async with asyncio.timeout(30):
        while _open_files(server) > files + 20:  # noqa: ASYNC110 -- /proc has no event
            await asyncio.sleep(0.05)
    assert per_connection_kb < 200
    await _well(server, clip)
    _record("idle connections at once", len(idle), kb_each=round(per_connection_kb), others="answered")


async def test_a_storm_of_cancellations_leaves_nothing_behind(server: Running, clip: bytes, heavy: bytes) -> None:
    rng = np.random.default_rng(3)
    async with _stub(server.address) as stub:
        ended = Counter[str]()
        for _ in range(TIMES):
            calls = [stub.Embed(_file(heavy if n % 10 == 0 else clip)) for n in range(300)]
            messages = [embedder_pb2.EmbedStreamRequest(id=str(n), request=_file(clip)) for n in range(20)]
            streams = [stub.EmbedStream(iter(messages)) for _ in range(20)]
            for index in rng.permutation(len(calls)):
                calls[index].cancel()
                if index % 15 == 0:
                    streams[index // 15].cancel()
                    await asyncio.sleep(0.002)
            for call in calls:
                with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                    await call
                ended[(await call.code()).name] += 1
    await _well(server, clip)
    _record("calls cancelled at any moment", ended.total() + 20 * TIMES, ended=dict(ended), left_in_flight=0)


# ---- overload and death --------------------------------------------------------------------------------------


async def test_decode_workers_killed_under_load_lose_no_clip(server: Running, clip: bytes) -> None:
    waves, good = 10 * TIMES, 0
    async with _stub(server.address) as stub:
        for wave in range(waves):  # a kill in each, so that no clip meets two: those are not promised anything
            messages = [embedder_pb2.EmbedStreamRequest(id=str(n), request=_file(clip)) for n in range(40)]
            async for answer in stub.EmbedStream(iter(messages)):
                assert answer.WhichOneof("result") == "response", answer.failure.message
                good += 1
                if good % 40 == 10:
                    workers = _children(server.pid)
                    os.kill(workers[wave % len(workers)], signal.SIGKILL)
    assert good == 40 * waves
    await _well(server, clip)
    assert server.metrics()['servox_embedder_decode_restarts_total{reason="killed"}'] >= 1
    _record("kill -9 of a decode worker under load", waves, clips=good, clips_lost=0)


async def test_a_full_server_refuses_fast_and_answers_what_it_admits(
    server: Running, clip: bytes, heavy: bytes
) -> None:
    took_s: list[float] = []
    outcomes = Counter[str]()
    end_s = time.monotonic() + 3 * TIMES

    async def client(stub: Any) -> None:  # noqa: ANN401 -- gRPC's stub
        while time.monotonic() < end_s:
            began_s = time.monotonic()
            try:
                await stub.Embed(_file(heavy))
            except grpc.aio.AioRpcError as error:
                outcomes[error.code().name] += 1
                took_s.append(time.monotonic() - began_s)
                pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms", "")
                assert int(pushback) > 0
                await asyncio.sleep(0.1)
            else:
                outcomes["ok"] += 1

    async with _stub(server.address) as stub:
        await asyncio.gather(*(client(stub) for _ in range(16)))
    assert set(outcomes) == {"ok", "RESOURCE_EXHAUSTED"}
    await _well(server, clip)
    p99_ms = round(1000 * float(np.percentile(took_s, 99)), 1)
    _record("a full queue, seconds", 3 * TIMES, outcomes=dict(outcomes), refused_within_ms_p99=p99_ms)


async def test_sigterm_under_load_loses_nothing_that_was_admitted(
    tiny_bundle: Path, heavy: bytes, hold_port: Callable[[], int]
) -> None:
    """Eight calls and a stream of eight are in flight, and callers keep coming while it drains."""
    late = Counter[str]()
    for _ in range(TIMES):
        with running(
            tiny_bundle, "--decode-workers", "1", "--max-inflight-audio-s", "6000", metrics_port=hold_port()
        ) as own:
            workers = _children(own.pid)
            async with _stub(own.address) as stub:
                calls = [asyncio.ensure_future(_outcome(stub.Embed(_file(heavy)))) for _ in range(8)]
                messages = [embedder_pb2.EmbedStreamRequest(id=str(n), request=_file(heavy)) for n in range(8)]
                stream = asyncio.ensure_future(_read(stub.EmbedStream(iter(messages))))
                await _until(_sixteen_admitted, own)
                os.kill(own.pid, signal.SIGTERM)
                coming = []
                while not all(call.done() for call in calls):
                    coming.append(asyncio.ensure_future(_outcome(stub.Embed(_file(heavy)))))
                    await asyncio.sleep(0.02)
                late.update(await asyncio.gather(*coming))
                assert [await call for call in calls] == ["ok"] * 8
                assert await stream == {str(n) for n in range(8)}
        await _gone(workers)
    # gRPC cancels what reaches it between its last accept and its goodbye; it was never admitted.
    assert set(late) <= {"ok", "UNAVAILABLE", "CANCELLED"}
    _record("SIGTERM under load", TIMES, admitted=16 * TIMES, admitted_lost=0, latecomers=dict(late))


def _sixteen_admitted(metrics: dict[str, float]) -> bool:
    held = metrics["servox_embedder_inflight_audio_seconds"]
    done = [metrics[f'servox_embedder_requests_total{{method="{m}",outcome="ok"}}'] for m in ("Embed", "EmbedStream")]
    return held + 25 * sum(done) >= 16 * 25


async def _read(call: Any) -> set[str]:  # noqa: ANN401 -- gRPC's call
    ids = set()
    with suppress(grpc.aio.AioRpcError):  # once everything is answered, the drain ends the stream
        async for answer in call:
            ids.add(answer.id)
    return ids


async def test_no_worker_outlives_a_server_that_was_killed(
    tiny_bundle: Path, heavy: bytes, hold_port: Callable[[], int]
) -> None:
    for _ in range(TIMES):
        with running(tiny_bundle, "--decode-workers", "2", metrics_port=hold_port()) as own:
            workers = _children(own.pid)
            assert len(workers) == 2
            async with _stub(own.address) as stub:
                calls = [asyncio.ensure_future(_outcome(stub.Embed(_file(heavy)))) for _ in range(4)]
                await asyncio.sleep(0.05)
                os.kill(own.pid, signal.SIGKILL)
                assert set(await asyncio.gather(*calls)) <= {"UNAVAILABLE", "ok"}
            await _gone(workers)
    _record("kill -9 of the server under load", TIMES, workers_left=0)


def test_a_device_that_dies_while_idle_ends_the_process(tiny_bundle: Path) -> None:
    """No call comes; a canary that is given no time at all finds the device dead."""
    flags = ["--grpc-port", "0", "--metrics-port", "0", "--stuck-after-s", "1e-9", "--canary-every-s", "0.2"]
    ran = subprocess.run(
        [*COMMAND, "--bundle", str(tiny_bundle), *flags], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    assert "serving on" in ran.stderr
    assert "idle, a canary failed: it did not come back" in ran.stderr
    assert "Traceback" not in ran.stderr
    _record("a device that dies while idle", 1, exit_code=ran.returncode)
