"""From what was measured to rows, a table and a plot."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.engine_models import Engine
from bench.engine_turns import PEAK, Measured
from services.study.feature_heads import Gap

HEADS = (
    "engine",
    "clips/s",
    "x transformers (95 %)",
    "by CPU time",
    "CPU ms/clip",
    "of peak",
    "macro-F1",
    "to transformers",
    "to Servox fp32",
    "RSS MB",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One engine's figures; `None` where there is none.

    Args:
        engine: its name.
        context: what it was given.
        blocks: that it ran.
        precision: of its products.
        clips_per_s: median over rounds.
        ratio: of clips/s to transformers, geometric mean over rounds.
        ratio_low: lower end of its 95 % interval.
        ratio_high: upper end.
        cpu_ms: processor time of a clip, median over rounds.
        cpu_ratio: of processor time, transformers' to its own.
        peak_share: of the measured peak of its precision.
        f1: mean over corpora.
        f1_by_corpus: each.
        f1_from: whose features were scored.
        to_reference: difference in F1 to transformers.
        to_ours: difference in F1 to Servox fp32.
        rss_mb: peak of its process.
    """

    engine: str
    context: str
    blocks: int
    precision: str
    clips_per_s: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    cpu_ms: float
    cpu_ratio: float
    peak_share: float
    f1: float | None
    f1_by_corpus: Mapping[str, float]
    f1_from: str
    to_reference: Gap | None
    to_ours: Gap | None
    rss_mb: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Geometric mean of the rounds' ratios and its 95 % interval (Student's t on logarithms); none from one round."""
    logs = np.log(np.array(ours) / np.array(theirs))
    mean = float(logs.mean())
    if len(logs) < 2:
        return math.exp(mean), None, None
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def speed(engine: Engine, measured: Measured, reference: str, flops: float) -> dict[str, Any]:
    """The speed part of a row; `flops` of the mean clip."""
    own, base = measured[engine.name], measured[reference]
    rates, base_rates = ([each["clips"] / each["wall_s"] for each in rows] for rows in (own, base))
    cpu, base_cpu = ([each["cpu_s"] / each["clips"] for each in rows] for rows in (own, base))
    times, low, high = ratio(rates, base_rates)
    peak = float(np.median([each[engine.precision] for each in measured[PEAK]]))
    return {
        "clips_per_s": float(np.median(rates)),
        "ratio": times,
        "ratio_low": low,
        "ratio_high": high,
        "cpu_ms": 1e3 * float(np.median(cpu)),
        "cpu_ratio": float(np.median(base_cpu) / np.median(cpu)),
        "peak_share": float(np.median(rates)) * flops / 1e9 / peak,
        "rss_mb": max(each["rss_bytes"] for each in own) / 1e6,
    }


def markdown(rows: Sequence[Row]) -> str:
    """The table, as the documentation has it."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """A row in words."""
    between = "" if row.ratio_low is None else f" ({row.ratio_low:.1f}–{row.ratio_high:.1f})"
    return [
        row.engine,
        f"{row.clips_per_s:.2f}" if row.clips_per_s < 10 else f"{row.clips_per_s:.0f}",
        f"{row.ratio:.1f}{between}",
        f"{row.cpu_ratio:.1f}",
        f"{row.cpu_ms:.0f}" if row.cpu_ms >= 100 else f"{row.cpu_ms:.1f}",
        f"{row.peak_share:.0%}",
        "–" if row.f1 is None else f"{row.f1:.3f}",
        _gap(row.to_reference),
        _gap(row.to_ours),
        f"{row.rss_mb:.0f}",
    ]


def document(rows: Sequence[Row], **facts: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON holds
    """What `--out` and the last line hold."""
    return {"bench": "engines", **facts, "rows": [_rounded(asdict(row)) for row in rows]}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Clips a second as bars, the fastest on top, and the F1 of a head on each engine's features beside them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ordered = sorted(rows, key=lambda row: row.ratio)
    names = [row.engine for row in ordered]
    colours = ["#0b6e4f" if row.engine.startswith("Servox") else "#a3a3a3" for row in ordered]
    figure, (speeds, scores) = plt.subplots(
        1, 2, figsize=(9, 0.3 * len(rows) + 1), layout="constrained", sharey=True, width_ratios=(3, 2)
    )
    bars = speeds.barh(names, [row.ratio for row in ordered], color=colours)
    speeds.bar_label(bars, [f"{row.ratio:.3g}×" for row in ordered], padding=3, fontsize=8)
    speeds.set(xscale="log", xlabel="clips a second, transformers = 1", xlim=(0.7, 2 * ordered[-1].ratio))
    known = [(row.engine, row.f1, colour) for row, colour in zip(ordered, colours, strict=True) if row.f1 is not None]
    scores.scatter([f1 for _, f1, _ in known], [name for name, _, _ in known], color=[c for _, _, c in known], zorder=3)
    scores.set(xlabel="macro-F1 of a head, by speaker")
    scores.grid(visible=True, axis="x", linewidth=0.3)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _gap(gap: Gap | None) -> str:
    if gap is None or gap.low is None:
        return "–" if gap is None else f"{gap.mean:+.3f}"
    return f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"


def _rounded(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(held) for key, held in value.items()}
    return value
