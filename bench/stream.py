"""Live streams: how long after a window's end its answer comes.

    python -m bench.stream [--bundle FOLDER] [--data FOLDER] [--streams 1 2 4 8] [--seconds 30] [--rounds 3]

- Real clips joined into one long recording are sent at the pace of a microphone, 100 ms at a time, on so many streams
  at once, each beginning at another moment and another place. Windows of 3 s come every second.
- Ours: an embedder and a prober, two processes as they are deployed, asked through RecognizeStream. A latency counts
  from the moment at which the window's last sample was captured to the moment at which its answer was read.
- The peer is what people do today: windows cut by hand, transformers' WhisperModel (padded to 30 s, as its feature
  extractor does) and a head in one process, one window after the other, each as soon as it is whole.
- Both are measured in turn within each round, ours frozen meanwhile. Weights of the head are random: they cost what
  trained ones cost.

Ends with one line of JSON.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import material
from bench.engine_peers import Setup, open_engine
from bench.load import percentile
from bench.peers.processes import Running, guarded
from bench.server_start import free_port
from services.demo import data_root
from services.embedder.bundle import Bundle
from services.prober.card import Card
from services.prober.heads import Head
from services.prober.registry import Registry
from servox import audio, cpus
from servox.errors import NotFound
from servox.rpc import channel
from servox.v1 import common_pb2, prober_pb2, prober_pb2_grpc

RATE_HZ, CHUNK_MS = 16_000, 100
START_S = 180.0
CLASSES = ("anger", "happiness", "neutral", "sadness")
PROGRAM = ["-c", "from services.cli import main; main()", "serve"]

Samples = audio.Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Length of a window and step between two, in milliseconds."""

    window_ms: int
    hop_ms: int

    def ends_ms(self, seconds: float) -> list[int]:
        """When windows of so many seconds are whole."""
        return list(range(self.window_ms, int(seconds * 1000) + 1, self.hop_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Latencies of one system with so many streams, milliseconds; `windows` were answered of `due`."""

    system: str
    streams: int
    windows: int
    due: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    worst_ms: float


def row(system: str, streams: int, latencies_s: Sequence[float], due: int) -> Row:
    """Latencies as figures."""
    p50, p95, p99 = (percentile(latencies_s, share) * 1000 for share in (0.5, 0.95, 0.99))
    worst = max(latencies_s, default=math.nan) * 1000
    return Row(
        system=system,
        streams=streams,
        windows=len(latencies_s),
        due=due,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        worst_ms=worst,
    )


def recording(files: Sequence[bytes]) -> Samples:
    """Clips as one recording at 16 kHz."""
    return np.concatenate([audio.decode(file, RATE_HZ).samples for file in files])


def places(streams: int, sound: Samples, seconds: float) -> list[Samples]:
    """What each stream hears: stretches of the recording, spread over it."""
    length = int(seconds * RATE_HZ)
    room = max(0, len(sound) - length)
    return [np.resize(sound[room * number // streams :], length) for number in range(streams)]


def delays_s(streams: int, grid: Grid) -> list[float]:
    """When each stream begins: spread over one step, so that windows do not all end at once."""
    return [number * grid.hop_ms / 1000 / streams for number in range(streams)]


# ---- ours ------------------------------------------------------------------------------------------------------------


def random_head(bundle: Bundle) -> Head:
    """A pooled MLP of the default shape with random weights."""
    rng, dims, hidden = np.random.default_rng(0), bundle.dims, 256
    shapes = {
        "mean": (dims,),
        "std": (dims,),
        "hidden.weight": (hidden, dims),
        "hidden.bias": (hidden,),
        "norm.weight": (hidden,),
        "norm.bias": (hidden,),
        "output.weight": (len(CLASSES), hidden),
        "output.bias": (len(CLASSES),),
    }
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["std"] = np.ones(dims, dtype=np.float32)
    card = Card(
        name="stream",
        version="0" * 16,
        kind="mlp",
        classes=CLASSES,
        class_counts=(1,) * len(CLASSES),
        bundle=bundle.digest,
        layer=bundle.default_layer,
        dims=dims,
        temperature=1.0,
        seed=0,
        settings={"hidden": float(hidden)},
        out_of_fold=None,
        clip_set="0" * 64,
        clips=len(CLASSES),
        speakers=0,
        servox="bench",
        store="",
        created="2026-01-01T00:00:00+00:00",
    )
    return Head(card=card, weights=weights)


def start(bundle: Bundle, folder: Path, mark: str) -> tuple[list[Running], str]:
    """An embedder and a prober; the prober's address."""
    Registry(folder / "heads").save(random_head(bundle))
    ports = {"embedder": free_port(), "prober": free_port()}
    commands = {
        "embedder": ["--bundle", str(bundle.folder)],
        "prober": [
            *("--embedder", f"127.0.0.1:{ports['embedder']}", "--heads", str(folder / "heads")),
            *("--http-port", "0"),
        ],
    }
    running = [
        Running(
            name,
            [sys.executable, *PROGRAM, name, "--grpc-port", str(ports[name]), "--metrics-port", "0", *more],
            environment={"OMP_NUM_THREADS": "1"},
            mark=mark,
            log=folder / f"{name}.log",
        )
        for name, more in commands.items()
    ]
    return running, f"127.0.0.1:{ports['prober']}"


class Ours:
    """Streams to a prober."""

    def __init__(self, address: str, grid: Grid) -> None:
        self._channel = channel(address)
        self._stub: Any = prober_pb2_grpc.ProberStub(self._channel)  # type: ignore[no-untyped-call]
        self._grid = grid

    async def ready(self, sound: Samples) -> None:
        """Waits until it answers, and lets every part of it run once."""
        until_s = time.monotonic() + START_S
        while True:
            try:
                await asyncio.wait_for(self._one(sound[: 5 * RATE_HZ], 0.0, pace=False), 30)
            except Exception:
                if time.monotonic() > until_s:
                    raise
                await asyncio.sleep(1)
            else:
                return

    async def run(self, heard: Sequence[Samples], delays: Sequence[float]) -> list[float]:
        """Latencies of every window of streams at once, in seconds."""
        streams = [self._one(samples, delay_s, pace=True) for samples, delay_s in zip(heard, delays, strict=True)]
        return [latency for found in await asyncio.gather(*streams) for latency in found]

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def _one(self, samples: Samples, delay_s: float, *, pace: bool) -> list[float]:
        await asyncio.sleep(delay_s)
        began_s, found = time.monotonic(), list[float]()
        async for message in self._stub.RecognizeStream(self._requests(samples, began_s, pace=pace)):
            found.append(time.monotonic() - began_s - message.window.end_ms / 1000)
        return found

    async def _requests(
        self, samples: Samples, began_s: float, *, pace: bool
    ) -> AsyncIterator[prober_pb2.RecognizeStreamRequest]:
        recognize = prober_pb2.RecognizeConfig(
            head="stream", window_ms=self._grid.window_ms, hop_ms=self._grid.hop_ms, every_window=True
        )
        config = prober_pb2.StreamConfig(
            recognize=recognize, rate_hz=RATE_HZ, channels=1, format=common_pb2.SAMPLE_FORMAT_S16
        )
        yield prober_pb2.RecognizeStreamRequest(config=config)
        data = (np.clip(samples, -1, 1) * 32767).astype("<i2")
        step = CHUNK_MS * RATE_HZ // 1000
        for number, at in enumerate(range(0, len(data) - step + 1, step)):
            if pace:  # a chunk is there when its last sample was captured
                captured_s = began_s + (number + 1) * CHUNK_MS / 1000
                await asyncio.sleep(max(0.0, captured_s - time.monotonic()))
            yield prober_pb2.RecognizeStreamRequest(chunk=data[at : at + step].tobytes())


# ---- the peer --------------------------------------------------------------------------------------------------------


class Peer:
    """Windows one after the other through transformers and a head, in this process."""

    def __init__(self, checkpoint: Path, head: Head, grid: Grid, *, threads: int) -> None:
        setup = Setup(path=checkpoint, padded=True, precision="fp32", mels=80, threads=threads)
        self._embed: Callable[[Samples], Samples] = open_engine("transformers", setup)
        self._head, self._grid = head, grid
        self.answer(np.zeros(grid.window_ms * RATE_HZ // 1000, dtype=np.float32))

    def answer(self, window: Samples) -> Samples:
        """Scores of one window."""
        return np.asarray(self._head.logits(self._embed(window)[None])[0])

    def run(self, heard: Sequence[Samples], delays: Sequence[float], *, patience_s: float) -> list[float]:
        """Latencies of windows in the order in which they become whole; what is due after `patience_s` is given up."""
        seconds = len(heard[0]) / RATE_HZ
        due = sorted(
            (delay_s + end_ms / 1000, number, end_ms)
            for number, delay_s in enumerate(delays)
            for end_ms in self._grid.ends_ms(seconds)
        )
        began_s, found = time.monotonic(), list[float]()
        for due_s, number, end_ms in due:
            if time.monotonic() - began_s > patience_s:
                break
            time.sleep(max(0.0, began_s + due_s - time.monotonic()))
            last = end_ms * RATE_HZ // 1000
            self.answer(heard[number][last - self._grid.window_ms * RATE_HZ // 1000 : last])
            found.append(time.monotonic() - began_s - due_s)
        return found


# ---- the bench -------------------------------------------------------------------------------------------------------


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="default: the demo's bundle, exported where it is missing")
    parser.add_argument("--data", type=Path, help="folder with corpora/ and models/; default: SERVOX_DATA")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-ms", type=int, default=3000)
    parser.add_argument("--hop-ms", type=int, default=1000)
    return parser.parse_args()


async def _measure(
    given: argparse.Namespace, running: Sequence[Running], address: str, peer: Peer, sound: Samples
) -> list[Row]:
    grid = Grid(window_ms=given.window_ms, hop_ms=given.hop_ms)
    ours = Ours(address, grid)
    found: dict[tuple[str, int], list[float]] = {}
    try:
        await ours.ready(sound)
        for _ in range(given.rounds):
            for streams in given.streams:
                heard, delays = places(streams, sound, given.seconds), delays_s(streams, grid)
                found.setdefault(("servox", streams), []).extend(await ours.run(heard, delays))
                for one in running:
                    one.freeze()
                try:
                    latencies = await asyncio.to_thread(peer.run, heard, delays, patience_s=2 * given.seconds)
                finally:
                    for one in running:
                        one.thaw()
                found.setdefault(("transformers", streams), []).extend(latencies)
    finally:
        await ours.close()
    each = len(grid.ends_ms(given.seconds)) * given.rounds
    return [row(system, streams, latencies, each * streams) for (system, streams), latencies in found.items()]


def _checkpoint(data: Path | None) -> Path:
    root = data or data_root()
    folder = root / "models" / material.CHECKPOINT if root else Path(material.CHECKPOINT)
    if not folder.is_dir():
        raise NotFound(f"the peer needs the checkpoint at {folder}: give --data")
    return folder


def _print(rows: Sequence[Row]) -> None:
    print(f"{'system':14}{'streams':>8}{'windows':>16}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'worst ms':>10}")
    for each in rows:
        windows = f"{each.windows} of {each.due}"
        print(
            f"{each.system:14}{each.streams:8}{windows:>16}"
            f"{each.p50_ms:9.1f}{each.p95_ms:9.1f}{each.p99_ms:9.1f}{each.worst_ms:10.1f}"
        )


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How many times longer the peer takes, by the number of streams."""
    by = {(each.system, each.streams): each for each in rows}
    return {
        str(streams): {
            name: getattr(by["transformers", streams], name) / getattr(by["servox", streams], name)
            for name in ("p50_ms", "p95_ms", "p99_ms")
        }
        for system, streams in by
        if system == "servox" and ("transformers", streams) in by
    }


def main() -> None:
    """Measures and prints."""
    given, began_s = _options(), time.monotonic()
    bundle = material.bundle(given.bundle, data=given.data)
    checkpoint = _checkpoint(given.data)
    speech = material.speech(60, data=given.data)
    sound = recording(speech.files)
    with guarded() as mark, tempfile.TemporaryDirectory() as scratch:
        running, address = start(bundle, Path(scratch), mark)
        grid = Grid(window_ms=given.window_ms, hop_ms=given.hop_ms)
        peer = Peer(checkpoint, random_head(bundle), grid, threads=cpus.here())
        rows = asyncio.run(_measure(given, running, address, peer, sound))
    _print(rows)
    print(
        json.dumps(
            {
                "bench": "stream",
                "bundle": bundle.digest[:12],
                "source": bundle.source,
                "cores": cpus.here(),
                "speech": speech.note,
                "window_ms": given.window_ms,
                "hop_ms": given.hop_ms,
                "seconds": given.seconds,
                "rounds": given.rounds,
                "rows": [dataclasses.asdict(each) for each in rows],
                "times_longer": ratios(rows),
                "took_s": time.monotonic() - began_s,
            }
        )
    )


if __name__ == "__main__":
    main()
