"""The client for code without an event loop: one thread runs the asynchronous one."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from servox.answers import Embedding, Failed, HeadSummary, Heard, Recognition
from servox.operating import Comparison, HeadEvent, Promoted, Rollout
from servox.sources import Audio, Clip, Source
from servox.v1 import embedder_pb2

if TYPE_CHECKING:
    from servox.client import Client, Pooling, Prior

T = TypeVar("T")


class SyncClient:
    """`Client` for code without an event loop: the same calls, each waiting for its answer.

    Takes the arguments of `Client`. Safe to use from several threads.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 -- those of Client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servox-client", daemon=True)
        self._thread.start()
        self._client = self._wait(_make(options))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections and ends the thread."""
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def describe(self, *, timeout_s: float | None = None) -> embedder_pb2.DescribeResponse:
        """`Client.describe`."""
        return self._wait(self._client.describe(timeout_s=timeout_s))

    def embed(
        self,
        clips: Iterable[Clip],
        *,
        pooling: "Pooling" = "mean",
        layers: Iterable[int] = (),
        truncate_ms: int = 0,
        timeout_s: float | None = None,
    ) -> Iterator[Embedding | Failed]:
        """`Client.embed`."""
        answers = self._client.embed(
            clips, pooling=pooling, layers=layers, truncate_ms=truncate_ms, timeout_s=timeout_s
        )
        yield from self._each(answers)

    def recognize(
        self,
        audio: Audio | str,
        *,
        head: str,
        prior: "Prior" = "train",
        window_ms: int = 0,
        hop_ms: int = 0,
        every_window: bool = False,
        tenant: str = "",
        uncalibrated: bool = False,
        purpose: str = "",
        session: str = "",
        timeout_s: float | None = None,
    ) -> Recognition:
        """`Client.recognize`."""
        return self._wait(
            self._client.recognize(
                audio,
                head=head,
                prior=prior,
                window_ms=window_ms,
                hop_ms=hop_ms,
                every_window=every_window,
                tenant=tenant,
                uncalibrated=uncalibrated,
                purpose=purpose,
                session=session,
                timeout_s=timeout_s,
            )
        )

    def stream(self, source: Source, *, head: str, window_ms: int, **options: Any) -> Iterator[Heard]:  # noqa: ANN401
        """`Client.stream`, with its options."""
        yield from self._each(self._client.stream(source, head=head, window_ms=window_ms, **options))

    def heads(self, prefix: str = "", *, timeout_s: float | None = None) -> list[HeadSummary]:
        """`Client.heads`."""
        return self._wait(self._client.heads(prefix, timeout_s=timeout_s))

    def promote(self, head: str, **options: Any) -> Promoted:  # noqa: ANN401 -- those of Client.promote
        """`Client.promote`, with its options."""
        return self._wait(self._client.promote(head, **options))

    def rollback(self, name: str, **options: Any) -> HeadSummary:  # noqa: ANN401 -- those of Client.rollback
        """`Client.rollback`, with its options."""
        return self._wait(self._client.rollback(name, **options))

    def history(self, name: str, *, timeout_s: float | None = None) -> list[HeadEvent]:
        """`Client.history`."""
        return self._wait(self._client.history(name, timeout_s=timeout_s))

    def rollout(self, name: str, *, timeout_s: float | None = None) -> Rollout:
        """`Client.rollout`."""
        return self._wait(self._client.rollout(name, timeout_s=timeout_s))

    def compare(self, name: str, *, timeout_s: float | None = None) -> Comparison:
        """`Client.compare`."""
        return self._wait(self._client.compare(name, timeout_s=timeout_s))

    def set_rollout(self, name: str, rollout: Rollout, *, reason: str = "", timeout_s: float | None = None) -> Rollout:
        """`Client.set_rollout`."""
        return self._wait(self._client.set_rollout(name, rollout, reason=reason, timeout_s=timeout_s))

    def _each(self, answers: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while (answer := self._wait(_next(answers))) is not None:
                yield answer
        finally:
            self._wait(_finish(answers))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _make(options: dict[str, Any]) -> "Client":
    from servox.client import Client  # it shows this class among its own

    return Client(**options)


async def _next(answers: AsyncGenerator[T, None]) -> T | None:
    return await anext(answers, None)


async def _finish(answers: AsyncGenerator[Any, None]) -> None:
    await answers.aclose()
