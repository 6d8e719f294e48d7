import asyncio
from contextlib import suppress

import pytest

from services.embedder.admission import Admission, Load
from services.embedder.gate import Gate, Seat
from servox.errors import BadAudio, Overloaded


class Harness:
    """A gate of 40 s (30 s for streams) whose loads are recorded."""

    def __init__(self) -> None:
        self.admission = Admission(budget_s=40, longest_s=30)
        self.gate = Gate(self.admission, clock=lambda: 0.0)

    async def waiting(self, seconds: float) -> asyncio.Task[Seat]:
        task = asyncio.create_task(self.gate.wait(seconds))
        await asyncio.sleep(0)
        return task


async def test_single_calls_are_refused_at_once_and_seats_come_back() -> None:
    harness = Harness()
    with harness.gate.take(30), pytest.raises(Overloaded):
        harness.gate.take(20)
    harness.gate.take(20)
    assert harness.admission.load == Load(clips=1, audio_s=20)


async def test_streams_wait_in_their_order() -> None:
    harness = Harness()
    first = harness.gate.take(25)
    big, small = await harness.waiting(20), await harness.waiting(1)
    assert not big.done()
    assert not small.done(), "a short clip behind a long one waits for it, or the long one would wait for ever"
    first.__exit__()
    await asyncio.sleep(0)
    assert big.done()
    assert small.done()
    assert harness.admission.load == Load(clips=2, audio_s=21)


async def test_a_caller_that_leaves_the_queue_lets_the_next_one_in() -> None:
    harness = Harness()
    harness.gate.take(25)
    big, small = await harness.waiting(20), await harness.waiting(1)
    big.cancel()
    await asyncio.sleep(0)
    assert (await small) is not None
    assert harness.admission.load == Load(clips=2, audio_s=26)


async def test_a_seat_handed_to_a_caller_that_leaves_in_that_moment_is_not_lost() -> None:
    harness = Harness()
    first = harness.gate.take(25)
    waiting = await harness.waiting(20)
    first.__exit__()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert harness.admission.load == Load(clips=0, audio_s=0)


async def test_a_shorter_clip_than_guessed_makes_room() -> None:
    harness = Harness()
    seat = harness.gate.take(30)
    waiting = await harness.waiting(20)
    seat.amend(2)
    await asyncio.sleep(0)
    assert waiting.done()
    seat.__exit__()
    assert harness.admission.load == Load(clips=1, audio_s=20)


async def test_a_seat_knows_whether_its_clip_was_answered() -> None:
    now = 0.0
    gate = Gate(Admission(budget_s=100, longest_s=30), clock=lambda: now)
    for _ in range(5):
        with gate.take(10), suppress(BadAudio), gate.take(10):
            now += 1.0
            raise BadAudio("half of them fail")
    with gate.take(10), pytest.raises(Overloaded, match=r"about 10 s are finished each second"):
        gate.take(10, deadline_s=now + 1.5)
    with gate.take(10):
        gate.take(10, deadline_s=now + 6.0)
