"""NVIDIA's tritonclient, unchanged and in an environment of its own, against a running embedder."""

import asyncio
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2

from services.embedder.server import EmbedderServer
from services.embedder.settings import Settings
from servox.client import Client, Clip, Embedding, pcm
from servox.inference import open_inference_pb2
from servox.telemetry import Metrics

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "scripts/conformance.sh")
CANNOT_BUILD = 3


@pytest.fixture(scope="module")
def environment() -> None:
    """The environment that has tritonclient; built once, kept in .cache."""
    done = subprocess.run([SCRIPT, "--build"], capture_output=True, text=True, check=False, timeout=240)
    if done.returncode == CANNOT_BUILD:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        pytest.skip(f"an environment with tritonclient cannot be built here: {reason[0]}")
    assert done.returncode == 0, done.stderr


async def _run(*command: str) -> tuple[int, str, str]:
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    out, error = await asyncio.wait_for(started.communicate(), 120)
    return started.returncode or 0, out.decode(), error.decode()


@pytest.mark.network
async def test_tritonclient_works_unchanged(environment: None, tiny_bundle: Path, tmp_path: Path) -> None:
    contract = descriptor_pb2.FileDescriptorProto()
    open_inference_pb2.DESCRIPTOR.CopyToProto(contract)
    (tmp_path / "contract").write_bytes(contract.SerializeToString())
    flags = {"bundle": tiny_bundle, "grpc_port": 0, "metrics_port": 0, "decode_workers": 1}
    server = EmbedderServer(Settings.load(flags), Metrics())
    address = await server.start()
    try:
        code, out, error = await _run(SCRIPT, address, "tiny", "--descriptor", str(tmp_path / "contract"))
        time_s = np.arange(16_000) / 16_000
        tone = np.round(0.3 * np.sin(2 * np.pi * 220 * time_s) * 32768) / 32768
        async with Client(embedder=address) as client:
            layers = (await client.describe()).layers
            own = [each async for each in client.embed([Clip(id="a", audio=pcm(tone, 16_000))], layers=layers)]
    finally:
        await server.stop()
    assert code == 0, error
    report = json.loads(out.splitlines()[-1])
    assert report["client"].startswith("tritonclient 2.")
    assert report["checks"] > 50
    assert isinstance(own[0], Embedding)
    np.testing.assert_allclose(report["embedding"], own[0].array, atol=1e-4, err_msg="what our own client gets")
