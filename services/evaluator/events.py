"""What a run tells those who watch it: progress with an estimate of what is left, and warnings."""

import time
from collections.abc import Callable

from servox.v1 import evaluator_pb2

Publish = Callable[[evaluator_pb2.WatchRunResponse], None]


class Events:
    """Turns the steps of a run into messages.

    Args:
        publish: called with each message; `run` is filled in by the receiver.
        now: seconds from any fixed point, for the estimate.
    """

    def __init__(self, publish: Publish, *, now: Callable[[], float] = time.monotonic) -> None:
        self._publish = publish
        self._now = now
        self._phase = ""
        self._began = 0.0
        self._done_at_start = 0
        self.warnings: list[str] = []

    def progress(self, phase: str, done: int, total: int, *, eta_ms: int | None = None) -> None:
        """`done` of `total` pieces of a phase; the first call of a phase starts its clock."""
        if phase != self._phase:
            self._phase, self._began, self._done_at_start = phase, self._now(), done
        eta = self._eta_ms(done, total) if eta_ms is None else eta_ms
        progress = evaluator_pb2.Progress(phase=phase, done=done, total=total, eta_ms=eta)
        self._publish(evaluator_pb2.WatchRunResponse(progress=progress))

    def warn(self, message: str) -> None:
        """Something was skipped or refused: what, and why."""
        self.warnings.append(message)
        self._publish(evaluator_pb2.WatchRunResponse(warning=message))

    def _eta_ms(self, done: int, total: int) -> int:
        made = done - self._done_at_start
        if made <= 0:
            return 0
        return int((self._now() - self._began) / made * (total - done) * 1000)
