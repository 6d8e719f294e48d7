"""Audio is read beside the event loop: so many files at a time, and a caller who leaves leaves nothing behind."""

import asyncio
import io
from collections.abc import AsyncIterator

import numpy as np
import pytest
import soundfile

from services.prober.sources import Source, Sources
from servox.errors import BadAudio, Overloaded
from servox.v1 import common_pb2

LONGEST_MS = 600_000


def container(seconds: float) -> common_pb2.Audio:
    held = io.BytesIO()
    soundfile.write(held, np.random.default_rng(3).uniform(-0.5, 0.5, int(seconds * 16_000)), 16_000, format="FLAC")
    return common_pb2.Audio(container=held.getvalue())


@pytest.fixture
async def sources() -> AsyncIterator[Sources]:
    made = Sources(files=1, wait_s=20, memory_mb=512, timeout_s=20)
    yield made
    await made.close()


async def count(source: Source) -> int:
    total = 0
    while (block := await source.read()) is not None:
        total += len(block)
    return total


async def test_a_file_and_its_samples_are_the_same(sources: Sources) -> None:
    cut, rate_hz = await sources.whole(container(1.5), max_duration_ms=LONGEST_MS)
    pcm = common_pb2.Pcm(data=cut.samples.tobytes(), rate_hz=rate_hz, channels=1, format=common_pb2.SAMPLE_FORMAT_F32)
    again, _ = await sources.whole(common_pb2.Audio(pcm=pcm), max_duration_ms=LONGEST_MS)
    np.testing.assert_array_equal(again.samples, cut.samples)
    assert (cut.start_ms, cut.end_ms, rate_hz) == (0, 1500, 16_000)


async def test_files_wait_for_their_turn_and_are_refused_in_the_end() -> None:
    sources = Sources(files=1, wait_s=0.2, memory_mb=512, timeout_s=20)
    async with sources.opened(container(1), max_duration_ms=LONGEST_MS) as first:
        with pytest.raises(Overloaded, match="1 files are being read"):
            await sources.whole(container(1), max_duration_ms=LONGEST_MS)
        assert await count(first) == 16_000
    await sources.whole(container(1), max_duration_ms=LONGEST_MS)
    await sources.close()


async def test_a_caller_who_leaves_gives_back_the_turn(sources: Sources) -> None:
    long = container(600)

    async def reading() -> None:
        await sources.whole(long, max_duration_ms=LONGEST_MS)
        await asyncio.Event().wait()  # it may have been read already

    for pause_s in (0.0, 0.05, 0.4):
        leaving = asyncio.ensure_future(reading())
        await asyncio.sleep(pause_s)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    cut, _ = await sources.whole(container(1), max_duration_ms=LONGEST_MS)
    assert len(cut.samples) == 16_000


async def test_a_cut_file_is_refused_before_it_takes_a_turn(sources: Sources) -> None:
    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(16_000), 16_000, format="WAV")
    cut = common_pb2.Audio(container=wav.getvalue()[:9_000])
    async with sources.opened(container(1), max_duration_ms=LONGEST_MS):
        with pytest.raises(BadAudio, match="truncated"):
            sources.opened(cut, max_duration_ms=LONGEST_MS)
