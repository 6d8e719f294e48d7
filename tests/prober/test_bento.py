"""BentoML hosts the prober's app: a Bento is built, served as a process, and answers what the app answers."""
# ruff: noqa: ANN401, ASYNC240 -- small files; gRPC's stubs have no types worth naming here

import asyncio
import io
import os
import subprocess
import sys
import tomllib
import wave
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from servox.client import Client
from servox.v1 import prober_pb2

ROOT = Path(__file__).resolve().parents[2]
BENTOFILE = "services/prober/bentofile.yaml"


def extra(name: str) -> set[str]:
    """What a bare install and an extra bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, waiting = set[str](), [*project["dependencies"], f"servox[{name}]"]
    while waiting:
        package = waiting.pop()
        if package.startswith("servox["):
            for part in package[len("servox[") : -1].split(","):
                waiting += project["optional-dependencies"][part]
        else:
            found.add(package)
    return found


def test_the_bentos_packages_are_those_of_the_extra() -> None:
    document = yaml.safe_load((ROOT / BENTOFILE).read_text())
    assert set(document["python"]["packages"]) == extra("prober")


def wav() -> bytes:
    noise = np.random.default_rng(5).normal(scale=0.1, size=16_000)
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((noise * 32767).astype("<i2").tobytes())
    return sink.getvalue()


def bentoml(*arguments: str, home: Path, **settings: object) -> "subprocess.Popen[bytes]":
    names = {f"SERVOX_PROBER_{name.upper()}": str(value) for name, value in settings.items()}
    environment = {**os.environ, **names, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    environment.pop("PYTHONPATH", None)
    command = [str(Path(sys.executable).parent / "bentoml"), *arguments]
    log = (home.parent / f"{arguments[0]}.log").open("wb")
    with log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


async def ready(http: httpx.AsyncClient, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if (await http.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    pytest.fail(log.read_text()[-3000:])


async def logged(log: Path, words: str, *, times: int) -> str:
    """The log, once these words are in it so often: a request is logged after its answer."""
    for _ in range(600):
        if (text := log.read_text()).count(words) >= times:
            return text
        await asyncio.sleep(0.1)
    pytest.fail(log.read_text()[-3000:])


@pytest.fixture
async def http(
    pair: Any, corpus: Any, tmp_path: Path, hold_port: Callable[[], int]
) -> AsyncIterator[httpx.AsyncClient]:
    """A Bento that was built and is served, with a head in its registry and the toy embedder behind it."""
    spec = corpus.spec(kind=prober_pb2.HEAD_KIND_LOGISTIC)
    async for _ in pair.prober.Train(prober_pb2.TrainRequest(store_url=corpus.store, heads=[spec])):
        pass
    home = tmp_path / "bentos"
    home.mkdir()
    building = bentoml("build", "-f", BENTOFILE, ".", home=home)
    assert await asyncio.to_thread(building.wait, 180) == 0, (tmp_path / "build.log").read_text()[-3000:]
    port = hold_port()
    process = bentoml(
        "serve",
        "servox-prober:latest",
        "--host=127.0.0.1",
        f"--port={port}",
        home=home,
        heads=tmp_path / "heads",
        embedder=f"unix:{tmp_path / 'e.sock'}",
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            await ready(client, process, tmp_path / "serve.log")
            yield client
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 60)


@pytest.mark.slow  # builds a Bento and starts BentoML's server
async def test_a_bento_is_built_and_answers(http: httpx.AsyncClient, pair: Any, tmp_path: Path) -> None:
    answer = await http.post("/v1/recognize?head=toy", content=wav(), headers={"content-type": "audio/wav"})
    assert answer.status_code == 200, answer.text
    async with Client(prober=pair.address) as client:
        known = await client.recognize(wav(), head="toy")
    heard = {each["label"]: each["probability"] for each in answer.json()["overall"]["probabilities"]}
    assert heard == dict(known.overall.probabilities), "the answer of gRPC, to the last bit"
    for path in ("/livez", "/readyz"):
        assert (await http.get(path)).json() == {"status": "ok"}, "the app's own, not BentoML's"
    metrics = (await http.get("/metrics")).text
    assert "servox_prober_requests_total" in metrics
    assert "bentoml" not in metrics
    listed = (await http.get("/v1/heads")).json()
    assert listed["heads"][0]["head"]["name"] == "toy"
    wrong = await http.post("/v1/recognize?head=tou", content=wav(), headers={"content-type": "audio/wav"})
    assert wrong.status_code == 404
    assert wrong.headers["content-type"] == "application/problem+json"
    assert "text/html" in (await http.get("/")).headers["content-type"]
    log = await logged(tmp_path / "serve.log", '"route": "/v1/recognize"', times=2)
    assert log.count('"route": "/v1/recognize"') == 2, "one line a request"
    assert "head=tou" not in log, "no query is logged"
