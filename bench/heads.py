"""Heads in bulk: one training of many heads against scikit-learn's MLPClassifier, one head after the other.

- 100 heads: every corpus below the data folder, its five speaker-disjoint folds, and seeds until there are 100. Each
  answers the speakers of its fold; macro-F1 is of a corpus's clips, folds pooled; then the mean over seeds and corpora.
- Ours is the whole of `Train`: clip sets and embeddings read from the store, heads fitted, heads written to a registry.
  scikit-learn has its vectors in memory and standardised, and only `fit` is timed; its BLAS may use every core.
- Both have one hidden layer of the same width. scikit-learn runs as its users run it: its defaults (Adam, batches of
  200, until the loss stands still, 200 epochs at most), the same with `early_stopping`, and our batch and epochs.
- The CPU's seconds are those of all threads together, and steadier than the wall's where others are at work.
- Rounds alternate, a part of scikit-learn's heads and all of ours, so that a busy moment hits both.

python -m bench.heads --bundle BUNDLE --store FOLDER [--data FOLDER]
"""

import argparse
import json
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from sklearn.neural_network import MLPClassifier

from services.demo import data_root
from services.embedder import bundle as bundles
from services.evaluator.dataset import load
from services.evaluator.events import Events
from services.evaluator.heads import divide
from services.evaluator.protocols import SOUND
from services.evaluator.settings import Settings
from services.prober.calibration import macro_f1
from services.prober.fitting import standardised, statistics_of
from services.prober.heads import Floats, Head
from services.prober.metrics import ProberMetrics
from services.prober.progress import Event, Failed, Trained
from services.prober.registry import Registry
from services.prober.specs import Spec, settings_of
from services.prober.trainer import Workshop, train
from services.prober.vectors import Vectors
from services.study.embedding import embed_here
from servox.arrays import LabelledClip, write_clip_set
from servox.errors import BadSetting
from servox.telemetry import Metrics

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One head to train, and the clips that it answers.

    Attributes:
        clips: of the whole corpus.
        vectors: [n, d], of the whole corpus.
        labels: [n].
        train: numbers of the clips to learn from.
        test: numbers of the clips to answer.
    """

    corpus: str
    seed: int
    clips: Sequence[LabelledClip]
    vectors: Floats
    labels: Ints
    train: Ints
    test: Ints


@dataclass(slots=True, kw_only=True)
class Side:
    """What one trainer took, and what its heads answered, by the number of the task."""

    name: str
    settings: dict[str, Any]
    answers: dict[int, Ints] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds what the block takes, on the wall's clock and on all cores together."""
        began, began_cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - began_cpu


