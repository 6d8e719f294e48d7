"""The door of the HTTP app: who calls, before their body is read.

- A key or token comes in the header `authorization: Bearer …`. A page cannot set headers of a WebSocket, so there it
  comes as a subprotocol, `bearer.<key>`, offered beside `servox`, which is the one that is answered. Neither is
  ever part of a URL, which logs and histories keep.
- An app without keys that is reached through another interface than loopback answers nobody: an ASGI server of one's
  own might listen there without knowing.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from servox.doors import Door, bearer_of
from servox.errors import Forbidden, Unauthenticated
from servox.scopes import OPEN, of_path
from servox.settings import is_loopback
from servox.visits import Visit

PROTOCOL, KEY_PROTOCOL = "servox", "bearer."
CERTIFICATE = "certificate"  # in the state of a connection: the common name of the caller's


class Entrance:
    """Lets requests in.

    Args:
        door: knows whom.
    """

    def __init__(self, door: Door) -> None:
        self._door = door

    async def visit(self, scope: Scope, headers: Headers) -> Visit:
        """The visit of one request or stream, which has begun.

        Raises:
            Unauthenticated: nobody knows who calls.
            Forbidden: they may not, or nobody may from there.
            Overloaded: they call too fast.
            Unavailable: nobody can tell at this moment.
        """
        needed = of_path(scope["path"])
        if not self._door.closed and needed != OPEN:
            check_near(scope)
        visit = await self._door.admit(
            needed, bearer=shown(scope, headers), certificate=scope.get("state", {}).get(CERTIFICATE)
        )
        visit.begin()
        return visit


def shown(scope: Scope, headers: Headers) -> str | None:
    """The key or token of a request.

    Raises:
        Unauthenticated: it comes in another way than it may.
    """
    bearer = bearer_of(headers.get("authorization"))
    offered = [each for each in scope.get("subprotocols", ()) if each.startswith(KEY_PROTOCOL)]
    if bearer is not None or not offered:
        return bearer
    if len(offered) > 1:
        raise Unauthenticated("the WebSocket offers several keys: offer one")
    return str(offered[0]).removeprefix(KEY_PROTOCOL)


def spoken(subprotocols: Sequence[str]) -> str | None:
    """The subprotocol to answer with: never the one that is a key."""
    return PROTOCOL if PROTOCOL in subprotocols else None


def check_near(scope: Scope) -> None:
    """Raises Forbidden where a request did not come over loopback or a Unix socket."""
    host, port = scope.get("server") or ("", None)
    if port is not None and not is_loopback(host):
        raise Forbidden(
            "this server knows no keys and is reached through an interface that is not loopback: whoever runs it sets "
            "keys (a file that `servox keys create` makes), jwt_jwks or tls_client_ca"
        )


def receiving(visit: Visit, receive: Receive, kind: str) -> Receive:
    """What the caller sends, for as long as their visit lasts: a stream is looked after every second."""
    if not visit.ends:
        return receive

    async def received() -> Message:
        if kind == "websocket":
            return await visit.during(receive)
        visit.check()
        return await receive()

    return received
