"""Where a caller's audio comes from: files, bytes, samples, a generator of samples; and what of it is sent.

- Whole clips travel as they are; the server decodes them.
- A stream of samples travels as they come, in the format of the first chunk. A wave file of 16-bit samples is such a
  stream (the standard library reads it); any other file travels as its bytes.
"""

import asyncio
import io
import wave
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from servox.errors import BadInput, BadSetting, NotFound
from servox.v1 import common_pb2

Audio = bytes | Path | common_pb2.Audio
Samples = npt.NDArray[Any]
T = TypeVar("T")

PIECE_BYTES = 1 << 16  # of a file read at a time, and of a chunk sent at a time
_FORMATS = {"<i2": common_pb2.SAMPLE_FORMAT_S16, "<f4": common_pb2.SAMPLE_FORMAT_F32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Audio under a name of the caller's choice; a path is read when its turn comes."""

    id: str
    audio: Audio


@runtime_checkable
class Capture(Protocol):
    """Samples as they are recorded: chunks [n] or [n, channels] of float (full scale 1.0) or int16."""

    rate_hz: int

    def __aiter__(self) -> AsyncIterator[Samples]: ...


Source = str | Path | bytes | Capture | Iterable[Samples] | AsyncIterable[Samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """Samples of one rate, as they come."""

    samples: AsyncIterable[Samples] | Iterable[Samples]
    rate_hz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the samples of a stream lie in its bytes.

    Attributes:
        rate_hz: of the samples.
        channels: interleaved.
        dtype: `<f4` or `<i2`.
    """

    rate_hz: int
    channels: int
    dtype: str

    @property
    def format(self) -> common_pb2.SampleFormat:
        """The same on the wire."""
        return _FORMATS[self.dtype]

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * np.dtype(self.dtype).itemsize

    def pack(self, chunk: Samples) -> bytes:
        """A chunk as bytes.

        Raises:
            BadInput: other channels or another kind of number than the first chunk had.
        """
        found = layout_of(chunk, self.rate_hz)
        if found != self:
            raise BadInput(
                f"a chunk of {found.channels} channels as {found.dtype} after chunks of {self.channels} as "
                f"{self.dtype}: a stream keeps its format"
            )
        return np.ascontiguousarray(chunk, dtype=self.dtype).tobytes()


def layout_of(chunk: Samples, rate_hz: int) -> Layout:
    """The layout that a first chunk sets.

    Raises:
        BadInput: another shape, or samples that are neither float nor int16.
    """
    if chunk.ndim not in (1, 2) or (chunk.ndim == 2 and not chunk.shape[1]):
        raise BadInput(f"a chunk of shape {chunk.shape}: give [n] or [n, channels]")
    if chunk.dtype != np.int16 and not np.issubdtype(chunk.dtype, np.floating):
        raise BadInput(f"a chunk of {chunk.dtype}: give float samples, full scale 1.0, or int16")
    dtype = "<i2" if chunk.dtype == np.int16 else "<f4"
    return Layout(rate_hz=rate_hz, channels=chunk.shape[1] if chunk.ndim == 2 else 1, dtype=dtype)


def files(*paths: Path | str) -> list[Clip]:
    """Files as clips named by their paths."""
    return [Clip(id=str(path), audio=Path(path)) for path in paths]


def pcm(samples: npt.ArrayLike, rate_hz: int) -> common_pb2.Audio:
    """Float samples [n] or [n, channels], full scale 1.0, as audio.

    Raises:
        BadInput: another number of dimensions.
    """
    values = np.asarray(samples, dtype="<f4")
    if values.ndim not in (1, 2):
        raise BadInput(f"samples of shape {values.shape}: give [n] or [n, channels]")
    channels = values.shape[1] if values.ndim == 2 else 1
    return common_pb2.Audio(
        pcm=common_pb2.Pcm(
            data=values.tobytes(), rate_hz=rate_hz, channels=channels, format=common_pb2.SAMPLE_FORMAT_F32
        )
    )


async def load(audio: Audio | str) -> common_pb2.Audio:
    """Audio of any kind as a message.

    Raises:
        NotFound: a file that cannot be read.
    """
    if isinstance(audio, common_pb2.Audio):
        return audio
    if isinstance(audio, bytes):
        return common_pb2.Audio(container=audio)
    try:
        return common_pb2.Audio(container=await asyncio.to_thread(Path(audio).read_bytes))
    except OSError as error:
        raise unreadable(audio, error) from None


def opened(source: Source, rate_hz: int | None) -> Chunks | bytes | Path:
    """What of a source is streamed: its samples, or a file that only the server can decode.

    Raises:
        BadSetting: samples without a rate, or a rate for what knows its own.
        NotFound: a file that cannot be read.
    """
    if isinstance(source, str | Path | bytes):
        if rate_hz is not None:
            raise BadSetting(f"rate_hz = {rate_hz} for a file: leave it out, the file tells its own")
        found = _wave_samples(source if isinstance(source, bytes) else Path(source))
        return found or (source if isinstance(source, bytes) else Path(source))
    own_hz = source.rate_hz if isinstance(source, Capture) else None
    if (rate_hz or own_hz) is None:
        raise BadSetting("rate_hz: none given; say how many samples a second the chunks have")
    if rate_hz and own_hz and rate_hz != own_hz:
        raise BadSetting(f"rate_hz = {rate_hz}, but the capture records at {own_hz}: leave it out")
    return Chunks(samples=source, rate_hz=rate_hz or own_hz or 0)


def _wave_samples(source: bytes | Path) -> Chunks | None:
    """Samples of a wave file, or None where the standard library cannot read it."""
    try:
        with _wave(source) as file:
            # Another width, or a header that promises more than there is: the server says what is wrong.
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            whole = file.getsampwidth() == 2 and file.getnframes() * file.getnchannels() * 2 <= size
            return Chunks(samples=_pieces(source), rate_hz=file.getframerate()) if whole else None
    except (wave.Error, EOFError):
        return None
    except OSError as error:
        raise unreadable(source, error) from None


def _wave(source: bytes | Path) -> wave.Wave_read:
    return wave.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "rb")


def _pieces(source: bytes | Path) -> Iterator[Samples]:
    with _wave(source) as file:
        count = max(1, PIECE_BYTES // (2 * file.getnchannels()))
        while data := file.readframes(count):
            yield np.frombuffer(data, dtype="<i2").reshape(-1, file.getnchannels())


async def pieces_of(source: bytes | Path) -> AsyncGenerator[bytes, None]:
    """The bytes of a file, from its beginning.

    Raises:
        NotFound: a file that cannot be read.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else await asyncio.to_thread(source.open, "rb")
        with file:
            while data := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield data
    except OSError as error:
        raise unreadable(source, error) from None


def unreadable(source: bytes | Path | str, error: OSError) -> NotFound:
    """What to say of a file that the system does not give."""
    name = "the bytes" if isinstance(source, bytes) else source
    return NotFound(f"{name}: {error.strerror}; give a readable audio file")


async def each(items: Iterable[T] | AsyncIterable[T], *, blocking: bool = False) -> AsyncGenerator[T, None]:
    """Items of either kind; an asynchronous generator is closed with this one.

    Args:
        items: drawn as they are wanted.
        blocking: whether a plain iterator may wait, so that it is asked in a thread.
    """
    if not isinstance(items, AsyncIterable):
        async for item in _plain(items, blocking=blocking):
            yield item
        return
    drawn = aiter(items)
    try:
        async for item in drawn:
            yield item
    finally:
        if isinstance(drawn, AsyncGenerator):
            await drawn.aclose()


async def _plain(items: Iterable[T], *, blocking: bool) -> AsyncIterator[T]:
    iterator, nothing = iter(items), object()
    while True:
        item = await asyncio.to_thread(next, iterator, nothing) if blocking else next(iterator, nothing)
        if item is nothing:
            return
        yield item  # type: ignore[misc]  # it is not the sentinel
