"""Raw samples of messages: one clip, or a stream in chunks of any size."""

from collections.abc import AsyncIterator, Iterable, Iterator

import numpy as np

from servox import audio
from servox.errors import BadAudio
from servox.v1 import common_pb2

from .metrics import ProberMetrics
from .windows import Cut, Cutter, Grid, Samples

SILENCE = 10 ** (audio.Limits().silence_dbfs / 20)

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
            raise BadAudio("the stream holds samples that are not finite (NaN or infinite): check the capture")
        return np.asarray(values.reshape(-1, self._channels).mean(axis=1, dtype=np.float32))

    def finish(self) -> None:
        """Checks that the stream ended between two samples.

        Raises:
            BadAudio: it did not.
        """
        if self._rest:
            raise BadAudio(f"the stream ended inside a sample ({len(self._rest)} bytes over): send whole samples")


def audible(cuts: Iterable[Cut], metrics: ProberMetrics) -> Iterator[Cut]:
    """Windows that hold sound; the silent ones are counted and dropped."""
    for cut in cuts:
        if np.abs(cut.samples).max() >= SILENCE:
            yield cut
        else:
            metrics.silent_windows.inc()


async def once(cuts: Iterable[Cut]) -> AsyncIterator[Cut]:
    """Windows that are all there, as a stream."""
    for cut in cuts:
        yield cut


async def live(chunks: AsyncIterator[Samples], shape: Grid, metrics: ProberMetrics) -> AsyncIterator[Cut]:
    """Audible windows of samples as they come."""
    cutter = Cutter(shape)
    async for samples in chunks:
        for cut in audible(cutter.push(samples), metrics):
            yield cut
    for cut in audible(cutter.finish(), metrics):
        yield cut
