import asyncio
from collections.abc import AsyncIterator

import pytest

from services.embedder.streams import Stream
from servox.errors import Unauthenticated, Unavailable
from servox.v1.embedder_pb2 import EmbedStreamRequest, EmbedStreamResponse


class Desk:
    """Answers items once `open` is set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.admitted: list[str] = []

    async def answer(self, request: EmbedStreamRequest, admitted: asyncio.Event) -> EmbedStreamResponse:
        self.admitted.append(request.id)
        admitted.set()
        await self.open.wait()
        return EmbedStreamResponse(id=request.id)


async def _items(count: int, *, then: asyncio.Event | None = None) -> AsyncIterator[EmbedStreamRequest]:
    for number in range(count):
        yield EmbedStreamRequest(id=str(number))
    if then:
        await then.wait()


async def _read(stream: Stream, items: AsyncIterator[EmbedStreamRequest], found: list[str]) -> None:
    async for answer in stream.answers(items):
        found.append(answer.id)  # noqa: PERF401 -- what came before an error counts


async def _admitted(desk: Desk, count: int) -> None:
    async with asyncio.timeout(10):
        while len(desk.admitted) < count:  # noqa: ASYNC110 -- a list has no event
            await asyncio.sleep(0)


async def test_draining_after_everything_was_read_answers_it_and_ends() -> None:
    """It once waited for the whole grace, with every answer given."""
    desk, found = Desk(), list[str]()
    stream = Stream(desk.answer, in_flight=8)
    reading = asyncio.create_task(_read(stream, _items(4), found))
    await _admitted(desk, 4)
    await asyncio.sleep(0.01)
    stream.drain()
    desk.open.set()
    await asyncio.wait_for(reading, 10)
    assert sorted(found) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("in_flight", [2, 8])
async def test_draining_while_there_is_more_answers_what_was_read_and_says_so(in_flight: int) -> None:
    desk, found = Desk(), list[str]()
    stream = Stream(desk.answer, in_flight=in_flight)
    reading = asyncio.create_task(_read(stream, _items(4, then=asyncio.Event()), found))
    await _admitted(desk, min(4, in_flight))
    stream.drain()
    desk.open.set()
    with pytest.raises(Unavailable, match="stopping"):
        await asyncio.wait_for(reading, 10)
    assert sorted(found) == desk.admitted


async def test_a_stream_that_is_drained_before_it_began_reads_nothing() -> None:
    desk, found = Desk(), list[str]()
    stream = Stream(desk.answer, in_flight=2)
    stream.drain()
    with pytest.raises(Unavailable, match="stopping"):
        await asyncio.wait_for(_read(stream, _items(4), found), 10)
    assert desk.admitted == found == []


async def test_a_caller_who_may_not_go_on_is_answered_what_came_before() -> None:
    async def ending() -> AsyncIterator[EmbedStreamRequest]:
        async for item in _items(3):
            yield item
        raise Unauthenticated("key a (shop) is revoked")

    desk, found = Desk(), list[str]()
    reading = asyncio.create_task(_read(Stream(desk.answer, in_flight=8), ending(), found))
    await _admitted(desk, 3)
    desk.open.set()
    with pytest.raises(Unauthenticated, match="revoked"):
        await asyncio.wait_for(reading, 10)
    assert sorted(found) == ["0", "1", "2"]
