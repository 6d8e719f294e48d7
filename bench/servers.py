"""One bundle behind each server: ours, LitServe, mosec, BentoML, Triton; closed loops and Poisson arrivals.

    python -m bench.servers [--bundle FOLDER] [--data FOLDER] [--peers FOLDER] [--quick] [--plots FOLDER]
    python -m bench.servers --tune > tuned.txt; python -m bench.servers --settings tuned.txt

- Every server runs the same bundle by the same runtime code with the same threads, and decodes the same real files.
- All are started first; one at a time runs, the others are frozen. Each load is measured on all of them one after
  the other, in short rounds, so that drift of the machine hits all alike.
- Capacity is the best closed loop of the first round. Open loops run at shares of the server's own capacity and of
  ours, and every request has a deadline, which the server is told where its protocol or its settings allow.
- The generator shares the machine: its own CPU is measured and printed.

The peers' environments are made in `--peers` where they are missing (see `bench.peers.environment`); a peer that does
not install or start is left out, and the reason printed. `--tune` measures every setting of every peer instead, and
`--settings` runs the comparison with the best of each. Ends with one line of JSON.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench import material
from bench.load import Burst, Figures, Target, closed_loop, figures, open_loop
from bench.peers import environment
from bench.peers.catalogue import OURS, SERVERS, TRIED, Server, Setting, interpreter, options
from bench.peers.options import Options
from bench.peers.processes import MARK, Running, guarded
from bench.server_report import Cell, print_cells, write_plots
from bench.server_start import free_port, ready
from servox import cpus
from servox.settings import home

CLIENTS = (1, 4, 16, 64)
SHARES = (0.5, 0.8, 1.2, 3.0)
PATIENCE_S = 30.0  # of requests that are not measured
STARTS = 3
SETTLE_S = 20.0
T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
AGREE = 1e-3  # vectors of all servers are equal up to what another batch width does to float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how often."""

    rounds: int
    window_s: float
    ramp_s: float
    deadline_s: float
    clients: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(kw_only=True)
class Subject:
    """A server that runs, and what was measured on it."""

    server: Server
    told: Options
    running: Running
    files: Sequence[bytes]
    capacity: float = 0.0
    settled: bool = False
    bursts: dict[tuple[str, float], list[Burst]] = field(default_factory=dict)
    cpu_s: dict[tuple[str, float], float] = field(default_factory=dict)
    recovery_s: dict[tuple[str, float], list[float]] = field(default_factory=dict)

    def target(self) -> Target:
        """A new connection."""
        return self.server.target(self.told.port, self.files)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="default: the demo's bundle, exported where it is missing")
    parser.add_argument("--data", type=Path, help="folder with corpora/ and models/; default: SERVOX_DATA")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments; default: in SERVOX_HOME")
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=list(SERVERS))
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each window")
    parser.add_argument("--deadline-s", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="one short round of few loads: does it run?")
    parser.add_argument("--tune", action="store_true", help="measure every setting of every peer instead")
    parser.add_argument("--settings", type=Path, help="what --tune printed: the best settings are taken from it")
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    return parser.parse_args()


def _plan(given: argparse.Namespace) -> Plan:
    if given.quick:
        return Plan(rounds=1, window_s=1.0, ramp_s=0.5, deadline_s=given.deadline_s, clients=(4, 16), shares=(0.8, 3.0))
    return Plan(
        rounds=given.rounds,
        window_s=given.seconds,
        ramp_s=0.7,
        deadline_s=given.deadline_s,
        clients=CLIENTS,
        shares=SHARES,
    )


