"""The app for an ASGI server of one's own: `uvicorn --factory services.prober.http.hosted:hosted`.

- Settings come from the environment, as for `servox serve prober`; where it listens is the ASGI server's business.
- The dataplane belongs to an event loop, so it is made when the first message comes, and closed with the lifespan.
"""

from starlette.types import Receive, Scope, Send

from services.prober.dataplane import Dataplane
from services.prober.metrics import ProberMetrics
from services.prober.settings import Settings
from servox.telemetry import Metrics

from .application import app
from .edge import Edge


class Hosted:
    """The app and the dataplane that it owns.

    Args:
        settings: folders, addresses, limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dataplane: Dataplane | None = None
        self._app: Edge | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection of ASGI."""
        if scope["type"] == "lifespan":
            await self._lived(receive, send)
        else:
            await self._opened()(scope, receive, send)

    async def _lived(self, receive: Receive, send: Send) -> None:
        await receive()
        self._opened()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _opened(self) -> Edge:
        if self._app is None:
            metrics = Metrics()
            counters = ProberMetrics(metrics)
            self._dataplane = Dataplane(self._settings, counters)
            self._app = app(self._dataplane, self._settings, counters, door=self._settings.door(metrics))
        return self._app

    async def close(self) -> None:
        """Lets what was admitted finish, and closes the connection to the embedder."""
        if self._app is not None and self._dataplane is not None:
            await self._app.traffic.close(self._settings.drain_grace_s)
            await self._dataplane.close()
            self._app = self._dataplane = None


def hosted() -> Hosted:
    """The app by the environment's settings.

    Raises:
        BadSetting: a value that cannot be used.
    """
    return Hosted(Settings.load())
