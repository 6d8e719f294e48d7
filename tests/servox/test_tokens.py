"""Tokens: which are good, who calls with them, and what happens while their issuer's keys cannot be fetched."""
# ruff: noqa: ANN401 -- claims are any JSON

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from servox import tokens as module
from servox.doors import Door, bearer_of
from servox.errors import BadSetting, Forbidden, Unauthenticated, Unavailable
from servox.tokens import ASK_AGAIN_S, REFRESH_EVERY_S, Issuer, KeySet, Tokens, keys_of
from servox.watched import Watched

NOW_S = 1_800_000_000.0
ISSUER = Issuer(name="https://issuer", audience="servox")
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def jwk(private: Any, kid: str | None, **changes: Any) -> dict[str, Any]:
    makers: dict[type, Any] = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    maker = next((made for kind, made in makers.items() if isinstance(private, kind)), OKPAlgorithm)
    found: dict[str, Any] = maker.to_jwk(private.public_key(), as_dict=True)
    return {**found, **({"kid": kid} if kid else {}), **changes}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


ALL = jwks(jwk(RSA, "r"), jwk(EC, "e", use="sig"), jwk(ED, "d"), jwk(OTHER, "x", use="enc"))


def claims(**changes: Any) -> dict[str, Any]:
    given = {
        "iss": "https://issuer",
        "aud": "servox",
        "sub": "ann",
        "exp": time.time() + 600,
        "scope": "recognize openid",
    }
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def token(private: Any = RSA, algorithm: str = "RS256", kid: str | None = "r", **changes: Any) -> str:
    return jwt.encode(claims(**changes), private, algorithm, headers={"kid": kid} if kid else None)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Endpoint:
    """A URL of keys that answers, fails, or is silent."""

    def __init__(self, data: bytes = ALL) -> None:
        self.data, self.asked = data, 0
        self.failing = False
        self.silent: asyncio.Event | None = None

    async def __call__(self, url: str) -> bytes:
        assert url == "https://issuer/jwks"
        self.asked += 1
        if self.silent:
            await self.silent.wait()
        if self.failing:
            raise OSError
        return self.data


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(endpoint: Endpoint, clock: Clock) -> Tokens:
    return Tokens(keyset(endpoint, clock), ISSUER)


def keyset(endpoint: Endpoint, clock: Clock, *, stale_s: float = 3600.0, **options: Any) -> KeySet:
    return KeySet("https://issuer/jwks", stale_s=stale_s, fetch=endpoint, clock=clock, **options)


# ---- which are good ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("private", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d")])
async def test_a_token_of_the_issuer_says_who_calls(tokens: Tokens, private: Any, algorithm: str, kid: str) -> None:
    found = (await tokens.verified(token(private, algorithm, kid))).caller
    assert (found.name, found.tenant, found.scopes) == ("ann", "", frozenset({"recognize"}))


def unsigned(algorithm: str, secret: bytes = b"") -> str:
    """What PyJWT itself refuses to make."""

    def part(document: dict[str, Any] | bytes) -> bytes:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = part({"alg": algorithm, "typ": "JWT", "kid": "r"}) + b"." + part(claims())
    return (head + b"." + part(hmac.new(secret, head, hashlib.sha256).digest() if secret else b"")).decode()


PUBLIC = json.dumps(jwk(RSA, "r")).encode()
BAD: dict[str, Callable[[], str]] = {
    "no token": lambda: "x.y.z",
    "nothing": lambda: "",
    "expired": lambda: token(exp=time.time() - 60),
    "not begun": lambda: token(nbf=time.time() + 600),
    "of another issuer": lambda: token(iss="https://elsewhere"),
    "for another audience": lambda: token(aud="shop"),
    "without an end": lambda: token(exp=None),
    "without an audience": lambda: token(aud=None),
    "without an issuer": lambda: token(iss=None),
    "without a name": lambda: token(sub=None),
    "with an empty name": lambda: token(sub=""),
    "with a name of two lines": lambda: token(sub="a\nb"),
    "signed by another": lambda: token(OTHER),
    "by a key for something else": lambda: token(OTHER, kid="x"),
    "by a key of another kind": lambda: token(EC, "ES256", "r"),
    "by an algorithm that does not count": lambda: token(RSA, "RS512"),
    "without a key's id, of several": lambda: token(kid=None),
    "by nobody": lambda: unsigned("none"),
    "by the public key as a secret": lambda: unsigned("HS256", PUBLIC),
    "too long": lambda: token(more="x" * 20_000),
}


@pytest.mark.parametrize("wrong", BAD)
async def test_no_other_token_is_good(tokens: Tokens, wrong: str) -> None:
    text = BAD[wrong]()
    with pytest.raises(Unauthenticated) as refused:
        await tokens.verified(text)
    assert not text or text not in str(refused.value)


