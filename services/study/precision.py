"""`servox study precision`: what a cheaper precision costs on one's own corpora, and the bundle that may be served.

A precision may stand for float32 when parity allows it (the embedder's own bound) and a head loses no more than half a
point of macro-F1 by speaker, the mean over the given corpora. Of those that may, the fastest on this CPU is written.
"""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from services.embedder import parity
from services.embedder.bundle import Bundle, load
from services.embedder.runtimes import choose
from services.evaluator.dataset import Corpus
from services.evaluator.dataset import load as load_corpora
from services.evaluator.protocols import SOUND
from services.evaluator.statistics import Tables
from services.study.feature_heads import Features, Gap, answers, counted, gap, macro_f1
from servox import audio, cpus
from servox.errors import BadSetting

if TYPE_CHECKING:
    from services.embedder.precisions import Trial

MOST_LOST = 0.005  # of macro-F1
STEP_MS = 100  # a server's default: fewer shapes to prepare

console = Console(stderr=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """A corpus, decoded."""

    name: str
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    speakers: tuple[str, ...]
    clips: tuple[parity.Samples, ...]


class Gate:
    """Scores heads on a bundle's features of some corpora; each bundle's features are computed once."""

    def __init__(self, corpora: list[Speech]) -> None:
        self._corpora = corpora
        self._known: dict[str, list[Tables]] = {}

    def scored(self, bundle: Bundle) -> list[Tables]:
        """Answers of heads on each corpus."""
        if bundle.digest not in self._known:
            self._known[bundle.digest] = [
                counted(corpus, answers(corpus, embed(bundle, corpus.clips))) for corpus in self._corpora
            ]
        return self._known[bundle.digest]

    def gap(self, bundle: Bundle, plain: Bundle) -> Gap:
        """Macro-F1 with the one less macro-F1 with the other."""
        return gap(self.scored(bundle), self.scored(plain))

    def f1(self, bundle: Bundle) -> float:
        """Mean over the corpora."""
        return float(np.mean([macro_f1(each) for each in self.scored(bundle)]))

    def __call__(self, bundle: Bundle, plain: Bundle) -> str:
        """Why `bundle` must not stand for `plain`; empty where it may."""
        lost = -self.gap(bundle, plain).mean
        return f"a head loses {lost:.4f} of macro-F1, over {MOST_LOST}" if lost > MOST_LOST else ""


def precision(
    bundle: Annotated[Path, typer.Option(help="A bundle in fp32.")],
    data: Annotated[Path, typer.Option(help="Folder with corpora/, labelled and with speakers.")],
    corpora: Annotated[str, typer.Option(help="Keys, separated by commas; all that are found if empty.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where to write the fastest that may be served.")] = None,
    replace_existing: Annotated[bool, typer.Option("--replace", help="Put it in place of an old one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON last.")] = False,
) -> None:
    """Every precision that this CPU offers: its speed, its error, and what a head loses by it."""
    # Imported here: torch takes seconds, which `--help` does not wait for.
    from services.embedder.export import beside, check_target, disk_errors, publish
    from services.embedder.precisions import fastest, judged, trials

    plain = load(bundle)
    if plain.precision != "fp32":
        raise BadSetting(f"--bundle {bundle} is in {plain.precision}: give one exported with --precision fp32")
    if out is not None:
        check_target(out, replace_existing=replace_existing)
    speech = gather(data, [key.strip() for key in corpora.split(",") if key.strip()], plain.rate_hz)
    gate = Gate(speech)
    place = out or bundle.absolute().with_name(f"{bundle.name}-precisions")
    with disk_errors(place), beside(place) as folder:
        measured = trials(plain, folder, parity.gather([], data, plain.rate_hz))
        tried = [judged(trial, plain, gate) for trial in measured]
        best = fastest(tried)
        console.print(table(tried, gate, plain, best))
        found = [row(trial, gate, plain, best) for trial in tried]
        if out is not None:
            best.write_manifest() if best is not plain else _copy(plain, folder)
            publish(folder / best.precision, out)
            console.print(f"{best.precision} → {out}")
    if as_json:
        typer.echo(json.dumps({"chosen": best.precision, "out": str(out) if out else None, "rows": found}))


def gather(data: Path, wanted: list[str], rate_hz: int) -> list[Speech]:
    """The corpora below `data`, decoded.

    Raises:
        BadCorpus: a wanted corpus is unknown or not there, or there is none with speakers.
    """
    return [_decoded(corpus, rate_hz) for corpus in load_corpora(data, protocol=SOUND, wanted=wanted).corpora]


def embed(bundle: Bundle, clips: tuple[parity.Samples, ...]) -> Features:
    """The default layer's means [n, d], one clip at a time on each processor."""
    streams = cpus.here()
    step = STEP_MS * bundle.rate_hz // 1000
    index = bundle.layer_index(bundle.default_layer)
    rows = np.empty((len(clips), bundle.dims), np.float32)

    def share(first: int) -> None:
        runtime = choose(bundle, "cpu", threads=1)
        for number in range(first, len(clips), streams):
            clip = clips[number]
            pcm = np.zeros((1, math.ceil(len(clip) / step) * step), np.float32)
            pcm[0, : len(clip)] = clip
            rows[number] = runtime.run(pcm, np.array([len(clip)], np.int64)).statistics[0, index, 0]
        runtime.close()

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(share, range(streams)))
    return rows


def row(trial: "Trial", gate: Gate, plain: Bundle, best: Bundle) -> dict[str, Any]:
    """A trial as `--json` prints it."""
    lost = gate.gap(trial.bundle, plain) if trial.bundle is not None and trial.bundle is not plain else None
    return {
        "precision": trial.precision,
        "error": trial.error,
        "realtime": trial.realtime,
        "macro_f1": None if trial.bundle is None else gate.f1(trial.bundle),
        "difference": None if lost is None else [lost.mean, lost.low, lost.high],
        "refused": trial.refused,
        "chosen": trial.precision == best.precision,
    }


def table(tried: "list[Trial]", gate: Gate, plain: Bundle, best: Bundle) -> Table:
    """The trials for people."""
    made = Table("precision", "speech s/s", "error", "macro-F1", "against fp32 (95 %)", "")
    for each in (row(trial, gate, plain, best) for trial in tried):
        difference = "-"
        if each["difference"] is not None:
            mean, low, high = each["difference"]
            difference = f"{mean:+.4f}" + ("" if low is None else f" ({low:+.4f} to {high:+.4f})")
        figures = [
            "-" if each[name] is None else format(each[name], kind)
            for name, kind in (("realtime", ".0f"), ("error", ".3g"), ("macro_f1", ".4f"))
        ]
        verdict = "chosen" if each["chosen"] else each["refused"] or "slower"
        made.add_row(each["precision"], *figures, difference, verdict)
    return made


def _decoded(corpus: Corpus, rate_hz: int) -> Speech:
    limits = audio.Limits(truncate_ms=30_000)
    files = [sample.clip.file for sample in corpus.samples]
    return Speech(
        name=corpus.card.name,
        keys=tuple(sample.key for sample in corpus.samples),
        labels=tuple(sample.clip.label for sample in corpus.samples),
        speakers=tuple(sample.clip.speaker or "" for sample in corpus.samples),
        clips=tuple(audio.decode(file.read_bytes(), rate_hz, limits).samples for file in files),
    )


def _copy(plain: Bundle, folder: Path) -> None:
    shutil.copytree(plain.folder, folder / "fp32")
    replace(plain, folder=folder / "fp32").write_manifest()
