"""Who calls, known to whatever is done for the call.

Whoever lets a call in says so with `calling`; what is done for the call asks `caller()`. Where nobody has to say who
they are, everybody is `ANYBODY`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

EVERYTHING = frozenset({"*"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody who was let in.

    Attributes:
        name: of their key or token; empty where nobody has to say. Never a secret: it is logged.
        tenant: whose speech they send; empty: they may name any.
        scopes: what they may do; `*` for everything.
    """

    name: str = ""
    tenant: str = ""
    scopes: frozenset[str] = EVERYTHING

    def may(self, scope: str) -> bool:
        """Whether they may do something."""
        return scope in self.scopes or "*" in self.scopes


ANYBODY = Caller()
_CALLER = ContextVar("caller", default=ANYBODY)


def caller() -> Caller:
    """Who calls."""
    return _CALLER.get()


def arrive(who: Caller) -> None:
    """`who` calls for the rest of this task, and in the tasks that it starts."""
    _CALLER.set(who)


@contextmanager
def calling(who: Caller) -> Iterator[None]:
    """Inside, `who` calls."""
    token = _CALLER.set(who)
    try:
        yield
    finally:
        _CALLER.reset(token)
