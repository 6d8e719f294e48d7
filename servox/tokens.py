"""Tokens (JWT, RFC 7519) of an issuer that others run, verified by the keys it publishes (JWKS, RFC 7517).

- Only signatures by asymmetric keys count: a server must not be able to make the tokens that it accepts.
- The keys are fetched once and refreshed beside the calls. While their URL does not answer, the last good ones count
  for a stated time; after that calls are answered Unavailable: never let in, never left hanging.
- A key id that is unknown is worth one fetch, at most every ten seconds, whatever strangers send.
"""

import asyncio
import ipaddress
import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from servox.callers import Caller
from servox.errors import BadSetting, ServoxError, Unauthenticated, Unavailable
from servox.scopes import SCOPES
from servox.watched import Watched

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
REFRESH_EVERY_S = 300.0
ASK_AGAIN_S = 10.0  # between two fetches, whatever they are for
FETCH_S = 5.0
MOST_BYTES = 1 << 20
MOST_TOKEN = 16 << 10
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,256}")

KeysById = Mapping[str | None, Any]  # PyJWK


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """What a token must say, and where it says who calls.

    Attributes:
        name: `iss`.
        audience: `aud`.
        algorithms: that count.
        leeway_s: how far clocks may differ.
        name_claim, tenant_claim, scope_claim: names of claims; without a tenant's claim tokens have no tenant.
    """

    name: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    leeway_s: float = 30.0
    name_claim: str = "sub"
    tenant_claim: str = ""
    scope_claim: str = "scope"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A token that was found good.

    Attributes:
        caller: who calls with it.
        ends_s: until when it counts, since 1970, leeway included.
        clock: tells the time.
    """

    caller: Caller
    ends_s: float
    clock: Callable[[], float]

    def check(self) -> None:
        """Raises Unauthenticated once it has expired."""
        if self.clock() >= self.ends_s:
            raise Unauthenticated("the token has expired: get a new one")


# ---- the issuer's keys -----------------------------------------------------------------------------------------------


class KeySet:
    """The public keys of an issuer.

    Args:
        source: https URL, or a file, which is read again when it changes.
        stale_s: how long keys count after they were fetched last.
        alarm: told True while the source cannot be read.
        fetch: gets a URL.
        clock: monotonic, in seconds.

    Raises:
        BadSetting: a URL that anybody on the way could change, or a file that cannot be read.
    """

    def __init__(
        self,
        source: str,
        *,
        stale_s: float = 3600.0,
        alarm: Callable[[bool], None] = lambda _: None,
        fetch: Callable[[str], Awaitable[bytes]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._stale_s, self._alarm, self._clock = source, stale_s, alarm, clock
        self._fetch = fetch or _fetched
        self._file: Watched[KeysById] | None = None
        if "://" in source:
            _check_url(source)
        else:
            path = Path(source)
            self._file = Watched([path], lambda: _read(path), alarm=alarm)
        self._keys: KeysById = {}
        self._fetched_s: float | None = None
        self._tried_s: float | None = None
        self._failed = False
        self._refreshing: asyncio.Task[None] | None = None

    async def key(self, name: str | None) -> Any:  # noqa: ANN401 -- PyJWK; PyJWT is optional
        """The key with an id; the only one there is where a token names none.

        Raises:
            Unauthenticated: there is no such key.
            Unavailable: nobody can tell at this moment.
        """
        if self._file is not None:
            found = _named(self._file.get(), name)
        else:
            await self._fresh()
            found = _named(self._keys, name)
            if found is None and (self._may_ask() or self._refreshing):
                await self._refreshed()
                found = _named(self._keys, name)
            if found is None and self._failed:
                raise Unavailable("the keys that sign tokens cannot be fetched, and this one is new: try again later")
        if found is None:
            raise Unauthenticated("the token was signed by a key that its issuer does not publish: get a new one")
        return found

    async def _fresh(self) -> None:
        now_s, fetched_s = self._clock(), self._fetched_s
        age_s = float("inf") if fetched_s is None else now_s - fetched_s
        if age_s < REFRESH_EVERY_S:
            return
        if age_s <= self._stale_s:
            if self._may_ask():
                self._refresh()  # beside this call
            return
        if self._may_ask() or self._refreshing:
            await self._refreshed()
        if self._fetched_s is None or self._clock() - self._fetched_s > max(self._stale_s, REFRESH_EVERY_S):
            raise Unavailable("the keys that sign tokens cannot be fetched: try again later")

    def _may_ask(self) -> bool:
        return self._tried_s is None or self._clock() - self._tried_s >= ASK_AGAIN_S

    async def _refreshed(self) -> None:
        await asyncio.shield(self._refresh())

    def _refresh(self) -> "asyncio.Task[None]":
        """One fetch at a time, for all who wait."""
        if self._refreshing is None:
            self._tried_s = self._clock()
            self._refreshing = asyncio.get_running_loop().create_task(self._asked())
        return self._refreshing

    async def _asked(self) -> None:
        try:
            async with asyncio.timeout(FETCH_S):
                found = keys_of(await self._fetch(self._source), self._source)
        except (ServoxError, TimeoutError, OSError) as error:
            self._failed = True
            log.error("the keys that sign tokens cannot be fetched", extra={"error": type(error).__name__})  # noqa: TRY400 -- often the network's, not worth a trace
        else:
            self._keys, self._fetched_s, self._failed = found, self._clock(), False
        finally:
            self._alarm(self._failed)
            self._refreshing = None


def _named(keys: KeysById, name: str | None) -> Any:  # noqa: ANN401 -- PyJWK; PyJWT is optional
    if name is None:
        return next(iter(keys.values())) if len(keys) == 1 else None
    return keys.get(name)


def keys_of(data: bytes, source: str) -> KeysById:
    """The keys in a JWKS that can sign, by their ids; those of other kinds are left out.

    Raises:
        BadSetting: it is none, or has no key that counts.
    """
    import jwt

    try:
        entries = json.loads(data)["keys"]
        found: dict[str | None, Any] = {}
        for entry in entries:
            if entry.get("use", "sig") != "sig" or entry.get("kty") not in ("RSA", "EC", "OKP"):
                continue
            key = jwt.PyJWK(entry)
            if key.algorithm_name in ALGORITHMS:
                found[entry.get("kid")] = key
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, jwt.PyJWTError):
        raise BadSetting(f"JWKS {source}: it holds no keys as RFC 7517 has them: check what is there") from None
    if not found:
        raise BadSetting(f"JWKS {source}: none of its {len(entries)} keys is asymmetric and for signatures")
    return found


def _read(path: Path) -> KeysById:
    try:
        return keys_of(path.read_bytes(), str(path))
    except OSError as error:
        raise BadSetting(f"JWKS {path}: {error.strerror}; name a readable file or an https URL") from None


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    try:
        local = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        local = False
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise BadSetting(f"jwt_jwks = {url!r}: whoever is on the way could change the keys; use https or a file")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect might lead to plain text."""

    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:  # noqa: ANN401
        return None


