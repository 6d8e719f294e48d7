"""The embedder under several settings, side by side, under the same load: what a setting is worth on this machine.

    python -m bench.variants default batch_clips=1 'batch_clips=4 pad_step_ms=200' [--against mosec [--settings FILE]]

A variant is pairs of a setting and its value, or `default`. Every load is measured on all variants before the next one,
in rounds, and nobody is always first (`bench.servers`); `--against` names peers that run beside them, `--settings` what
`bench.servers --tune` printed about them. Ratios are to the first variant. Ends with one line of JSON.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import material
from bench.load import Figures, figures
from bench.peers.catalogue import OURS, SERVERS, best
from bench.peers.processes import guarded
from bench.server_house import House, Subject
from bench.server_report import MIB, finite, in_words
from bench.server_rounds import Plan, check_and_warm, measure, rotated
from services.embedder.settings import Settings
from servox import cpus
from servox.settings import home

DEFAULT = "default"


def environment(variant: str) -> dict[str, str]:
    """The environment variables of a variant.

    Raises:
        argparse.ArgumentTypeError: it is no pairs of a setting and a value.
    """
    found = {}
    for pair in () if variant == DEFAULT else variant.split():
        name, equals, value = pair.partition("=")
        if name not in Settings.model_fields or not equals:
            raise argparse.ArgumentTypeError(
                f"{pair!r} is not a setting of the embedder and its value: write `batch_clips=1`, or {DEFAULT}; "
                "servox serve embedder --help lists the settings"
            )
        found[f"SERVOX_EMBEDDER_{name.upper()}"] = value
    return found


def _variant(text: str) -> str:
    environment(text)
    return text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variants", nargs="+", type=_variant, help=f"'setting=value …' or {DEFAULT}")
    parser.add_argument("--against", nargs="*", default=[], choices=[name for name in SERVERS if name != OURS])
    parser.add_argument("--settings", type=Path, help="of peers: what bench.servers --tune printed")
    parser.add_argument("--clients", nargs="*", type=int, default=[1, 16], help="of closed loops")
    parser.add_argument("--rates", nargs="*", type=float, default=[20, 36, 55], help="requests a second of open loops")
    parser.add_argument("--bundle", type=Path, help="default: the demo's bundle, exported where it is missing")
    parser.add_argument("--data", type=Path, help="folder with corpora/ and models/; default: SERVOX_DATA")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments; default: in SERVOX_HOME")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each window")
    parser.add_argument("--deadline-s", type=float, default=1.0)
    return parser.parse_args()


async def _started(house: House, given: argparse.Namespace) -> list[Subject]:
    """All variants and peers, frozen.

    Raises:
        RuntimeError: one does not start.
    """
    subjects = []
    for alias in [*given.variants, *given.against]:
        peer = alias in given.against
        found = await house.start(
            alias if peer else OURS,
            best(alias, given.settings) if peer else {},
            alias=alias,
            environment={} if peer else environment(alias),
        )
        if isinstance(found, str):
            raise RuntimeError(f"{alias} does not start: {found}")  # noqa: TRY004 -- a reason, not a wrong type
        found.running.freeze()
        subjects.append(found)
    return subjects


async def compare(house: House, given: argparse.Namespace) -> list[Subject]:
    """Every load on every subject, in rounds."""
    plan = Plan(
        rounds=given.rounds,
        window_s=given.seconds,
        ramp_s=0.7,
        deadline_s=given.deadline_s,
        clients=tuple(given.clients),
        shares=(),
    )
    subjects = await _started(house, given)
    await check_and_warm(subjects, plan)
    loads = [*(("closed", float(n)) for n in plan.clients), *(("open", rate) for rate in given.rates)]
    for number in range(plan.rounds):
        for load in loads:
            for subject in rotated(subjects, number):
                await measure(subject, load, plan, seed=number)
    return subjects


def table(subjects: Sequence[Subject], *, deadline_s: float) -> list[dict[str, Any]]:
    """One row for each load and subject that was measured under it; ratios are to the first of them."""
    rows = []
    for kind, load in dict.fromkeys(key for subject in subjects for key in subject.bursts):
        reference: Figures | None = None
        for subject in subjects:
            bursts = subject.bursts.get((kind, load), [])
            if not bursts:
                continue  # it was lost before
            found = figures(bursts, deadline_s=deadline_s)
            reference = reference or found
            rows.append(
                {
                    "load": f"{load:g} {'clients' if kind == 'closed' else 'a second'}",
                    "variant": subject.name,
                    "goodput": found.goodput,
                    "goodput_ratio": _ratio(found.goodput, reference.goodput),
                    "p50_ms": found.p50_ms,
                    "p99_ms": found.p99_ms,
                    "p99_ratio": _ratio(found.p99_ms, reference.p99_ms),
                    "refused": found.refused,
                    "refused_in_ms": found.refusal_p99_ms,
                    "late": found.late,
                    "cpu_ms": 1000 * subject.cpu_s[kind, load] / sum(len(burst.shots) for burst in bursts),
                }
            )
    return rows


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference else float("nan")


def _print(rows: Sequence[Mapping[str, Any]], peaks: Mapping[str, int]) -> None:
    width = max(len(name) for name in peaks)
    load = ""
    for row in rows:
        if row["load"] != load:
            load = row["load"]
            columns = ("goodput", "ratio", "p50 ms", "p99 ms", "ratio", "refused", "in p99", "late", "CPU ms")
            print(f"\n{load:{width + 2}}" + "".join(f"{column:>9}" for column in columns))
        print(
            f"  {row['variant']:{width}}{row['goodput']:9.1f}{row['goodput_ratio']:9.2f}{in_words(row['p50_ms']):>9}"
            f"{in_words(row['p99_ms']):>9}{row['p99_ratio']:9.2f}{row['refused']:9d}"
            f"{in_words(row['refused_in_ms']):>9}{row['late']:9d}{row['cpu_ms']:9.1f}"
        )
    print("\nmost memory, MiB: " + ", ".join(f"{name} {peak / MIB:.0f}" for name, peak in peaks.items()))


def main() -> None:
    """Measures, prints a table, and ends with one line of JSON."""
    given = _options()
    bundle = material.bundle(given.bundle, data=given.data)
    speech = material.speech(given.clips, data=given.data)
    with ExitStack() as stack:
        house = House(
            bundle.folder,
            speech.files,
            environments=given.peers or home() / "peers",
            mark=stack.enter_context(guarded()),
            scratch=Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="servox-bench-"))),
            deadline_s=given.deadline_s,
        )
        subjects = asyncio.run(compare(house, given))
        rows = table(subjects, deadline_s=given.deadline_s)
        peaks = {subject.name: subject.running.peak_bytes for subject in subjects}
    _print(rows, peaks)
    said = {"bench": "variants", "bundle": bundle.digest[:12], "cores": cpus.here(), "speech": speech.note}
    rounds = {
        subject.name: {
            str(key): [asdict(figures([b], deadline_s=given.deadline_s)) for b in bursts]
            for key, bursts in subject.bursts.items()
        }
        for subject in subjects
    }
    print(json.dumps(finite({**said, "rows": rows, "peak_bytes": peaks, "rounds": rounds})))


if __name__ == "__main__":
    main()
