"""API keys: `sxk_<id>_<secret>`, kept in a file that knows no secret.

- A secret is 256 random bits. Its SHA-256 is enough to keep: nobody can search 2²⁵⁶ values, so a slow hash, which is
  for passwords that people choose, would only slow every call down.
- Comparing takes the same time for an unknown id as for a wrong secret.
- The file is read again when it changes: a key that is revoked there counts no more within a second, on open streams
  as well. An edit that cannot be read changes nothing and is said in the log.
"""

import hashlib
import hmac
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servox.callers import Caller
from servox.errors import BadSetting, Unauthenticated
from servox.quotas import Allowance
from servox.scopes import SCOPES
from servox.watched import Watched

PREFIX = "sxk"
SECRET_BYTES = 32
_SHAPE = re.compile(r"sxk_(?P<id>[a-z0-9]{1,32})_(?P<secret>[A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_NOBODY = hashlib.sha256(b"").hexdigest()
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a file knows of one key.

    Attributes:
        id: in the key itself; no secret.
        name: whose it is; it is logged.
        sha256: of the secret, in hexadecimal.
        scopes: what it lets its holder do; see `servox.scopes`.
        tenant: whose speech it sends; empty: any.
        rate_per_s, audio_s_per_day, streams: see `servox.quotas.Allowance`.
        created: ISO 8601.
        expires: ISO 8601; empty: never.
        revoked: ISO 8601; empty: not.
    """

    id: str
    name: str
    sha256: str
    scopes: tuple[str, ...] = ("recognize", "heads")
    tenant: str = ""
    rate_per_s: float = 0.0
    audio_s_per_day: float = 0.0
    streams: int = 0
    created: str = ""
    expires: str = ""
    revoked: str = ""

    @property
    def caller(self) -> Caller:
        """Who calls with it."""
        return Caller(name=self.name, tenant=self.tenant, scopes=frozenset(self.scopes))

    @property
    def allowance(self) -> Allowance:
        """What they may use."""
        return Allowance(rate_per_s=self.rate_per_s, audio_s_per_day=self.audio_s_per_day, streams=self.streams)

    def ended(self, now_s: float) -> str:
        """`revoked`, `expired`, or empty while it counts."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and now_s >= moment_s(self.expires) else ""


def moment_s(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time, in UTC where it names no zone.

    Raises:
        BadSetting: no such time.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise BadSetting(f"time {text!r} is none: write it as 2027-01-31 or 2027-01-31T12:00:00+00:00") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def minted() -> tuple[str, str, str]:
    """A new key: its whole text, its id, and the SHA-256 of its secret."""
    name, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
    return f"{PREFIX}_{name}_{secret}", name, _digest(secret)


def looks_like_key(text: str) -> bool:
    """Whether it is meant as one of our keys."""
    return text.startswith(f"{PREFIX}_")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


# ---- the file ------------------------------------------------------------------------------------------------------


def read_keys(path: Path) -> dict[str, Key]:
    """The keys in a file, by their ids.

    Raises:
        BadSetting: it cannot be read, or holds something else.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadSetting(f"keys {path}: over {_MOST_BYTES} bytes; is it a file of keys?")
        document = json.loads(path.read_text())
    except OSError as error:
        raise BadSetting(f"keys {path}: {error.strerror}; make it with `servox keys create`") from None
    except (ValueError, RecursionError):
        raise BadSetting(f"keys {path}: it is no JSON; restore it, or make another one") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise BadSetting(f'keys {path}: it has no list "keys"; make it with `servox keys create`')
    found = [key_of(entry, place=f"keys {path}, entry {number}") for number, entry in enumerate(entries)]
    if len({key.id for key in found}) < len(found):
        raise BadSetting(f"keys {path}: an id is there twice; remove one of them")
    return {key.id: key for key in found}


def key_of(entry: object, *, place: str) -> Key:
    """One entry of the file.

    Raises:
        BadSetting: something is missing, unknown, or of a wrong kind.
    """
    if not isinstance(entry, dict):
        raise BadSetting(f"{place}: it is no object; restore it")
    known = {field.name: field for field in fields(Key)}
    if unknown := sorted(set(entry) - set(known)):
        raise BadSetting(f"{place}: {unknown[0]!r} is unknown; use {', '.join(known)}")
    if missing := sorted({"id", "name", "sha256"} - set(entry)):
        raise BadSetting(f"{place}: {missing[0]!r} is missing; restore it")
    given = dict(entry)
    if isinstance(entry.get("scopes"), list):
        given["scopes"] = tuple(entry["scopes"])
    for name, value in given.items():
        if not _fits(value, known[name].type):
            raise BadSetting(f"{place}: {name} = {value!r} cannot be used; restore it")
    return checked(Key(**given), place)


def _fits(value: Any, kind: object) -> bool:  # noqa: ANN401 -- of JSON
    if kind is str:
        return isinstance(value, str)
    if kind is float or kind is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return (whole or (kind is float and isinstance(value, float))) and 0 <= value < math.inf
    return isinstance(value, tuple) and all(isinstance(each, str) for each in value)


def checked(key: Key, place: str) -> Key:
    """The key, if it makes sense.

    Raises:
        BadSetting: it does not.
    """
    if unknown := sorted(set(key.scopes) - set(SCOPES)):
        raise BadSetting(f"{place}: scope {unknown[0]!r} is unknown; use {', '.join(SCOPES)}")
    if not _NAME.fullmatch(key.name):
        raise BadSetting(f"{place}: name {key.name[:40]!r} cannot be used; give 1 to 128 characters")
    if not re.fullmatch(r"[a-z0-9]{1,32}", key.id) or not re.fullmatch(r"[0-9a-f]{64}", key.sha256):
        raise BadSetting(f"{place}: id or sha256 is damaged; restore it")
    for moment in (key.created, key.expires, key.revoked):
        try:
            moment_s(moment or "2026-01-01")
        except BadSetting as error:
            raise BadSetting(f"{place}: {error}") from None
    return key


def document_of(keys: Iterable[Key]) -> str:
    """The file's text."""
    return json.dumps({"keys": [asdict(key) for key in keys]}, indent=2, ensure_ascii=False) + "\n"


# ---- who calls -----------------------------------------------------------------------------------------------------


class Keys:
    """A file of keys, as a server uses it.

    Args:
        path: of the file.
        alarm: see `Watched`.
        clock: seconds since 1970.

    Raises:
        BadSetting: the file cannot be read.
    """

    def __init__(
        self, path: Path, *, alarm: Callable[[bool], None] = lambda _: None, clock: Callable[[], float] = time.time
    ) -> None:
        self._file: Watched[Mapping[str, Key]] = Watched([path], lambda: read_keys(path), alarm=alarm)
        self._clock = clock

    def holder(self, text: str) -> Key:
        """The key that was shown.

        Raises:
            Unauthenticated: it is unknown, wrong, revoked or expired; the message does not repeat it.
        """
        shown = _SHAPE.fullmatch(text)
        known = self._file.get().get(shown["id"]) if shown else None
        # Compared also where nothing is known, so that the time of an answer tells nothing of what is.
        right = hmac.compare_digest(_digest(shown["secret"] if shown else ""), known.sha256 if known else _NOBODY)
        if not shown or known is None or not right:
            raise Unauthenticated("the key is unknown: check that it was copied whole, or ask for another one")
        self._check(known)
        return known

    def check(self, key: Key) -> None:
        """Raises Unauthenticated if a key that was shown before counts no more."""
        known = self._file.get().get(key.id)
        if known is None or known.sha256 != key.sha256:
            raise Unauthenticated(f"key {key.id} ({key.name}) was taken away: ask for another one")
        self._check(known)

    def _check(self, key: Key) -> None:
        if ended := key.ended(self._clock()):
            raise Unauthenticated(f"key {key.id} ({key.name}) is {ended}: ask for another one")


# ---- one's own -----------------------------------------------------------------------------------------------------


def read_own(path: Path) -> str:
    """The key or token in a file.

    Raises:
        BadSetting: it cannot be read, or holds something else.
    """
    try:
        return own(path.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"key file {path}: {error}; put a key there that `servox keys create` printed") from None


def own(text: str) -> str:
    """A key or token that is to be sent.

    Raises:
        BadSetting: it cannot be one.
    """
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]{16,16384}", text):
        raise BadSetting("the key to be sent is no key and no token: give it whole, without quotes or spaces")
    return text


def key_of_environment() -> str | None:
    """The key that the commands of `servox` show to servers: `SERVOX_KEY`, if it is set.

    Raises:
        BadSetting: it cannot be a key.
    """
    text = os.environ.get("SERVOX_KEY", "").strip()
    return own(text) if text else None


def own_key(path: Path) -> Callable[[], str]:
    """What is to be sent now: the file is read again when it changes.

    Raises:
        BadSetting: it cannot be read.
    """
    return Watched([path], lambda: read_own(path)).get
