"""One call of somebody who was let in: who they are, what they may still use, whether they may still be here.

Whoever lets a call in begins a visit; what is done for the call asks `visit()`. Where nobody has to say who they are,
a visit is anybody's and has no limits.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

from servox.callers import ANYBODY, Caller, arrive
from servox.errors import ServoxError
from servox.quotas import Account, Allowance

T = TypeVar("T")
CHECK_EVERY_S = 1.0


def _always() -> None:
    """Nothing ends."""


class Visit:
    """One call.

    Args:
        caller: who calls.
        allowance: what they may use.
        account: what they have used.
        check: raises Unauthenticated once their key or token counts no more.
    """

    def __init__(
        self,
        caller: Caller = ANYBODY,
        *,
        allowance: Allowance | None = None,
        account: Account | None = None,
        check: Callable[[], None] = _always,
    ) -> None:
        self.caller = caller
        self._allowance, self._account = allowance or Allowance(), account or Account()
        self.check = check
        self.ends = check is not _always  # whether it can end before the call does

    def begin(self) -> None:
        """This visit is whose the rest of the task is, and of those that it starts."""
        _VISIT.set(self)
        arrive(self.caller)

    def hear(self, audio_s: float, *, already: bool = False) -> None:
        """Counts audio; see `Account.hear`."""
        self._account.hear(audio_s, self._allowance, already=already)

    def left(self) -> None:
        """Raises OverQuota where no audio is left today, for audio whose length is not known yet."""
        self._account.left(self._allowance)

    def stream(self) -> contextlib.AbstractContextManager[None]:
        """Counts a stream; see `Account.stream`."""
        return self._account.stream(self._allowance)

    async def during(self, coming: Callable[[], Awaitable[T]]) -> T:
        """What is coming, unless the visit ends first: it is checked every second.

        Raises:
            Unauthenticated: it ended; what was coming is cancelled.
        """
        self.check()
        if not self.ends:
            return await coming()
        pending = asyncio.ensure_future(coming())
        try:
            while not pending.done():
                await asyncio.wait({pending}, timeout=CHECK_EVERY_S)
                if not pending.done():
                    self.check()
            return pending.result()
        except ServoxError:
            await _dropped(pending)
            raise
        finally:
            pending.cancel()

    async def watched(self, messages: AsyncIterator[T]) -> AsyncIterator[T]:
        """Messages of the caller, for as long as the visit lasts; its end is raised after what came before it."""
        while True:
            try:
                message = await self.during(partial(_next, messages))
            except StopAsyncIteration:
                return
            except _Ended:
                return
            yield message

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Cancels the task within a second of the visit's end, and raises why.

        Raises:
            Unauthenticated: the visit ended.
        """
        if not self.ends:
            yield
            return
        cutting = _Cut(self.check)
        try:
            yield
        except asyncio.CancelledError:
            if cutting.why is not None:
                cutting.task.uncancel()
                raise cutting.why from None
            raise
        finally:
            cutting.stop()


async def _dropped(pending: "asyncio.Future[Any]") -> None:
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)


class _Ended(Exception):
    """The messages ended: a task cannot raise StopAsyncIteration."""


async def _next(messages: AsyncIterator[T]) -> T:
    try:
        return await anext(messages)
    except StopAsyncIteration:
        raise _Ended from None


class _Cut:
    """Looks every second whether a visit goes on."""

    def __init__(self, check: Callable[[], None]) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a visit is cut off in a task only")
        self._check, self.task = check, task
        self.why: ServoxError | None = None
        self._timer = self._later()

    def _later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(CHECK_EVERY_S, self._look)

    def _look(self) -> None:
        try:
            self._check()
        except ServoxError as error:
            self.why = error
            self.task.cancel()
        else:
            self._timer = self._later()

    def stop(self) -> None:
        """Looks no more."""
        self._timer.cancel()


_NOBODYS = Visit()
_VISIT: ContextVar[Visit] = ContextVar("visit", default=_NOBODYS)


def visit() -> Visit:
    """The visit that is being served."""
    return _VISIT.get()


async def metered(blocks: AsyncIterator[Any], rate_hz: int) -> AsyncIterator[Any]:
    """Blocks of samples on their way, each counted before it is heard.

    Raises:
        OverQuota: so much is not left today.
    """
    here = visit()
    async for block in blocks:
        here.hear(len(block) / rate_hz)
        yield block
