"""Requests under way: how many may be, and when the last one is through."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from servox.errors import Overloaded, Unavailable

RETRY_AFTER_S = 1.0


class Traffic:
    """Counts what was admitted; the event loop is its only thread.

    Args:
        max_requests: answered at a time.
        max_streams: open at a time.
        under_way: shows both, by kind.
    """

    def __init__(self, *, max_requests: int, max_streams: int, under_way: Gauge) -> None:
        self._limits = {"request": max_requests, "stream": max_streams}
        self._counts = dict.fromkeys(self._limits, 0)
        self._shown = {kind: under_way.labels(kind) for kind in self._limits}
        self._idle = asyncio.Event()
        self._idle.set()
        self.closing = False

    @contextmanager
    def admitted(self, kind: str) -> Iterator[None]:
        """Counts one `request` or `stream` for as long as it lasts.

        Raises:
            Overloaded: as many as may be are under way.
            Unavailable: the server stops.
        """
        if self.closing:
            raise Unavailable("the server is stopping: ask again, another one will answer")
        if self._counts[kind] >= self._limits[kind]:
            raise Overloaded(
                f"{self._counts[kind]} {kind}s are under way, as many as may be: try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self._count(kind, 1)
        try:
            yield
        finally:
            self._count(kind, -1)

    def _count(self, kind: str, change: int) -> None:
        self._counts[kind] += change
        self._shown[kind].set(self._counts[kind])
        if any(self._counts.values()):
            self._idle.clear()
        else:
            self._idle.set()

    async def close(self, grace_s: float) -> None:
        """Admits nothing more and waits for what was admitted, at most `grace_s`."""
        self.closing = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            return
