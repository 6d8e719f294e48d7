"""How long a caller still waits, known to whatever is done for the call.

The embedder is told, so that it neither begins what nobody waits for nor lets it hold back others.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_UNTIL_S = ContextVar("until_s", default=math.inf)  # of the monotonic clock


@contextmanager
def waiting(left_s: float | None) -> Iterator[None]:
    """Inside, the caller waits this long; None for as long as it takes. An outer wait is never prolonged."""
    until_s = math.inf if left_s is None else time.monotonic() + left_s
    token = _UNTIL_S.set(min(_UNTIL_S.get(), until_s))
    try:
        yield
    finally:
        _UNTIL_S.reset(token)


def left_s(longest_s: float) -> float:
    """Seconds that the caller still waits, 0 or more and at most `longest_s`."""
    return max(0.0, min(longest_s, _UNTIL_S.get() - time.monotonic()))
