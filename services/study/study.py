"""A study of contexts from corpora to cells: which are there already, and what the others give.

A cell is kept as one file of counts; it is used again only if the bundles, the clips, the seeds and the head are the
same.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import BadZipFile

import numpy as np

from services.embedder.arithmetic import Encoder
from services.embedder.bundle import Bundle
from services.embedder.contexts import Context
from services.evaluator import heads
from services.evaluator.dataset import Corpus
from services.evaluator.embedding import DURATION
from services.evaluator.protocols import SOUND
from services.study import cells, draws
from services.study.cells import Cell, Floats, Ints, Speech
from services.study.curve import Cost, Key
from services.study.embedding import slug
from servox.arrays import EmbeddingStore, clip_set_digest, storing

CODE = 1  # of the cells: raised when the same input begins to give other counts
Advance = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study compares.

    Attributes:
        bundles: whole-depth bundle of each policy.
        depths: blocks, ascending.
        spans: how many layers heads read, up to the one after the last block.
        reference: the policy that heads come from in a transfer, and that all are compared with.
        transfer: whether to serve heads of the reference by the other policies.
        seeds: of the folds.
        c: strength of the heads' regularisation.
    """

    bundles: Mapping[str, Bundle]
    depths: Sequence[int]
    spans: Sequence[int]
    reference: str
    transfer: bool
    seeds: Sequence[int]
    c: float

    def layer(self, blocks: int) -> int:
        """What a bundle of so many blocks has as its default layer: the final LayerNorm's, where all are kept."""
        bundle = self.bundles[self.reference]
        return bundle.default_layer if blocks == bundle.source_blocks else blocks

    def keys(self, corpus: str, policy: str) -> list[Key]:
        """Of every depth and every span that fits below it."""
        return [
            Key(corpus=corpus, policy=policy, blocks=blocks, layers=span)
            for blocks in self.depths
            for span in self.spans
            if span <= self.layer(blocks) + 1
        ]


