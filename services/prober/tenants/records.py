"""A state as JSON: for the disk, and for those who export and import it.

Statistics alone: means, shares and counts; no audio, and no embedding of a clip. What is read is checked field by
field, for it may come from anybody.
"""

import json
import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from services.prober.prior import Prior, PriorKind
from servox.errors import BadInput

from .statistics import HEADS, Phase, Shares, Space, State

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
MOST_BYTES = 4 << 20
MOST_DIMS = 1 << 16
MOST_CLASSES = 256
MOST = 1e12  # of any count, and of Unix time in a few thousand years
PHASES: dict[str, Phase] = {"collecting": "collecting", "ready": "ready", "frozen": "frozen"}

_KINDS: dict[str, PriorKind] = {
    "train": "train",
    "uniform": "uniform",
    "explicit": "explicit",
    "estimated": "estimated",
    "estimated-em": "estimated-em",
}

Array = npt.NDArray[np.float64]


def checked_tenant(name: str) -> str:
    """A tenant's name; it becomes that of a folder.

    Raises:
        BadInput: a name that is none.
    """
    if not NAME.fullmatch(name):
        raise BadInput(
            f"tenant {name[:100]!r}: use 1 to 63 letters, digits, '.', '-' and '_', with a letter or digit at both ends"
        )
    return name


def record_of(state: State) -> dict[str, Any]:
    """What JSON shows of a state."""
    return {
        "tenant": state.tenant,
        "bundle": state.space.bundle,
        "layers": list(state.space.layers),
        "phase": state.phase,
        "version": state.version,
        "clips": state.clips,
        "refused": state.refused,
        "weight": state.weight,
        "mean": _numbers(state.mean),
        "spread": state.spread,
        "recent": _numbers(state.recent),
        "recent_weight": state.recent_weight,
        "distance": state.distance,
        "drift": state.drift,
        "heads": [_share_record(share) for share in state.shares],
        "allowance": state.allowance,
        "allowance_ms": state.allowance_ms,
        "alarm": state.alarm,
        "prior": state.prior and {"kind": state.prior.kind, "probabilities": dict(state.prior.probabilities)},
        "changed_ms": state.changed_ms,
    }


def _share_record(share: Shares) -> dict[str, Any]:
    return {
        "head": share.head,
        "classes": list(share.classes),
        "train": list(share.train),
        "weight": share.weight,
        "raw": _numbers(share.raw),
        "shown": _numbers(share.shown),
        "usual": _numbers(share.usual),
        "em": _numbers(share.em),
        "recent": _numbers(share.recent),
        "recent_weight": share.recent_weight,
    }


def to_json(states: list[State]) -> str:
    """A document of states."""
    return json.dumps({"schema": SCHEMA, "states": [record_of(state) for state in states]}, separators=(",", ":"))


def from_json(text: str) -> list[State]:
    """The states in a document.

    Raises:
        BadInput: no JSON, another schema, or a field that is missing, unknown or out of range.
    """
    if len(text) > MOST_BYTES:
        raise BadInput(f"calibration: {len(text)} characters, over the limit of {MOST_BYTES}: export fewer states")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"calibration: not JSON ({str(error)[:80]}); send what an export gave") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA or not isinstance(document.get("states"), list):
        raise BadInput(f"calibration: schema {str(schema)[:20]}, not {SCHEMA}; export it again with this version")
    return [_state(Fields(each, "calibration")) for each in document["states"]]


def _state(given: "Fields") -> State:
    mean = given.vector("mean")
    space = Space(
        bundle=given.text("bundle", re.compile("[0-9a-f]{64}")),
        layers=tuple(given.whole_list("layers", most=64)),
        dims=len(mean),
    )
    state = State(
        tenant=checked_tenant(given.text("tenant", re.compile(".*"))),
        space=space,
        phase=PHASES[given.text("phase", re.compile("collecting|ready|frozen"))],
        version=given.whole("version"),
        clips=given.whole("clips"),
        refused=given.whole("refused"),
        weight=given.number("weight"),
        mean=mean,
        spread=given.number("spread"),
        recent=given.vector("recent", size=space.dims),
        recent_weight=given.number("recent_weight"),
        distance=given.number("distance"),
        drift=given.number("drift"),
        shares=tuple(_share(Fields(each, "calibration: heads")) for each in given.records("heads", most=HEADS)),
        allowance=given.number("allowance", least=-MOST),
        allowance_ms=given.whole("allowance_ms"),
        alarm=given.text("alarm", re.compile(".{0,400}")),
        prior=_prior(given.take("prior")),
        changed_ms=given.whole("changed_ms"),
    )
    given.nothing_left()
    return state


