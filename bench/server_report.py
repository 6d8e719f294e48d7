"""Tables and plots of `bench.servers`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import Figures
from bench.peers.catalogue import OURS

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One load on one server, all rounds together.

    Args:
        server: which.
        kind: `closed`, `own 80%` (of its own capacity), `ours 80%` (of ours).
        load: clients, or requests a second.
        figures: what came back.
        server_cores: processors that the server used.
        recovery_s: after the load, until a single request was answered in time again.
    """

    server: str
    kind: str
    load: float
    figures: Figures
    server_cores: float
    recovery_s: float


def print_cells(
    cells: Sequence[Cell], *, in_process: Mapping[str, float], peaks: Mapping[str, int], cores: int, deadline_s: float
) -> None:
    """Every cell, by load; then saturation, overload and memory."""
    for kind, load in dict.fromkeys((c.kind, c.load if c.kind == "closed" else 0) for c in cells):
        print(f"\n{f'{load:g} clients' if kind == 'closed' else f'Poisson, {kind} of capacity'}")
        print(
            f"  {'':10} {'sent/s':>8} {'goodput':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'refused':>8} "
            f"{'in (p99)':>9} {'late':>6} {'failed':>6} {'cores':>6} {'load':>6} {'recovers':>9}"
        )
        for cell in cells:
            if cell.kind == kind and (kind != "closed" or cell.load == load):
                _print_cell(cell)
    _print_summary(cells, in_process, peaks, cores, deadline_s)


def _print_cell(cell: Cell) -> None:
    f = cell.figures
    print(
        f"  {cell.server:10} {f.sent:8.1f} {f.goodput:8.1f} "
        f"{in_words(f.p50_ms):>8} {in_words(f.p95_ms):>8} {in_words(f.p99_ms):>8} "
        f"{f.refused:8d} {in_words(f.refusal_p99_ms):>9} {f.late:6d} {f.failed:6d} {cell.server_cores:6.2f} "
        f"{f.generator_cores:6.2f} {cell.recovery_s:8.2f}s"
    )


def in_words(value: float) -> str:
    """Milliseconds for a table; what never came in time is late."""
    if math.isnan(value):
        return "-"
    return f"{value:.1f}" if math.isfinite(value) else "late"


def _print_summary(
    cells: Sequence[Cell],
    in_process: Mapping[str, float],
    peaks: Mapping[str, int],
    cores: int,
    deadline_s: float,
) -> None:
    alone = in_process["files"]
    print(f"\nwithout a server: {alone:.1f} clips/s decoded and encoded, {in_process['decoded']:.1f} encoded alone")
    print(f"deadline {deadline_s:g} s; peak memory counts shared pages once")
    print(
        f"  {'':10} {'capacity':>9} {'of alone':>9} {'*':>6} {'peak goodput':>13} {'at 300 %':>9} {'kept':>6} "
        f"{'MiB':>7} {'ours/its':>9}"
    )
    measured = {cell.server for cell in cells if cell.kind == "closed"}  # not one that was lost at once
    best = {name: _capacity(cells, name) for name in peaks if name in measured}
    for name, cell in best.items():
        peak = max(c.figures.goodput for c in cells if c.server == name)
        overload = [c.figures.goodput for c in cells if c.server == name and c.kind == "own 300%"]
        at_300 = overload[0] if overload else math.nan
        left = alone * (cores - cell.figures.generator_cores) / cores
        print(
            f"  {name:10} {cell.figures.answers:9.1f} {cell.figures.answers / alone:9.2f} "
            f"{cell.figures.answers / left:6.2f} {peak:13.1f} {at_300:9.1f} {at_300 / peak:6.2f} "
            f"{peaks[name] / MIB:7.0f} {best[OURS].figures.answers / cell.figures.answers:9.2f}"
        )
    print("  * of what is left of the processors beside the load generator")


def _capacity(cells: Sequence[Cell], name: str) -> Cell:
    """The best closed loop."""
    closed = [cell for cell in cells if cell.server == name and cell.kind == "closed"]
    return max(closed, key=lambda cell: cell.figures.answers)


def finite(value: Any) -> Any:  # noqa: ANN401 -- JSON
    """A value for JSON, which has no infinity: what never came is null."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_plots(cells: Sequence[Cell], folder: Path, *, deadline_s: float) -> None:
    """Goodput and p99 over the load, and goodput over clients: `servers.png`."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    for name in dict.fromkeys(cell.server for cell in cells):
        style = {"marker": "o", "linewidth": 2.4 if name == OURS else 1.2, "label": name}
        closed = [c for c in cells if c.server == name and c.kind == "closed"]
        prefix = "own" if name == OURS else "ours"
        opened = [c for c in cells if c.server == name and c.kind.startswith(f"{prefix} ")]
        axes[0].plot([c.load for c in closed], [c.figures.answers for c in closed], **style)
        axes[1].plot([c.figures.sent for c in opened], [c.figures.goodput for c in opened], **style)
        slowest = [min(c.figures.p99_ms, 1000 * deadline_s) for c in opened]
        axes[2].plot([c.figures.sent for c in opened], slowest, **style)
    axes[0].set(xscale="log", xlabel="clients", ylabel="answers/s", title="closed loop", ylim=(0, None))
    clients = sorted({cell.load for cell in cells if cell.kind == "closed"})
    axes[0].set_xticks(clients, [f"{count:g}" for count in clients])
    axes[0].minorticks_off()
    axes[1].set(xlabel="Poisson arrivals/s", ylabel="answers within the deadline/s", title="goodput", ylim=(0, None))
    axes[2].set(xlabel="Poisson arrivals/s", ylabel="ms", title="p99 of what is admitted", ylim=(0, None))
    axes[2].axhline(1000 * deadline_s, color="grey", linestyle=":", linewidth=1)
    axes[0].legend(frameon=False)
    figure.savefig(folder / "servers.png", dpi=100)
    plt.close(figure)
