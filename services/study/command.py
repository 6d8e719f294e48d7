"""`servox study context`: what a cheaper context policy, or a shallower encoder, costs on your own speech."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from services.embedder.arithmetic import Encoder, encoder_of
from services.embedder.bundle import Bundle
from services.embedder.contexts import Context
from services.evaluator.dataset import Corpus, load
from services.evaluator.events import Events, Publish
from services.evaluator.protocols import SOUND
from services.evaluator.settings import Settings
from services.study import draws, nested, report, study
from services.study.curve import Cost, Key, Point, points, span
from services.study.embedding import bundle_of, embed_here, slug, source_of
from services.study.nested import Choice, Verdict
from servox.arrays import storing
from servox.errors import BadInput, BadSetting
from servox.v1 import evaluator_pb2

console = Console(stderr=True)

POLICIES = "padded,fixed:5,exact,silence:8,silence:32"
REFERENCE = "padded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a study found."""

    rows: Sequence[Point]
    verdict: Verdict
    command: str


def context(
    source: Annotated[str, typer.Option(help="Hub id, checkpoint folder, or a bundle made from one.")],
    data: Annotated[Path, typer.Option(help="Folder with corpora/, one folder a corpus.")],
    out: Annotated[Path, typer.Option(help="Where bundles, cells, tables and the plot go.")],
    corpora: Annotated[str, typer.Option(help="Keys, separated by commas; all that are found if empty.")] = "",
    policies: Annotated[str, typer.Option(help="Policies, separated by commas. Default: all that fit.")] = "",
    depths: Annotated[str, typer.Option(help="Blocks, separated by commas; every depth if empty.")] = "",
    layers: Annotated[
        str, typer.Option(help="How many layers heads read, up to the last; several, separated by commas.")
    ] = "1",
    precision: Annotated[str, typer.Option(help="Of the bundles: fp32, bf16 or int8.")] = "fp32",
    seeds: Annotated[int, typer.Option(help="How many seeds of folds; 0: the protocol's default.")] = 0,
    c: Annotated[float, typer.Option("--c", help="Strength 1/C of the heads' regularisation.", min=1e-8)] = 0.1,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Serve heads of the reference policy by the others, too.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that train heads; 0: one a core.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")] = False,
) -> None:
    """F1 against cost: context policies by depths, by speaker, on your own corpora, and the pair to export."""
    began = time.monotonic()
    source = source_of(source)
    chosen, encoder, all_blocks = _resolve(source, policies)
    blocks, spans = _depths(depths, all_blocks), _spans(layers, all_blocks)
    reference = REFERENCE if REFERENCE in chosen else chosen[0]
    with _bars() as bars:
        settings = Settings.load({})
        found = list(_scan(data, corpora, bars))
        bundles = {
            policy: _bundle(source, policy, out / "bundles", precision=precision, data=data, bars=bars)
            for policy in chosen
        }
        for policy, bundle in bundles.items():
            found = embed_here(bundle, found, settings=settings, events=Events(_publisher(bars, f"embed {policy}")))
        plan = study.Plan(
            bundles=bundles,
            depths=blocks,
            spans=spans,
            reference=reference,
            transfer=transfer,
            seeds=SOUND.with_seeds(seeds),
            c=c,
        )
        findings = study.run(
            plan,
            found,
            store=settings.store,
            folder=out / "cells",
            workers=workers or len(os.sched_getaffinity(0)),
            advance=_advance(bars, "score"),
        )
    costs = study.costs(plan, found, store=settings.store, encoder=encoder)
    outcome = _conclude(plan, findings, costs, source=source, precision=precision)
    paths = _write(out, outcome, source=source, corpora=found)
    _show(outcome, paths)
    if as_json:
        typer.echo(json.dumps({**_summary(outcome), "out": str(out), "seconds": round(time.monotonic() - began, 1)}))


def _resolve(source: str, policies: str) -> tuple[list[str], Encoder, int]:
    """Policies that the encoder has, its sizes, and its blocks.

    Raises:
        BadSetting: a policy that it does not have, one twice, or a family whose cost has no closed form.
    """
    try:
        from services.embedder.backbones import open_backbone  # torch and transformers
    except ModuleNotFoundError as error:
        raise BadInput(f"`study` needs the package {error.name!r}: pip install 'servox[embedder,export]'") from None
    backbone = open_backbone(source)
    config = getattr(backbone, "config", None)
    encoder = encoder_of(backbone.family, config.to_dict() if config is not None else {})
    wanted = [Context.parse(each) for each in policies.split(",") if each.strip()]
    if not wanted:
        wanted = [Context.parse(each) for each in (POLICIES.split(",") if backbone.pads else ["exact"])]
    for policy in wanted:
        backbone.check(policy, backbone.blocks)
    named = [str(policy) for policy in wanted]
    if len(set(named)) < len(named):
        raise BadSetting(f"--policies {policies}: one is there twice; name each once")
    return named, encoder, backbone.blocks


def _depths(text: str, all_blocks: int) -> list[int]:
    try:
        chosen = sorted({int(each) for each in text.split(",") if each.strip()}) or list(range(1, all_blocks + 1))
    except ValueError:
        raise BadSetting(f"--depths {text!r}: give numbers of blocks, as in 3,4,6") from None
    if not 0 <= chosen[0] <= chosen[-1] <= all_blocks:
        raise BadSetting(f"--depths {text}: this encoder has {all_blocks} blocks; give 0 to {all_blocks}")
    return chosen


