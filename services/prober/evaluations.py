"""What a head scored on corpora that it was not trained on: a document of its own, bound to the head by its digest.

A head never changes, what is known of it does: so an evaluation is no part of the head's digest, lies beside it, and is
replaced by a newer one. One that says another digest than the head's is of another head.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any

from servox.errors import BadInput

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusScores:
    """Scores on one corpus, restricted to the classes that it shares with the head.

    Attributes:
        key: of the corpus.
        digest: of the clips that were scored, their labels and speakers: the same digest is the same data.
        classes: that are shared.
        clips: scored.
        speakers: among them.
        macro_f1: over the shared classes.
        low: lower end of its 95 % interval, drawn by speaker; None where there are too few to tell.
        high: upper end.
        floor: macro-F1 of answers drawn from the corpus's own class shares.
        uar: unweighted average recall.
        accuracy: share answered rightly.
        ece: expected calibration error of the calibrated probabilities.
        nll: their mean negative log-likelihood, nats.
        interval: how it was drawn, and what is weak about it.
    """

    key: str
    digest: str
    classes: tuple[str, ...]
    clips: int
    speakers: int
    macro_f1: float
    low: float | None
    high: float | None
    floor: float
    uar: float
    accuracy: float
    ece: float
    nll: float
    interval: str

    @property
    def margin(self) -> float:
        """Macro-F1 less its floor."""
        return self.macro_f1 - self.floor


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All corpora.

    Attributes:
        head: `name:version`.
        digest: of the head.
        bundle: digest of the bundle whose embeddings were scored.
        created: ISO 8601 with an offset.
        servox: version that scored.
        corpora: that were eligible.
        left_out: others that were looked at, and why they were not.
    """

    head: str
    digest: str
    bundle: str
    created: str
    servox: str
    corpora: tuple[CorpusScores, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The document."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, indent=1, sort_keys=True)


def evaluation_from_json(text: str) -> Evaluation:
    """The evaluation in `text`.

    Raises:
        BadInput: no such document, fields that are missing or unknown, or scores that cannot be.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadInput(f"evaluation: not JSON ({error}); `servox heads evaluate` makes one") from None
    schema = document.pop("schema", None) if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise BadInput(f"evaluation: schema {schema}, not {SCHEMA}; make it again with this version")
    given = _fields(document, Evaluation)
    try:
        given["corpora"] = tuple(_scores(each) for each in given["corpora"])
        evaluation = Evaluation(**given)
        _check(evaluation)
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"evaluation of {given['head']!r}: {error}; make it again") from None
    return evaluation


def _scores(document: object) -> CorpusScores:
    given = _fields(document, CorpusScores)
    given["classes"] = tuple(given["classes"])
    return CorpusScores(**given)


def _fields(document: object, cls: type[Any]) -> dict[str, Any]:
    held = dict(document) if isinstance(document, dict) else {}
    if odd := {each.name for each in fields(cls)} ^ set(held):
        raise BadInput(f"evaluation: fields {sorted(map(str, odd))} are missing or unknown; make it again")
    return held


def _check(evaluation: Evaluation) -> None:
    if datetime.fromisoformat(evaluation.created).tzinfo is None:
        raise ValueError(f"created = {evaluation.created!r} has no offset")
    if len({each.key for each in evaluation.corpora}) < len(evaluation.corpora):
        raise ValueError("a corpus is there twice")
    if not all(isinstance(text, str) for text in (*evaluation.left_out.keys(), *evaluation.left_out.values())):
        raise ValueError("left_out is no table of reasons")
    for each in evaluation.corpora:
        shares = (each.macro_f1, each.floor, each.uar, each.accuracy, each.ece, each.low, each.high)
        if not all(value is None or 0 <= value <= 1 for value in shares) or not math.isfinite(each.nll):
            raise ValueError(f"{each.key} has scores that are no shares: {shares}, NLL {each.nll}")
        if None in shares[:5] or each.clips < 1 or each.speakers < 0 or len(each.classes) < 2:
            raise ValueError(f"{each.key} has {each.clips} clips, {each.speakers} speakers, classes {each.classes}")