async def _fetched(url: str) -> bytes:
    return await asyncio.to_thread(_get, url)


def _get(url: str) -> bytes:
    ends_s, data = time.monotonic() + FETCH_S, bytearray()
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler())
    try:
        with opener.open(url, timeout=FETCH_S) as answer:
            while chunk := answer.read1(1 << 16):
                data += chunk
                if len(data) > MOST_BYTES or time.monotonic() > ends_s:
                    raise Unavailable(f"JWKS {url}: too long or too slow")
    except (HTTPException, ValueError) as error:
        raise Unavailable(f"JWKS {url}: {type(error).__name__}") from None
    return bytes(data)


# ---- tokens ----------------------------------------------------------------------------------------------------------


class Tokens:
    """Verifies tokens of one issuer.

    Args:
        keys: of the issuer.
        issuer: what tokens must say.
        clock: seconds since 1970.

    Raises:
        BadSetting: PyJWT is not installed.
    """

    def __init__(self, keys: KeySet, issuer: Issuer, *, clock: Callable[[], float] = time.time) -> None:
        try:
            import jwt  # noqa: F401 -- only a server that takes tokens needs it
        except ImportError:
            raise BadSetting("jwt_jwks: tokens need PyJWT: pip install 'servox[serving]'") from None
        self._keys, self._issuer, self._clock = keys, issuer, clock

    async def verified(self, text: str) -> Verified:
        """The token.

        Raises:
            Unauthenticated: it is none, not of this issuer, not for this audience, expired or not begun; the message
                does not repeat it.
            Unavailable: the issuer's keys are not to be had.
        """
        import jwt

        if len(text) > MOST_TOKEN:
            raise Unauthenticated(f"the token has {len(text)} characters, over the limit of {MOST_TOKEN}")
        try:
            header = jwt.get_unverified_header(text)
            if header.get("alg") not in self._issuer.algorithms:
                raise Unauthenticated(
                    f"the token's algorithm does not count: have it signed by {', '.join(self._issuer.algorithms)}"
                )
            key = await self._keys.key(header.get("kid"))
            claims = self._claims(text, key)
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token is not valid ({type(error).__name__}): get a new one") from None
        return Verified(
            caller=self._caller(claims), ends_s=float(claims["exp"]) + self._issuer.leeway_s, clock=self._clock
        )

    def _claims(self, text: str, key: Any) -> dict[str, Any]:  # noqa: ANN401 -- PyJWK
        import jwt

        issuer = self._issuer
        claims: dict[str, Any] = jwt.decode(
            text,
            key,
            algorithms=list(issuer.algorithms),
            issuer=issuer.name,
            audience=issuer.audience,
            leeway=issuer.leeway_s,
            options={"require": ["exp", "iss", "aud", issuer.name_claim], "enforce_minimum_key_length": True},
        )
        return claims

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        issuer = self._issuer
        return Caller(
            name=_word(claims, issuer.name_claim),
            tenant=_word(claims, issuer.tenant_claim) if issuer.tenant_claim else "",
            scopes=_scopes(claims.get(issuer.scope_claim)),
        )


def _word(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise Unauthenticated(f"the token's claim {name!r} is missing or no name: have its issuer set it")
    return value


def _scopes(claim: object) -> frozenset[str]:
    """Scopes of ours; those of other services are left out."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(word for word in words if isinstance(word, str) and word in SCOPES)
