"""When each batch began that was handed to an engine with a queue of its own.

Such an engine computes so many batches at a time, first come, first served; what waits inside it has not begun. It
says when a batch has ended, not when it began: that was when it was handed over, or when one before it ended.
"""

import threading
from collections import deque
from collections.abc import Callable


class Turn:
    """One batch; `began_s` means something once it has begun."""

    def __init__(self) -> None:
        self.began_s = 0.0


class Turns:
    """The batches inside one engine; any thread may ask.

    Args:
        streams: batches that the engine computes at a time.
        clock: monotonic seconds.
    """

    def __init__(self, streams: int, *, clock: Callable[[], float]) -> None:
        self._streams = streams
        self._clock = clock
        self._begun: list[Turn] = []
        self._waiting: deque[Turn] = deque()
        self._lock = threading.Lock()

    def enter(self) -> Turn:
        """A batch is handed over."""
        turn = Turn()
        with self._lock:
            self._waiting.append(turn)
            self._begin()
        return turn

    def leave(self, turn: Turn) -> tuple[float, float]:
        """A batch has ended; when it began and ended."""
        with self._lock:
            if turn in self._waiting:
                # Two threads handed over at once and came to the engine in the other order: they change places.
                other = self._begun.pop()
                turn.began_s = other.began_s
                self._waiting[self._waiting.index(turn)] = other
            else:
                self._begun.remove(turn)
            return turn.began_s, self._begin()

    def _begin(self) -> float:
        now = self._clock()
        while self._waiting and len(self._begun) < self._streams:
            turn = self._waiting.popleft()
            turn.began_s = now
            self._begun.append(turn)
        return now
