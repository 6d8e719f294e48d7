"""A shape's first run in a process happens alone.

OpenVINO 2026.4 makes what a shape needs when a process first meets it. Two threads that meet it together now and then
get wrong numbers, finite or not, whether they share a graph or not: five of some 170 starts of a process on two
processors, and no run of 133 graphs whose shapes the process had met before.
"""

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class FirstRuns:
    """Lets runs of known shapes go on side by side, and each first run by itself; any thread may ask."""

    def __init__(self) -> None:
        self._known: set[Hashable] = set()
        self._running = 0
        self._wanting = 0  # first runs that wait or go on: nobody begins meanwhile, or they would wait for ever
        self._moved = threading.Condition()

    @contextmanager
    def turn(self, shape: Hashable) -> Iterator[None]:
        """Holds the block until it may run; a block that fails leaves its shape unknown."""
        with self._moved:
            first = shape not in self._known
            if first:
                self._wanting += 1
                self._moved.wait_for(lambda: not self._running)
            else:
                self._moved.wait_for(lambda: not self._wanting)
            self._running += 1
        try:
            yield
            self._known.add(shape)
        finally:
            with self._moved:
                self._running -= 1
                if first:
                    self._wanting -= 1
                self._moved.notify_all()
