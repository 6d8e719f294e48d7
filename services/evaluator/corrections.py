"""The ladder of corrections that every train → test pair is scored with.

- A correction is either a change of logits (`apply`), or other statistics for the head's input standardisation
  (`standardise-*`: `servox.standardisation.target_statistics` over calibration clips, given to the head in place of its
  training statistics; its logits then pass through `apply` too, for the support).
- Each says what it takes from the target: no clips, 16, 64 or all of them, with labels or without. Clips used to
  calibrate are never scored in the same draw, except by `standardise-all`, which is transductive and says so.
- `sound`: answers and clips are restricted to the classes that both corpora have, priors are over these and smoothed.
- `ser-evals`: all classes but "other" can be answered, clips labelled "other" are dropped, and the oracle prior follows
  the paper's formula to the letter (`servox.priors.adjust_paper`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from servox import priors
from servox.errors import BadInput, NotFound, Refused

Array = NDArray[np.float64]
Protocol = Literal["sound", "ser-evals"]

OTHER = "other"
SMOOTHING = 1.0  # pseudo-clips a class, in `sound`
LEAST_SHARED = 2
DRAWS = 5  # calibration draws of a standardise-N row


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """One rung of the ladder.

    Attributes:
        name: its name in results and tables.
        description: what it does, for people.
        target_clips: clips of the target it uses; 0 none, -1 all.
        target_labels: whether it uses their labels.
        standardises: whether it replaces the head's input statistics.
        protocols: where it is reported.
    """

    name: str
    description: str
    target_clips: int
    target_labels: bool
    standardises: bool
    protocols: tuple[Protocol, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restriction:
    """The clips of a target that can be scored.

    Attributes:
        kept: indices of clips whose class is in the support, ascending.
        dropped: clips left out, by label.
    """

    kept: NDArray[np.intp]
    dropped: Mapping[str, int]


def _correction(
    name: str,
    description: str,
    *,
    clips: int = 0,
    labels: bool = False,
    standardises: bool = False,
    protocols: tuple[Protocol, ...] = ("sound",),
) -> Correction:
    return Correction(
        name=name,
        description=description,
        target_clips=clips,
        target_labels=labels,
        standardises=standardises,
        protocols=protocols,
    )


LADDER: Mapping[str, Correction] = {
    rung.name: rung
    for rung in (
        _correction(
            "none",
            "as trained, answers restricted to the classes that are scored",
            protocols=("sound", "ser-evals"),
        ),
        _correction("minus-train-prior", "log of the smoothed training prior subtracted (Menon et al. 2021)"),
        _correction(
            "oracle-prior",
            "training prior out, true target prior in; the target's labels are known, so this is a diagnostic",
            clips=-1,
            labels=True,
            protocols=("sound", "ser-evals"),
        ),
        _correction(
            "em-prior", "target prior estimated by expectation maximisation (Saerens et al. 2002), smoothed", clips=-1
        ),
        _correction("mean-probability", "divided by the mean predicted probability of the target", clips=-1),
        _correction(
            "standardise-16", "embeddings standardised by 16 unlabelled target clips", clips=16, standardises=True
        ),
        _correction(
            "standardise-64", "embeddings standardised by 64 unlabelled target clips", clips=64, standardises=True
        ),
        _correction(
            "standardise-all",
            "embeddings standardised by all unlabelled target clips, which are then scored (transductive)",
            clips=-1,
            standardises=True,
        ),
    )
}


def correction(name: str) -> Correction:
    """A rung by name.

    Raises:
        NotFound: the ladder has no such rung.
    """
    if name not in LADDER:
        raise NotFound(f"no correction {name!r}; there are: {', '.join(LADDER)}")
    return LADDER[name]


def ladder(protocol: Protocol) -> tuple[Correction, ...]:
    """The rungs that a protocol reports, in order."""
    return tuple(rung for rung in LADDER.values() if protocol in rung.protocols)


def shared_support(
    train_classes: Sequence[str], test_classes: Sequence[str], *, least: int = LEAST_SHARED
) -> tuple[str, ...]:
    """The classes of both, in the order of the head's; "other" is never shared, as it means something else in each.

    Raises:
        Refused: fewer than `least` classes are shared.
    """
    shared = tuple(label for label in train_classes if label in set(test_classes) and label != OTHER)
    if len(shared) < least:
        raise Refused(
            f"the corpora share {len(shared)} classes ({', '.join(shared) or 'none'}) besides 'other'; {least} are the "
            "least that can be told apart"
        )
    return shared


def restrict(labels: Sequence[str], support: Sequence[str]) -> Restriction:
    """The clips `labels` whose class is in `support`, and how many of each other label are left out."""
    wanted = set(support)
    kept = np.asarray([i for i, label in enumerate(labels) if label in wanted], dtype=np.intp)
    return Restriction(
        kept=kept, dropped=dict(sorted(Counter(label for label in labels if label not in wanted).items()))
    )


def calibration_draws(clips: int, *, size: int, draws: int = DRAWS, seed: int = 0) -> list[NDArray[np.intp]]:
    """`draws` random sets of `size` clips out of `clips`, each sorted; score the clips that are not in the draw.

    Raises:
        BadInput: fewer than 2 clips a draw, or no draw.
        Refused: the target has too few clips to leave as many to score as calibrate.
    """
    if size < 2 or draws < 1:
        raise BadInput(f"{draws} draws of {size} clips; give 1 draw and 2 clips at least")
    if clips < 2 * size:
        raise Refused(
            f"the target has {clips} clips; {2 * size} are the least to calibrate on {size} and score the rest"
        )
    generator = np.random.default_rng([seed, size])
    return [np.sort(generator.permutation(clips)[:size]).astype(np.intp) for _ in range(draws)]


def held_out(clips: int, drawn: NDArray[np.intp]) -> NDArray[np.intp]:
    """The clips that are not in a calibration draw, ascending."""
    return np.setdiff1d(np.arange(clips), drawn)


def apply(
    name: str,
    logits: ArrayLike,
    *,
    protocol: Protocol,
    support: Sequence[int],
    train_counts: ArrayLike,
    target_counts: ArrayLike,
) -> Array:
    """Logits `[n, K]` of the target's scored clips after a correction; minus infinity outside the support.

    Args:
        name: the rung; a standardising one only masks here.
        logits: `[n, K]`, of the scored clips (those that `restrict` kept).
        protocol: whose form of the correction.
        support: indices of the classes that can be answered; in `ser-evals` all but "other".
        train_counts: clips of each class in the training set, `[K]`.
        target_counts: clips of each class in the whole target, `[K]`; only `oracle-prior` reads them.

    Raises:
        NotFound: no such rung.
        Refused: the protocol does not report it.
        BadInput: logits, counts or support that do not fit.
    """
    rung = correction(name)
    if protocol not in rung.protocols:
        raise Refused(f"protocol {protocol} does not report {name!r}; it has: {[r.name for r in ladder(protocol)]}")
    masked = priors.mask(logits, support)
    if rung.standardises or name == "none":
        return masked
    if protocol == "ser-evals":
        return _paper(masked, train_counts=train_counts, target_counts=target_counts)
    kept = np.asarray(list(support), dtype=np.intp)
    train, target = (_support_prior(counts, kept, masked.shape[-1]) for counts in (train_counts, target_counts))
    masked[:, kept] = _SOUND[name](masked[:, kept], train, target)
    return masked


def _paper(masked: Array, *, train_counts: ArrayLike, target_counts: ArrayLike) -> Array:
    """The paper's formula; what the support leaves out is minus infinity already, "other" among it."""
    return priors.adjust_paper(masked, train_counts=train_counts, target_counts=target_counts, other=None)


