"""Throughput against replicas, and memory against time served.

    python -m bench.scale [--bundle FOLDER] [--data FOLDER] [--replicas 1 2] [--minutes 30] [--plots FOLDER]

- Replicas: so many embedders, each pinned to one processor, behind one channel of ours that balances round robin; a
  closed loop of single calls, and a bulk run through the client. Counts of replicas are measured in turn, the others
  frozen. The load generator shares the processors with them: its CPU is printed.
- Memory: one embedder under a closed loop for `--minutes`, with broken files, deadlines too short to keep and callers
  that leave among the clips. Memory is what its processes allocated; growth compares the last tenth of the samples
  with the tenth after the first.

Ends with one line of JSON.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import material
from bench.load import Burst, GrpcTarget, closed_loop, figures
from bench.peers.catalogue import SERVERS, ours_body
from bench.peers.options import Options
from bench.peers.processes import Running, guarded
from bench.server_start import free_port, ready
from servox import cpus
from servox.client import Client, Clip, Embedding
from servox.rpc import channel

PATIENCE_S = 30.0
CLIENTS_EACH = 8
METHOD = "/servox.v1.Embedder/Embed"
SAMPLE_S = 5.0
BROKEN, HURRIED = 0.04, 0.06  # shares of the memory run's calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Memory at a moment of the run, and the calls that were answered by then."""

    at_s: float
    held_bytes: int
    answers: int


def growth(held: Sequence[int]) -> float:
    """How much the last tenth of the samples lies above the second tenth, by their medians, as a share."""
    tenth = max(1, len(held) // 10)
    if len(held) < 3:
        return math.nan
    return statistics.median(held[-tenth:]) / statistics.median(held[tenth : 2 * tenth]) - 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="default: the demo's bundle, exported where it is missing")
    parser.add_argument("--data", type=Path, help="folder with corpora/ and models/; default: SERVOX_DATA")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, min(2, cpus.here())])
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each window")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the memory run; 0: none")
    parser.add_argument("--plots", type=Path, help="folder for the plot")
    return parser.parse_args()


class Fleet:
    """Embedders that were started together; `address` names all of them.

    Args:
        running: their processes.
        ports: where they listen.
        bodies: serialised clips.
    """

    def __init__(self, running: Sequence[Running], ports: Sequence[int], bodies: Sequence[bytes]) -> None:
        self.running = running
        self.address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        self._bodies = bodies

    def target(self) -> GrpcTarget:
        """A connection to all of them, through a channel of ours."""
        return GrpcTarget(channel(self.address), METHOD, self._bodies)

    def freeze(self) -> None:
        """Stops all."""
        for one in self.running:
            one.freeze()

    def thaw(self) -> None:
        """Lets all go on."""
        for one in self.running:
            one.thaw()


async def _start(count: int, *, pinned: bool, bundle: Path, bodies: Sequence[bytes], mark: str, logs: Path) -> Fleet:
    """Embedders that answer; `pinned` gives each a processor of its own.

    Raises:
        RuntimeError: one does not start.
    """
    running, ports = [], []
    for number in range(count):
        port = free_port()
        told = Options(bundle=str(bundle), port=port, workers=1, threads=1, batch=1, wait_ms=0, queue=0, deadline_ms=0)
        pin = ["taskset", "--cpu-list", str(number % cpus.here())] if pinned else []
        name = f"replica-{number + 1}-of-{count}" if pinned else "memory"
        one = Running(
            name,
            [*pin, sys.executable, *SERVERS["servox"].command(told)],
            environment={"OMP_NUM_THREADS": "1"},
            mark=mark,
            log=logs / f"{name}.log",
        )
        if why := await ready(GrpcTarget(channel(f"127.0.0.1:{port}"), METHOD, bodies), one):
            raise RuntimeError(f"{name}: {why}")
        running.append(one)
        ports.append(port)
    return Fleet(running, ports, bodies)


async def _replicas(
    given: argparse.Namespace, bundle: Path, files: Sequence[bytes], mark: str, logs: Path
) -> list[dict[str, Any]]:
    """Answers a second for each number of replicas."""
    bodies = [ours_body(file) for file in files]
    fleets = {}
    for count in given.replicas:
        fleet = await _start(count, pinned=True, bundle=bundle, bodies=bodies, mark=mark, logs=logs)
        await _single(fleet, count, len(files), window_s=given.seconds, seed=99)
        fleet.freeze()
        fleets[count] = fleet
    bursts: dict[int, list[Burst]] = {count: [] for count in fleets}
    bulk: dict[int, list[float]] = {count: [] for count in fleets}
    for number in range(given.rounds):
        for count, fleet in fleets.items():
            fleet.thaw()
            bursts[count].append(await _single(fleet, count, len(files), window_s=given.seconds, seed=number))
            bulk[count].append(await _bulk(fleet, count, files))
            fleet.freeze()
    rows = []
    for count, fleet in fleets.items():
        found = figures(bursts[count], deadline_s=PATIENCE_S)
        rows.append(
            {
                "replicas": count,
                "single_per_s": found.answers,
                "bulk_per_s": statistics.median(bulk[count]),
                "p99_ms": found.p99_ms,
                "generator_cores": found.generator_cores,
                "rounds": {"single": found.goodput_rounds, "bulk": bulk[count]},
            }
        )
        for one in fleet.running:
            one.stop()
    return rows


