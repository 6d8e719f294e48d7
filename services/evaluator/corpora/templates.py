"""Templates of the cards: `{field}` and `{field:filter}` filled from a mapping; pure functions."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

_PLACE = re.compile(r"\{([^{}:]+)(?::(\w+))?\}")


def _integer(text: str) -> str:
    return str(int(text)) if text.isascii() and text.isdigit() else text


def _number(text: str) -> str:
    try:
        return repr(float(text))
    except ValueError:
        return text


FILTERS: Mapping[str, Callable[[str], str]] = {
    "stem": lambda text: PurePosixPath(text.replace("\\", "/")).stem,
    "int": _integer,
    "lower": str.lower,
    "num": _number,
}


def places(template: str) -> list[tuple[str, str]]:
    """The (field, filter) pairs of a template, in order; the filter is empty where there is none."""
    return [(name, kind or "") for name, kind in _PLACE.findall(template)]


def fill(template: str, fields: Mapping[str, str]) -> str | None:
    """The template with its fields filled in, or `None` when one of them is absent or empty."""
    if any(not fields.get(name) for name, _ in places(template)):
        return None

    def value(match: re.Match[str]) -> str:
        text = fields[match[1]].strip()
        return FILTERS[match[2]](text) if match[2] else text

    return _PLACE.sub(value, template)


def fold(text: str) -> str:
    """Text as keys are compared: NFC, without outer space, without case."""
    return unicodedata.normalize("NFC", text).strip().casefold()
