"""Which heads a run needs: for every corpus and seed the heads of its folds, and one on all of it for other corpora.

- Under `sound` a fold's head is scored on the speakers that it never heard, and the head of the whole corpus on every
  other corpus. Under `ser-evals` the paper's one 80 % head does both.
- The prober answers a head that it has trained before at once, so a run that is started again trains nothing twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from servox.arrays import LabelledClip, write_clip_set
from servox.errors import Refused
from servox.v1 import common_pb2, embedder_pb2, prober_pb2

from .dataset import Corpus
from .events import Events
from .peers import Peers
from .protocols import HeadRecipe, Protocol
from .splits import Fold, Splits, official_folds, random_split, require_disjoint_speakers, speaker_folds

WHOLE = -1  # in place of a fold's number: the head of the whole corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadId:
    """Which head of a run."""

    corpus: str
    recipe: str
    seed: int
    fold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One head to train."""

    id: HeadId
    recipe: HeadRecipe
    clips: Sequence[LabelledClip]
    classes: Sequence[str]
    calibrate: bool

    @property
    def name(self) -> str:
        """Its name in the registry; folds and further seeds are hidden from those who look for a head to use."""
        plain = f"{self.id.corpus}-{self.id.recipe}"
        return plain if self.calibrate and self.id.seed == 0 else f"fold.{plain}"


def divide(corpus: Corpus, protocol: Protocol, seed: int) -> Splits:
    """The folds of a corpus under a protocol; published folds where they exist and keep speakers apart.

    Raises:
        Refused: no speaker-disjoint folds can be made.
    """
    keys = [sample.key for sample in corpus.samples]
    if not protocol.needs_speakers:
        return random_split(keys, seed=seed)
    labels = [sample.clip.label for sample in corpus.samples]
    speakers = [sample.clip.speaker or "" for sample in corpus.samples]
    published = [sample.clip.split or "" for sample in corpus.samples]
    if len({part for part in published if part}) > 1:
        official = official_folds(published)
        try:
            require_disjoint_speakers(official, speakers)
        except Refused:
            pass  # such as RESD, whose every dialogue is on both sides: folds of our own instead
        else:
            return official
    return speaker_folds(keys, labels, speakers, corpus=corpus.key, folds=protocol.folds, seed=seed)


def plan(
    corpora: Iterable[Corpus], protocol: Protocol, seeds: Sequence[int], splits: dict[tuple[str, int], Splits]
) -> list[Job]:
    """Every head of a run."""
    return [
        job
        for corpus in corpora
        for recipe in protocol.heads
        for seed in seeds
        for job in _jobs(corpus, recipe, seed, splits[corpus.key, seed], protocol)
    ]


def _jobs(corpus: Corpus, recipe: HeadRecipe, seed: int, split: Splits, protocol: Protocol) -> list[Job]:
    clips, classes = corpus.labelled, corpus.classes(protocol)

    def job(fold: int, chosen: Sequence[LabelledClip], *, calibrate: bool) -> Job:
        head = HeadId(corpus=corpus.key, recipe=recipe.name, seed=seed, fold=fold)
        return Job(id=head, recipe=recipe, clips=chosen, classes=classes, calibrate=calibrate)

    folds = [job(n, _train_part(clips, fold), calibrate=False) for n, fold in enumerate(split.folds)]
    if not protocol.needs_speakers:
        return folds
    return [*folds, job(WHOLE, clips, calibrate=recipe.calibrate)]


def _train_part(clips: Sequence[LabelledClip], fold: Fold) -> list[LabelledClip]:
    return [clips[i] for i in fold.train]


async def train(
    jobs: Sequence[Job],
    *,
    peers: Peers,
    store: str,
    bundle: embedder_pb2.DescribeResponse,
    events: Events,
    layers: int = 1,
) -> dict[HeadId, common_pb2.Head]:
    """Has the prober train every head; those that cannot be trained are warned of and missing from the answer.

    `layers` is how many a pooled head reads, up to the bundle's default one.

    Raises:
        Unavailable: the prober does not answer.
        StorageFull: a clip set or a head cannot be written.
    """
    specs = [_spec(job, store=store, bundle=bundle, layers=layers) for job in jobs]
    heads: dict[HeadId, common_pb2.Head] = {}
    total = len(jobs)
    events.progress("train", 0, total)
    async for event in peers.train(prober_pb2.TrainRequest(store_url=store, heads=specs)):
        kind = event.WhichOneof("event")
        if kind == "progress":
            done = round(event.progress.fraction * total)
            events.progress("train", min(done, total), total, eta_ms=event.progress.eta_ms)
        elif kind == "trained":
            heads[jobs[event.trained.index].id] = event.trained.head
        elif kind == "failed":
            events.warn(f"head {jobs[event.failed.index].name}: {event.failed.failure.message}")
    events.progress("train", total, total)
    return heads


def _spec(job: Job, *, store: str, bundle: embedder_pb2.DescribeResponse, layers: int) -> prober_pb2.HeadSpec:
    pooled = job.recipe.kind != prober_pb2.HEAD_KIND_FRAME_MLP
    return prober_pb2.HeadSpec(
        name=job.name,
        kind=job.recipe.kind,
        bundle_digest=bundle.bundle.digest,
        layer=bundle.default_layer,
        clip_set_url=write_clip_set(f"{store}/sets", job.clips),
        classes=job.classes,
        seed=job.id.seed,
        calibrate=job.calibrate,
        settings={"layers": layers} if pooled else {},
    )