async def _single(fleet: Fleet, count: int, clips: int, *, window_s: float, seed: int) -> Burst:
    target = fleet.target()
    try:
        return await closed_loop(
            target,
            clients=CLIENTS_EACH * count,
            clips=clips,
            ramp_s=0.5,
            window_s=window_s,
            patience_s=PATIENCE_S,
            seed=seed,
        )
    finally:
        await target.close()


async def _bulk(fleet: Fleet, count: int, files: Sequence[bytes]) -> float:
    """Clips a second through the client's bulk method, from the first answer to the last."""
    clips = [Clip(id=f"{number}/{turn}", audio=file) for turn in range(count) for number, file in enumerate(files)]
    moments: list[float] = []
    async with Client(embedder=fleet.address, in_flight=2 * CLIENTS_EACH * count) as client:
        async for answer in client.embed(clips):
            if not isinstance(answer, Embedding):
                raise answer.error
            moments.append(time.monotonic())
    return (len(moments) - 1) / (moments[-1] - moments[0])


async def _memory(
    given: argparse.Namespace, bundle: Path, files: Sequence[bytes], mark: str, logs: Path
) -> list[Sample]:
    """Memory of one embedder, every few seconds of a mixed load."""
    bodies = [ours_body(file) for file in files]
    fleet = await _start(1, pinned=False, bundle=bundle, bodies=bodies, mark=mark, logs=logs)
    target = GrpcTarget(channel(fleet.address), METHOD, [*bodies, ours_body(files[0][: len(files[0]) // 2])])
    began_s = time.monotonic()
    until_s = began_s + 60 * given.minutes
    answers = 0

    async def client(number: int) -> None:
        nonlocal answers
        order = np.random.default_rng(number)
        while time.monotonic() < until_s:
            kind, clip = order.random(), int(order.integers(len(files)))
            if kind < BROKEN:
                outcome = await target.send(len(files), patience_s=PATIENCE_S)
            elif kind < BROKEN + HURRIED:
                outcome = await target.send(clip, patience_s=float(order.uniform(0.001, 0.05)))
            else:
                outcome = await target.send(clip, patience_s=PATIENCE_S)
            answers += outcome == "answered"

    clients = [asyncio.create_task(client(number)) for number in range(2 * CLIENTS_EACH)]
    weigh = fleet.running[0].own_bytes
    samples = [
        Sample(at_s=time.monotonic() - began_s, held_bytes=weigh(), answers=answers) async for _ in _ticks(until_s)
    ]
    await asyncio.gather(*clients)
    await target.close()
    fleet.running[0].stop()
    return samples


async def _ticks(until_s: float) -> AsyncIterator[None]:
    while time.monotonic() < until_s:
        yield
        await asyncio.sleep(SAMPLE_S)


def _print_replicas(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'replicas':>8} {'single/s':>9} {'×':>5} {'bulk/s':>9} {'×':>5} {'p99 ms':>8} {'generator cores':>16}")
    for row in rows:
        single, bulk = (row[key] / rows[0][key] for key in ("single_per_s", "bulk_per_s"))
        print(
            f"{row['replicas']:8d} {row['single_per_s']:9.1f} {single:5.2f} {row['bulk_per_s']:9.1f} {bulk:5.2f} "
            f"{row['p99_ms']:8.1f} {row['generator_cores']:16.2f}"
        )


def _print_memory(samples: Sequence[Sample]) -> dict[str, Any]:
    held = [sample.held_bytes for sample in samples]
    tenths = [statistics.median(part.tolist()) / (1 << 20) for part in np.array_split(np.array(held), 10) if len(part)]
    grown = growth(held)
    print(f"memory by tenths of {samples[-1].at_s / 60:.1f} minutes, MiB: {' '.join(f'{each:.0f}' for each in tenths)}")
    print(f"growth from the second tenth to the last: {grown:+.2%}; {samples[-1].answers} clips were answered")
    return {"growth": grown, "answers": samples[-1].answers, "tenths_mib": tenths}


def _plot(samples: Sequence[Sample], folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 3), constrained_layout=True)
    axes.plot([sample.at_s / 60 for sample in samples], [sample.held_bytes / (1 << 20) for sample in samples])
    axes.set(xlabel="minutes under load", ylabel="MiB", ylim=(0, None))
    figure.savefig(folder / "memory.svg")
    plt.close(figure)


def main() -> None:
    """Measures, prints tables, and ends with one line of JSON."""
    given = _options()
    bundle = material.bundle(given.bundle, data=given.data)
    speech = material.speech(given.clips, data=given.data)
    found: dict[str, Any] = {"bench": "scale", "bundle": bundle.digest[:12], "cores": cpus.here()}
    with ExitStack() as stack:
        mark = stack.enter_context(guarded())
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="servox-bench-")))
        folder = bundle.folder.resolve()
        found["replicas"] = asyncio.run(_replicas(given, folder, speech.files, mark, logs))
        _print_replicas(found["replicas"])
        if given.minutes:
            samples = asyncio.run(_memory(given, folder, speech.files, mark, logs))
            found["memory"] = _print_memory(samples)
            found["samples"] = [dataclasses.astuple(sample) for sample in samples]
            if given.plots:
                _plot(samples, given.plots)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