def tasks_of(options: argparse.Namespace, digest: str, layers: Sequence[int]) -> list[Task]:
    """The heads to train, embeddings computed first where the store lacks them."""
    bundle = bundles.load(options.bundle)
    settings = Settings.load({"store": options.store})
    data = load(options.data, protocol=SOUND)
    corpora = embed_here(bundle, data.corpora, settings=settings, events=Events(lambda _: None))
    folds = [(corpus, divide(corpus, SOUND, 0).folds) for corpus in corpora]
    each = sum(len(parts) for _, parts in folds)
    found = []
    for corpus, parts in folds:
        keys = [clip.key for clip in corpus.labelled]
        vectors = Vectors(1 << 30).pooled(options.store, bundle=digest, layers=layers, keys=keys)
        labels = np.unique([clip.label for clip in corpus.labelled], return_inverse=True)[1].astype(np.int64)
        for seed in range(-(-options.heads // each)):
            found += [
                Task(
                    corpus=corpus.key,
                    seed=seed,
                    clips=corpus.labelled,
                    vectors=vectors,
                    labels=labels,
                    train=np.asarray(part.train),
                    test=np.asarray(part.test),
                )
                for part in parts
            ]
    return found[: options.heads]


def specs_of(tasks: Sequence[Task], *, sets: str, digest: str, layers: Sequence[int], hidden: int) -> list[Spec]:
    """What `Train` is asked."""
    settings = settings_of("mlp", {"hidden": hidden, "layers": len(layers)})
    return [
        Spec(
            name=f"bench-{task.corpus}",
            kind="mlp",
            bundle=digest,
            layer=layers[-1],
            clip_set_url=write_clip_set(sets, [task.clips[row] for row in task.train]),
            classes=(),
            seed=task.seed,
            calibrate=False,
            settings=settings,
        )
        for task in tasks
    ]


def ours(side: Side, tasks: Sequence[Task], specs: Sequence[Spec], *, store: str, threads: int) -> None:
    """Trains all heads with `Train`, from a store that it has not read yet into an empty registry."""
    heads: dict[int, Head] = {}

    def report(event: Event) -> None:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Trained):
            heads[event.index] = event.head

    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(
            registry=Registry(Path(folder)),
            vectors=Vectors(1 << 30),
            threads=threads,
            scratch=None,
            metrics=ProberMetrics(Metrics()),
        )
        with side.timed():
            train(workshop, store, specs, report=report, stop=threading.Event())
    for number, task in enumerate(tasks):
        side.answers[number] = heads[number].logits(task.vectors[task.test]).argmax(axis=1)


def theirs(side: Side, tasks: Sequence[Task], chosen: Sequence[int]) -> None:
    """Fits some of the heads with scikit-learn, one after the other."""
    for number in chosen:
        task = tasks[number]
        taught = task.vectors[task.train]
        statistics = statistics_of(taught)
        x, y = standardised(taught, statistics), task.labels[task.train]
        model = MLPClassifier(random_state=task.seed, **side.settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # not converged; batch larger than the set
            with side.timed():
                model.fit(x, y)
        side.answers[number] = model.predict(standardised(task.vectors[task.test], statistics))


def score(side: Side, tasks: Sequence[Task]) -> dict[str, float]:
    """Macro-F1 of each corpus, folds pooled, mean over seeds."""
    found: dict[str, list[float]] = {}
    for corpus, seed in dict.fromkeys((task.corpus, task.seed) for task in tasks):
        mine = [n for n, task in enumerate(tasks) if (task.corpus, task.seed) == (corpus, seed)]
        answers = np.concatenate([side.answers[n] for n in mine])
        truth = np.concatenate([tasks[n].labels[tasks[n].test] for n in mine])
        found.setdefault(corpus, []).append(macro_f1(answers, truth))
    return {corpus: float(np.mean(each)) for corpus, each in found.items()}


def peers(hidden: int) -> list[Side]:
    """Scikit-learn, as its users run it."""
    plain = {"hidden_layer_sizes": (hidden,), "max_iter": 200}
    recipe = settings_of("mlp", {})
    same = {"batch_size": int(recipe["batch"]), "max_iter": int(recipe["epochs"])}
    rows = {
        "scikit-learn, defaults": plain,
        "scikit-learn, early_stopping": {**plain, "early_stopping": True},
        "scikit-learn, our batch and epochs": {**plain, **same},
    }
    return [Side(name=name, settings=settings) for name, settings in rows.items()]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Alternates between the trainers; prints a table, returns what goes into the line of JSON."""
    digest = bundles.load(options.bundle).digest
    layers = list(range(options.layer - options.layers + 1, options.layer + 1))
    tasks = tasks_of(options, digest, layers)
    servox, others = Side(name="servox", settings={}), peers(options.hidden)
    with tempfile.TemporaryDirectory() as sets:
        specs = specs_of(tasks, sets=sets, digest=digest, layers=layers, hidden=options.hidden)
        ours(Side(name="", settings={}), tasks[:4], specs[:4], store=options.store, threads=1)
        for turn in range(options.rounds):
            ours(servox, tasks, specs, store=options.store, threads=options.threads)
            for peer in others:
                theirs(peer, tasks, range(turn, len(tasks), options.rounds))
    servox.seconds, servox.cpu_seconds = servox.seconds / options.rounds, servox.cpu_seconds / options.rounds
    return table(servox, others, tasks, options)


def table(servox: Side, others: Sequence[Side], tasks: Sequence[Task], options: argparse.Namespace) -> dict[str, Any]:
    """Prints the rows; the same for machines."""
    dims = tasks[0].vectors.shape[1]
    shown = Table(
        "trainer",
        "s",
        "ms a head",
        "ratio",
        "CPU s",
        "ratio",
        "macro-F1",
        *dict.fromkeys(task.corpus for task in tasks),
    )
    rows = []
    for side in (servox, *others):
        scores = score(side, tasks)
        mean = float(np.mean(list(scores.values())))
        ratio = side.seconds / servox.seconds
        cpu_ratio = side.cpu_seconds / servox.cpu_seconds
        each = side.seconds * 1000 / len(tasks)
        times = (f"{side.seconds:.2f}", f"{each:.1f}", f"{ratio:.1f}", f"{side.cpu_seconds:.2f}", f"{cpu_ratio:.1f}")
        numbers = (*times, f"{mean:.3f}")
        shown.add_row(side.name, *numbers, *(f"{value:.3f}" for value in scores.values()))
        rows.append(
            {
                "trainer": side.name,
                "seconds": round(side.seconds, 3),
                "ratio": round(ratio, 2),
                "cpu_seconds": round(side.cpu_seconds, 3),
                "cpu_ratio": round(cpu_ratio, 2),
                "macro_f1": round(mean, 4),
                "by_corpus": {corpus: round(value, 4) for corpus, value in scores.items()},
            }
        )
    Console().print(f"{len(tasks)} heads, d = {dims}, hidden {options.hidden}, {options.threads} threads", shown)
    facts = {"heads": len(tasks), "dims": dims, "hidden": options.hidden, "threads": options.threads}
    return {"bench": "heads", **facts, "rounds": options.rounds, "rows": rows}


def parsed() -> argparse.Namespace:
    """What the command line asks for.

    Raises:
        BadSetting: no data folder was named, and there is none.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="whose embeddings to read")
    parser.add_argument("--store", required=True, help="where embeddings are kept between runs")
    parser.add_argument("--data", type=Path, default=data_root(), help="folder with corpora/")
    parser.add_argument("--heads", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layer", type=int, default=3, help="of the bundle")
    parser.add_argument("--layers", type=int, default=1, help="layers read, up to that one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    if options.data is None:
        raise BadSetting("--data: no folder with corpora/ was found; name one")
    return options


if __name__ == "__main__":
    print(json.dumps(measure(parsed())))
