"""One real recognition through each way to host the prober: gRPC (the floor), its own listener, uvicorn, BentoML.

- One embedder for all, one prober process a way: decode, encode, head, prior and the answer are the same code and the
  same numbers; what differs is the transport and its host. The answers are compared before anything is measured.
- Closed loops of 1, 4 and 16 callers; the ways take turns in every round, so that a busy moment hits all of them.
- The head is trained here on generated speech: what it says is worth nothing, what it costs is a real head's.

python -m bench.http [--bundle BUNDLE] [--clips FOLDER] [--rounds N]
"""

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.load import Burst, Figures, GrpcTarget, HttpTarget, Target, closed_loop, figures
from bench.server_start import free_port
from services import synthesis
from servox.arrays import EmbeddingStore, LabelledClip, write_clip_set
from servox.client import Client, Embedding, files
from servox.errors import ServoxError
from servox.rpc import channel, translated
from servox.v1 import common_pb2, prober_pb2, prober_pb2_grpc

BIN = Path(sys.executable).parent
HOSTS = ("listener", "uvicorn", "bentoml")
CALLERS = (1, 4, 16)
PATIENCE_S = 30.0
TRAINED_ON = 60  # generated clips
AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".m4a")
CLIPS = 40  # that are recognised, in random order
CLASSES = {"N": "neutral", "W": "anger", "T": "sadness"}  # EmoDB's letters


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to host: its name, and how to open a target of it."""

    name: str
    opened: Callable[[], Target]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one way did under one load."""

    way: str
    callers: int
    figures: Figures


