"""The embedder as a process, started by the command line that an image starts."""

import asyncio
import re
import shutil
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.embedder.server import EmbedderServer
from services.embedder.settings import Settings
from services.embedder.slices import HANDOVER_S
from servox.client import Client, Clip, Embedding, pcm
from servox.errors import BundleError, Unavailable
from servox.rpc import Tls
from servox.telemetry import Metrics

MAIN = "from services.cli import main; main()"

PYTHONS_OWN_S = 0.005


@asynccontextmanager
async def process(*flags: object) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-c", MAIN, "serve", "embedder", *map(str, flags)]
    started = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def _address(started: asyncio.subprocess.Process) -> str:
    assert started.stderr is not None
    async with asyncio.timeout(60):
        while line := (await started.stderr.readline()).decode():
            if found := re.search(r"^serving on (\S+)", line):
                return found[1]
    pytest.fail("it ended before it served")


def _scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


async def test_sigterm_under_load_loses_nothing_that_was_admitted(
    tiny_bundle: Path,
    speech: Callable[..., np.ndarray],
    encoded: Callable[..., bytes],
    hold_port: Callable[[], int],
) -> None:
    port = hold_port()
    slow = encoded(speech(25, rate_hz=96_000), rate_hz=96_000, kind="FLAC", subtype="PCM_16")
    flags = ("--bundle", tiny_bundle, "--grpc-port", 0, "--metrics-port", port, "--decode-workers", 1)
    async with process(*flags) as started:
        address = await _address(started)
        async with Client(embedder=address) as client:
            description = await client.describe()
            stream = client.embed([Clip(id=str(n), audio=slow) for n in range(6)])
            reading = asyncio.create_task(_all(stream))
            async with asyncio.timeout(30):
                while not _all_in(await asyncio.to_thread(_scrape, port)):  # noqa: ASYNC110 -- a gauge has no event
                    await asyncio.sleep(0.01)
            started.send_signal(signal.SIGTERM)
            assert await reading == {str(n) for n in range(6)}
        async with asyncio.timeout(30):
            assert await started.wait() == 0
    assert description.bundle.source == "tiny"


def _all_in(metrics: str) -> bool:
    """Whether all six clips were admitted: each is in flight, or was answered already."""
    held = re.search(r"^servox_embedder_inflight_audio_seconds (\S+)", metrics, re.MULTILINE)
    good = re.search(r'^servox_embedder_requests_total{method="EmbedStream",outcome="ok"} (\S+)', metrics, re.MULTILINE)
    assert held
    assert good
    return float(held[1]) + 25 * float(good[1]) >= 6 * 25


async def _all(answers: AsyncIterator[object]) -> set[str]:
    return {answer.id async for answer in answers if isinstance(answer, Embedding)}


async def test_a_process_answers_health_reflection_and_metrics_that_move(
    tiny_bundle: Path, speech: Callable[..., np.ndarray], hold_port: Callable[[], int]
) -> None:
    port = hold_port()
    async with process("--bundle", tiny_bundle, "--grpc-port", 0, "--metrics-port", port) as started:
        address = await _address(started)
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "servox.v1.Embedder"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        before = await asyncio.to_thread(_scrape, port)
        async with Client(embedder=address) as client:
            clips = [Clip(id=str(n), audio=pcm(speech(1), 16_000)) for n in range(5)]
            assert len(await _all(client.embed([*clips, Clip(id="bad", audio=b"no audio")]))) == 5
        after = await asyncio.to_thread(_scrape, port)
    good = 'servox_embedder_requests_total{method="EmbedStream",outcome="ok"}'
    bad = 'servox_embedder_requests_total{method="EmbedStream",outcome="BadAudio"}'
    assert f"{good} 0.0" in before
    assert f"{good} 5.0" in after
    assert f"{bad} 1.0" in after
    for histogram in ("decode", "queue", "inference", "total", "clip_audio"):
        assert f"servox_embedder_{histogram}_seconds_count 5.0" in after
    assert "servox_embedder_batch_fill_ratio_count" in after
    assert "servox_embedder_batch_padding_ratio_bucket" in after


