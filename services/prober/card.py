"""What a head says of itself: what it was trained on, for which bundle, and how far it can be trusted.

- The card is JSON beside the weights; the head's digest covers both, without the two fields that say where and when
  (`store`, `created`), so that the same training gives the same digest on every machine.
- A card that lacks a field, or has one that this version does not know, is damaged or of another version: refused.
- Schema 1 is read as well. What schema 2 added is at rest in such a card, and what is at rest is no part of the digest:
  a head from before keeps its own.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from servox.calibration import Scaling
from servox.errors import BadInput

SCHEMA = 2
READ = (1, 2)

Kind = Literal["mlp", "logistic", "frame-mlp"]
KINDS: tuple[Kind, ...] = ("mlp", "logistic", "frame-mlp")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfFold:
    """Scores on clips whose speaker the scoring head never heard.

    Attributes:
        macro_f1: mean F1 over the classes that the scored clips hold.
        floor: macro-F1 of answers drawn from the classes' own shares, 1 / number of classes.
        ece_before: expected calibration error (15 bins) of the logits as they are.
        ece_after: the same after the scaling that the other folds ask for.
        nll_before: mean negative log-likelihood of the logits as they are, nats.
        nll_after: the same after scaling.
        clips: clips that were scored.
        left_out: clips whose class no other speaker has, so that nothing could be learned of it.
        speakers: groups that the folds kept apart.
        folds: how many.
        grouped_by: what a group is: `speaker`, or `clip` where the clip set names no speakers.
        brier_before: mean squared distance between probabilities and truth (0 to 2) of the logits as they are; None on
            a card of schema 1.
        brier_after: the same after scaling.
    """

    macro_f1: float
    floor: float
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    clips: int
    left_out: int
    speakers: int
    folds: int
    grouped_by: str
    brier_before: float | None = None
    brier_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The facts of one head.

    Attributes:
        name: in the registry.
        version: first 16 hex digits of the digest of what was asked for.
        kind: mlp, logistic or frame-mlp.
        classes: order of the outputs.
        class_counts: clips of each class in the training set.
        bundle: digest of the bundle whose embeddings it reads.
        layer: of that bundle; the last, where it reads several.
        dims: of what it reads.
        temperature: logits are divided by it; 1 where it was not fitted.
        seed: of the training.
        settings: every setting of the training, the defaults too.
        out_of_fold: None where no calibration was asked for.
        clip_set: digest of the clip set.
        clips: of the training set.
        speakers: of the training set, 0 where it names none.
        servox: version that trained it.
        store: URL of the embeddings.
        created: ISO 8601, UTC.
        bias: added to the logits after the temperature, in the order of `classes`; empty where there is none.
        epoch: from 1, after which an MLP's weights were taken; None for other kinds and on a card of schema 1.
        novelty_limit: distance from the training features beyond which a clip is out of distribution; see `novelty`.
    """

    name: str
    version: str
    kind: Kind
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    bundle: str
    layer: int
    dims: int
    temperature: float
    seed: int
    settings: dict[str, float]
    out_of_fold: OutOfFold | None
    clip_set: str
    clips: int
    speakers: int
    servox: str
    store: str
    created: str
    bias: tuple[float, ...] = ()
    epoch: int | None = None
    novelty_limit: float | None = None

    @property
    def calibration(self) -> str:
        """How its probabilities were calibrated."""
        if self.out_of_fold is None:
            return "none"
        return "bias-corrected temperature" if self.bias else "temperature"

    @property
    def scaling(self) -> Scaling:
        """What its logits go through before the softmax."""
        return Scaling(temperature=self.temperature, bias=self.bias)

    @property
    def layers(self) -> tuple[int, ...]:
        """What it reads, one after the other: `layer` and those before it that its settings ask for."""
        return layers_of(self.layer, self.settings)

    @property
    def tag(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"

    def to_json(self) -> str:
        """The card as one JSON object, keys sorted."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, indent=1, sort_keys=True)

    def identity(self) -> str:
        """What of the card goes into the head's digest: all but where and when."""
        facts = {k: v for k, v in asdict(self).items() if k not in ("store", "created")}
        scores = facts["out_of_fold"]
        facts["out_of_fold"] = scores and _without(scores, _LATER_SCORES)
        return json.dumps(_without(facts, _LATER), sort_keys=True)


# What schema 2 added, and what stands for it at rest.
_LATER: dict[str, Any] = {"bias": (), "epoch": None, "novelty_limit": None}
_LATER_SCORES: dict[str, Any] = {"brier_before": None, "brier_after": None}


def _without(facts: Mapping[str, Any], resting: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in resting or value != resting[name]}


def layers_of(layer: int, settings: Mapping[str, float]) -> tuple[int, ...]:
    """The layers that a head with these settings reads, in order; `layer` is the last."""
    return tuple(range(layer - int(settings.get("layers", 1)) + 1, layer + 1))


def card_from_json(text: str) -> Card:
    """The card in `text`.

    Raises:
        BadInput: no JSON object, another schema, or fields that are missing or unknown.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"head card: not JSON ({error}); train the head again") from None
    schema = document.pop("schema", None) if isinstance(document, dict) else None
    if schema not in READ:
        raise BadInput(f"head card: schema {schema}, not one of {READ}; train the head again with this version")
    before = schema == 1
    given = _checked(_completed(document, _LATER) if before else document, Card)
    if (scores := given["out_of_fold"]) is not None:
        given["out_of_fold"] = OutOfFold(**_checked(_completed(scores, _LATER_SCORES) if before else scores, OutOfFold))
    for name in ("classes", "class_counts", "bias"):
        given[name] = tuple(given[name])
    lengths = {len(given["classes"]), len(given["class_counts"]), len(given["bias"]) or len(given["classes"])}
    if given["kind"] not in KINDS or len(lengths) != 1:
        raise BadInput(f"head card: kind {given['kind']!r} or its classes make no sense; train the head again")
    return Card(**given)


def _completed(document: object, resting: Mapping[str, Any]) -> object:
    return {**resting, **document} if isinstance(document, dict) else document


def _checked(document: object, cls: type[Any]) -> dict[str, Any]:
    wanted = {field.name for field in fields(cls)}
    got = set(document) if isinstance(document, dict) else set()
    if wanted != got:
        raise BadInput(
            f"head card: fields {sorted(wanted ^ got)} are missing or unknown; train the head again with this version"
        )
    return dict(cast("dict[str, Any]", document))
