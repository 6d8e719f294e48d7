"""The one parser: a path and a card (and a table where the corpus has one) give label, speaker and the rest.

Order of trust: the code in the file's own name, then the folder, then the table. Folders are renamed by mirrors and
re-encoded by unzip programs; where two sources are at hand and disagree the clip is refused, never guessed.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from servox.errors import BadCorpus

from .card import Card, Protocol
from .tables import Tables
from .templates import fill

AUDIO_EXTENSIONS = frozenset(
    {"wav", "flac", "ogg", "oga", "opus", "mp3", "m4a", "aac", "mp4", "avi", "webm", "mov", "mkv", "aif", "aiff"}
    | {"wma", "flv", "sph", "au", "amr", "3gp"}
)
MAX_PATH_CHARS = 4096

_SEGMENT = re.compile(r"(?P<file>.+)#(?P<segment>[^#@]+)@(?P<start>\d+(?:\.\d+)?)-(?P<end>\d+(?:\.\d+)?)")
_CHANNEL = re.compile(r"channel(\d+)", re.IGNORECASE)
_GENDERS = {"f": "female", "w": "female", "female": "female", "woman": "female", "m": "male", "male": "male"}
_GENDERS |= {"man": "male", "c": "child", "child": "child", "other": "other"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a path says.

    Attributes:
        path: the path as it came in.
        raw: the label as the corpus stores it.
        label: the unified label under the protocol asked for; `None` where the protocol uses no class for it.
        speaker: speaker id, `None` where the corpus does not tell.
        group: the speaker, or the smallest set of clips known to share voices, or `None`.
        start_ms, end_ms, channel: for a clip inside a longer file; channels count from 1.
        excluded: why the card leaves this file out; empty for a clip to use.
    """

    path: str
    raw: str
    label: str | None
    speaker: str | None
    group: str | None
    gender: str | None
    age: int | None
    sentence: str | None
    split: str | None
    start_ms: int | None
    end_ms: int | None
    channel: int | None
    excluded: str
    fields: Mapping[str, str]


@lru_cache(maxsize=512)
def compiled(regex: str) -> re.Pattern[str]:
    """A card's path pattern, ready to match whole paths with any folders before it."""
    return re.compile(rf"(?:.*?/)??(?:{regex})", re.IGNORECASE | re.DOTALL)


@lru_cache(maxsize=512)
def _searched(regex: str) -> re.Pattern[str]:
    return re.compile(regex, re.IGNORECASE)


def normalised(path: str) -> str:
    """The path in NFC with forward slashes and without a leading `./`."""
    return unicodedata.normalize("NFC", path.replace("\\", "/")).removeprefix("./")


def printable(path: str) -> str:
    """The path as text that can be written anywhere: bytes that are no UTF-8 are shown as escapes."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def excluded_because(card: Card, path: str, protocol: Protocol) -> str:
    """Why a card leaves a file out under a protocol, or nothing."""
    text = normalised(path)
    for rule in card.excluded:
        if protocol in rule.protocols and _searched(rule.regex).search(text):
            return rule.reason
    return ""


def is_audio(path: str) -> bool:
    """Whether the extension is one that the embedder can be given."""
    name = path.rsplit("/", 1)[-1]
    return "." in name.lstrip(".") and name.rsplit(".", 1)[-1].lower() in AUDIO_EXTENSIONS


def parse_path(card: Card, path: str, table: Tables | None = None, *, protocol: Protocol = "sound") -> Parsed:
    """Read one path, relative to the corpus root.

    Raises:
        BadCorpus: the name fits no pattern, its label is unknown, contradictory, or in a table that was not given.
    """
    fields = {**_path_fields(card, path)}
    if table is not None:
        _add_rows(card, fields, table, path)
    raw = _raw_label(card, fields, path, table)
    channel = _channel(card, fields)
    if channel is not None and card.channel_separator:
        raw = _side(raw, channel, card.channel_separator)
    label = card.unify(raw, protocol)
    speaker = _speaker(card, fields, channel)
    return Parsed(
        path=path,
        raw=raw,
        label=label,
        speaker=speaker,
        group=speaker or (fill(card.speakers.group, fields) if card.speakers.group else None),
        gender=_gender(card, fields, speaker),
        age=_age(card, fields, speaker),
        sentence=fields.get("sentence"),
        split=fields.get("split"),
        start_ms=_ms(fields.get("start")),
        end_ms=_ms(fields.get("end")),
        channel=channel,
        excluded=excluded_because(card, path, protocol),
        fields=fields,
    )


def split_segment(path: str) -> tuple[str, dict[str, str]]:
    """The file part of `file#id@start-end` and the segment's fields; the whole path where there is no such suffix."""
    match = _SEGMENT.fullmatch(path)
    if match is None:
        return path, {}
    fields = match.groupdict()
    return fields.pop("file"), fields


