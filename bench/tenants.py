"""Calibration to a tenant on replays of real clips: what it gives, what each prior gives, attacks, drift.

- Heads are trained by the real `Train` from a store of embeddings: on each corpus for each other one (classes that both
  have), on four corpora for the fifth, and on half of the speakers of a corpus for the other half (a tenant who is no
  stranger). Tenants are the clips of `bench.tenant_replay`: those who calibrate are never those who are scored.
- Streams: balanced; skewed 4:1 in a random order of classes; one class, each in turn (mean and worst).
- `plain` is the recipe of the study: replace the mean from 16 clips on, no guard and no threshold of relevance.
- An attack is 1,000 clips of one class within an hour, or 400 within a day, so slowly that all may count. Each is a
  call of its own and slightly changed, so that none is a duplicate.
- Drift: 96 clips of the scored half after a state of 64 clips, then 96 of another corpus.

python -m bench.tenants --bundle BUNDLE --store FOLDER [--data FOLDER] [--plots FOLDER]
"""

import argparse
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.tenant_replay import PLAIN, Content, Floats, Ints, Replay, Tenant, drawn, halves, true_prior
from services.demo import data_root
from services.embedder import bundle as bundles
from services.evaluator.dataset import Corpus, load
from services.evaluator.protocols import SOUND
from services.prober.heads import Head
from services.prober.metrics import ProberMetrics
from services.prober.prior import Prior
from services.prober.progress import Event, Failed, Trained
from services.prober.registry import Registry
from services.prober.specs import Spec, settings_of
from services.prober.tenants.rules import Rules
from services.prober.tenants.statistics import drift
from services.prober.trainer import Workshop, train
from services.prober.vectors import Vectors
from servox.arrays import LabelledClip, write_clip_set
from servox.errors import BadSetting
from servox.telemetry import Metrics

