"""Audio to emotions: ask the embedder, apply a head, assume a prior, and say what was used.

- Probabilities are softmax(logits / temperature) after the prior is adjusted (see `servox.priors`).
- A window that holds no sound (peak under -80 dBFS) says nothing of emotion: it is left out of the answer. Any other
  window that cannot be embedded ends the call with the embedder's own error.
- Whole clips go to the embedder as they came; only windows are decoded here.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from servox import audio
from servox.errors import BadAudio, TooLarge
from servox.v1 import common_pb2

from .embedder import Embedded, Embedder
from .metrics import ProberMetrics
from .posterior import Array, Posterior
from .sound import audible, live, once, pcm_from_proto
from .windows import Grid, Samples, cuts, grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Probabilities [K] of one stretch of audio, in the order of the head's classes."""

    start_ms: int
    end_ms: int
    probabilities: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """Windows of one clip and their mean, weighted by length; what made them; microseconds by stage."""

    overall: Window
    windows: Sequence[Window]
    bundle: common_pb2.Bundle
    prior: Mapping[str, float]
    timings: common_pb2.Timings


class Recognizer:
    """Recognition through one embedder.

    Args:
        embedder: asked for embeddings.
        metrics: stage times and counts.
        max_duration_ms: of audio that is cut into windows.
        max_windows: of one clip.
    """

    def __init__(self, embedder: Embedder, metrics: ProberMetrics, *, max_duration_ms: int, max_windows: int) -> None:
        self._embedder = embedder
        self._metrics = metrics
        self._max_duration_ms = max_duration_ms
        self._max_windows = max_windows

    async def clip(self, sound: common_pb2.Audio, posterior: Posterior) -> Recognition:
        """The whole clip as one window.

        Raises:
            ServoxError: what the embedder says of the audio; HeadMismatch; Unavailable.
        """
        started = time.perf_counter()
        embedded = await self._embedder.embed(sound, posterior.head.card)
        window = self._window(0, embedded.duration_ms, embedded, posterior)
        timings = common_pb2.Timings()
        timings.CopyFrom(embedded.timings)
        timings.total_us = self._took("total", started)
        return Recognition(
            overall=window, windows=[window], bundle=embedded.bundle, prior=posterior.prior, timings=timings
        )

    async def windowed(self, sound: common_pb2.Audio, window_ms: int, hop_ms: int, posterior: Posterior) -> Recognition:
        """Windows of a clip.

        Raises:
            BadAudio: the audio cannot be decoded, or every window is silent.
            TooLarge: over a limit of duration or windows.
            ServoxError: what the embedder says of a window; HeadMismatch; Unavailable.
        """
        started = time.perf_counter()
        decoded, shape = await self._decode(sound, window_ms, hop_ms)
        decode_us = self._took("decode", started)
        windows, timings, bundle = list[Window](), common_pb2.Timings(), common_pb2.Bundle()
        answers = self._embedder.windows(
            once(audible(cuts(decoded, shape), self._metrics)), shape.rate_hz, posterior.head.card
        )
        async with aclosing(answers):
            async for cut, embedded in answers:
                windows.append(self._window(cut.start_ms, cut.end_ms, embedded, posterior))
                timings.queue_us += embedded.timings.queue_us
                timings.inference_us += embedded.timings.inference_us
                bundle = embedded.bundle
        if not windows:
            raise BadAudio("every window of the audio is silent: send audible speech")
        timings.decode_us, timings.total_us = decode_us, self._took("total", started)
        return Recognition(
            overall=overall(windows), windows=windows, bundle=bundle, prior=posterior.prior, timings=timings
        )

    async def stream(
        self, chunks: AsyncIterator[Samples], shape: Grid, posterior: Posterior
    ) -> AsyncGenerator[tuple[Window, common_pb2.Bundle]]:
        """Windows of live audio, each as soon as it is whole; the same as `windowed` gives for the same samples.

        Raises:
            ServoxError: what `chunks` raised, or what the embedder says of a window.
        """
        answers = self._embedder.windows(live(chunks, shape, self._metrics), shape.rate_hz, posterior.head.card)
        async with aclosing(answers):
            async for cut, embedded in answers:
                yield self._window(cut.start_ms, cut.end_ms, embedded, posterior), embedded.bundle

    async def _decode(self, sound: common_pb2.Audio, window_ms: int, hop_ms: int) -> tuple[Samples, Grid]:
        limits = audio.Limits(max_duration_ms=self._max_duration_ms)
        if sound.WhichOneof("source") == "pcm":
            # At its own rate, as a stream has it: the embedder resamples.
            data: bytes | audio.Pcm = pcm_from_proto(sound.pcm)
            rate_hz = sound.pcm.rate_hz
        else:
            data, rate_hz = sound.container, await self._embedder.rate_hz()
        shape = grid(window_ms, hop_ms, rate_hz)
        clip = await asyncio.to_thread(audio.decode, data, rate_hz, limits)
        count = clip.duration_ms // shape.hop_ms
        if count > self._max_windows:
            raise TooLarge(
                f"{clip.duration_ms} ms in steps of {shape.hop_ms} ms are {count} windows, over the limit of "
                f"{self._max_windows}: take a longer hop_ms or shorter audio"
            )
        return clip.samples, shape

    def _window(self, start_ms: int, end_ms: int, embedded: Embedded, posterior: Posterior) -> Window:
        started = time.perf_counter()
        probabilities = posterior.probabilities(embedded)
        self._took("head", started)
        self._metrics.clips.labels("recognize").inc()
        return Window(start_ms=start_ms, end_ms=end_ms, probabilities=probabilities)

    def _took(self, stage: str, started: float) -> int:
        elapsed_s = time.perf_counter() - started
        self._metrics.stage_seconds.labels(stage).observe(elapsed_s)
        return int(elapsed_s * 1e6)


def overall(windows: Sequence[Window]) -> Window:
    """Mean of the windows' probabilities, weighted by their length."""
    lengths = np.array([max(1, window.end_ms - window.start_ms) for window in windows], dtype=np.float64)
    mean = np.average([window.probabilities for window in windows], axis=0, weights=lengths)
    return Window(
        start_ms=min(window.start_ms for window in windows),
        end_ms=max(window.end_ms for window in windows),
        probabilities=mean / mean.sum(),
    )