@dataclass(slots=True, kw_only=True)
class Findings:
    """What the cells say; `transfers` are outer counts alone."""

    cells: dict[Key, Cell] = field(default_factory=dict)
    transfers: dict[Key, Ints] = field(default_factory=dict)
    folds: dict[str, Ints] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)  # corpus → which draws are its own

    def scores(self) -> dict[Key, draws.Score]:
        """Of every cell."""
        return {key: draws.score(cell.outer, seed=self.numbers[key.corpus]) for key, cell in self.cells.items()}

    def transferred(self) -> dict[Key, draws.Score]:
        """Of every cell of a transfer."""
        return {key: draws.score(counts, seed=self.numbers[key.corpus]) for key, counts in self.transfers.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Task:
    key: Key
    trained: Floats
    served: Floats
    speech: Speech
    c: float
    transfer: bool
    path: Path
    identity: str


def speech_of(corpus: Corpus, seeds: Sequence[int]) -> Speech:
    """The corpus as arrays, with the folds of the protocol `sound`.

    Raises:
        Refused: no speaker-disjoint folds can be made.
    """
    classes = corpus.classes(SOUND)
    voices = sorted({sample.clip.speaker or "" for sample in corpus.samples})
    folds = np.full((len(seeds), len(corpus.samples)), -1)
    for row, seed in enumerate(seeds):
        for number, fold in enumerate(heads.divide(corpus, SOUND, seed).folds):
            folds[row, fold.test] = number
    return Speech(
        labels=np.array([classes.index(sample.clip.label) for sample in corpus.samples], np.int64),
        speakers=np.array([voices.index(sample.clip.speaker or "") for sample in corpus.samples], np.int64),
        folds=folds,
        classes=len(classes),
    )


def run(plan: Plan, corpora: Sequence[Corpus], *, store: str, folder: Path, workers: int, advance: Advance) -> Findings:
    """Every cell of every corpus, from `folder` where it is there.

    Raises:
        NotFound: an embedding is not in the store.
        Refused: a corpus has no speaker-disjoint folds.
        StorageFull: a cell cannot be written.
    """
    found = Findings(numbers={corpus.key: number for number, corpus in enumerate(corpora)})
    speech = {corpus.key: speech_of(corpus, plan.seeds) for corpus in corpora}
    found.folds = {key: each.fold_of_speaker for key, each in speech.items()}
    each = len(plan.keys("", plan.reference)) * (2 if plan.transfer else 1)
    total = len(corpora) * len(plan.bundles) * each
    advance(0, total)
    tasks = (
        task for corpus in corpora for task in _tasks(plan, corpus, speech[corpus.key], EmbeddingStore(store), folder)
    )
    for done, (task, counts) in enumerate(_computed(tasks, workers), start=1):
        if task.transfer:
            found.transfers[task.key] = counts["outer"]
        else:
            found.cells[task.key] = Cell(outer=counts["outer"], inner=counts["inner"])
        advance(done, total)
    return _ordered(found, plan, corpora)


def costs(plan: Plan, corpora: Sequence[Corpus], *, store: str, encoder: Encoder) -> dict[Key, Cost]:
    """Mean operations of a clip, by the durations that the embedder measured."""
    found = {}
    held = EmbeddingStore(store)
    for corpus in corpora:
        keys = [sample.key for sample in corpus.samples]
        for policy, bundle in plan.bundles.items():
            seconds = held.read(bundle=bundle.digest, pooling=DURATION, keys=keys)
            frames = [bundle.frames(round(float(each[0]) * bundle.rate_hz)) for each in seconds]
            whole = float(np.mean([encoder.yardstick(each) for each in frames]))
            context = Context.parse(policy)
            for key in plan.keys(corpus.key, policy):
                mean = float(np.mean([encoder.flops(each, context=context, blocks=key.blocks) for each in frames]))
                found[key] = Cost(relative=mean / whole, gflop=mean / 1e9)
    return found


def _tasks(plan: Plan, corpus: Corpus, speech: Speech, store: EmbeddingStore, folder: Path) -> Iterator[_Task]:
    keys = [sample.key for sample in corpus.samples]

    def vectors(policy: str) -> Floats:
        arrays = store.read(bundle=plan.bundles[policy].digest, pooling=SOUND.pooling_name, keys=keys)
        return np.stack(arrays).astype(np.float32)

    home = vectors(plan.reference)
    for policy in plan.bundles:
        served = home if policy == plan.reference else vectors(policy)
        for key in plan.keys(corpus.key, policy):
            last = plan.layer(key.blocks) + 1
            for transfer in (False, True) if plan.transfer else (False,):
                trained = plan.reference if transfer else policy
                yield _Task(
                    key=key,
                    trained=_read(home if transfer else served, last, key.layers),
                    served=_read(served, last, key.layers),
                    speech=speech,
                    c=plan.c,
                    transfer=transfer,
                    path=folder / corpus.key / slug(Context.parse(policy)) / _name(key, transfer=transfer),
                    identity=_identity(plan, key, corpus, trained),
                )


def _read(vectors: Floats, last: int, layers: int) -> Floats:
    """Layers up to `last`, one after the other: [n, layers, d] to [n, some * d]."""
    return vectors[:, last - layers : last].reshape(len(vectors), -1)


def _name(key: Key, *, transfer: bool) -> str:
    span = "" if key.layers == 1 else f"-{key.layers}-layers"
    return f"{key.blocks}{span}{'-transfer' if transfer else ''}.npz"


def _identity(plan: Plan, key: Key, corpus: Corpus, trained: str) -> str:
    """Hash of all that decides a cell's counts."""
    identity = {
        "code": CODE,
        "trained": plan.bundles[trained].digest,
        "served": plan.bundles[key.policy].digest,
        "layer": plan.layer(key.blocks),
        "layers": key.layers,
        "clips": clip_set_digest(corpus.labelled),
        "seeds": list(plan.seeds),
        "c": plan.c,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _computed(tasks: Iterable[_Task], workers: int) -> Iterator[tuple[_Task, Mapping[str, Ints]]]:
    """Every task with its counts, in any order; only what is not on disk goes to the workers."""
    missing = []
    for task in tasks:
        if (held := _stored(task)) is not None:
            yield task, held
        elif workers == 1:
            yield task, _compute(task)
        else:
            missing.append(task)
    if not missing:
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        futures: dict[Future[Mapping[str, Ints]], _Task] = {pool.submit(_compute, task): task for task in missing}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True, name="servox-study-parent").start()


def _compute(task: _Task) -> Mapping[str, Ints]:
    counts = {"outer": cells.outer(task.trained, task.served, task.speech, c=task.c)}
    if not task.transfer:
        counts["inner"] = cells.inner(task.served, task.speech, c=task.c)
    _store(task, counts)
    return counts


def _stored(task: _Task) -> Mapping[str, Ints] | None:
    """What an earlier run left, if it was the same task; a damaged file counts as missing."""
    try:
        with np.load(task.path, allow_pickle=False) as held:
            if str(held["identity"]) != task.identity:
                return None
            return {name: held[name] for name in held.files if name != "identity"}
    except (BadZipFile, EOFError, KeyError, OSError, ValueError):
        return None


def _store(task: _Task, counts: Mapping[str, Ints]) -> None:
    with storing(str(task.path)):
        task.path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=task.path.parent, prefix=".", suffix=".npz")
        try:
            with os.fdopen(number, "wb") as file:
                arrays: dict[str, Any] = {"identity": np.array(task.identity), **counts}
                np.savez_compressed(file, **arrays)
            Path(name).replace(task.path)
        finally:
            Path(name).unlink(missing_ok=True)


def _ordered(found: Findings, plan: Plan, corpora: Sequence[Corpus]) -> Findings:
    """Cells by corpus, policy and depth, in whatever order they ended."""
    keys = [key for corpus in corpora for policy in plan.bundles for key in plan.keys(corpus.key, policy)]
    found.cells = {key: found.cells[key] for key in keys}
    found.transfers = {key: found.transfers[key] for key in keys if key in found.transfers}
    return found
