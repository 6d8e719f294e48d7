"""The first message of a stream: what the samples are and what is asked of them."""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from services.prober.asking import Ask
from services.prober.windows import Grid, grid
from servox.audio import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, Encoding

from .problems import Refusal
from .queries import MAX_INTEGER, bad_value, prior_of

_ENCODINGS: dict[str, Encoding] = {"s16le": "s16le", "f32le": "f32le"}
_DEFAULTS: dict[str, object] = {
    "head": None,
    "window_ms": None,
    "hop_ms": 0,
    "rate_hz": None,
    "channels": 1,
    "format": "s16le",
    "prior": "train",
    "every_window": False,
    "tenant": "",
    "uncalibrated": False,
    "purpose": "",
    "session": "",
    "next_window": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a stream is.

    Attributes:
        ask: which head answers, and how.
        shape: of the windows, at the rate of the samples.
        channels: interleaved.
        encoding: of a sample.
        every_window: answer windows without speech as well.
        next_window: first window to answer, for a stream that goes on.
    """

    ask: Ask
    shape: Grid
    channels: int
    encoding: Encoding
    every_window: bool
    next_window: int


def config_of(text: str) -> Config:
    """The config in a message.

    Raises:
        Refusal: 400, what cannot be read.
        BadInput: values out of range.
    """
    given = object_of(text)
    unknown = sorted(set(given) - {"type", *_DEFAULTS})
    if unknown or given.get("type", "config") != "config":
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"the first message has {str(unknown or given['type'])[:100]!r}: send a config with {', '.join(_DEFAULTS)}",
            name=unknown[0][:100] if unknown else "type",
        )
    encoding = _of(given, "format")
    if not isinstance(encoding, str) or encoding not in _ENCODINGS:
        raise bad_value("format", json.dumps(encoding), "give s16le or f32le")
    rate_hz = _whole(given, "rate_hz", MIN_RATE_HZ, MAX_RATE_HZ)
    return Config(
        ask=_ask(given),
        shape=grid(_whole(given, "window_ms", 0, MAX_INTEGER), _whole(given, "hop_ms", 0, MAX_INTEGER), rate_hz),
        channels=_whole(given, "channels", 1, MAX_CHANNELS),
        encoding=_ENCODINGS[encoding],
        every_window=_flag(given, "every_window"),
        next_window=_whole(given, "next_window", 0, MAX_INTEGER),
    )


def _ask(given: dict[str, Any]) -> Ask:
    return Ask(
        head=_text(given, "head", "give the name of a head"),
        prior=prior_of(given.get("prior")),
        uncalibrated=_flag(given, "uncalibrated"),
        **{name: _text(given, name, "give a word") for name in ("tenant", "purpose", "session")},
    )


def object_of(text: str) -> dict[str, Any]:
    """The object in a text message.

    Raises:
        Refusal: 400, something else.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "a text message is no JSON object: send a config first, an end last")
    return document


def _of(given: dict[str, Any], name: str) -> object:
    value = given.get(name)
    return _DEFAULTS[name] if value is None else value


def _text(given: dict[str, Any], name: str, remedy: str) -> str:
    value = _of(given, name)
    if not isinstance(value, str) or not (value or _DEFAULTS[name] == ""):
        raise bad_value(name, json.dumps(value), remedy)
    return value


def _flag(given: dict[str, Any], name: str) -> bool:
    value = _of(given, name)
    if not isinstance(value, bool):
        raise bad_value(name, json.dumps(value), "give true or false")
    return value


def _whole(given: dict[str, Any], name: str, low: int, high: int) -> int:
    value = _of(given, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad_value(name, json.dumps(value), f"give a whole number from {low} to {high}")
    return value