def _path_fields(card: Card, path: str) -> dict[str, str]:
    if len(path) > MAX_PATH_CHARS:
        raise BadCorpus(f"{card.key}: a path of {len(path)} characters; at most {MAX_PATH_CHARS} are read.")
    text, segment = split_segment(normalised(path)) if card.segments else (normalised(path), {})
    if not is_audio(text):
        raise BadCorpus(f"{card.key}: {path!r} has no audio extension; give paths of audio files.")
    body = text.rsplit(".", 1)[0]
    for pattern in card.patterns:
        match = compiled(pattern.regex).fullmatch(body)
        if match:
            found = {name: value for name, value in match.groupdict().items() if value is not None}
            stem = body.rsplit("/", 1)[-1]
            return {**pattern.fields, **found, **segment, "stem": stem, "pattern": pattern.name}
    raise BadCorpus(
        f"{card.key}: cannot read the name {path!r}; expected something like {card.examples[0].path!r}. "
        "Restore the original name, or add a pattern to the card."
    )


def _add_rows(card: Card, fields: dict[str, str], table: Tables, path: str) -> None:
    """Add what the tables know; the path wins, and a label that contradicts it is an error."""
    for number, description in enumerate(card.tables):
        key = fill(description.join, fields)
        row = table.row(number, key) if key is not None else None
        if row is None:
            continue
        told = row.get("label")
        if told and fields.get("label") and not _same(card, told, fields["label"]):
            raise BadCorpus(
                f"{card.key}: {path!r} says {fields['label']!r}, its table says {told!r}. "
                "Check which is right and correct the other."
            )
        for name, value in row.items():
            fields.setdefault(name, value)


def _same(card: Card, one: str, other: str) -> bool:
    return card.canonical(one) == card.canonical(other)


def _raw_label(card: Card, fields: Mapping[str, str], path: str, table: Tables | None) -> str:
    label, code = fields.get("label"), fields.get("code")
    if code is not None:
        folded = {key.casefold(): value for key, value in card.codes.items()}
        coded = folded.get(code.casefold())
        if coded is None:
            raise BadCorpus(f"{card.key}: {path!r} has the unknown code {code!r}; known: {', '.join(card.codes)}.")
        if label is not None and not _same(card, coded, label):
            raise BadCorpus(
                f"{card.key}: {path!r} is named {coded!r} but stands under {label!r}. Move or rename the file."
            )
        return label or coded
    if label is not None:
        return label
    names = ", ".join(
        name for description in card.tables for name in description.files[:1] if "label" in description.columns
    )
    if table is None:
        raise BadCorpus(
            f"{card.key}: the label of {path!r} is not in its name but in {names}. Give the table or the corpus root."
        )
    raise BadCorpus(f"{card.key}: no row for {path!r} in {names}. Complete the table or remove the file.")


def _channel(card: Card, fields: Mapping[str, str]) -> int | None:
    if "channel" in fields and fields["channel"].isascii() and fields["channel"].isdigit():
        return int(fields["channel"])
    match = _CHANNEL.fullmatch(fields.get("segment", "")) if card.segments else None
    return int(match[1]) if match else None


def _side(text: str, channel: int, separator: str) -> str:
    parts = text.split(separator)
    return parts[min(channel, len(parts)) - 1] if channel > 0 else text


def _speaker(card: Card, fields: Mapping[str, str], channel: int | None) -> str | None:
    rule = card.speakers
    speaker = fill(rule.id, fields) if rule.id else None
    if speaker is None or speaker in rule.unknown:
        return None
    return _side(speaker, channel, card.channel_separator) if channel and card.channel_separator else speaker


def _gender(card: Card, fields: Mapping[str, str], speaker: str | None) -> str | None:
    for gender, ids in (("female", card.speakers.female), ("male", card.speakers.male), ("child", card.speakers.child)):
        if speaker in ids:
            return gender
    told = fields.get("gender", "").strip().casefold()
    own = {key.casefold(): value for key, value in card.genders.items()}
    return own.get(told) or _GENDERS.get(told)


def _age(card: Card, fields: Mapping[str, str], speaker: str | None) -> int | None:
    if speaker is not None and speaker in card.speakers.ages:
        return card.speakers.ages[speaker]
    told = fields.get("age", "").strip()
    return int(told) if told.isascii() and told.isdigit() and len(told) <= 3 else None


def _ms(seconds: str | None) -> int | None:
    return None if seconds is None else round(float(seconds) * 1000)
