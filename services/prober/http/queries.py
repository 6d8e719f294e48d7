"""Query parameters: each at most once, none unknown, all judged before a body is read."""

import json
from collections.abc import Iterable
from http import HTTPStatus

from starlette.datastructures import QueryParams

from services.prober.asking import Ask
from services.prober.prior import Prior, PriorKind
from servox.errors import BadInput

from .problems import Refusal

MAX_INTEGER = (1 << 63) - 1
NAMED: dict[str, PriorKind] = {
    "train": "train",
    "uniform": "uniform",
    "estimated": "estimated",
    "estimated-em": "estimated-em",
    "tenant": "tenant",
}
_NAMES = ", ".join(NAMED)
ASKED = ("prior", "tenant", "uncalibrated", "purpose", "session")  # of `Ask`, beside the head


class Query:
    """The query of one request.

    Args:
        given: as it came.
        known: names that the route reads.

    Raises:
        Refusal: 400, an unknown name or one that is given twice.
    """

    def __init__(self, given: QueryParams, known: Iterable[str]) -> None:
        names = [name for name, _ in given.multi_items()]
        for name in names:
            if name not in known:
                raise Refusal(
                    HTTPStatus.BAD_REQUEST,
                    f"query parameter {name!r} is unknown: this route reads {', '.join(known)}",
                    name=name,
                )
            if names.count(name) > 1:
                raise Refusal(
                    HTTPStatus.BAD_REQUEST,
                    f"query parameter {name!r} is given {names.count(name)} times: give it once",
                    name=name,
                )
        self._given = given

    def text(self, name: str, default: str | None = None) -> str:
        """A word.

        Raises:
            Refusal: 400, it is missing and has no default.
        """
        value = self._given.get(name, default)
        if not value and default is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"query parameter {name!r} is missing: give it", name=name)
        return value or ""

    def integer(self, name: str) -> int:
        """A count or a time, 0 where it is missing.

        Raises:
            Refusal: 400, no whole number.
        """
        text = self._given.get(name, "0")
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= MAX_INTEGER):
            raise bad_value(name, text, "give a whole number from 0 on")
        return int(text)

    def flag(self, name: str) -> bool:
        """A switch, off where it is missing.

        Raises:
            Refusal: 400, neither true nor false.
        """
        text = self._given.get(name, "false")
        if text not in ("true", "false"):
            raise bad_value(name, text, "give true or false")
        return text == "true"

    def ask(self) -> Ask:
        """Which head answers, and how.

        Raises:
            Refusal: 400, what cannot be read.
            BadInput: a prior that no head has.
        """
        return Ask(
            head=self.text("head"),
            prior=self.prior(),
            tenant=self.text("tenant", ""),
            uncalibrated=self.flag("uncalibrated"),
            purpose=self.text("purpose", ""),
            session=self.text("session", ""),
        )

    def prior(self) -> Prior:
        """The prior to assume, as in training where it is missing.

        Raises:
            Refusal: 400, no prior at all.
            BadInput: a prior that no head has.
        """
        text = self._given.get("prior", "train")
        if text in NAMED:
            return prior_of(text)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise bad_value("prior", text, f'give {_NAMES} or a JSON object such as {{"anger": 0.2, …}}') from None
        return prior_of(document)


def bad_value(name: str, value: str, remedy: str) -> Refusal:
    """400 for a parameter that cannot be read."""
    shown = value if len(value) <= 100 else f"{value[:100]}…"
    return Refusal(HTTPStatus.BAD_REQUEST, f"{name} = {shown!r}: {remedy}", name=name, value=shown)


def prior_of(document: object) -> Prior:
    """A prior as JSON gives it: one of `NAMED`, or a number for each class.

    Raises:
        Refusal: 400, something else.
    """
    if document is None:
        return Prior(kind="train")
    if isinstance(document, str) and document in NAMED:
        return Prior(kind=NAMED[document])
    if not isinstance(document, dict):
        raise bad_value("prior", json.dumps(document), f"give {_NAMES} or an object of class and probability")
    for label, share in document.items():
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise bad_value("prior", f"{label}: {json.dumps(share)}", "give a number for each class")
        if not 0 <= share <= 1:  # nor NaN
            raise BadInput(
                f"prior: {label!r} has {json.dumps(share)[:20]}; give probabilities from 0 to 1 that sum to 1"
            )
    return Prior(kind="explicit", probabilities={str(label): float(share) for label, share in document.items()})