def _spans(text: str, all_blocks: int) -> list[int]:
    chosen = sorted({int(each) if each.strip().isdecimal() else 0 for each in text.split(",")})
    if not 1 <= chosen[0] <= chosen[-1] <= all_blocks + 1:
        raise BadSetting(f"--layers {text!r}: give how many layers a head reads, from 1 to {all_blocks + 1}, as in 1,3")
    return chosen


def _scan(data: Path, keys: str, bars: Progress) -> Sequence[Corpus]:
    dataset = load(data, protocol=SOUND, wanted=[key.strip() for key in keys.split(",") if key.strip()])
    for said in (*dataset.warnings, *dataset.refused.values()):
        bars.console.print(f"[yellow]warning:[/yellow] {escape(said)}", highlight=False)
    return dataset.corpora


def _bundle(source: str, policy: str, folder: Path, *, precision: str, data: Path, bars: Progress) -> Bundle:
    parsed = Context.parse(policy)
    task = bars.add_task(f"export {policy}", total=1.0)
    bundle = bundle_of(
        source,
        parsed,
        folder=folder,
        precision=precision,
        data=data,
        tell=lambda _, done: bars.update(task, completed=done),
    )
    bars.update(task, completed=1.0)
    return bundle


def _conclude(
    plan: study.Plan, findings: study.Findings, costs: dict[Key, Cost], *, source: str, precision: str
) -> Outcome:
    scores = findings.scores()
    rows = points(scores, costs, transfers=findings.transferred(), reference=plan.reference)
    verdict = nested.judge(findings.cells, costs, folds=findings.folds, scores=scores)
    whole = plan.bundles[plan.reference].source_blocks
    blocks = "all" if verdict.choice.blocks == whole else str(verdict.choice.blocks)
    bundle = f"bundles/{slug(Context.parse(verdict.choice.policy))}-{blocks}"
    command = (
        f"servox export {source} --context {verdict.choice.policy} --blocks {blocks} --precision {precision} "
        f"--out {bundle}"
    )
    return Outcome(rows=rows, verdict=verdict, command=command)


def _summary(outcome: Outcome) -> dict[str, object]:
    verdict = outcome.verdict
    nested_mean = span(draws.mean(list(verdict.scores.values()))) if verdict.scores else None
    return {
        "policy": verdict.choice.policy,
        "blocks": verdict.choice.blocks,
        "layers": verdict.choice.layers,
        "command": outcome.command,
        "nested": None
        if nested_mean is None
        else {
            "macro_f1": nested_mean.value,
            "low": nested_mean.low,
            "high": nested_mean.high,
            "relative_flops": verdict.cost,
            "corpora": {corpus: score.value for corpus, score in verdict.scores.items()},
            "picked": {_named(each): count for each, count in verdict.picked.items()},
        },
    }


def _named(choice: Choice) -> str:
    layers = f", {choice.layers} layers" if choice.layers > 1 else ""
    return f"{choice.policy} {choice.blocks}{layers}"


def _write(out: Path, outcome: Outcome, *, source: str, corpora: Sequence[Corpus]) -> list[Path]:
    paths = [out / "curve.csv", out / "curve.md", out / "study.json"]
    texts = (
        report.csv_text(outcome.rows),
        report.markdown(outcome.rows),
        json.dumps({"source": source, "corpora": [each.facts() for each in corpora], **_summary(outcome)}, indent=2),
    )
    with storing(str(out)):
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
        choice = outcome.verdict.choice
        title = f"{Path(source).name}: {', '.join(corpus.card.name for corpus in corpora)}"
        return paths + report.plot(outcome.rows, out, title=title, chosen=(choice.policy, choice.blocks, choice.layers))


def _show(outcome: Outcome, paths: Sequence[Path]) -> None:
    headings, body = report.table(outcome.rows)
    shown = Table(*headings, box=None, pad_edge=False)
    for line in body:
        shown.add_row(*line)
    console.print(shown)
    summary = _summary(outcome)["nested"]
    if isinstance(summary, dict):
        console.print(
            f"the rule, each time without the fold that it is scored on: macro-F1 {summary['macro_f1']:.3f} "
            f"[{summary['low']:.3f} {summary['high']:.3f}] at {100 * summary['relative_flops']:.1f} %; "
            f"picked {', '.join(f'{count} x {name}' for name, count in summary['picked'].items())}",
            highlight=False,
        )
    else:
        console.print("no corpus has three folds: what the rule is worth cannot be said", highlight=False)
    console.print(f"written: {', '.join(str(path) for path in paths)}", highlight=False)
    console.print(f"to export what the rule picks:\n  {outcome.command}", highlight=False, soft_wrap=True)
    if outcome.verdict.choice.layers > 1:
        count = outcome.verdict.choice.layers
        console.print(f"its heads read {count} layers: the setting layers={count}", highlight=False)


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (TextColumn("{task.description:>18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        yield bars


def _advance(bars: Progress, name: str) -> study.Advance:
    task: list[TaskID] = []

    def advance(done: int, total: int) -> None:
        if not task:
            task.append(bars.add_task(name, total=total))
        bars.update(task[0], completed=done, total=total)

    return advance


def _publisher(bars: Progress, name: str) -> Publish:
    advance = _advance(bars, name)

    def publish(message: evaluator_pb2.WatchRunResponse) -> None:
        if message.WhichOneof("event") == "warning":
            bars.console.print(f"[yellow]warning:[/yellow] {escape(message.warning)}", highlight=False)
        elif message.WhichOneof("event") == "progress":
            advance(message.progress.done, message.progress.total)

    return publish
