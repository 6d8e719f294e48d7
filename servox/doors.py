"""Who is let in: keys, tokens and certificates become callers, in one place for gRPC, HTTP and the WebSocket.

- What a caller shows is judged before anything that they send is read.
- A key or a token that is shown decides alone; without one, a client's certificate does, where the server asks for it.
- Nothing that was shown is ever logged, or repeated in an answer.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from servox.callers import Caller
from servox.errors import Forbidden, ServoxError, Unauthenticated
from servox.keys import Key, Keys, looks_like_key
from servox.quotas import Account, Allowance
from servox.visits import Visit

ACCOUNTS = 10_000  # of tokens and certificates; keys are as many as their file has
HOW = "send `authorization: Bearer <key>`"


class Token(Protocol):
    """A token that was verified."""

    @property
    def caller(self) -> Caller:
        """Who calls with it."""

    def check(self) -> None:
        """Raises Unauthenticated once it has expired."""


class Tokens(Protocol):
    """Verifies tokens; see `servox.tokens`."""

    async def verified(self, text: str) -> Token:
        """The token.

        Raises:
            Unauthenticated: it is not valid.
            Unavailable: nobody can tell at this moment.
        """


class Door:
    """Lets callers in.

    Args:
        keys: that count; None for none.
        tokens: likewise.
        certificate_scopes: what whoever has a certificate may do; empty: a certificate alone does not count.
        allowance: of those with tokens and certificates.
        counted: told what each caller showed (none, key, token, certificate) and what came of it.
        stale: makes the alarm of a source of credentials that cannot be read any more.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        keys: Keys | None = None,
        tokens: Tokens | None = None,
        certificate_scopes: frozenset[str] = frozenset(),
        allowance: Allowance | None = None,
        counted: Callable[[str, str], None] = lambda _shown, _outcome: None,
        stale: Callable[[str], Callable[[bool], None]] = lambda _source: lambda _stale: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.stale = stale
        self._keys, self._tokens = keys, tokens
        self._certificate_scopes = certificate_scopes
        self._allowance = allowance or Allowance()
        self._counted, self._clock = counted, clock
        self._accounts: OrderedDict[tuple[str, str], Account] = OrderedDict()

    @property
    def closed(self) -> bool:
        """Whether callers have to say who they are."""
        return bool(self._keys or self._tokens or self._certificate_scopes)

    @property
    def by_certificate(self) -> bool:
        """Whether a certificate alone counts."""
        return bool(self._certificate_scopes)

    async def admit(self, scope: str | None, *, bearer: str | None = None, certificate: str | None = None) -> Visit:
        """Lets a call in.

        Args:
            scope: that it needs; empty for none, not even to be known; None for any, of whoever is known.
            bearer: key or token that was shown.
            certificate: subject of the certificate that was shown and found good.

        Raises:
            Unauthenticated: nobody knows who calls.
            Forbidden: they lack the scope.
            Overloaded: they call too fast.
            Unavailable: nobody can tell at this moment.
        """
        if scope == "" or not self.closed:
            return Visit()
        shown = _kind(bearer, certificate)
        try:
            visit, allowance, account = await self._known(bearer, certificate)
            if scope is not None and not visit.caller.may(scope):
                raise Forbidden(f"{visit.caller.name} lacks the scope {scope!r}: ask for a key that has it")
            account.call(allowance)
        except ServoxError as error:
            self._counted(shown, type(error).__name__)
            raise
        self._counted(shown, "admitted")
        return visit

    async def _known(self, bearer: str | None, certificate: str | None) -> tuple[Visit, Allowance, Account]:
        if bearer is not None:
            if looks_like_key(bearer) and self._keys:
                return self._of_key(self._keys, self._keys.holder(bearer))
            if self._tokens and not looks_like_key(bearer):
                token = await self._tokens.verified(bearer)
                return self._of("token", token.caller, token.check)
            raise Unauthenticated(f"the server knows no keys of this kind: {HOW} of its own")
        if certificate is not None and self._certificate_scopes:
            caller = Caller(name=certificate, scopes=self._certificate_scopes)
            return self._of("certificate", caller, None)
        raise Unauthenticated(f"nothing says who calls: {HOW}")

    def _of_key(self, keys: Keys, key: Key) -> tuple[Visit, Allowance, Account]:
        account = self._account("key", key.id)

        def check() -> None:
            keys.check(key)

        visit = Visit(key.caller, allowance=key.allowance, account=account, check=check)
        return visit, key.allowance, account

    def _of(self, kind: str, caller: Caller, check: Callable[[], None] | None) -> tuple[Visit, Allowance, Account]:
        account, allowance = self._account(kind, caller.name), self._allowance
        if check is None:
            return Visit(caller, allowance=allowance, account=account), allowance, account
        return Visit(caller, allowance=allowance, account=account, check=check), allowance, account

    def _account(self, kind: str, name: str) -> Account:
        account = self._accounts.setdefault((kind, name), Account(self._clock))
        self._accounts.move_to_end((kind, name))
        while len(self._accounts) > ACCOUNTS:
            self._accounts.popitem(last=False)
        return account


OPEN_DOOR = Door()


def _kind(bearer: str | None, certificate: str | None) -> str:
    if bearer is not None:
        return "key" if looks_like_key(bearer) else "token"
    return "none" if certificate is None else "certificate"


def bearer_of(header: str | None) -> str | None:
    """What an `authorization` header shows; None where there is none.

    Raises:
        Unauthenticated: another scheme.
    """
    if header is None:
        return None
    scheme, _, credential = header.partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise Unauthenticated(f"the authorization header is of another kind: {HOW}")
    return credential.strip()
