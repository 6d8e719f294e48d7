"""One run from corpora to report: scan, embed, train, score, report.

Every phase leaves whole files and asks first what is there already, so a run can be killed at any point and started
again: it recomputes only what was unfinished.
"""

import asyncio
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from servox import __version__
from servox.arrays import EmbeddingStore
from servox.errors import BadCorpus, Refused
from servox.v1 import embedder_pb2, evaluator_pb2

from . import heads, protocols, results
from .cells import Scorer
from .database import Database
from .dataset import Corpus, Dataset, load
from .embedding import embed_missing
from .events import Events
from .metrics import EvaluatorMetrics
from .peers import Peers
from .predictions import Predictor
from .protocols import Protocol
from .report import render
from .settings import Settings
from .splits import Splits


class Execution:
    """The work of one run.

    Args:
        settings: of the evaluator.
        peers: the embedder and the prober.
        metrics: counts clips and cells.
        database: learns which bundle answered.
    """

    def __init__(self, settings: Settings, peers: Peers, metrics: EvaluatorMetrics, database: Database) -> None:
        self._settings = settings
        self._peers = peers
        self._metrics = metrics
        self._database = database

    async def run(self, run: evaluator_pb2.Run, events: Events) -> Path:
        """Does everything that is not done yet and returns the path of the report.

        Raises:
            BadCorpus: nothing to run on.
            Unavailable: a peer does not answer.
            StorageFull: a result cannot be written.
        """
        began = time.monotonic()
        protocol = protocols.from_wire(run.spec.protocol)
        seeds, out = protocol.with_seeds(run.spec.seeds), Path(run.spec.out_dir)
        bundle = await self._peers.describe()
        self._database.set_bundle(run.id, bundle.bundle)
        with self._phase("scan"):
            dataset = await self._scan(run.spec, protocol, events)
        with self._phase("embed"):
            corpora = await self._embed(dataset, protocol, bundle, events)
        splits, refused = _divide(corpora, protocol, seeds)
        refused |= dataset.refused
        corpora = [corpus for corpus in corpora if corpus.key not in refused]
        if not corpora:
            raise BadCorpus(f"no corpus is left to score: {'; '.join(refused.values())}")
        scorer = await self._train(corpora, protocol, seeds, splits, bundle, events)
        with self._phase("score"):
            refused |= await self._score(scorer, corpora, out, events)
        events.progress("report", 0, 1)
        document = _manifest(scorer, corpora, refused, bundle, events, seconds=time.monotonic() - began)
        document["synthetic"] = (Path(run.spec.data_dir) / "SYNTHETIC.txt").exists()
        results.write(out / "run.json", document)
        report = await asyncio.to_thread(render, out)
        events.progress("report", 1, 1)
        return report

    async def _scan(self, spec: evaluator_pb2.RunSpec, protocol: Protocol, events: Events) -> Dataset:
        events.progress("scan", 0, 1)
        dataset = await asyncio.to_thread(load, Path(spec.data_dir), protocol=protocol, wanted=list(spec.corpora))
        for warning in dataset.warnings:
            events.warn(warning)
        events.progress("scan", 1, 1)
        return dataset

    async def _embed(
        self, dataset: Dataset, protocol: Protocol, bundle: embedder_pb2.DescribeResponse, events: Events
    ) -> list[Corpus]:
        return await embed_missing(
            dataset.corpora,
            peers=self._peers,
            store=EmbeddingStore(self._settings.store),
            bundle=bundle,
            protocol=protocol,
            in_flight=self._settings.embed_in_flight,
            truncate_ms=min(self._settings.truncate_ms, bundle.max_duration_ms),
            events=events,
            clips=self._metrics.clips,
        )

    async def _train(
        self,
        corpora: list[Corpus],
        protocol: Protocol,
        seeds: tuple[int, ...],
        splits: dict[tuple[str, int], Splits],
        bundle: embedder_pb2.DescribeResponse,
        events: Events,
    ) -> Scorer:
        store = self._settings.store
        jobs = heads.plan(corpora, protocol, seeds, splits)
        with self._phase("train"):
            trained = await heads.train(
                jobs, peers=self._peers, store=store, bundle=bundle, events=events, layers=self._settings.head_layers
            )
        predictor = Predictor(
            peers=self._peers,
            store=store,
            bundle=bundle,
            pooling=protocol.pooling_name,
            layers=self._settings.head_layers,
        )
        return Scorer(
            protocol=protocol,
            predictor=predictor,
            heads=trained,
            splits=splits,
            seeds=seeds,
            bundle=_bundle_facts(bundle),
            versions=_versions(bundle, self._settings.head_layers),
        )

    async def _score(self, scorer: Scorer, corpora: list[Corpus], out: Path, events: Events) -> dict[str, str]:
        pairs = [
            (recipe, train, test)
            for recipe in protocols.head_names(scorer.protocol)
            for train in corpora
            for test in corpora
        ]
        refused: dict[str, str] = {}
        for done, (recipe, train, test) in enumerate(pairs):
            events.progress("score", done, len(pairs))
            try:
                await self._cell(scorer, train, test, recipe, out)
            except Refused as error:
                refused[f"{train.key} → {test.key}"] = str(error)
        events.progress("score", len(pairs), len(pairs))
        return refused

    async def _cell(self, scorer: Scorer, train: Corpus, test: Corpus, recipe: str, out: Path) -> None:
        path = results.cell_path(
            out,
            protocol=scorer.protocol.name,
            bundle=scorer.bundle["digest"],
            head=recipe,
            train=train.key,
            test=test.key,
        )
        _check_pair(scorer.protocol, train, test)
        cell = _reusable(path, scorer, train, test, recipe)
        self._metrics.cells.labels("reused" if cell else "computed").inc()
        if cell is None:
            cell = await scorer.score(train, test, recipe)
            results.write(path, cell)
        for name, correction in cell["corrections"].items():
            labels = (scorer.protocol.name, recipe, train.key, test.key, name)
            self._metrics.score.labels(*labels).set(correction["macro_f1"]["mean"])

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        with self._metrics.phase_seconds.labels(name).time():
            yield


