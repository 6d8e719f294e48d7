"""Admission on the event loop: single calls are refused at once, streams wait their turn.

Owned by one event loop; waiting streams are served first come, first served. A `Seat` is what an admitted clip holds;
leaving its `with` block, for whatever reason, gives the seat back and lets the next one in.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Self

from .admission import Admission


class Seat:
    """The seconds of audio that one clip holds."""

    def __init__(self, gate: "Gate", seconds: float) -> None:
        self._gate = gate
        self._seconds = seconds

    def amend(self, seconds: float) -> None:
        """Puts the decoded length in place of the guess."""
        self._gate.amend(self._seconds, seconds)
        self._seconds = seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._gate.release(self._seconds, answered=kind is None)


class Gate:
    """Hands out seats.

    Args:
        admission: the count, owned by this gate from here on.
        clock: monotonic seconds.
    """

    def __init__(self, admission: Admission, *, clock: Callable[[], float]) -> None:
        self._admission = admission
        self._clock = clock
        self._queue: deque[tuple[float, asyncio.Future[Seat]]] = deque()

    def take(self, seconds: float, *, deadline_s: float = math.inf) -> Seat:
        """A seat for a single call; `deadline_s` is the clock's time when its answer is of no more use.

        Raises:
            Overloaded: there is none now, or its turn would come too late.
        """
        now = self._clock()
        self._admission.admit(seconds, now=now, remaining_s=deadline_s - now)
        return Seat(self, seconds)

    async def wait(self, seconds: float) -> Seat:
        """A seat for an item of a stream, as soon as there is one."""
        if not self._queue and self._admission.admit_stream(seconds, now=self._clock()):
            return Seat(self, seconds)
        promise: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        self._queue.append((seconds, promise))
        try:
            return await promise
        except asyncio.CancelledError:
            # The seat may have been handed over in the very moment in which the caller left.
            if promise.done() and not promise.cancelled():
                promise.result().__exit__(asyncio.CancelledError)
            else:
                self._let_in()
            raise

    def amend(self, guessed_s: float, decoded_s: float) -> None:
        """A guess became a length; a shorter one makes room."""
        self._admission.amend(guessed_s, decoded_s)
        self._let_in()

    def release(self, seconds: float, *, answered: bool) -> None:
        """A clip is done with."""
        self._admission.release(seconds, now=self._clock(), answered=answered)
        self._let_in()

    def _let_in(self) -> None:
        while self._queue:
            seconds, promise = self._queue[0]
            if not promise.done():
                if not self._admission.admit_stream(seconds, now=self._clock()):
                    break
                promise.set_result(Seat(self, seconds))
            self._queue.popleft()
