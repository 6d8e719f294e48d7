"""Measures servers side by side: one load on all of them before the next load, so that drift hits all alike."""

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from bench.load import Burst, closed_loop, figures, open_loop
from bench.peers.catalogue import OURS
from bench.peers.processes import Running
from bench.server_house import Subject, read_line
from bench.server_report import Cell

PATIENCE_S = 30.0  # of requests that are not measured
SETTLE_S = 20.0
AGREE = 1e-3  # vectors of all servers are equal up to what another batch width does to float32
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how often."""

    rounds: int
    window_s: float
    ramp_s: float
    deadline_s: float
    clients: tuple[int, ...]
    shares: tuple[float, ...]


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


def dead(burst: Burst) -> bool:
    """Whether nothing came back but errors."""
    return bool(burst.shots) and all(shot.outcome == "failed" for shot in burst.shots)


async def measure(subject: Subject, key: tuple[str, float], plan: Plan, seed: int) -> None:
    """One cell on one server, which is thawed for it and frozen after it; none on one that was lost."""
    if subject.lost:
        return
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
    if dead(burst):
        subject.lost = f"{key[0]} {key[1]:g}"
        print(f"{subject.name} answers nothing any more since {subject.lost}: left out", file=sys.stderr, flush=True)
        subject.running.freeze()
        return
    subject.bursts.setdefault(key, []).append(burst)
    subject.cpu_s[key] = subject.cpu_s.get(key, 0.0) + subject.running.cpu_s() - before_s
    if key[0] != "closed":
        subject.recovery_s.setdefault(key, []).append(await _settled(subject, 1000 * plan.deadline_s))
    subject.running.freeze()


async def _weigh(running: Running, after_s: float) -> None:
    """Weighs once under load, in the ramp: it looks through all processes, and requests are sent late meanwhile."""
    await asyncio.sleep(after_s)
    await asyncio.to_thread(running.weigh)


async def warm(subject: Subject, plan: Plan) -> None:
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


def _bare(process: subprocess.Popen[str], what: str, window_s: float) -> float:
    """Clips a second without a server."""
    if process.stdin is None:
        raise RuntimeError("the process without a server has no input")
    process.stdin.write(f"{what} {window_s}\n")
    process.stdin.flush()
    return float(read_line(process))


async def rounds(subjects: Sequence[Subject], plan: Plan, bare: subprocess.Popen[str]) -> dict[str, list[float]]:
    """Every load on every server, `plan.rounds` times; the same without a server, beside them."""
    alone: dict[str, list[float]] = {"files": [], "decoded": []}
    for number in range(plan.rounds):
        for clients in plan.clients:
            for subject in rotated(subjects, number):
                await measure(subject, ("closed", clients), plan, seed=number)
            if clients in plan.clients[-2:]:
                for what, measured in alone.items():
                    measured.append(_bare(bare, what, plan.window_s))
        for subject in subjects:
            subject.capacity = subject.capacity or _capacity(subject, plan)
        for share in plan.shares:
            for subject in rotated(subjects, number):
                for rate in _rates(subject, subjects, share):
                    await measure(subject, rate, plan, seed=100 + number)
        print(f"round {number + 1} of {plan.rounds} is done", file=sys.stderr, flush=True)
    return alone


def _capacity(subject: Subject, plan: Plan) -> float:
    """Answers a second of its best closed loop."""
    found = (figures(bursts, deadline_s=plan.deadline_s).answers for bursts in subject.bursts.values())
    return max(found, default=0.0)


def rotated(subjects: Sequence[T], number: int) -> list[T]:
    """Nobody is always measured first."""
    start = number % len(subjects)
    return [*subjects[start:], *subjects[:start]]


def _rates(subject: Subject, subjects: Sequence[Subject], share: float) -> list[tuple[str, float]]:
    """At a share of its own capacity, and of ours where that is another's."""
    ours = next((s.capacity for s in subjects if s.name == OURS), 0.0)
    rates = [(f"own {share:.0%}", share * subject.capacity)]
    if ours and subject.name != OURS:
        rates.append((f"ours {share:.0%}", share * ours))
    return rates


def pooled(subjects: Sequence[Subject], plan: Plan) -> list[Cell]:
    """What was measured, pooled over rounds."""
    cells = []
    for subject in subjects:
        for (kind, load), bursts in subject.bursts.items():
            found = figures(bursts, deadline_s=plan.deadline_s)
            measured_s = sum(b.end_s - min(s.due_s for s in b.shots) for b in bursts)
            cells.append(
                Cell(
                    server=subject.name,
                    kind=kind,
                    load=load,
                    figures=found,
                    server_cores=subject.cpu_s[kind, load] / measured_s,
                    recovery_s=max(subject.recovery_s.get((kind, load), [0.0])),
                )
            )
    return cells


async def check_and_warm(subjects: Sequence[Subject], plan: Plan) -> dict[str, float]:
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
        apart[subject.name] = await _disagreement(subject, reference)
        await warm(subject, plan)
        subject.running.freeze()
        if apart[subject.name] > AGREE:
            raise RuntimeError(f"{subject.name} gives other vectors than {subjects[0].name}: {apart}")
    return apart