def _support_prior(counts: ArrayLike, kept: NDArray[np.intp], classes: int) -> Array:
    checked = priors.checked_counts(counts)
    if checked.shape != (classes,):
        raise BadInput(f"counts are of {checked.size} classes and logits of {classes}; give one count a class")
    return priors.class_prior(checked[kept], smoothing=SMOOTHING)


def _minus_train(logits: Array, train: Array, _target: Array) -> Array:
    return priors.adjust(logits, train=train)


def _oracle(logits: Array, train: Array, target: Array) -> Array:
    return priors.adjust(logits, train=train, target=target)


def _em(logits: Array, train: Array, _target: Array) -> Array:
    estimated = priors.em_prior(priors.softmax(logits), train=train).prior
    # A share that the estimate drives to zero is kept answerable: -inf would make NLL depend on the stopping rule.
    return priors.adjust(logits, train=train, target=priors.class_prior(estimated * len(logits), smoothing=SMOOTHING))


def _mean_probability(logits: Array, _train: Array, _target: Array) -> Array:
    return priors.minus_shown(logits, priors.log_mean(logits))


_SOUND: Mapping[str, Callable[[Array, Array, Array], Array]] = {
    "minus-train-prior": _minus_train,
    "oracle-prior": _oracle,
    "em-prior": _em,
    "mean-probability": _mean_probability,
}