async def test_a_changed_token_is_no_token(tokens: Tokens) -> None:
    head, body, signature = token().split(".")
    other = base64.urlsafe_b64encode(json.dumps(claims(scope="*")).encode()).rstrip(b"=").decode()
    await tokens.verified(f"{head}.{body}.{signature}")
    for text in (f"{head}.{other}.{signature}", f"{head}.{body}.", f"{head}.{body}.{signature[:-4]}AAAA"):
        with pytest.raises(Unauthenticated):
            await tokens.verified(text)


async def test_claims_may_have_other_names(endpoint: Endpoint, clock: Clock) -> None:
    issuer = Issuer(
        name="https://issuer", audience="servox", name_claim="azp", tenant_claim="org", scope_claim="permissions"
    )
    tokens = Tokens(keyset(endpoint, clock), issuer)
    found = (await tokens.verified(token(azp="shop", org="acme", permissions=["embed", "other", 3]))).caller
    assert (found.name, found.tenant, found.scopes) == ("shop", "acme", frozenset({"embed"}))
    with pytest.raises(Unauthenticated, match="'org'"):
        await tokens.verified(token(azp="shop", permissions=["embed"]))
    assert not (await tokens.verified(token(azp="shop", org="acme", permissions=7))).caller.scopes


async def test_a_token_ends_in_the_middle_of_a_stream(endpoint: Endpoint, clock: Clock) -> None:
    now = [time.time()]
    tokens = Tokens(keyset(endpoint, clock), ISSUER, clock=lambda: now[0])
    held = await tokens.verified(token(exp=now[0] + 60))
    now[0] += 89
    held.check()
    now[0] += 2  # its own time and the leeway
    with pytest.raises(Unauthenticated, match="expired"):
        held.check()


async def test_the_door_takes_both_kinds(tokens: Tokens) -> None:
    door = Door(tokens=tokens)
    assert (await door.admit("recognize", bearer=token())).caller.name == "ann"
    with pytest.raises(Forbidden):
        await door.admit("train", bearer=token())
    with pytest.raises(Unauthenticated):
        await door.admit("recognize", bearer="sxk_a_b")
    with pytest.raises(Unauthenticated):
        await door.admit("recognize")


# ---- the issuer's keys ---------------------------------------------------------------------------------------------


async def test_keys_are_fetched_once_and_refreshed_beside_the_calls(
    tokens: Tokens, endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FETCH_S", 600)
    await asyncio.gather(*(tokens.verified(token()) for _ in range(20)))
    assert endpoint.asked == 1
    clock.now_s += REFRESH_EVERY_S
    endpoint.silent = asyncio.Event()
    async with asyncio.timeout(30):
        await asyncio.gather(*(tokens.verified(token()) for _ in range(20)))  # nobody waits for it
    await asyncio.sleep(0)
    assert endpoint.asked == 2
    endpoint.silent.set()


async def test_an_endpoint_that_is_down_at_first_is_no_way_in_and_no_hang(
    tokens: Tokens, endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FETCH_S", 0.05)
    endpoint.silent = asyncio.Event()
    async with asyncio.timeout(30):
        for _ in range(5):
            with pytest.raises(Unavailable, match="cannot be fetched"):
                await tokens.verified(token())
    assert endpoint.asked == 1, "strangers do not make it ask more often"
    endpoint.silent = None
    clock.now_s += ASK_AGAIN_S
    await tokens.verified(token())


async def test_the_last_good_keys_count_for_the_stated_time(endpoint: Endpoint, clock: Clock) -> None:
    alarms = list[bool]()
    tokens = Tokens(keyset(endpoint, clock, stale_s=1000, alarm=alarms.append), ISSUER)
    await tokens.verified(token())
    endpoint.failing = True
    for _ in range(9):
        clock.now_s += 100
        await tokens.verified(token())
        await asyncio.sleep(0.001)
    with pytest.raises(Unavailable):  # a key that is new, or made up: nobody can tell
        await tokens.verified(token(kid="new"))
    clock.now_s += 200
    with pytest.raises(Unavailable):
        await tokens.verified(token())
    assert alarms[0] is False
    assert set(alarms[1:]) == {True}
    endpoint.failing = False
    clock.now_s += ASK_AGAIN_S
    await tokens.verified(token())
    assert alarms[-1] is False


async def test_a_new_key_is_fetched_at_once_and_made_up_ones_seldom(
    tokens: Tokens, endpoint: Endpoint, clock: Clock
) -> None:
    await tokens.verified(token())
    clock.now_s += ASK_AGAIN_S
    endpoint.data = jwks(jwk(RSA, "r"), jwk(OTHER, "new"))
    await tokens.verified(token(OTHER, kid="new"))
    assert endpoint.asked == 2
    for number in range(50):
        with pytest.raises(Unauthenticated, match="does not publish"):
            await tokens.verified(token(OTHER, kid=f"made-up-{number}"))
    assert endpoint.asked == 2
    clock.now_s += ASK_AGAIN_S
    for number in range(50):
        with pytest.raises(Unauthenticated):
            await tokens.verified(token(OTHER, kid=f"made-up-{number}"))
    assert endpoint.asked == 3


async def test_a_key_that_is_withdrawn_counts_no_more(tokens: Tokens, endpoint: Endpoint, clock: Clock) -> None:
    await tokens.verified(token())
    endpoint.data = jwks(jwk(EC, "e"))
    clock.now_s += REFRESH_EVERY_S
    await tokens.verified(token())  # begins the refresh
    await asyncio.sleep(0.01)
    with pytest.raises(Unauthenticated):
        await tokens.verified(token())


async def test_one_key_needs_no_id(clock: Clock) -> None:
    tokens = Tokens(keyset(Endpoint(jwks(jwk(RSA, None))), clock), ISSUER)
    assert (await tokens.verified(token(kid=None))).caller.name == "ann"


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"keys": 3}', b'{"keys": [{"kty": "RSA"}]}', jwks(),
                                  jwks({"kty": "oct", "k": "c2VjcmV0", "kid": "r"})])  # fmt: skip
