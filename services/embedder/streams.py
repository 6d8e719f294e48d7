"""One bulk stream: items in, answers out as they finish.

- The next item is read only when the one before it was admitted and there is room for one more unanswered: what is not
  read stays in the transport, and HTTP/2 slows the caller down.
- Room is given back when an answer has left, so a caller that does not read cannot pile up answers here.
- Draining stops the reading; what was read is answered, then the stream ends with `Unavailable` and the caller sends
  the rest elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from servox.errors import BadInput, ServoxError, Unavailable
from servox.v1.embedder_pb2 import EmbedStreamRequest, EmbedStreamResponse

Answering = Callable[[EmbedStreamRequest, asyncio.Event], Awaitable[EmbedStreamResponse]]


class Stream:
    """One call of EmbedStream.

    Args:
        answer: answers one item, and sets the event as soon as the item was admitted.
        in_flight: most unanswered items.
    """

    def __init__(self, answer: Answering, *, in_flight: int) -> None:
        self._answer = answer
        self._room = asyncio.Semaphore(in_flight)
        self._answers: asyncio.Queue[EmbedStreamResponse | None] = asyncio.Queue()
        self._items: dict[str, asyncio.Task[None]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._reading = True
        self._draining = False
        self._end: BaseException | None = None

    async def answers(self, requests: AsyncIterator[EmbedStreamRequest]) -> AsyncIterator[EmbedStreamResponse]:
        """Every answer.

        Raises:
            BadInput: an id is empty, or that of an unanswered item.
            Unavailable: the server drains.
            ServoxError: what `requests` raised.
        """
        self._reader = asyncio.create_task(self._read(requests))
        try:
            while (answer := await self._answers.get()) is not None:
                yield answer
                self._room.release()
            if self._end:
                raise self._end
        finally:
            self.abandon()

    def drain(self) -> None:
        """Reads no more."""
        self._draining = True
        if self._reader and self._reading:  # one that has read everything only waits for the answers
            self._reader.cancel()

    def abandon(self) -> None:
        """The caller left: gives up everything that is unanswered."""
        for task in (self._reader, *self._items.values()):
            if task:
                task.cancel()

    async def _read(self, requests: AsyncIterator[EmbedStreamRequest]) -> None:
        try:
            await self._admit_all(requests)
        except asyncio.CancelledError:
            if not self._draining:
                raise
            self._end = Unavailable("this embedder is stopping; send what is unanswered to another replica")
        except ServoxError as error:  # an item that makes no sense, or a caller who may not go on
            self._end = error
        finally:
            self._reading = False
        while self._items:
            await asyncio.wait(self._items.values())
            await asyncio.sleep(0)  # lets the finished items take themselves out
        self._answers.put_nowait(None)

    async def _admit_all(self, requests: AsyncIterator[EmbedStreamRequest]) -> None:
        if self._draining:
            raise asyncio.CancelledError
        async for request in requests:
            if not request.id or request.id in self._items:
                raise BadInput(f"id {request.id!r} is empty or that of an unanswered item; name each item once")
            await self._room.acquire()
            admitted = asyncio.Event()
            self._items[request.id] = asyncio.create_task(self._run(request, admitted))
            await admitted.wait()

    async def _run(self, request: EmbedStreamRequest, admitted: asyncio.Event) -> None:
        try:
            self._answers.put_nowait(await self._answer(request, admitted))
        except Exception as error:  # noqa: BLE001 -- not an item's failure but ours: it ends the stream, and is logged there
            self._end = error
            self._answers.put_nowait(None)
        finally:
            admitted.set()
            del self._items[request.id]