def _share(given: "Fields") -> Shares:
    classes = given.words("classes", most=MOST_CLASSES)
    size = len(classes)
    share = Shares(
        head=given.text("head", re.compile(".{1,200}")),
        classes=classes,
        train=tuple(given.whole_list("train", most=size, least=size)),
        weight=given.number("weight"),
        raw=given.shares("raw", size),
        shown=given.shares("shown", size),
        usual=given.shares("usual", size),
        em=given.shares("em", size),
        recent=given.shares("recent", size),
        recent_weight=given.number("recent_weight"),
    )
    given.nothing_left()
    if not sum(share.train):
        raise BadInput("calibration: heads: train counts nothing; send what an export gave")
    return share


def _prior(given: object) -> Prior | None:
    if given is None:
        return None
    fields = Fields(given, "calibration: prior")
    kind = fields.text("kind", re.compile("|".join(_KINDS)))
    shares = fields.take("probabilities")
    fields.nothing_left()
    if not isinstance(shares, dict) or not all(_is_number(value, 0, 1) for value in shares.values()):
        raise BadInput("calibration: prior: probabilities are no object of class and share; send what an export gave")
    return Prior(kind=_KINDS[kind], probabilities={str(name): float(value) for name, value in shares.items()})


class Fields:
    """The fields of one object, taken out one by one.

    Args:
        given: the object.
        what: it is, for messages.

    Raises:
        BadInput: it is none; and by every method: a field that is missing or makes no sense.
    """

    def __init__(self, given: object, what: str) -> None:
        self._what = what
        if not isinstance(given, dict):
            raise self._bad("", given, "give an object")
        self._given = dict(given)

    def take(self, name: str) -> object:
        """Whatever it is."""
        if name not in self._given:
            raise self._bad(name, "", "it is missing")
        return self._given.pop(name)

    def nothing_left(self) -> None:
        """Refuses fields that nobody took."""
        if self._given:
            raise self._bad(min(self._given), "", "it is unknown")

    def text(self, name: str, shape: re.Pattern[str]) -> str:
        """A word of this shape."""
        value = self.take(name)
        if not isinstance(value, str) or not shape.fullmatch(value):
            raise self._bad(name, value, f"give text like {shape.pattern}")
        return value

    def number(self, name: str, *, least: float = 0.0) -> float:
        """A finite number."""
        value = self.take(name)
        if not _is_number(value, least, MOST):
            raise self._bad(name, value, f"give a number from {least:g} on")
        return float(value)  # type: ignore[arg-type]  # checked by _is_number

    def whole(self, name: str) -> int:
        """A count or a time."""
        value = self.take(name)
        if not _is_number(value, 0, 1e15) or value != int(value):  # type: ignore[call-overload]
            raise self._bad(name, value, "give a whole number from 0 on")
        return int(value)  # type: ignore[call-overload,no-any-return]

    def vector(self, name: str, *, size: int | None = None) -> Array:
        """Finite numbers, `[size]`."""
        value = self._list(name, most=size or MOST_DIMS, least=size or 1)
        if not all(_is_number(each, -MOST, MOST) for each in value):
            raise self._bad(name, "", "it holds what is no finite number")
        return np.asarray(value, dtype=np.float64)

    def shares(self, name: str, size: int) -> Array:
        """Probabilities `[size]`: of a sum of one, or all zero before anything was heard."""
        value = self.vector(name, size=size)
        if (value < 0).any() or (value.any() and abs(value.sum() - 1) > 1e-3):
            raise self._bad(name, value.sum(), "give shares that sum to one")
        return value

    def whole_list(self, name: str, *, most: int, least: int = 1) -> list[int]:
        """Counts."""
        value = self._list(name, most=most, least=least)
        if not all(_is_number(each, 0, MOST) and each == int(each) for each in value):
            raise self._bad(name, value, "give whole numbers from 0 on")
        return [int(each) for each in value]

    def words(self, name: str, *, most: int) -> tuple[str, ...]:
        """Different texts."""
        value = self._list(name, most=most, least=1)
        if not all(isinstance(each, str) and len(each) <= 100 for each in value) or len(set(value)) < len(value):
            raise self._bad(name, value, "give different words")
        return tuple(value)

    def records(self, name: str, *, most: int) -> list[Any]:
        """Objects."""
        return self._list(name, most=most, least=0)

    def _list(self, name: str, *, most: int, least: int) -> list[Any]:
        value = self.take(name)
        if not isinstance(value, list) or not least <= len(value) <= most:
            size = len(value) if isinstance(value, list) else value
            raise self._bad(name, size, f"give a list of {least} to {most}")
        return value

    def _bad(self, name: str, value: object, why: str) -> BadInput:
        shown = "" if value == "" else f" = {str(value)[:60]!r}"
        return BadInput(f"{self._what}{': ' if name else ''}{name}{shown}: {why}; send what an export gave")


def _is_number(value: object, least: float, most: float) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and least <= value <= most
    )


def _numbers(array: Array) -> list[float]:
    """Nine digits: what float32 embeddings are worth."""
    return [float(f"{value:.9g}") for value in array]