@pytest.mark.parametrize("damage", ["missing", "graph", "manifest", "emptied"])
async def test_a_bundle_that_is_missing_or_damaged_ends_the_process_with_a_reason(
    tiny_bundle: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "bundle"
    if damage != "missing":
        shutil.copytree(tiny_bundle, folder)
    if damage == "graph":
        (folder / "encoder.onnx").write_bytes(b"damaged")
    if damage == "manifest":
        (folder / "bundle.json").write_text("{")
    if damage == "emptied":
        (folder / "encoder.onnx").unlink()
    settings = Settings.load({"bundle": folder, "grpc_socket": tmp_path / "e.sock", "metrics_port": 0})
    with pytest.raises(BundleError, match=re.escape(str(folder))):
        await EmbedderServer(settings, Metrics()).start()
    if damage == "graph":
        async with process("--bundle", folder, "--grpc-port", 0, "--metrics-port", 0) as started:
            _, errors = await started.communicate()
            assert started.returncode == 1
        assert "error: encoder.onnx of bundle" in errors.decode()
        assert "Traceback" not in errors.decode()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max-inflight-audio-s", "5"], "max_inflight_audio_s = 5 cannot hold one clip of max_duration_ms = 30000"),
        (["--batch-budget-s", "10"], "batch_budget_s = 10 cannot hold one clip"),
        (["--device", "tpu"], "device = 'tpu'"),
    ],
)
async def test_settings_that_cannot_work_are_refused_at_start(tiny_bundle: Path, flags: list[str], says: str) -> None:
    async with process("--bundle", tiny_bundle, *flags) as started:
        _, errors = await started.communicate()
        assert started.returncode == 1
    assert says in " ".join(errors.decode().split())


async def test_three_servers_in_one_process_keep_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    servers = []
    for name in ("a", "b"):
        flags = {"bundle": tiny_bundle, "grpc_socket": tmp_path / f"{name}.sock", "metrics_port": 0}
        servers.append(EmbedderServer(Settings.load(flags), Metrics()))
    addresses = [await server.start() for server in servers]
    assert len(set(addresses)) == 2
    for server in servers:
        await server.stop()


@pytest.mark.parametrize(("engine", "handover_s"), [("openvino", PYTHONS_OWN_S), ("onnx", HANDOVER_S)])
async def test_threads_that_compute_are_not_kept_from_the_interpreter(
    tiny_bundle: Path, tmp_path: Path, engine: str, handover_s: float
) -> None:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(PYTHONS_OWN_S)
    flags = {"bundle": tiny_bundle, "grpc_socket": tmp_path / "e.sock", "metrics_port": 0, "engine": engine}
    server = EmbedderServer(Settings.load(flags), Metrics())
    try:
        await server.start()
        assert sys.getswitchinterval() == pytest.approx(handover_s)
    finally:
        await server.stop()
        sys.setswitchinterval(before_s)


async def test_stopping_twice_or_before_or_during_a_start_is_harmless(tiny_bundle: Path, tmp_path: Path) -> None:
    for pause_s in (None, 0.0, 0.05, 0.4):  # not started at all; cancelled at once; while it loads; while it warms
        flags = {"bundle": tiny_bundle, "grpc_socket": tmp_path / "e.sock", "metrics_port": 0, "decode_workers": 1}
        server = EmbedderServer(Settings.load(flags), Metrics())
        if pause_s is not None:
            starting = asyncio.create_task(server.start())
            await asyncio.sleep(pause_s)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        await asyncio.gather(server.stop(), server.stop())
        await server.stop()


async def test_a_process_asks_its_callers_for_certificates(tiny_bundle: Path, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make certificates with")
    for arguments in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout own.key -out own.csr -subj /CN=localhost -addext "
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out own.pem -days 2 -copy_extensions copy",
    ):
        await (await asyncio.create_subprocess_exec("openssl", *arguments.split(), cwd=tmp_path, stderr=-3)).wait()
    certificate, key, ca = (tmp_path / name for name in ("own.pem", "own.key", "ca.pem"))
    pair = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", ca)
    async with process("--bundle", tiny_bundle, "--grpc-port", 0, "--metrics-port", 0, *pair) as started:
        address = await _address(started)
        async with Client(embedder=address, tls=Tls(certificate=certificate, key=key, ca=ca)) as known:
            assert (await known.describe()).bundle.source == "tiny"
        trusting = Tls(ca=ca).client()
        async with grpc.aio.secure_channel(address, trusting, options=[("grpc.enable_retries", 0)]) as stranger:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await health_pb2_grpc.HealthStub(stranger).Check(health_pb2.HealthCheckRequest())
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_socket_that_cannot_be_bound_leaves_nothing_running(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = Settings.load(
        {"bundle": tiny_bundle, "grpc_socket": tmp_path / "none" / "e.sock", "metrics_port": 0, "streams": 1}
    )
    with pytest.raises(Unavailable, match="cannot listen"):
        await EmbedderServer(settings, Metrics()).start()