class House:
    """Starts servers, with what all of them share.

    Args:
        bundle: that they serve.
        files: the clips.
        environments: folder of the peers'.
        mark: of everything that is started.
        scratch: for logs.
        deadline_s: of a request.
    """

    def __init__(
        self, bundle: Path, files: Sequence[bytes], *, environments: Path, mark: str, scratch: Path, deadline_s: float
    ) -> None:
        self.bundle = bundle.resolve()
        self.files = files
        self.mark = mark
        self.scratch = scratch
        self._environments = environments.resolve()
        self._deadline_ms = round(1000 * deadline_s)
        self._number = 0

    @property
    def variables(self) -> dict[str, str]:
        """The environment of every process: one thread where a library would take more, no reports to anyone."""
        return {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "BENTOML_HOME": str(self.scratch / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "XDG_CACHE_HOME": str(self.scratch / "cache"),
        }

    def told(self, setting: Setting) -> Options:
        """The options of one server, at a port of its own."""
        return options(
            bundle=self.bundle,
            port=free_port(),
            cores=cpus.here(),
            deadline_ms=self._deadline_ms,
            setting=setting,
        )

    async def start(self, name: str, setting: Setting) -> Subject | str:
        """A server that answers, or why there is none."""
        server = SERVERS[name]
        if server.environment and (why := environment.make(self._environments, server.environment)):
            return f"its environment could not be made: {why}"
        why = ""
        for _ in range(STARTS):
            self._number += 1
            told = self.told(setting)
            running = Running(
                f"{name}-{self._number}",
                [interpreter(server, self._environments), *server.command(told)],
                environment={**self.variables, **told.to_environment()},
                mark=self.mark,
                log=self.scratch / f"{name}-{self._number}.log",
            )
            subject = Subject(server=server, told=told, running=running, files=self.files)
            why = await ready(subject.target(), running)
            if not why:
                return subject
            running.stop()
        return why

    def start_bare(self) -> subprocess.Popen[str]:
        """The same work without a server (`bench.peers.bare`)."""
        clips = self.scratch / "clips.pickle"
        clips.write_bytes(pickle.dumps(list(self.files)))
        told = self.told({})
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers.bare", str(clips)],
            env={**os.environ, **self.variables, **told.to_environment(), MARK: f"{self.mark}/bare/"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        _read_line(process)
        return process


async def _settled(subject: Subject, limit_ms: float) -> float:
    """Seconds until the server answers a single request in time again; infinite if it does not."""
    began_s = time.monotonic()
    target = subject.target()
    try:
        while time.monotonic() - began_s < SETTLE_S:
            asked_s = time.monotonic()
            outcome = await target.send(0, patience_s=SETTLE_S)
            if outcome == "answered" and 1000 * (time.monotonic() - asked_s) <= limit_ms:
                return asked_s - began_s
            await asyncio.sleep(0.02)
    finally:
        await target.close()
    return math.inf


async def _disagreement(subject: Subject, reference: Sequence[np.ndarray[Any, Any]]) -> float:
    """The largest difference of its vectors from the reference, by the vectors' own size."""
    target = subject.target()
    try:
        worst = 0.0
        for clip, expected in enumerate(reference):
            vector = subject.server.vector(await target.ask(clip, patience_s=PATIENCE_S))
            if vector.shape != expected.shape:
                return math.inf
            worst = max(worst, float(np.abs(vector - expected).max() / np.abs(expected).max()))
        return worst
    finally:
        await target.close()


async def _measure(subject: Subject, key: tuple[str, float], plan: Plan, seed: int) -> None:
    """One cell on one server, which is thawed for it and frozen after it."""
    subject.running.thaw()
    target = subject.target()
    clips = len(subject.files)
    try:
        await target.send(0, patience_s=PATIENCE_S)  # connects
        before_s = subject.running.cpu_s()
        weighing = asyncio.create_task(_weigh(subject.running, plan.ramp_s / 2))
        if key[0] == "closed":
            burst = await closed_loop(
                target,
                clients=round(key[1]),
                clips=clips,
                ramp_s=plan.ramp_s,
                window_s=plan.window_s,
                patience_s=plan.deadline_s,
                seed=seed,
            )
        else:
            burst = await open_loop(
                target,
                rate=key[1],
                clips=clips,
                ramp_s=plan.ramp_s + plan.deadline_s / 2,
                window_s=plan.window_s,
                deadline_s=plan.deadline_s,
                seed=seed,
            )
        await weighing
    finally:
        await target.close()
    subject.bursts.setdefault(key, []).append(burst)
    subject.cpu_s[key] = subject.cpu_s.get(key, 0.0) + subject.running.cpu_s() - before_s
    if key[0] != "closed":
        subject.recovery_s.setdefault(key, []).append(await _settled(subject, 1000 * plan.deadline_s))
    subject.running.freeze()


async def _weigh(running: Running, after_s: float) -> None:
    """Weighs once under load, in the ramp: it looks through all processes, and requests are sent late meanwhile."""
    await asyncio.sleep(after_s)
    await asyncio.to_thread(running.weigh)


async def _warm(subject: Subject, plan: Plan) -> None:
    """Every clip once or more, unmeasured: engines prepare themselves for each new width."""
    target = subject.target()
    try:
        await closed_loop(
            target,
            clients=16,
            clips=len(subject.files),
            ramp_s=0.0,
            window_s=3 * plan.window_s,
            patience_s=PATIENCE_S,
            seed=99,
        )
    finally:
        await target.close()


def _read_line(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise RuntimeError("the process without a server ended; run it alone to see why: python -m bench.peers.bare")
    return line.strip()


def _bare(process: subprocess.Popen[str], what: str, window_s: float) -> float:
    """Clips a second without a server."""
    if process.stdin is None:
        raise RuntimeError("the process without a server has no input")
    process.stdin.write(f"{what} {window_s}\n")
    process.stdin.flush()
    return float(_read_line(process))


async def _rounds(subjects: Sequence[Subject], plan: Plan, bare: subprocess.Popen[str]) -> dict[str, list[float]]:
    """Every load on every server, `plan.rounds` times; the same without a server, beside them."""
    alone: dict[str, list[float]] = {"files": [], "decoded": []}
    for number in range(plan.rounds):
        for clients in plan.clients:
            for subject in _rotated(subjects, number):
                await _measure(subject, ("closed", clients), plan, seed=number)
            if clients in plan.clients[-2:]:
                for what, measured in alone.items():
                    measured.append(_bare(bare, what, plan.window_s))
        for subject in subjects:
            subject.capacity = subject.capacity or _capacity(subject, plan)
        for share in plan.shares:
            for subject in _rotated(subjects, number):
                for rate in _rates(subject, subjects, share):
                    await _measure(subject, rate, plan, seed=100 + number)
        print(f"round {number + 1} of {plan.rounds} is done", file=sys.stderr, flush=True)
    return alone


def _capacity(subject: Subject, plan: Plan) -> float:
    """Answers a second of its best closed loop."""
    return max(figures(bursts, deadline_s=plan.deadline_s).answers for bursts in subject.bursts.values())


def _rotated(subjects: Sequence[T], number: int) -> list[T]:
    """Nobody is always measured first."""
    start = number % len(subjects)
    return [*subjects[start:], *subjects[:start]]


def _rates(subject: Subject, subjects: Sequence[Subject], share: float) -> list[tuple[str, float]]:
    """At a share of its own capacity, and of ours where that is another's."""
    ours = next((s.capacity for s in subjects if s.server.name == OURS), 0.0)
    rates = [(f"own {share:.0%}", share * subject.capacity)]
    if ours and subject.server.name != OURS:
        rates.append((f"ours {share:.0%}", share * ours))
    return rates


def _cells(subjects: Sequence[Subject], plan: Plan) -> list[Cell]:
    """What was measured, pooled over rounds."""
    cells = []
    for subject in subjects:
        for (kind, load), bursts in subject.bursts.items():
            found = figures(bursts, deadline_s=plan.deadline_s)
            measured_s = sum(b.end_s - min(s.due_s for s in b.shots) for b in bursts)
            cells.append(
                Cell(
                    server=subject.server.name,
                    kind=kind,
                    load=load,
                    figures=found,
                    server_cores=subject.cpu_s[kind, load] / measured_s,
                    recovery_s=max(subject.recovery_s.get((kind, load), [0.0])),
                )
            )
    return cells


def _finite(value: Any) -> Any:  # noqa: ANN401 -- JSON
    """JSON has no infinity: what never came is null."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


async def _start_all(
    house: House, names: Sequence[str], settings: Mapping[str, Setting]
) -> tuple[list[Subject], dict[str, str]]:
    """The servers that start, frozen, and why the others do not."""
    subjects, missing = [], {}
    for name in names:
        found = await house.start(name, settings.get(name, {}))
        if isinstance(found, str):
            missing[name] = found
            print(f"{name} is left out: {found}", file=sys.stderr, flush=True)
            continue
        found.running.freeze()
        subjects.append(found)
        print(f"{name} runs", file=sys.stderr, flush=True)
    return subjects, missing


async def _check_and_warm(subjects: Sequence[Subject], plan: Plan) -> dict[str, float]:
    """All give the same vectors; then each is warmed.

    Raises:
        RuntimeError: one does other work than the rest.
    """
    reference: list[np.ndarray[Any, Any]] = []
    apart = {}
    for subject in subjects:
        subject.running.thaw()
        if not reference:
            target = subject.target()
            reference = [subject.server.vector(await target.ask(clip, patience_s=PATIENCE_S)) for clip in range(8)]
            await target.close()
        apart[subject.server.name] = await _disagreement(subject, reference)
        await _warm(subject, plan)
        subject.running.freeze()
        if apart[subject.server.name] > AGREE:
            raise RuntimeError(f"{subject.server.name} gives other vectors than {subjects[0].server.name}: {apart}")
    return apart


def _best(name: str, tuned: Path | None) -> Setting:
    """The setting that came out best, by `tuned` where it says so."""
    if tuned:
        found = json.loads(tuned.read_text(encoding="utf-8").splitlines()[-1])["best"]
        if name in found:
            return dict(found[name])
    return TRIED.get(name, ({},))[0]


async def _compare(house: House, given: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """The comparison."""
    names = [OURS, *(name for name in given.servers if name != OURS)]
    bare = house.start_bare()
    subjects, missing = await _start_all(house, names, {name: _best(name, given.settings) for name in names})
    apart = await _check_and_warm(subjects, plan)
    alone = await _rounds(subjects, plan, bare)
    if bare.stdin:
        bare.stdin.close()
    cells = _cells(subjects, plan)
    peaks = {subject.server.name: subject.running.peak_bytes for subject in subjects}
    in_process = {what: float(np.median(measured)) for what, measured in alone.items()}
    print_cells(cells, in_process=in_process, peaks=peaks, cores=cpus.here(), deadline_s=plan.deadline_s)
    if given.plots:
        write_plots(cells, given.plots, deadline_s=plan.deadline_s)
    return {
        "settings": {s.server.name: dataclasses.asdict(s.told) | {"bundle": "", "port": 0} for s in subjects},
        "missing": missing,
        "disagreement": apart,
        "in_process": {**in_process, "rounds": alone},
        "capacity": {s.server.name: s.capacity for s in subjects},
        "peak_bytes": peaks,
        "cells": [{**dataclasses.asdict(cell)} for cell in cells],
    }


async def _tune(house: House, given: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Every setting of every peer: capacity at 16 and 64 clients, and goodput at three times our capacity."""
    rows: list[dict[str, Any]] = []
    ours: float = 0.0
    for name in [OURS, *(name for name in given.servers if name != OURS)]:
        for setting in TRIED.get(name, ({},)):
            found = await house.start(name, setting)
            if isinstance(found, str):
                rows.append({"server": name, "setting": dict(setting), "failed": found})
                print(f"{name} {setting}: {found}", flush=True)
                continue
            await _warm(found, plan)
            for clients in (16, 64):
                await _measure(found, ("closed", clients), plan, seed=0)
            answers = {key: figures(b, deadline_s=plan.deadline_s).answers for key, b in found.bursts.items()}
            ours = ours or max(answers.values())
            for share in (0.8, 3.0):
                await _measure(found, (f"ours {share:.0%}", share * ours), plan, seed=1)
            found.running.stop()
            rows.append({"server": name, "setting": dict(setting), **_row(found, plan)})
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return {"tuned": rows, "best": best_settings(rows)}


def best_settings(rows: Sequence[Mapping[str, Any]]) -> dict[str, Setting]:
    """For each server the setting with the highest goodput of all loads together."""
    best: dict[str, tuple[float, Setting]] = {}
    for row in rows:
        goodput = sum(value for key, value in row.items() if key.endswith(": goodput"))
        if "failed" not in row and goodput > best.get(row["server"], (-1.0, {}))[0]:
            best[row["server"]] = (goodput, row["setting"])
    return {name: setting for name, (_, setting) in best.items()}


def _row(subject: Subject, plan: Plan) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for (kind, load), bursts in subject.bursts.items():
        found: Figures = figures(bursts, deadline_s=plan.deadline_s)
        name = f"{kind} {load:g}" if kind == "closed" else kind
        row[f"{name}: goodput"] = round(found.goodput, 1)
        row[f"{name}: p99_ms"] = round(found.p99_ms, 1) if math.isfinite(found.p99_ms) else None
    return row


def main() -> None:
    """Measures, prints tables, and ends with one line of JSON."""
    given = _options()
    plan = _plan(given)
    bundle = material.bundle(given.bundle, data=given.data)
    speech = material.speech(given.clips, data=given.data)
    began_s = time.monotonic()
    with ExitStack() as stack:
        mark = stack.enter_context(guarded())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="servox-bench-")))
        house = House(
            bundle.folder,
            speech.files,
            environments=given.peers or home() / "peers",
            mark=mark,
            scratch=scratch,
            deadline_s=plan.deadline_s,
        )
        found = asyncio.run((_tune if given.tune else _compare)(house, given, plan))
    print(
        json.dumps(
            _finite(
                {
                    "bench": "servers",
                    "bundle": bundle.digest[:12],
                    "source": bundle.source,
                    "cores": cpus.here(),
                    "clips": len(speech.files),
                    "mean_clip_s": speech.mean_s,
                    "speech": speech.note,
                    "plan": dataclasses.asdict(plan),
                    "took_s": time.monotonic() - began_s,
                    **found,
                }
            )
        )
    )


if __name__ == "__main__":
    main()