@asynccontextmanager
async def process(command: Sequence[str], *, log: Path, settings: dict[str, str]) -> AsyncIterator[None]:
    """A server for as long as it is needed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True", **settings}
    with log.open("wb") as sink:
        running = await asyncio.create_subprocess_exec(
            str(BIN / command[0]), *command[1:], env=environment, stdout=sink, stderr=sink
        )
    try:
        yield
    finally:
        running.terminate()
        await running.wait()


async def answering(target: Target, log: Path) -> bytes:
    """The answer to the first clip, once there is one; closes the target."""
    last = ""
    try:
        for _ in range(120):
            try:
                return await target.ask(0, patience_s=PATIENCE_S)
            except Exception as error:  # noqa: BLE001 -- whatever a server does that is not ready yet
                last = repr(error)
                await asyncio.sleep(0.5)
    finally:
        await target.close()
    raise SystemExit(f"no answer ({last}); the log ends: {(await asyncio.to_thread(log.read_text))[-1500:]}")


async def trained(client: Client, prober: str, folder: Path) -> None:
    """Trains the head `bench` on generated speech."""
    await asyncio.to_thread(synthesis.write, folder / "data")
    found = sorted((folder / "data/corpora/EmoDB/wav").glob("*.wav"))
    audio = [path for path in found if path.stem[5] in CLASSES][:TRAINED_ON]
    about = await client.describe()
    arrays, clips = {}, []
    async for answer in client.embed(files(*audio), layers=about.layers):
        if isinstance(answer, Embedding):
            name = Path(answer.id).stem
            arrays[name] = answer.array
            clips.append(LabelledClip(key=name, label=CLASSES[name[5]], speaker=name[:2]))
    store = str(folder / "store")
    EmbeddingStore(store).write(bundle=about.bundle.digest, pooling="mean", arrays=arrays)
    spec = prober_pb2.HeadSpec(
        name="bench",
        kind=prober_pb2.HEAD_KIND_LOGISTIC,
        bundle_digest=about.bundle.digest,
        layer=about.default_layer,
        clip_set_url=write_clip_set(f"{store}/sets", clips),
    )
    async with channel(prober) as opened:
        stub = prober_pb2_grpc.ProberStub(opened)  # type: ignore[no-untyped-call]
        with translated("prober"):
            async for event in stub.Train(prober_pb2.TrainRequest(store_url=store, heads=[spec])):
                if event.HasField("failed"):
                    raise SystemExit(event.failed.failure.message)


async def measure(ways: Sequence[Way], clips: int, *, rounds: int, window_s: float) -> list[Cell]:
    """Every way under every load, in turns."""
    bursts: dict[tuple[str, int], list[Burst]] = {}
    for turn in range(rounds):
        for callers in CALLERS:
            for way in random.Random(turn * 100 + callers).sample(ways, len(ways)):
                target = way.opened()
                burst = await closed_loop(
                    target,
                    clients=callers,
                    clips=clips,
                    ramp_s=1.0,
                    window_s=window_s,
                    patience_s=PATIENCE_S,
                    seed=turn,
                )
                await target.close()
                bursts.setdefault((way.name, callers), []).append(burst)
    return [
        Cell(way=name, callers=callers, figures=figures(found, deadline_s=PATIENCE_S))
        for (name, callers), found in sorted(bursts.items(), key=lambda pair: (pair[0][1], pair[0][0]))
    ]


def probabilities(body: bytes, *, grpc_answer: bool) -> list[float]:
    """What an answer says, to compare."""
    if grpc_answer:
        overall = prober_pb2.RecognizeResponse.FromString(body).overall
        return [each.probability for each in overall.probabilities]
    return [each["probability"] for each in json.loads(body)["overall"]["probabilities"]]


def shown(cells: Sequence[Cell]) -> Table:
    """A row a cell, with what it takes and gives relative to gRPC under the same load."""
    table = Table("callers", "way", "p50 ms", "p99 ms", "answers/s", "p50", "p99", "answers", title="against gRPC")
    for cell in cells:
        floor = next(each.figures for each in cells if each.way == "grpc" and each.callers == cell.callers)
        found = cell.figures
        table.add_row(
            str(cell.callers),
            cell.way,
            f"{found.p50_ms:.1f}",
            f"{found.p99_ms:.1f}",
            f"{found.answers:.1f}",
            *(f"{value:.2f}" for value in _ratios(found, floor)),
        )
    return table


def _ratios(found: Figures, floor: Figures) -> tuple[float, float, float]:
    return found.p50_ms / floor.p50_ms, found.p99_ms / floor.p99_ms, found.answers / floor.answers


def line(cells: Sequence[Cell], bundle: str) -> str:
    """The figures for a machine; the best host is the one with the lowest p99, geometric mean over the loads."""
    rows = [
        {
            "way": cell.way,
            "callers": cell.callers,
            "p50_ms": round(cell.figures.p50_ms, 2),
            "p99_ms": round(cell.figures.p99_ms, 2),
            "answers_per_s": round(cell.figures.answers, 2),
            "failed": cell.figures.failed + cell.figures.refused + cell.figures.late,
        }
        for cell in cells
    ]
    p99 = {
        name: math.exp(sum(math.log(c.figures.p99_ms) for c in cells if c.way == name) / len(CALLERS)) for name in HOSTS
    }
    best = min(p99, key=lambda name: p99[name])
    ratios = {name: round(value / p99[best], 3) for name, value in p99.items()}
    return json.dumps({"bench": "http", "bundle": bundle, "cells": rows, "p99_by_best": ratios, "best": best})


async def run(options: argparse.Namespace, folder: Path) -> None:
    """Starts everything, compares the answers, measures, prints."""
    ports = {name: free_port() for name in ("grpc", *HOSTS)}
    embedder = f"unix:{folder}/e.sock"
    settings = {"SERVOX_PROBER_HEADS": str(folder / "heads"), "SERVOX_PROBER_EMBEDDER": embedder}
    async with AsyncExitStack() as stack:
        serve = ["servox", "serve", "embedder", "--bundle", str(options.bundle), "--grpc-socket", f"{folder}/e.sock"]
        await stack.enter_async_context(process([*serve, "--metrics-port=0"], log=folder / "e.log", settings={}))
        prober = ["servox", "serve", "prober", "--metrics-port=0"]
        prober += [f"--grpc-port={ports['grpc']}", f"--http-port={ports['listener']}"]
        await stack.enter_async_context(process(prober, log=folder / "p.log", settings=settings))
        hosted = ["uvicorn", "--factory", "services.prober.http.hosted:hosted", f"--port={ports['uvicorn']}"]
        hosted.append("--no-access-log")
        await stack.enter_async_context(process(hosted, log=folder / "u.log", settings=settings))
        bentoml = ["bentoml", "serve", "services.prober.bento:Prober", "--host=127.0.0.1", f"--port={ports['bentoml']}"]
        await stack.enter_async_context(process(bentoml, log=folder / "b.log", settings=settings))
        async with Client(embedder=embedder) as client:
            await trained(client, f"localhost:{ports['grpc']}", folder)
            source = (await client.describe()).bundle.source
        audio = await asyncio.to_thread(_audio, options.clips or folder)
        ways = _ways(ports, audio)
        logs = {"grpc": "p.log", "listener": "p.log", "uvicorn": "u.log", "bentoml": "b.log"}
        answers = {way.name: await answering(way.opened(), folder / logs[way.name]) for way in ways}
        said = {name: probabilities(body, grpc_answer=name == "grpc") for name, body in answers.items()}
        if any(each != said["grpc"] for each in said.values()):
            raise SystemExit(f"the answers differ: {said}")
        cells = await measure(ways, len(audio), rounds=options.rounds, window_s=options.window_s)
    Console().print(shown(cells))
    print(line(cells, source))


def _audio(folder: Path) -> list[bytes]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO)[:CLIPS]
    if not found:
        raise SystemExit(f"{folder} holds no {', '.join(AUDIO)}: name a folder with clips")
    return [path.read_bytes() for path in found]


def _ways(ports: dict[str, int], audio: Sequence[bytes]) -> list[Way]:
    config = prober_pb2.RecognizeConfig(head="bench")
    requests = [
        prober_pb2.RecognizeRequest(audio=common_pb2.Audio(container=data), config=config).SerializeToString()
        for data in audio
    ]

    def over_grpc() -> Target:
        return GrpcTarget(channel(f"localhost:{ports['grpc']}"), "/servox.v1.Prober/Recognize", requests)

    def over_http(name: str) -> Callable[[], Target]:
        url = f"http://127.0.0.1:{ports[name]}/v1/recognize?head=bench"
        return lambda: HttpTarget(url, headers={"Content-Type": "application/octet-stream"}, bodies=audio)

    return [
        Way(name="grpc", opened=over_grpc),
        *(Way(name=name, opened=over_http(name)) for name in HOSTS),
    ]


def main() -> None:
    """Parses the flags and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="bundle to serve; log-mel statistics if not given")
    parser.add_argument("--clips", type=Path, help="folder of clips to recognise; generated speech if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-s", type=float, default=8.0, help="seconds that count, for each cell and round")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    if options.bundle is None:
        options.bundle = folder / "bundle"
        subprocess.run([str(BIN / "servox"), "export", "logmel", "--out", str(options.bundle)], check=True)
    try:
        asyncio.run(run(options, folder))
    except ServoxError as error:
        sys.exit(f"error: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
