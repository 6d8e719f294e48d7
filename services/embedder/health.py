"""Health that tells the truth: SERVING only between a warm device and a dead one.

Ready means that every length bucket has been run once; a device that is gone makes the server NOT_SERVING at once, so
that no caller is sent to it while the process ends.
"""

import asyncio

from servox.errors import ServoxError
from servox.rpc import Server


class Health:
    """Ties a server's health to the engine's.

    Args:
        server: whose health is set.
        failed: done, with the reason, when the device is gone.
    """

    def __init__(self, server: Server, failed: asyncio.Future[ServoxError]) -> None:
        self._server = server
        self._failed = failed
        self._watch: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """The device is warm."""
        await self._server.serving(True)
        self._watch = asyncio.create_task(self._until_failed())

    async def wait_failed(self) -> None:
        """Returns only once the server was stopped.

        Raises:
            Unavailable: the device is gone, and callers have been told; or nobody can call any more.
        """
        watches = [asyncio.ensure_future(self._until_dead()), asyncio.ensure_future(self._server.wait_failed())]
        try:
            await next(asyncio.as_completed(watches))
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    def close(self) -> None:
        """Stops watching."""
        if self._watch:
            self._watch.cancel()

    async def _until_dead(self) -> None:
        error = await asyncio.shield(self._failed)
        if self._watch:
            await asyncio.shield(self._watch)
        raise error

    async def _until_failed(self) -> None:
        await asyncio.shield(self._failed)
        await self._server.serving(False)
