"""One head on its way through a training: what was asked, which fits it needs, what they have given, its card."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from servox import __version__
from servox.arrays import LabelledClip, clip_set_digest, read_clip_set
from servox.calibration import UNSCALED, Scaling

from . import calibration
from .card import Card, OutOfFold
from .heads import Weights
from .specs import Spec, classes_of, recipe_of, version_of

Ints = npt.NDArray[np.int64]

NOVELTY_QUANTILE = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSet:
    """What heads learn from, as it was read.

    Attributes:
        digest: of its rows.
        group: [n], numbers of speakers.
        grouped_by: what a group is.
    """

    clips: Sequence[LabelledClip]
    digest: str
    group: Ints
    grouped_by: str


def clip_set_at(url: str) -> ClipSet:
    """Reads a clip set.

    Raises:
        NotFound: nothing lies there.
        BadInput: it is no clip set.
    """
    clips = read_clip_set(url)
    group, grouped_by = calibration.groups([clip.speaker for clip in clips])
    return ClipSet(clips=clips, digest=clip_set_digest(clips), group=group, grouped_by=grouped_by)


@dataclass(slots=True, kw_only=True)
class Job:
    """A head that is being trained.

    Attributes:
        indices: in the request; more than one where it asks for the same head twice.
        clip_set: digest of the clips.
        labels: [n], indices of classes.
        group: [n], numbers of speakers.
        grouped_by: what a group is.
        folds: [n], or empty where no temperature is asked for.
        logits: [n, K], out of fold; NaN where none was computed yet.
        distances: [n], from the training features of the other folds; NaN where none was computed.
        waiting: fits that have not ended.
        weights: of the fit on all clips, once it has ended.
        epoch: after which they were taken; None where there are no epochs.
        broken: one of its fits has failed.
    """

    indices: list[int]
    spec: Spec
    version: str
    clip_set: str
    clips: Sequence[LabelledClip]
    classes: tuple[str, ...]
    labels: Ints
    group: Ints
    grouped_by: str
    folds: Ints
    logits: npt.NDArray[np.float64]
    distances: npt.NDArray[np.float64]
    waiting: int = 0
    weights: Weights = field(default_factory=dict)
    epoch: int | None = None
    broken: bool = False

    @property
    def novelty_limit(self) -> float | None:
        """The distance that 99 of 100 clips of speakers unheard stay below; None where it was not measured."""
        known = self.distances[~np.isnan(self.distances)]
        return float(np.quantile(known, NOVELTY_QUANTILE)) if len(known) else None


def job_of(index: int, spec: Spec, clip_set: ClipSet) -> Job:
    """A job for the head at `index` of the request.

    Raises:
        BadInput: the clip set does not fit the specification.
    """
    clips = clip_set.clips
    classes = classes_of(spec, clips)
    number = {label: at for at, label in enumerate(classes)}
    labels = np.array([number[clip.label] for clip in clips], dtype=np.int64)
    folds = np.empty(0, dtype=np.int64)
    if spec.calibrate:
        count = int(spec.settings["calibration_folds"])
        folds = calibration.fold_of(labels, clip_set.group, folds=count, seed=spec.seed)
    return Job(
        indices=[index],
        spec=spec,
        version=version_of(spec, clip_set.digest, classes),
        clip_set=clip_set.digest,
        clips=clips,
        classes=classes,
        labels=labels,
        group=clip_set.group,
        grouped_by=clip_set.grouped_by,
        folds=folds,
        logits=np.full((len(clips), len(classes)), np.nan),
        distances=np.full(len(clips), np.nan),
    )


def held_out(job: Job) -> dict[int | None, int]:
    """The fits of a job: which fold each leaves out (None: none), and how many clips it learns from."""
    fits: dict[int | None, int] = {None: len(job.clips)}
    return fits | {int(fold): int((job.folds != fold).sum()) for fold in np.unique(job.folds)}


def judge(job: Job) -> tuple[Scaling, OutOfFold | None]:
    """Calibration and out-of-fold scores once all fits have ended; none where none were asked for.

    Clips of a class that no other fold has are left out: no fit could have learned of them.
    """
    if not len(job.folds):
        return UNSCALED, None
    fair = np.ones(len(job.clips), dtype=bool)
    for fold in np.unique(job.folds):
        taught = np.unique(job.labels[job.folds != fold])
        fair &= (job.folds != fold) | np.isin(job.labels, taught)
    return calibration.judge(
        job.logits[fair],
        job.labels[fair],
        folds=job.folds[fair],
        biased=bool(job.spec.settings.get("calibration_bias", 0)),
        speakers=int(job.group.max()) + 1,
        grouped_by=job.grouped_by,
        left_out=int((~fair).sum()),
    )


def card_of(
    job: Job, weights: Weights, *, store: str, scaling: Scaling = UNSCALED, scores: OutOfFold | None = None
) -> Card:
    """The card of a job's head with these weights."""
    spec = job.spec
    return Card(
        name=spec.name,
        version=job.version,
        kind=spec.kind,
        classes=job.classes,
        class_counts=tuple(int(n) for n in np.bincount(job.labels, minlength=len(job.classes))),
        bundle=spec.bundle,
        layer=spec.layer,
        dims=weights["output.weight" if spec.kind == "logistic" else "hidden.weight"].shape[1],
        temperature=scaling.temperature,
        bias=scaling.bias,
        seed=spec.seed,
        settings=dict(spec.settings),
        out_of_fold=scores,
        clip_set=job.clip_set,
        clips=len(job.clips),
        speakers=len({clip.speaker for clip in job.clips if clip.speaker}),
        servox=__version__,
        store=store,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        epoch=job.epoch,
        novelty_limit=job.novelty_limit,
    )


def cost_of(job: Job, clips: int) -> float:
    """Work of one fit on so many clips, in units of some 1 ms: what progress and the time left are made of."""
    if job.spec.kind == "logistic":
        return 0.1 * clips
    return recipe_of(job.spec).steps(clips) * cost_of_step(job)


def cost_of_step(job: Job) -> float:
    """Work of one step of an MLP's fit, in the same unit."""
    recipe = recipe_of(job.spec)
    return recipe.hidden * recipe.batch * (80 if job.spec.kind == "frame-mlp" else 0.5) / 16_384
