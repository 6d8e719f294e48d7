"""`servox heads evaluate`: what a head is worth on corpora of which it heard nothing, stored beside it for the gate.

- A corpus is eligible if no clip of it trained the head, and if two classes or more are in both. What is not is left
  out, with the reason, which is part of the document.
- Clips, splits, scores, floors and intervals are the evaluator's own, under the protocol `sound` and the correction
  `none`: the head's calibrated probabilities over the shared classes, as a caller without a tenant gets them.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from servox import __version__
from servox.arrays import EmbeddingStore, LabelledClip, clip_set_digest, read_clip_set
from servox.errors import BadInput, HeadMismatch, NotFound, Refused
from servox.priors import softmax
from servox.settings import home
from servox.telemetry import Metrics
from servox.v1 import embedder_pb2, prober_pb2

from .evaluator import corrections
from .evaluator.dataset import Corpus, load
from .evaluator.embedding import embed_missing
from .evaluator.events import Events
from .evaluator.floors import floors
from .evaluator.metrics import EvaluatorMetrics
from .evaluator.peers import Peers
from .evaluator.predictions import Predictor
from .evaluator.protocols import SER_EVALS, SOUND, Protocol
from .evaluator.scoring import score
from .evaluator.settings import Settings
from .evaluator.statistics import intervals, tables
from .house import running
from .prober.card import Card, card_from_json
from .prober.command_options import AsJson, Folder
from .prober.evaluations import CorpusScores, Evaluation
from .prober.promotion_command import table_of
from .prober.promotion_servicer import results_from_proto

Array = NDArray[np.float64]
console = Console(stderr=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The head that is evaluated."""

    card: Card
    digest: str
    message: prober_pb2.HeadSummary

    @property
    def protocol(self) -> Protocol:
        """`sound`, with the embeddings that the head reads."""
        if self.card.kind != "frame-mlp":
            return SOUND
        return replace(SOUND, pooling=SER_EVALS.pooling, pooling_name=SER_EVALS.pooling_name)


