"""What a head says of itself: what it was trained on, for which bundle, and how far it can be trusted.

- The card is JSON beside the weights; the head's digest covers both, without the two fields that say where and when
  (`store`, `created`), so that the same training gives the same digest on every machine.
- A card that lacks a field, or has one that this version does not know, is damaged or of another version: refused.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from servox.errors import BadInput

SCHEMA = 1

Kind = Literal["mlp", "logistic", "frame-mlp"]
KINDS: tuple[Kind, ...] = ("mlp", "logistic", "frame-mlp")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfFold:
    """Scores on clips whose speaker the scoring head never heard.

    Attributes:
        macro_f1: mean F1 over the classes that the scored clips hold.
        floor: macro-F1 of answers drawn from the classes' own shares, 1 / number of classes.
        ece_before: expected calibration error (15 bins) at temperature 1.
        ece_after: the same at the head's temperature.
        nll_before: mean negative log-likelihood at temperature 1, nats.
        nll_after: the same at the head's temperature.
        clips: clips that were scored.
        left_out: clips whose class no other speaker has, so that nothing could be learned of it.
        speakers: groups that the folds kept apart.
        folds: how many.
        grouped_by: what a group is: `speaker`, or `clip` where the clip set names no speakers.
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
        return json.dumps({k: v for k, v in asdict(self).items() if k not in ("store", "created")}, sort_keys=True)


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
    if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
        raise BadInput(f"head card: not of schema {SCHEMA}; train the head again with this version")
    given = _checked(document, Card)
    scores = document["out_of_fold"]
    given["out_of_fold"] = None if scores is None else OutOfFold(**_checked(scores, OutOfFold))
    given["classes"], given["class_counts"] = tuple(given["classes"]), tuple(given["class_counts"])
    if given["kind"] not in KINDS or len(given["classes"]) != len(given["class_counts"]):
        raise BadInput(f"head card: kind {given['kind']!r} or its classes make no sense; train the head again")
    return Card(**given)


def _checked(document: object, cls: type[Any]) -> dict[str, Any]:
    wanted = {field.name for field in fields(cls)}
    got = set(document) if isinstance(document, dict) else set()
    if wanted != got:
        raise BadInput(
            f"head card: fields {sorted(wanted ^ got)} are missing or unknown; train the head again with this version"
        )
    return dict(cast("dict[str, Any]", document))
