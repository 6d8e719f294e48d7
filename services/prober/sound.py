"""Samples of messages and files, and the windows of them as they come."""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

import numpy as np

from servox import audio
from servox.errors import BadAudio, DeadlineExpired
from servox.v1 import common_pb2
from servox.visits import metered

from .windows import Cut, Cutter, Grid, Samples

T = TypeVar("T")

_ENCODINGS: dict[int, audio.Encoding] = {
    common_pb2.SAMPLE_FORMAT_S16: "s16le",
    common_pb2.SAMPLE_FORMAT_F32: "f32le",
}


def encoding_of(value: int) -> audio.Encoding:
    """The encoding that a message names.

    Raises:
        BadAudio: none, or one of a later version.
    """
    if value not in _ENCODINGS:
        raise BadAudio(f"sample format {value} is unknown: use SAMPLE_FORMAT_S16 or SAMPLE_FORMAT_F32")
    return _ENCODINGS[value]


def pcm_from_proto(message: common_pb2.Pcm) -> audio.Pcm:
    """Raw samples of a message.

    Raises:
        BadAudio: no sample format.
    """
    return audio.Pcm(
        data=message.data,
        rate_hz=message.rate_hz,
        channels=message.channels or 1,
        encoding=encoding_of(message.format),
    )


class Chunks:
    """Bytes of a stream to mono samples; a sample may be split between two chunks.

    Args:
        encoding: of a sample.
        channels: interleaved; averaged.
    """

    def __init__(self, encoding: audio.Encoding, channels: int) -> None:
        self._type = np.dtype("<i2" if encoding == "s16le" else "<f4")
        self._scale = np.float32(1 / 32768 if encoding == "s16le" else 1)
        self._channels = channels
        self._rest = b""
        self._count = 0

    def push(self, data: bytes) -> Samples:
        """Whole samples that are there now, [n].

        Raises:
            BadAudio: values that are not finite.
        """
        data = self._rest + data
        whole = len(data) - len(data) % (self._type.itemsize * self._channels)
        self._rest = data[whole:]
        values = np.frombuffer(data[:whole], dtype=self._type).astype(np.float32) * self._scale
        if not np.isfinite(values).all():
            raise BadAudio(
                f"the stream holds samples that are not finite (NaN or infinite) after sample {self._count}: "
                "check the capture"
            )
        self._count += len(values) // self._channels
        return np.asarray(values.reshape(-1, self._channels).mean(axis=1, dtype=np.float32))

    def finish(self) -> None:
        """Checks that the stream ended between two samples.

        Raises:
            BadAudio: it did not.
        """
        if self._rest:
            raise BadAudio(f"the stream ended inside a sample ({len(self._rest)} bytes over): send whole samples")


async def live(chunks: AsyncIterator[Samples], shape: Grid, next_window: int = 0) -> AsyncIterator[Cut]:
    """Windows of samples as they come; see `Cutter` for `next_window`."""
    cutter = Cutter(shape, next_window=next_window)
    async for samples in metered(chunks, shape.rate_hz):
        for cut in cutter.push(samples):
            yield cut
    for cut in cutter.finish():
        yield cut


class Readable(Protocol):
    """Audio that is read block by block; see `sources.Source`."""

    async def read(self) -> Samples | None:
        """The next samples [n]; None at the end."""


async def stored(source: Readable, shape: Grid, next_window: int = 0) -> AsyncIterator[Cut]:
    """Windows of a file from `next_window` on; it is decoded as they are asked for, beside the event loop."""
    async for cut in live(_blocks(source), shape):
        if cut.index >= next_window:
            yield cut


async def _blocks(source: Readable) -> AsyncIterator[Samples]:
    while (block := await source.read()) is not None:
        yield block


async def patient(source: AsyncIterator[T], idle_s: float) -> AsyncIterator[T]:
    """What `source` gives, unless it makes us wait for longer than `idle_s`; time in which nobody asks does not count.

    Raises:
        DeadlineExpired: it did.
    """
    while True:
        try:
            async with asyncio.timeout(idle_s):
                each = await anext(source)
        except TimeoutError:
            raise DeadlineExpired(
                f"the stream sent nothing for {idle_s:g} s (stream_idle_s): send audio, silence too, or end it"
            ) from None
        except StopAsyncIteration:
            return
        yield each
