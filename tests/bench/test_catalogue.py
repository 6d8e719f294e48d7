"""Requests and answers as each server has them, and the options that travel through the environment."""

import asyncio
import base64
import io
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.load import HttpTarget
from bench.peers.catalogue import EACH, SERVERS, TRIED, options, ours_body
from bench.peers.encoder import Encoder
from bench.peers.options import VARIABLE, Options
from servox.v1 import embedder_pb2
from servox.wire import array_to_proto
from tests.embedder.conftest import tiny_bundle_at

VECTOR = np.arange(4, dtype=np.float32)


def answer(name: str) -> bytes:
    text = base64.b64encode(VECTOR.tobytes()).decode()
    if name == "servox":
        return embedder_pb2.EmbedResponse(embedding=array_to_proto(VECTOR[None])).SerializeToString()
    header = {"outputs": [{"name": "vector", "shape": [1, 4], "parameters": {"binary_data_size": 16}}]}
    return {
        "mosec": VECTOR.tobytes(),
        "grpcio": VECTOR.tobytes(),
        "litserve": json.dumps({"vector": text}).encode(),
        "bentoml": json.dumps([text]).encode(),
        "triton": json.dumps(header).encode() + VECTOR.tobytes(),
    }[name]


@pytest.mark.parametrize("name", list(SERVERS))
def test_every_server_s_answer_holds_the_vector(name: str) -> None:
    assert (SERVERS[name].vector(answer(name)) == VECTOR).all()


@pytest.mark.parametrize("ending", [b"}", b"}}{", b"\x00"])
def test_a_vector_after_triton_s_header_may_hold_any_bytes(ending: bytes) -> None:
    tail = ending.rjust(4, b"}")
    found = SERVERS["triton"].vector(b'{"outputs":[{"name":"}{"}]}' + tail)
    assert found.tobytes() == tail


async def test_bodies_hold_the_clip() -> None:
    clip = b"fLaC\x00\x00"
    assert embedder_pb2.EmbedRequest.FromString(ours_body(clip)).audio.container == clip
    targets = {name: SERVERS[name].target(1, [clip]) for name in ("mosec", "litserve", "bentoml", "triton")}
    bodies = {name: target._bodies[0] for name, target in targets.items() if isinstance(target, HttpTarget)}
    assert bodies["mosec"] == clip
    assert base64.b64decode(json.loads(bodies["litserve"])["clip"]) == clip
    assert base64.b64decode(json.loads(bodies["bentoml"])["clips"][0]) == clip
    tensor = struct.pack("<I", len(clip) + 1) + clip + b"\x01"
    assert bodies["triton"].endswith(tensor)
    assert json.loads(bodies["triton"][: -len(tensor)])["inputs"][0]["parameters"]["binary_data_size"] == len(tensor)
    for target in targets.values():
        await target.close()


def test_options_travel_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    told = options(bundle=Path("b"), port=1, cores=2, deadline_ms=1000, setting=EACH)
    monkeypatch.setenv(VARIABLE, told.to_environment()[VARIABLE])
    found = Options.from_environment()
    assert found.folder == Path("b")
    assert list(found.warm_s) == list(told.warm_s)
    assert (found.workers, found.threads, found.port) == (2, 1, 1)


@pytest.mark.parametrize("cores", [1, 2, 4, 16])
@pytest.mark.parametrize("name", list(TRIED))
def test_every_setting_uses_all_processors_and_no_more(name: str, cores: int) -> None:
    for setting in TRIED[name]:
        told = options(bundle=Path("b"), port=1, cores=cores, deadline_ms=1000, setting=setting)
        assert told.workers * told.threads == cores


async def test_the_least_grpc_server_embeds_and_refuses_what_is_too_much(
    tmp_path: Path, hold_port: Callable[[], int]
) -> None:
    bundle = tiny_bundle_at(tmp_path / "tiny")
    told = options(bundle=bundle, port=hold_port(), cores=2, deadline_ms=1000, setting={**EACH, "queue": 1})
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(20 * 16_000) / 20), 16_000, format="WAV")
    command = [sys.executable, "-m", "bench.peers.grpc_server"]
    server = await asyncio.create_subprocess_exec(*command, env={**os.environ, **told.to_environment()})
    target = SERVERS["grpcio"].target(told.port, [file.getvalue()])
    try:
        async with asyncio.timeout(60):
            while await target.send(0, patience_s=10) != "answered":  # noqa: ASYNC110 -- it starts
                await asyncio.sleep(0.1)
        assert await target.ask(0, patience_s=10) == Encoder(told).embed([file.getvalue()])[0]
        outcomes = await asyncio.gather(*(target.send(0, patience_s=10) for _ in range(40)))
        assert set(outcomes) == {"answered", "refused"}
    finally:
        await target.close()
        server.kill()
        await server.wait()