SIZES = (0, 8, 16, 32, 64, 128)
KINDS = ("one corpus", "four corpora", "own corpus")
CONTENTS: tuple[Content, ...] = ("balanced", "skewed 4:1", "one class")
WORST = "the worst class"
PRIORS = ("train", "uniform", "true", "estimated", "estimated-em")
SLOW_MS = 300_000  # between clips that are all to count
# name, clips heard before, limits, clips of the attack, time between them
ATTACKS = (
    ("servox, an hour", 16, Rules(), 1000, 3600),
    ("servox, an hour", 64, Rules(), 1000, 3600),
    ("servox, a day", 64, Rules(), 400, 216_000),
    ("plain, an hour", 64, PLAIN, 1000, 3600),
)
JITTER = 0.1  # training deviations
DRIFT = 96


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One corpus: clips, vectors [n, d], half of its speakers."""

    corpus: Corpus
    vectors: Floats
    first: Ints

    @property
    def clips(self) -> Sequence[LabelledClip]:
        """In the order of the vectors."""
        return self.corpus.labelled

    @property
    def labels(self) -> set[str]:
        """That it has."""
        return {clip.label for clip in self.clips}


@dataclass(slots=True)
class Figures:
    """Figures by what they are of, to be averaged."""

    found: dict[tuple[Any, ...], list[float]] = field(default_factory=dict)

    def add(self, value: float, *key: object) -> None:
        """One more."""
        self.found.setdefault(key, []).append(value)

    def mean(self, *key: object) -> float:
        """Their mean; NaN where there are none."""
        return float(np.mean(self.found.get(key, [np.nan])))

    def quantile(self, share: float, *key: object) -> float:
        """Of them."""
        return float(np.quantile(self.found.get(key, [np.nan]), share))


def orders(sources: Mapping[str, Source]) -> Iterator[tuple[str, str, list[LabelledClip], list[str]]]:
    """Kind, tenant, training clips and classes of each head."""
    for target, source in sources.items():
        others = {key: each for key, each in sources.items() if key != target}
        for each in others.values():
            shared = sorted(each.labels & source.labels)
            yield KINDS[0], target, [clip for clip in each.clips if clip.label in shared], shared
        crowd = [clip for each in others.values() for clip in each.clips if clip.label in source.labels]
        yield KINDS[1], target, crowd, sorted({clip.label for clip in crowd})
        yield KINDS[2], target, [source.clips[row] for row in source.first], sorted(source.labels)


def trained(options: argparse.Namespace, digest: str, sources: Mapping[str, Source]) -> list[tuple[str, str, Head]]:
    """Kind, tenant and head of every order, by the real `Train`."""
    wanted, heads = list(orders(sources)), dict[int, Head]()

    def report(event: Event) -> None:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Trained):
            heads[event.index] = event.head

    with tempfile.TemporaryDirectory() as folder:
        specs = [
            Spec(
                name=f"bench-{number}",
                kind="mlp",
                bundle=digest,
                layer=options.layer,
                clip_set_url=write_clip_set(f"{folder}/sets", clips),
                classes=tuple(classes),
                seed=0,
                calibrate=True,
                settings=settings_of("mlp", {}),
            )
            for number, (_, _, clips, classes) in enumerate(wanted)
        ]
        workshop = Workshop(
            registry=Registry(Path(folder) / "heads"),
            vectors=Vectors(1 << 30),
            threads=options.threads,
            scratch=None,
            metrics=ProberMetrics(Metrics()),
        )
        train(workshop, options.store, specs, report=report, stop=threading.Event())
    return [(kind, target, heads[number]) for number, (kind, target, _, _) in enumerate(wanted)]


def tenant_of(kind: str, source: Source, head: Head, seed: int) -> Tenant:
    """A corpus as a tenant of a head, its speakers halved by chance."""
    classes = head.card.classes
    taught = set(source.first.tolist()) if kind == KINDS[2] else set()
    rows = np.array([row for row, clip in enumerate(source.clips) if clip.label in classes and row not in taught])
    clips = [source.clips[row] for row in rows]
    callers, scored = halves([clip.speaker for clip in clips], seed)
    return Tenant(
        head=head,
        kind=kind,
        corpus=source.corpus.key,
        vectors=source.vectors[rows],
        labels=np.array([classes.index(clip.label) for clip in clips], dtype=np.int64),
        callers=callers,
        scored=scored,
    )


# ---- what is measured ------------------------------------------------------------------------------------------------


def gains(tenant: Tenant, seed: int, figures: Figures) -> None:
    """Macro-F1 after so many clips, by content, with our rules and with the plain recipe."""
    for content, (name, rules) in product(CONTENTS, (("servox", Rules()), ("plain", PLAIN))):
        curves = []
        for only in tenant.heard if content == "one class" else [None]:
            random = np.random.default_rng([seed, 2, only or 0])
            heard = tenant.vectors[drawn(tenant.labels, tenant.callers, content, max(SIZES), random, only)]
            curves.append(curve(Replay(tenant=tenant, rules=rules), heard))
        for size, points in zip(SIZES, np.array(curves).swapaxes(0, 1), strict=True):
            for what, value in zip(("f1", "ready", "relevance"), points.mean(axis=0), strict=True):
                figures.add(float(value), name, tenant.kind, content, size, what)
            if content == "one class":
                figures.add(float(points[:, 0].min()), name, tenant.kind, WORST, size, "f1")


def curve(replay: Replay, heard: Floats) -> list[tuple[float, float, float]]:
    """Macro-F1, whether the state answers, and its relevance, after each of `SIZES` clips."""
    points, done = [], 0
    for size in SIZES:
        replay.heard(heard[done:size], each_ms=SLOW_MS)
        done = size
        ready = float(replay.state.phase == "ready")
        points.append((replay.f1(), ready, replay.calibrated().relevance))
    return points


def priors(tenant: Tenant, seed: int, figures: Figures) -> None:
    """Macro-F1 under each prior, where the scored clips are balanced or skewed as the heard ones."""
    for content, size in product(CONTENTS[:2], (16, 64)):
        replay = Replay(tenant=tenant, rules=Rules(em=True))
        pick = np.random.default_rng([seed, 3])
        replay.heard(tenant.vectors[drawn(tenant.labels, tenant.callers, content, size, pick)], each_ms=SLOW_MS)
        # The same generator gives the same order of classes, and so the same shares, to those who are scored.
        scored = drawn(tenant.labels, tenant.scored, content, 4 * len(tenant.scored), np.random.default_rng([seed, 3]))
        for name in PRIORS:
            prior = true_prior(tenant, scored) if name == "true" else Prior(kind=name)  # type: ignore[arg-type]
            figures.add(replay.f1(scored, prior), tenant.kind, content, size, name)
            figures.add(replay.f1(scored, prior, raw=True), tenant.kind, content, size, name, "raw")


def novelty(tenant: Tenant, seed: int, figures: Figures) -> None:
    """Share of the scored clips that abstain, before and after calibration."""
    replay = Replay(tenant=tenant, rules=Rules())
    random = np.random.default_rng([seed, 2, 0])
    replay.heard(tenant.vectors[drawn(tenant.labels, tenant.callers, "balanced", 64, random)])
    figures.add(replay.novel(calibrated=False), tenant.kind, "before")
    figures.add(replay.novel(calibrated=True), tenant.kind, "after")


def attacked(tenant: Tenant, seed: int, figures: Figures) -> None:
    """Macro-F1 before and after an hour, or a day, of one class."""
    for only, (name, after, rules, clips, each_ms) in product(tenant.heard, ATTACKS):
        random = np.random.default_rng([seed, 4, only])
        replay = Replay(tenant=tenant, rules=rules)
        replay.heard(tenant.vectors[drawn(tenant.labels, tenant.callers, "balanced", after, random)], each_ms=SLOW_MS)
        before, answers = replay.f1(), replay.probabilities(tenant.scored)
        fed = tenant.vectors[drawn(tenant.labels, tenant.callers, "one class", clips, random, only)]
        fed = fed + (random.normal(size=fed.shape) * JITTER * tenant.head.weights["std"]).astype(np.float32)
        reasons = replay.heard(fed, each_ms=each_ms)
        key = (name, tenant.kind, after)
        figures.add(replay.f1() - before, *key, "change")
        figures.add(float(np.abs(replay.probabilities(tenant.scored) - answers).max(axis=1).mean()), *key, "moved")
        figures.add(float(reasons.count("")), *key, "counted")
        figures.add(float("leaning" in reasons), *key, "alarm")


def drifts(tenant: Tenant, seed: int, sources: Mapping[str, Source], figures: Figures) -> None:
    """Both drifts, clip by clip, while the corpus changes half-way."""
    random = np.random.default_rng([seed, 5])
    replay = Replay(tenant=tenant, rules=Rules())
    replay.heard(tenant.vectors[drawn(tenant.labels, tenant.callers, "balanced", 64, random)], each_ms=SLOW_MS)
    same = tenant.vectors[drawn(tenant.labels, tenant.scored, "balanced", DRIFT, random)]
    other = random.choice([key for key in sources if key != tenant.corpus])
    strange = sources[other].vectors[random.choice(len(sources[other].vectors), DRIFT)]
    std = tenant.head.weights["std"]
    for place, _ in enumerate(replay.hear(np.concatenate([same, strange]))):
        share = replay.state.shares[-1]
        figures.add(drift(replay.state, std), tenant.kind, "features", place + 1)
        figures.add(share.lean, tenant.kind, "prior", place + 1)


# ---- tables ----------------------------------------------------------------------------------------------------------


def shown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)


def gain_rows(figures: Figures) -> list[list[str]]:
    """A row for each kind, content and recipe."""
    rows = []
    for kind, content, name in product(KINDS, (*CONTENTS, WORST), ("servox", "plain")):
        values = [f"{figures.mean(name, kind, content, size, 'f1'):.3f}" for size in SIZES]
        ready, relevance = (figures.mean(name, kind, content, 64, what) for what in ("ready", "relevance"))
        rest = ("", "") if content == WORST else (f"{100 * ready:.0f} %", f"{relevance:.2f}")
        rows.append([kind, content, name, *values, *rest])
    return rows


def prior_rows(figures: Figures) -> list[list[str]]:
    """A row for each kind, content and number of clips."""
    rows = []
    for kind, content, (size, raw) in product(KINDS, CONTENTS[:2], ((64, ("raw",)), (16, ()), (64, ()))):
        values = [f"{figures.mean(kind, content, size, name, *raw):.3f}" for name in PRIORS]
        rows.append([kind, content, "training mean" if raw else f"{size} clips", *values])
    return rows


def attack_rows(figures: Figures) -> list[list[str]]:
    """A row for each kind and number of clips before."""
    rows = []
    for kind, (name, after, *_) in product(KINDS, ATTACKS):
        key = (name, kind, after)
        mean, low = figures.mean(*key, "change"), figures.quantile(0.05, *key, "change")
        moved, counted = figures.mean(*key, "moved"), figures.mean(*key, "counted")
        alarm = f"{100 * figures.mean(*key, 'alarm'):.0f} %"
        rows.append([kind, str(after), name, f"{mean:+.3f}", f"{low:+.3f}", f"{moved:.3f}", f"{counted:.0f}", alarm])
    return rows


def drift_rows(figures: Figures) -> list[list[str]]:
    """A row for each kind, drift and place."""
    rows = []
    for kind, what in product(KINDS, ("features", "prior")):
        for place in (32, 64, DRIFT, DRIFT + 8, DRIFT + 16, DRIFT + 32, 2 * DRIFT):
            values = [figures.quantile(share, kind, what, place) for share in (0.05, 0.5, 0.95, 0.99)]
            rows.append([kind, what, str(place), *(f"{value:.3f}" for value in values)])
    return rows


def plot(figures: Figures, folder: Path) -> None:
    """Both drifts over clips, `tenant-drift.png`, and macro-F1 over clips, `tenant-gain.png`."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    places = range(1, 2 * DRIFT + 1)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, (what, level, unit) in zip(
        axes, (("features", 0.35, "shift, squared deviations"), ("prior", Rules().lean_nats, "nats")), strict=True
    ):
        for kind in KINDS:
            middle = [figures.quantile(0.5, kind, what, place) for place in places]
            (line,) = axis.plot(places, middle, label=kind)
            bounds = [[figures.quantile(share, kind, what, place) for place in places] for share in (0.05, 0.95)]
            axis.fill_between(places, *bounds, color=line.get_color(), alpha=0.15)
        axis.axhline(level, color="black", linestyle=":", linewidth=1)
        axis.axvline(DRIFT + 0.5, color="grey", linestyle="--", linewidth=1)
        axis.set(xlabel="clips; from the dashed line on, of another corpus", ylabel=unit, title=f"drift of {what}")
        axis.set_yscale("symlog", linthresh=0.05)
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    figure.savefig(folder / "tenant-drift.png", dpi=110)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained", sharey=True)
    for axis, kind in zip(axes, KINDS, strict=True):
        for content, (name, style) in product(CONTENTS, (("servox", "-"), ("plain", ":"))):
            colour = f"C{CONTENTS.index(content)}"
            values = [figures.mean(name, kind, content, size, "f1") for size in SIZES]
            axis.plot(values, style, marker="o", markersize=3, color=colour, label=f"{content}, {name}")
        axis.set(xticks=range(len(SIZES)), xticklabels=SIZES, xlabel="clips heard", title=f"head of {kind}")
    axes[0].set_ylabel("macro-F1, other speakers")
    axes[0].legend(frameon=False, fontsize=7)
    figure.savefig(folder / "tenant-gain.png", dpi=110)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as what goes into the line of JSON."""
    digest = bundles.load(options.bundle).digest
    sources = {}
    for corpus in load(options.data, protocol=SOUND).corpora:
        keys = [clip.key for clip in corpus.labelled]
        vectors = Vectors(1 << 30).pooled(options.store, bundle=digest, layers=(options.layer,), keys=keys)
        first, _ = halves([clip.speaker for clip in corpus.labelled], 0)
        sources[corpus.key] = Source(corpus=corpus, vectors=vectors, first=first)
    heads = trained(options, digest, sources)
    parts = {name: Figures() for name in ("gain", "prior", "novelty", "attack", "drift")}
    steps: Sequence[tuple[str, Callable[[Tenant, int, Figures], None]]] = (
        ("gain", gains),
        ("prior", priors),
        ("novelty", novelty),
        ("drift", lambda tenant, seed, figures: drifts(tenant, seed, sources, figures)),
    )
    for (kind, target, head), seed in product(heads, range(options.seeds)):
        tenant = tenant_of(kind, sources[target], head, seed)
        for name, step in steps:
            step(tenant, seed, parts[name])
        if seed < options.attack_seeds:
            attacked(tenant, seed, parts["attack"])
    return report(parts, options)


def report(parts: Mapping[str, Figures], options: argparse.Namespace) -> dict[str, Any]:
    """Prints the tables; the same for machines."""
    tables = {
        "gain": (("head of", "stream", "recipe", *map(str, SIZES), "ready", "relevance"), gain_rows(parts["gain"])),
        "prior": (("head of", "shares", "calibrated by", *PRIORS), prior_rows(parts["prior"])),
        "attack": (
            ("head of", "clips before", "recipe", "change", "worst 5 %", "probabilities moved", "counted", "alarm"),
            attack_rows(parts["attack"]),
        ),
        "drift": (("head of", "drift", "clips", "5 %", "median", "95 %", "99 %"), drift_rows(parts["drift"])),
        "novelty": (
            ("head of", "before", "after"),
            [
                [kind, *(f"{100 * parts['novelty'].mean(kind, when):.0f} %" for when in ("before", "after"))]
                for kind in KINDS
            ],
        ),
    }
    for title, (columns, rows) in tables.items():
        shown(title, columns, rows)
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        plot_figures = Figures({**parts["gain"].found, **parts["drift"].found})
        plot(plot_figures, options.plots)
    return {
        "bench": "tenants",
        "seeds": options.seeds,
        **{title: [dict(zip(columns, row, strict=True)) for row in rows] for title, (columns, rows) in tables.items()},
    }


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for.

    Raises:
        BadSetting: no data folder was named, and there is none.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="whose embeddings to read")
    parser.add_argument("--store", required=True, help="where they are; `bench.heads` fills it")
    parser.add_argument("--data", type=Path, default=data_root(), help="folder with corpora/")
    parser.add_argument("--layer", type=int, default=3, help="of the bundle")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--attack-seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plots", type=Path, help="folder for plots")
    options = parser.parse_args(arguments)
    if options.data is None:
        raise BadSetting("--data: no folder with corpora/ was found; name one")
    return options


if __name__ == "__main__":
    print(json.dumps(measure(parsed())))
