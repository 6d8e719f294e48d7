"""Bytes to samples beside the event loop: a bounded pool of threads, and a guess of the length before it.

libsndfile, soxr and FFmpeg let go of the interpreter while they work, so threads are enough to keep the event loop
and the device busy. What waits for a thread is bounded by admission, which counts the guess made here.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from servox import audio

Samples = audio.Samples

TYPICAL_BYTES_PER_S = 8_000  # of compressed speech, 64 kbit/s
MAX_BYTES_PER_S = 6_200_000  # eight channels of float at 192 kHz: no header may claim to hold more in less
SHORTEST_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Mono samples [n] at the encoder's rate, how long they last, and whether more was there."""

    samples: Samples
    duration_ms: int
    truncated: bool


def guess_s(data: bytes | audio.Pcm, *, longest_s: float) -> float:
    """Seconds of audio by the first bytes alone, between a tenth of a second and `longest_s`.

    Exact for raw PCM and for plain wav and flac files; elsewhere by the rate of typical compressed speech. It decides
    nothing but how much of the budget a clip holds until it is decoded.
    """
    if isinstance(data, audio.Pcm):
        width = 2 if data.encoding == "s16le" else 4
        seconds = len(data.data) / max(1, data.rate_hz * max(1, data.channels) * width)
        floor_s = len(data.data) / MAX_BYTES_PER_S
    else:
        seconds = _header_s(data) or len(data) / TYPICAL_BYTES_PER_S
        floor_s = len(data) / MAX_BYTES_PER_S
    return min(max(seconds, floor_s, SHORTEST_S), longest_s)


def _header_s(data: bytes) -> float:
    if data[:4] == b"RIFF" and data[8:16] == b"WAVEfmt ":
        return len(data) / max(1, int.from_bytes(data[28:32], "little"))
    if data[:4] == b"fLaC":
        # STREAMINFO: 20 bits of rate, 3 of channels, 5 of depth, 36 of samples.
        packed = int.from_bytes(data[18:26], "big")
        return (packed & (1 << 36) - 1) / max(1, packed >> 44)
    return 0.0


class Decoder:
    """Decodes in threads of its own.

    Args:
        workers: how many clips at a time.
        rate_hz: of the samples that come out.
        limits: what a clip may be; `truncate_ms` is set by each request.
    """

    def __init__(self, *, workers: int, rate_hz: int, limits: audio.Limits) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._rate_hz = rate_hz
        self._limits = limits

    async def decode(self, data: bytes | audio.Pcm, *, truncate_ms: int) -> Decoded:
        """Samples of one clip; a caller that leaves before a thread was free costs nothing.

        Raises:
            BadAudio: it cannot be decoded or holds nothing.
            TooLarge: over a limit, and no `truncate_ms` was given.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data, truncate_ms)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _decode(self, data: bytes | audio.Pcm, truncate_ms: int) -> Decoded:
        limits = self._limits
        if truncate_ms <= 0:
            clip = audio.decode(data, self._rate_hz, limits)
            return Decoded(samples=clip.samples, duration_ms=clip.duration_ms, truncated=False)
        # One millisecond more than is kept, so that a clip of exactly that length is not called truncated.
        keep_ms = min(truncate_ms, limits.max_duration_ms)
        wider = audio.Limits(
            max_bytes=limits.max_bytes,
            min_duration_ms=limits.min_duration_ms,
            max_duration_ms=limits.max_duration_ms + 1,
            truncate_ms=keep_ms + 1,
            silence_dbfs=limits.silence_dbfs,
        )
        clip = audio.decode(data, self._rate_hz, wider)
        return Decoded(
            samples=clip.samples[: keep_ms * self._rate_hz // 1000],
            duration_ms=min(clip.duration_ms, keep_ms),
            truncated=clip.duration_ms > keep_ms,
        )
