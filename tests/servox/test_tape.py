"""The tape: what is read is what was written, from anywhere that is kept; and a writer that waits."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servox.tape import Tape


@given(
    pieces=st.lists(st.integers(0, 9), max_size=12),
    cut=st.integers(0, 60),
    begin=st.integers(0, 60),
    frame_bytes=st.sampled_from([1, 2, 4]),
)
def test_what_is_kept_reads_as_it_was_written(pieces: list[int], cut: int, begin: int, frame_bytes: int) -> None:
    whole = bytes(n % 251 for n in range(sum(pieces) * frame_bytes))

    async def run() -> None:
        tape, done = Tape(frame_bytes=frame_bytes, most_frames=1000), 0
        for size in pieces:
            await tape.write(whole[done : done + size * frame_bytes])
            done += size * frame_bytes
        await tape.end()
        await tape.cut(cut)
        frame, read = max(cut, begin), b""
        while data := await tape.read(frame):
            read += data
            frame += len(data) // frame_bytes
        assert read == whole[max(cut, begin) * frame_bytes :]

    asyncio.run(run())


async def test_a_writer_waits_until_something_is_cut_off() -> None:
    tape = Tape(frame_bytes=1, most_frames=4)
    for data in (b"ab", b"cd"):
        await tape.write(data)
    writing = asyncio.create_task(tape.write(b"ef"))
    await asyncio.sleep(0)
    assert not writing.done()
    await tape.cut(1)
    await asyncio.sleep(0)
    assert not writing.done(), "half a piece is no room"
    await tape.cut(2)
    await writing
    assert await tape.read(3) == b"d"
    assert await tape.read(4) == b"ef"
    with pytest.raises(IndexError, match="frame 1 is gone"):
        await tape.read(1)


async def test_a_reader_waits_for_sound() -> None:
    tape = Tape(frame_bytes=1, most_frames=4)
    reading = asyncio.create_task(tape.read(0))
    await asyncio.sleep(0)
    assert not reading.done()
    await tape.write(b"a")
    assert await reading == b"a"
