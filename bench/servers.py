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
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench import material
from bench.load import Figures, figures
from bench.peers.catalogue import OURS, SERVERS, TRIED, Setting, best
from bench.peers.processes import guarded
from bench.server_house import House, Subject
from bench.server_report import finite, print_cells, write_plots
from bench.server_rounds import Plan, check_and_warm, measure, pooled, rounds, warm
from servox import cpus
from servox.settings import home

CLIENTS = (1, 4, 16, 64)
SHARES = (0.5, 0.8, 1.2, 3.0)


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


async def _compare(house: House, given: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """The comparison."""
    names = [OURS, *(name for name in given.servers if name != OURS)]
    bare = house.start_bare()
    subjects, missing = await _start_all(house, names, {name: best(name, given.settings) for name in names})
    apart = await check_and_warm(subjects, plan)
    alone = await rounds(subjects, plan, bare)
    if bare.stdin:
        bare.stdin.close()
    measured = pooled(subjects, plan)
    peaks = {subject.name: subject.running.peak_bytes for subject in subjects}
    in_process = {what: float(np.median(measured)) for what, measured in alone.items()}
    print_cells(measured, in_process=in_process, peaks=peaks, cores=cpus.here(), deadline_s=plan.deadline_s)
    if given.plots:
        write_plots(measured, given.plots, deadline_s=plan.deadline_s)
    return {
        "settings": {s.name: dataclasses.asdict(s.told) | {"bundle": "", "port": 0} for s in subjects},
        "missing": missing,
        "lost": {subject.name: subject.lost for subject in subjects if subject.lost},
        "disagreement": apart,
        "in_process": {**in_process, "rounds": alone},
        "capacity": {s.name: s.capacity for s in subjects},
        "peak_bytes": peaks,
        "cells": [{**dataclasses.asdict(cell)} for cell in measured],
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
            await warm(found, plan)
            for clients in (16, 64):
                await measure(found, ("closed", clients), plan, seed=0)
            answers = {key: figures(b, deadline_s=plan.deadline_s).answers for key, b in found.bursts.items()}
            ours = ours or max(answers.values())
            for share in (0.8, 3.0):
                await measure(found, (f"ours {share:.0%}", share * ours), plan, seed=1)
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
            finite(
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