def _check_pair(protocol: Protocol, train: Corpus, test: Corpus) -> None:
    if not protocol.paper_only or train.key == test.key:
        return
    clusters = [corpus.card.paper.cluster if corpus.card.paper else 0 for corpus in (train, test)]
    if clusters[0] != clusters[1] or clusters[0] == 0:
        raise Refused(f"{train.key} → {test.key}: not a pair of the paper (clusters {clusters[0]} and {clusters[1]})")


def _divide(
    corpora: list[Corpus], protocol: Protocol, seeds: tuple[int, ...]
) -> tuple[dict[tuple[str, int], Splits], dict[str, str]]:
    splits: dict[tuple[str, int], Splits] = {}
    refused: dict[str, str] = {}
    for corpus in corpora:
        try:
            splits |= {(corpus.key, seed): heads.divide(corpus, protocol, seed) for seed in seeds}
        except Refused as error:
            refused[corpus.key] = str(error)
    return splits, refused


def _reusable(path: Path, scorer: Scorer, train: Corpus, test: Corpus, recipe: str) -> results.Cell | None:
    """The cell on disk, if it was made by the same heads from the same clips with this version."""
    if not path.exists():
        return None
    cell = results.read_cell(path)
    planned = [
        f"{scorer.heads[head].name}:{scorer.heads[head].version}" for head in scorer.heads_of(train, test, recipe)
    ]
    same = (
        cell["heads"] == planned
        and cell["seeds"] == list(scorer.seeds)
        and cell["versions"] == scorer.versions
        and (cell["train_facts"], cell["test_facts"]) == (train.facts(), test.facts())
    )
    return cell if same else None


def _bundle_facts(bundle: embedder_pb2.DescribeResponse) -> results.BundleFacts:
    return results.BundleFacts(
        digest=bundle.bundle.digest,
        source=bundle.bundle.source,
        family=bundle.bundle.family,
        context=bundle.bundle.context,
        blocks=bundle.bundle.blocks,
        precision=bundle.bundle.precision,
        layer=bundle.default_layer,
        runtime=bundle.runtime,
    )


def _versions(bundle: embedder_pb2.DescribeResponse, layers: int) -> dict[str, str]:
    """What a cell was made by; a cell of heads on several layers is another one."""
    return {
        **({"head layers": str(layers)} if layers > 1 else {}),
        "servox": __version__,
        "embedder": bundle.version,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _manifest(
    scorer: Scorer,
    corpora: list[Corpus],
    refused: dict[str, str],
    bundle: embedder_pb2.DescribeResponse,
    events: Events,
    *,
    seconds: float,
) -> results.Manifest:
    return results.Manifest(
        schema=results.SCHEMA,
        protocol=scorer.protocol.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        bundle=scorer.bundle,
        parity=dict(bundle.parity),
        corpora=[corpus.facts() for corpus in corpora],
        refused=dict(sorted(refused.items())),
        warnings=events.warnings,
        heads=list(protocols.head_names(scorer.protocol)),
        seeds=list(scorer.seeds),
        versions=scorer.versions,
        synthetic=False,
    )
