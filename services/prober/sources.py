"""What is heard: a message's audio or a file, read block by block beside the event loop.

Files of strangers are read in processes of their own (`reading`), so many at a time; raw samples need no parser and are
read here.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from servox import containers
from servox.audio import Samples
from servox.blocks import open_audio
from servox.errors import BadAudio, Overloaded
from servox.v1 import common_pb2

from .reading import ReadingPool, RemoteReader
from .sound import pcm_from_proto
from .windows import Cut


class Blocks(Protocol):
    """A reader, here or in another process; see `servox.blocks.Reader`."""

    rate_hz: int
    promised_ms: int | None
    spent_s: float

    @property
    def position_ms(self) -> int:
        """How much has been read."""

    def read(self) -> Samples | None:
        """The next samples; None at the end."""

    def close(self) -> None:
        """Lets go of what is read."""


class Source:
    """A reader seen from the event loop.

    Attributes:
        reader: what tells rate and length.
    """

    def __init__(self, reader: Blocks, threads: ThreadPoolExecutor) -> None:
        self.reader = reader
        self._threads = threads

    async def read(self) -> Samples | None:
        """The next samples [n]; None at the end; see `RemoteReader.read` for what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.reader.read)


class Sources:
    """Opens audio.

    Args:
        files: most files at a time; more wait.
        wait_s: longest wait for a turn.
        memory_mb: most memory that decoding one file may take.
        timeout_s: longest wait for the next block of a file.
    """

    def __init__(self, *, files: int, wait_s: float, memory_mb: int, timeout_s: float) -> None:
        self._files, self._wait_s = files, wait_s
        self._pool = ReadingPool(spare=min(files, 2), memory_bytes=memory_mb << 20, timeout_s=timeout_s)
        # Threads of our own: one that waits for a stuck decoder must not keep other work waiting.
        self._threads = ThreadPoolExecutor(files + 1, thread_name_prefix="read")
        self._turns = asyncio.Semaphore(files)

    def opened(self, source: Path | common_pb2.Audio, *, max_duration_ms: int) -> AbstractAsyncContextManager[Source]:
        """Audio to read.

        Raises:
            BadInput: a file that cannot be opened.
            BadAudio: not audio, truncated, empty, or crashing its decoder.
            TooLarge: longer than the limit.
            Overloaded: too many files are being read.
            Unavailable: no process can be started, or it was killed.
        """
        if isinstance(source, Path):
            return self._in_turn(source, max_duration_ms)
        if source.WhichOneof("source") == "pcm":
            return self._here(source.pcm, max_duration_ms)
        # What is not all there is refused before it costs anything; of a long file the part before the damage is
        # answered.
        if lack := containers.missing(source.container):
            raise BadAudio(f"the audio is truncated: {lack}; send the whole file")
        return self._in_turn(source.container, max_duration_ms)

    async def whole(self, sound: common_pb2.Audio, *, max_duration_ms: int) -> tuple[Cut, int]:
        """A clip as one window, and its rate; raises what `opened` and `Source.read` do."""
        blocks = list[Samples]()
        async with self.opened(sound, max_duration_ms=max_duration_ms) as source:
            while (block := await source.read()) is not None:
                blocks.append(block)
            end_ms = source.reader.position_ms
            return Cut(index=0, start_ms=0, end_ms=end_ms, samples=np.concatenate(blocks)), source.reader.rate_hz

    async def close(self) -> None:
        """Ends the processes that wait for a file; those at work end with their files."""
        await asyncio.to_thread(self._pool.close)
        self._threads.shutdown(wait=False)

    @asynccontextmanager
    async def _in_turn(self, source: Path | bytes, max_duration_ms: int) -> AsyncIterator[Source]:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._turns.acquire()
        except TimeoutError:
            raise Overloaded(
                f"{self._files} files are being read (files_at_a_time): send this one again later"
            ) from None
        try:
            opening = self._threads.submit(lambda: self._pool.open(source, max_duration_ms=max_duration_ms))
            try:
                reader = await asyncio.wrap_future(opening)
            except asyncio.CancelledError:
                # The caller left: what is opened meanwhile is closed, by its thread, even if the event loop has ended.
                opening.add_done_callback(_left)
                raise
            try:
                yield Source(reader, self._threads)
            finally:
                await self._let_go(reader)
        finally:
            self._turns.release()

    async def _let_go(self, reader: RemoteReader) -> None:
        try:
            closing = asyncio.get_running_loop().run_in_executor(self._threads, reader.close)
        except RuntimeError:  # the server has stopped, and its threads with it, before this stream was unwound
            reader.close()
        else:
            await asyncio.shield(closing)

    @asynccontextmanager
    async def _here(self, pcm: common_pb2.Pcm, max_duration_ms: int) -> AsyncIterator[Source]:
        with open_audio(pcm_from_proto(pcm), max_duration_ms=max_duration_ms) as reader:
            yield Source(reader, self._threads)


def _left(opening: Future[RemoteReader]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