def evaluate(
    name: Annotated[str, typer.Argument(help="NAME:VERSION, NAME:latest or NAME:production.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Folder with corpora/, one folder a corpus.", show_default=False)],
    bundle: Annotated[Path, typer.Option(help="Bundle that the head reads.", show_default=False)],
    corpora: Annotated[str, typer.Option(help="Keys, with commas; all that are found if empty.")] = "",
    store: Annotated[str, typer.Option(help="Of embeddings: folder or URL; below SERVOX_HOME if empty.")] = "",
    prober: Annotated[str, typer.Option(help="Address of a prober; one is started here if empty.")] = "",
    heads: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Score a head on corpora that it was not trained on, and store the result beside it for the gate."""
    if ":" not in name:
        raise BadInput(f"head {name!r}: evaluate a version, such as {name}:latest")
    wanted = [key.strip() for key in corpora.split(",") if key.strip()]
    evaluation, stored = asyncio.run(
        judge(
            name,
            data=data,
            bundle=bundle,
            corpora=wanted,
            store=store or str(home() / "store"),
            prober=prober,
            heads=heads,
        )
    )
    Console().print(scores_table(evaluation))
    for key, why in evaluation.left_out.items():
        console.print(f"[yellow]left out:[/] {escape(key)}: {escape(why)}", highlight=False, soft_wrap=True)
    Console().print(table_of(results_from_proto(stored.gate)))
    if as_json:
        typer.echo(json.dumps(json.loads(evaluation.to_json()), ensure_ascii=False))


async def judge(
    name: str,
    *,
    data: Path,
    bundle: Path,
    corpora: Sequence[str] = (),
    store: str,
    prober: str = "",
    heads: Path | None = None,
) -> tuple[Evaluation, prober_pb2.StoreEvaluationResponse]:
    """The evaluation of a head, as it was stored, and what the gate says then.

    Args:
        name: of the head, with a version.
        data: holds `corpora/`.
        bundle: folder of the bundle that the head reads.
        corpora: keys; all that are found if empty.
        store: URL of embeddings, shared with the prober.
        prober: its address; one is started if empty.
        heads: folder of its registry, where it is started here.

    Raises:
        NotFound: no such head.
        HeadMismatch: the head reads another bundle.
        BadCorpus: nothing to score on.
    """
    async with served(bundle, prober, heads) as (embedder, address), _peers(embedder, address, here=not prober) as both:
        near, far = both
        found = await far.head(name)
        head = Judged(card=card_from_json(found.card_json), digest=found.summary.head.digest, message=found.summary)
        evaluation = await _evaluated(head, near, far, data, corpora, store)
        return evaluation, await far.store_evaluation(head.card.tag, evaluation.to_json())


@asynccontextmanager
async def _peers(embedder: str, prober: str, *, here: bool) -> AsyncIterator[tuple[Peers, Peers]]:
    """The way to the embedder, which is here, and to the prober, with the evaluator's certificates if it is not."""
    settings = Settings.load({"embedder": embedder, "prober": prober})
    plain = {"peer_ca": None, "peer_certificate": None, "peer_private_key": None, "peer_api_key": None}
    near = Peers(settings.model_copy(update=plain))
    far = near if here else Peers(settings)
    try:
        yield near, far
    finally:
        await near.close()
        await far.close()


async def _evaluated(
    head: Judged, near: Peers, far: Peers, data: Path, wanted: Sequence[str], store: str
) -> Evaluation:
    bundle = await near.describe()
    if bundle.bundle.digest != head.card.bundle:
        raise HeadMismatch(
            f"head {head.card.tag} reads bundle {head.card.bundle}, --bundle is {bundle.bundle.digest}: name the one "
            "that it reads"
        )
    dataset = await asyncio.to_thread(load, data, protocol=SOUND, wanted=wanted)
    learned, left_out = _learned(head.card), dict(dataset.refused)
    eligible = [corpus for corpus in dataset.corpora if not _why_not(corpus, head.card, learned, left_out)]
    events = Events(lambda _: None)
    scored = list[CorpusScores]()
    if eligible:
        eligible = await _embedded(eligible, head, near, bundle, store, events)
    predictor = Predictor(
        peers=far,
        store=store,
        bundle=bundle,
        pooling=head.protocol.pooling_name,
        layers=len(head.card.layers),
    )
    for corpus in eligible:
        answer = await predictor.logits(head.message.head, corpus.labelled)
        try:
            scored.append(scores_of(corpus.key, corpus.labelled, answer.calibrated[0], answer.classes))
        except Refused as error:
            left_out[corpus.key] = str(error)
    for warning in (*dataset.warnings, *events.warnings):
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    return Evaluation(
        head=head.card.tag,
        digest=head.digest,
        bundle=head.card.bundle,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        servox=__version__,
        corpora=tuple(scored),
        left_out=dict(sorted(left_out.items())),
    )


async def _embedded(
    corpora: Sequence[Corpus],
    head: Judged,
    peers: Peers,
    bundle: embedder_pb2.DescribeResponse,
    store: str,
    events: Events,
) -> list[Corpus]:
    settings = Settings.load({"store": store})
    with console.status("embedding what the store lacks"):
        return await embed_missing(
            corpora,
            peers=peers,
            store=EmbeddingStore(store),
            bundle=bundle,
            protocol=head.protocol,
            in_flight=settings.embed_in_flight,
            truncate_ms=min(settings.truncate_ms, bundle.max_duration_ms),
            events=events,
            clips=EvaluatorMetrics(Metrics()).clips,
        )


def scores_of(key: str, clips: Sequence[LabelledClip], logits: Array, classes: Sequence[str]) -> CorpusScores:
    """Scores of a head on a corpus, over the classes of both.

    Args:
        key: of the corpus.
        clips: `[n]`, with labels and speakers.
        logits: `[n, K]`, calibrated.
        classes: `[K]`, the head's.

    Raises:
        Refused: fewer than two classes are shared.
    """
    support = list(corrections.shared_support(classes, sorted({clip.label for clip in clips})))
    rows = corrections.restrict([clip.label for clip in clips], support).kept
    kept = [clips[row] for row in rows]
    columns = [list(classes).index(label) for label in support]
    counts = np.ones(len(classes), dtype=np.int64)  # the correction `none` reads no prior
    masked = corrections.apply(
        "none", logits[rows], protocol="sound", support=columns, train_counts=counts, target_counts=counts
    )
    probabilities = softmax(masked)[:, columns]
    labels = [support.index(clip.label) for clip in kept]
    speakers = [clip.speaker for clip in kept]
    found = score(labels, probabilities)
    interval = intervals(tables(labels, probabilities, speakers=speakers))["macro_f1"]
    drawn = f"95 % percentile bootstrap over {interval.units} {interval.unit}s" if interval.low is not None else "none"
    return CorpusScores(
        key=key,
        digest=clip_set_digest(kept),
        classes=tuple(support),
        clips=len(kept),
        speakers=len({speaker for speaker in speakers if speaker}),
        macro_f1=found.macro_f1,
        low=interval.low,
        high=interval.high,
        floor=floors([labels.count(column) for column in range(len(support))]).matched.macro_f1,
        uar=found.uar,
        accuracy=found.accuracy,
        ece=found.ece,
        nll=found.nll,
        interval="; ".join(filter(None, (drawn, interval.reason))),
    )


def _learned(card: Card) -> set[str] | None:
    """Keys of the clips that trained a head; None where its clip set is not there any more."""
    try:
        return {clip.key for clip in read_clip_set(f"{card.store.rstrip('/')}/sets/{card.clip_set}.parquet")}
    except (NotFound, BadInput, OSError):
        console.print(
            f"[yellow]warning:[/] the clip set of {card.tag} is not at {escape(card.store)}: a corpus counts as heard "
            "only if it is that whole set",
            highlight=False,
            soft_wrap=True,
        )
        return None


def _why_not(corpus: Corpus, card: Card, learned: set[str] | None, left_out: dict[str, str]) -> bool:
    """Whether a corpus is not eligible; the reason is noted."""
    own = {sample.key for sample in corpus.samples}
    heard = len(own & learned) if learned is not None else 0
    if learned is None and clip_set_digest(corpus.labelled) == card.clip_set:
        heard = len(own)
    if heard:
        left_out[corpus.key] = f"{heard} of its {len(own)} clips trained the head"
    return bool(heard)


def scores_table(evaluation: Evaluation) -> Table:
    """What was found, a row a corpus."""
    heads = ("corpus", "clips", "speakers", "classes", "macro-F1", "95 % interval", "floor", "UAR", "ECE")
    table = Table(*heads, box=None, pad_edge=False)
    for each in evaluation.corpora:
        interval = f"{each.low:.3f} to {each.high:.3f}" if each.low is not None else "–"
        shown = (f"{each.macro_f1:.3f}", interval, f"{each.floor:.3f}", f"{each.uar:.3f}", f"{each.ece:.3f}")
        table.add_row(each.key, str(each.clips), str(each.speakers), str(len(each.classes)), *shown)
    return table


@asynccontextmanager
async def served(bundle: Path, prober: str = "", heads: Path | None = None) -> AsyncIterator[tuple[str, str]]:
    """Addresses of an embedder and a prober; the first is started here, the other unless it is named.

    Args:
        bundle: of the embedder.
        prober: address of one that runs.
        heads: folder of the registry of one that is started here.
    """
    with tempfile.TemporaryDirectory(prefix="servox-") as folder:
        async with running(bundle=bundle, prober=False, sockets=Path(folder)) as house:
            if prober:
                yield house.embedder, prober
                return
            from .prober.server import ProberServer
            from .prober.settings import Settings as ProberSettings

            flags = {"grpc_socket": f"{folder}/p.sock", "http_port": 0, "metrics_port": 0, "heads": heads}
            server = ProberServer(ProberSettings.load({**flags, "embedder": house.embedder}), Metrics())
            try:
                yield house.embedder, await server.start()
            finally:
                await server.stop()