def test_what_is_no_set_of_public_keys_is_refused(data: bytes) -> None:
    with pytest.raises(BadSetting, match="JWKS here"):
        keys_of(data, "here")


async def test_keys_of_a_file_follow_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "_due", lambda *_: True)
    (path := tmp_path / "jwks.json").write_bytes(jwks(jwk(RSA, "r")))
    tokens = Tokens(KeySet(str(path)), ISSUER)
    await tokens.verified(token())
    path.write_bytes(jwks(jwk(OTHER, "o")))
    await tokens.verified(token(OTHER, kid="o"))
    with pytest.raises(Unauthenticated):
        await tokens.verified(token())
    with pytest.raises(BadSetting, match="none"):
        KeySet(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    "url", ["http://issuer/jwks", "ftp://issuer/jwks", "http://127.0.0.1.issuer/jwks", "file:///x"]
)
def test_keys_come_by_ways_that_nobody_can_change(url: str) -> None:
    with pytest.raises(BadSetting, match="https"):
        KeySet(url)
    KeySet("http://127.0.0.1:1/jwks")


# ---- over a socket -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def answering(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"


def said(status: str, body: bytes, more: str = "") -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body)
        await writer.drain()

    return answer


async def test_a_real_endpoint_is_read() -> None:
    async with answering(said("200 OK", ALL)) as url:
        assert (await Tokens(KeySet(url), ISSUER).verified(token())).caller.name == "ann"


@pytest.mark.parametrize(
    ("status", "body", "more"),
    [
        ("500 Oh", b"", ""),
        ("302 Found", b"", "Location: http://127.0.0.1:9/\r\n"),
        ("200 OK", b"<html>", ""),
        ("200 OK", b"x" * (1 << 21), ""),
    ],
)
async def test_a_real_endpoint_that_fails_is_unavailable(status: str, body: bytes, more: str) -> None:
    async with answering(said(status, body, more)) as url:
        with pytest.raises(Unavailable):
            await Tokens(KeySet(url), ISSUER).verified(token())
    with pytest.raises(Unavailable):  # nobody listens any more
        await Tokens(KeySet(url), ISSUER).verified(token())


# ---- whatever strangers send ---------------------------------------------------------------------------------------


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["alg", "kid", "crit", "x"]), inner),
    max_leaves=8,
)
HEADERS = st.builds(
    lambda more, alg: json.dumps({"alg": alg, "typ": "JWT", **more}).encode(),
    st.dictionaries(st.sampled_from(["alg", "kid", "crit", "b64", "typ", "x"]), JSON, max_size=4),
    st.sampled_from(["RS256", "ES256", "EdDSA", "none", "HS256"]),
)
PARTS = st.one_of(HEADERS, st.binary(max_size=60), st.just(b"[" * 9000), st.just(b'{"alg":' * 2000)).map(encoded)
TEXTS = st.one_of(
    st.text(max_size=80), st.builds(lambda *parts: ".".join(parts), PARTS, PARTS, PARTS), st.just("." * 9000)
)
DOOR = Door(tokens=Tokens(KeySet("https://issuer/jwks", fetch=Endpoint()), ISSUER))


@given(TEXTS)
def test_whatever_strangers_send_is_refused_as_unknown(text: str) -> None:
    with pytest.raises(Unauthenticated):
        asyncio.run(DOOR.admit("recognize", bearer=text))


@given(st.one_of(st.text(max_size=40), TEXTS.map(lambda text: f"Bearer {text}")))
def test_whatever_header_strangers_send_is_a_credential_or_refused(header: str) -> None:
    try:
        assert bearer_of(header)
    except Unauthenticated:
        return
