"""Content negotiation: what a caller sends and what it wants to read, both judged by headers alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers

from servox.audio import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ
from servox.v1 import common_pb2

from .problems import Refusal

JSON, LINES, BINARY = "application/json", "application/x-ndjson", "application/octet-stream"
ACCEPTED = "audio/*, video/*, application/octet-stream, application/ogg, multipart/form-data"
_WHOLE = (BINARY, "application/ogg")
_FORMATS = {"s16le": common_pb2.SAMPLE_FORMAT_S16, "f32le": common_pb2.SAMPLE_FORMAT_F32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How the audio of a request is packed.

    Attributes:
        boundary: of multipart/form-data; None for a raw body.
        pcm: what raw samples are, without their data; None for a file.
    """

    boundary: bytes | None = None
    pcm: common_pb2.Pcm | None = None


def sent(headers: Headers) -> Sent:
    """What the body holds.

    Raises:
        Refusal: 415 for a media type or coding that is not audio, 400 for one that is malformed.
    """
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise _unsupported("Content-Encoding", coding, "send the audio as it is, without a content coding")
    text = headers.get("content-type", "")
    kind, options = parse_options_header(text)
    name = kind.decode("latin-1")
    if name == "multipart/form-data":
        if not 1 <= len(options.get(b"boundary", b"")) <= 200:
            raise Refusal(HTTPStatus.BAD_REQUEST, "Content-Type: multipart/form-data without a boundary; give one")
        return Sent(boundary=options[b"boundary"])
    if name == "audio/pcm":
        return Sent(pcm=_pcm({key.decode("latin-1"): value.decode("latin-1") for key, value in options.items()}))
    if name.startswith(("audio/", "video/")) or name in _WHOLE:
        return Sent()
    raise _unsupported("Content-Type", text, f"send one of {ACCEPTED}")


def _unsupported(name: str, value: str, remedy: str) -> Refusal:
    headers = {"Accept-Post": ACCEPTED} if name == "Content-Type" else {"Accept-Encoding": "identity"}
    said = f"{name} {value!r} is not supported" if value else f"{name} is missing"
    return Refusal(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{said}: {remedy}", name=name, value=value or None, headers=headers
    )


def _pcm(options: dict[str, str]) -> common_pb2.Pcm:
    """Raw samples by the parameters `rate`, `channels` and `format` of audio/pcm."""
    encoding = options.get("format", "s16le")
    if encoding not in _FORMATS:
        raise _malformed("format", encoding, "use s16le or f32le")
    rate_hz = _whole(options, "rate", default=0, low=MIN_RATE_HZ, high=MAX_RATE_HZ)
    channels = _whole(options, "channels", default=1, low=1, high=MAX_CHANNELS)
    return common_pb2.Pcm(rate_hz=rate_hz, channels=channels, format=_FORMATS[encoding])


def _whole(options: dict[str, str], name: str, *, default: int, low: int, high: int) -> int:
    text = options.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and low <= int(text) <= high):
        raise _malformed(name, text if name in options else "", f"give {low} to {high}")
    return int(text)


def _malformed(name: str, value: str, remedy: str) -> Refusal:
    said = f"Content-Type audio/pcm; {name}={value}" if value else f"Content-Type audio/pcm without {name}"
    return Refusal(
        HTTPStatus.BAD_REQUEST,
        f"{said}: {remedy}, as in audio/pcm; rate=16000; channels=1; format=s16le",
        name=name,
        value=value or None,
    )


def wanted(headers: Headers, offers: Sequence[str]) -> str:
    """The offer that the caller likes best; the first one where it does not say.

    Raises:
        Refusal: 406, it likes none.
    """
    ranges = [_range(part) for part in ",".join(headers.getlist("accept")).split(",") if part.strip()]
    if not ranges:
        return offers[0]
    best = max(offers, key=lambda offer: _liking(offer, ranges))  # the first of equals
    if _liking(best, ranges) > 0:
        return best
    accept = ", ".join(headers.getlist("accept"))
    raise Refusal(
        HTTPStatus.NOT_ACCEPTABLE,
        f"Accept {accept!r}: this route answers {' or '.join(offers)}; ask for one of them or for */*",
        name="Accept",
        value=accept,
    )


def _range(text: str) -> tuple[str, float]:
    name, *options = text.lower().split(";")
    quality = next((option.strip()[2:] for option in options if option.strip().startswith("q=")), "1")
    try:
        return name.strip(), min(1.0, max(0.0, float(quality)))
    except ValueError:
        return name.strip(), 0.0


def _liking(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Quality of the most exact range that covers the offer (RFC 9110, 12.5.1)."""
    for name in (offer, offer.split("/", maxsplit=1)[0] + "/*", "*/*"):
        found = [quality for each, quality in ranges if each == name]
        if found:
            return max(found)
    return 0.0
