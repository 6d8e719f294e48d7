"""Audio to emotions: ask the embedder, apply a head, assume a prior, and say what was used.

- Probabilities are softmax(logits / temperature) after the prior is adjusted (see `servox.priors`).
- A window without speech, or too short, or unlike all that the head was trained on, abstains: it is in the answer, with
  the reason. Any other window that cannot be embedded ends the call with the embedder's own error.
- Whole clips go to the embedder as they came. Windows are cut here, at the audio's own rate and by the same code for
  uploads, files and streams, and the embedder resamples each by itself: so the same audio gives the same numbers.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from servox.errors import ShortAudio, SilentAudio, TooLarge
from servox.v1 import common_pb2
from servox.visits import visit

from .answers import Recognition, Window, overall
from .embedder import Embedded, Embedder, abstention_of
from .metrics import ProberMetrics
from .posterior import Posterior
from .sound import live, stored
from .sources import Sources
from .voice import Heard, Voice, heard, level
from .windows import MIN_WINDOW_MS, Cut, Grid, Samples, check_next_window, grid

Answer = tuple[Window, common_pb2.Bundle]

NOTHING: Samples = np.empty(0, dtype=np.float32)
IN_FLIGHT_BYTES = 32 << 20  # of one call's windows: long windows at high rates are megabytes each
PATIENCE_MS = 1000  # of a file's windows: a live window, or a single clip, goes before them
BULK_STREAMS = 4  # to the embedder, for files; a live stream has one window at a time to send


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call may ask for.

    Attributes:
        clip_ms: longest audio of a message that is cut into windows.
        file_ms: longest file.
        windows: most windows of one message.
        in_flight: most windows of one call that are with the embedder.
    """

    clip_ms: int
    file_ms: int
    windows: int
    in_flight: int


class Recognizer:
    """Recognition through one embedder.

    Args:
        embedder: asked for embeddings.
        sources: opens audio.
        voice: tells speech; None where only the level counts.
        metrics: stage times and counts.
        limits: of one call.
    """

    def __init__(
        self, embedder: Embedder, sources: Sources, voice: Voice | None, metrics: ProberMetrics, limits: Limits
    ) -> None:
        self._embedder, self._sources = embedder, sources
        self._voice = voice
        self._metrics = metrics
        self._limits = limits

    async def clip(self, sound: common_pb2.Audio, posterior: Posterior, *, every_window: bool) -> Recognition:
        """The whole clip as one window.

        Raises:
            ServoxError: what the embedder says of the audio; HeadMismatch; Unavailable.
        """
        started = time.perf_counter()
        visit().left()
        each = await self._listen(sound, every_window) if self._voice else None
        embedded = None
        if each is None or each.abstention is None:
            each, embedded = await self._embed(sound, posterior, each, every_window)
        visit().hear(each.cut.end_ms / 1000, already=True)
        bundle = embedded.bundle if embedded else await self._bundle(posterior)
        window, timings = self._window(each, embedded, posterior), common_pb2.Timings()
        if embedded:
            timings.CopyFrom(embedded.timings)
        timings.total_us = self._took("total", started)
        return Recognition(overall=window, windows=[window], bundle=bundle, prior=posterior.prior, timings=timings)

    async def windowed(
        self, sound: common_pb2.Audio, window_ms: int, hop_ms: int, posterior: Posterior, *, every_window: bool
    ) -> Recognition:
        """Windows of a clip.

        Raises:
            BadAudio: the audio cannot be decoded.
            TooLarge: over a limit of duration or windows.
            ServoxError: what the embedder says of a window; HeadMismatch; Unavailable.
        """
        started = time.perf_counter()
        windows, timings, bundle = list[Window](), common_pb2.Timings(), common_pb2.Bundle()
        async with self._sources.opened(sound, max_duration_ms=self._limits.clip_ms) as source:
            shape = grid(window_ms, hop_ms, source.reader.rate_hz)
            self._check_count((source.reader.promised_ms or 0) // shape.hop_ms)
            answers = self._answers(stored(source, shape), shape, posterior, every_window=every_window, bulk=True)
            async with aclosing(answers):
                async for window, made_by, embedded in answers:
                    windows.append(window)
                    self._check_count(len(windows) - 1)  # headers need not tell the length
                    bundle = made_by
                    if embedded:
                        timings.queue_us += embedded.timings.queue_us
                        timings.inference_us += embedded.timings.inference_us
            timings.decode_us = int(source.reader.spent_s * 1e6)
        self._metrics.stage_seconds.labels("decode").observe(timings.decode_us / 1e6)
        timings.total_us = self._took("total", started)
        return Recognition(
            overall=overall(windows), windows=windows, bundle=bundle, prior=posterior.prior, timings=timings
        )

    async def stream(
        self,
        chunks: AsyncIterator[Samples],
        shape: Grid,
        posterior: Posterior,
        *,
        next_window: int,
        every_window: bool,
    ) -> AsyncGenerator[Answer]:
        """Windows of live audio, each as soon as it is whole; the same as `windowed` gives for the same samples.

        Args:
            chunks: samples at the grid's rate; from where window `next_window` - 1 begins, if that is not the first.
            shape: the grid.
            posterior: the head and its prior.
            next_window: number of the first window to answer.
            every_window: answer windows without speech too.

        Raises:
            ServoxError: what `chunks` raised, or what the embedder says of a window.
        """
        cuts = live(chunks, shape, next_window)
        answers = self._answers(cuts, shape, posterior, every_window=every_window, bulk=False)
        async with aclosing(answers):
            async for window, bundle, _ in answers:
                yield window, bundle

    async def file(
        self,
        path: Path,
        window_ms: int,
        hop_ms: int,
        posterior: Posterior,
        *,
        next_window: int,
        every_window: bool,
    ) -> AsyncGenerator[Answer]:
        """Windows of a file of any length, in constant memory; the same as `windowed` gives for the same audio.

        Args:
            path: of the file.
            window_ms: length of a window.
            hop_ms: from one to the next; 0 for the length.
            posterior: the head and its prior.
            next_window: number of the first window to answer.
            every_window: answer windows without speech too.

        Raises:
            BadInput: lengths out of range, a file that cannot be opened.
            BadAudio: damaged or truncated audio, after the windows before the damage.
            TooLarge: longer than the limit.
            ServoxError: what the embedder says of a window; HeadMismatch; Unavailable.
        """
        check_next_window(next_window)
        async with self._sources.opened(path, max_duration_ms=self._limits.file_ms) as source:
            shape = grid(window_ms, hop_ms, source.reader.rate_hz)
            cuts = stored(source, shape, next_window)
            answers = self._answers(cuts, shape, posterior, every_window=every_window, bulk=True)
            async with aclosing(answers):
                async for window, bundle, _ in answers:
                    yield window, bundle

    async def _answers(
        self, cuts: AsyncIterator[Cut], shape: Grid, posterior: Posterior, *, every_window: bool, bulk: bool
    ) -> AsyncGenerator[tuple[Window, common_pb2.Bundle, Embedded | None]]:
        bundle = await self._bundle(posterior)
        fits = IN_FLIGHT_BYTES // (4 * shape.window + 1)
        answers = self._embedder.windows(
            self._heard(cuts, shape.rate_hz, every_window),
            shape.rate_hz,
            posterior.head.card,
            in_flight=max(2, min(self._limits.in_flight, fits)),
            streams=BULK_STREAMS if bulk else 1,
            patience_ms=PATIENCE_MS if bulk else 0,
        )
        async with aclosing(answers):
            async for each, embedded in answers:
                bundle = embedded.bundle if embedded else bundle
                yield self._window(each, embedded, posterior), bundle, embedded

    async def _heard(self, cuts: AsyncIterator[Cut], rate_hz: int, every_window: bool) -> AsyncIterator[Heard]:
        async for cut in cuts:
            if self._voice is None:  # the level alone: a thread would cost more
                yield heard(cut, rate_hz, None, every_window=every_window)
            else:
                yield await asyncio.to_thread(heard, cut, rate_hz, self._voice, every_window=every_window)

    async def _bundle(self, posterior: Posterior) -> common_pb2.Bundle:
        """What the embedder runs; a head that does not fit it is refused before anything is sent."""
        bundle = (await self._embedder.describe()).bundle
        posterior.head.check_bundle(bundle.digest)
        return bundle

    async def _listen(self, sound: common_pb2.Audio, every_window: bool) -> Heard:
        cut, rate_hz = await self._sources.whole(sound, max_duration_ms=self._limits.clip_ms)
        return await asyncio.to_thread(heard, cut, rate_hz, self._voice, every_window=every_window)

    async def _embed(
        self, sound: common_pb2.Audio, posterior: Posterior, each: Heard | None, every_window: bool
    ) -> tuple[Heard, Embedded | None]:
        """A clip and what the embedder makes of it; None where it is silent or too short for that."""
        try:
            embedded = await self._embedder.embed(sound, posterior.head.card)
        except (SilentAudio, ShortAudio) as error:
            cut, _ = await self._sources.whole(sound, max_duration_ms=self._limits.clip_ms)
            return replace(level(cut, speaks=self._voice is not None), abstention=abstention_of(error)), None
        if each is None:
            cut = Cut(index=0, start_ms=0, end_ms=embedded.duration_ms, samples=NOTHING)
            short = embedded.duration_ms < MIN_WINDOW_MS and not every_window
            each = Heard(cut=cut, abstention="too_short" if short else None, speech=None)
        return each, embedded

    def _check_count(self, windows: int) -> None:
        if windows > self._limits.windows:
            raise TooLarge(
                f"{windows} windows are over the limit of {self._limits.windows}: take a longer hop_ms or shorter audio"
            )

    def _window(self, each: Heard, embedded: Embedded | None, posterior: Posterior) -> Window:
        started = time.perf_counter()
        probabilities = novelty = uncalibrated = None
        reason = each.abstention
        if embedded and not reason:
            probabilities, novelty = posterior.probabilities(embedded), posterior.novelty(embedded)
            uncalibrated = posterior.uncalibrated(embedded)
            reason = "out_of_distribution" if novelty is not None and novelty > 1 else None
            self._took("head", started)
            self._metrics.clips.labels("recognize").inc()
        if reason:
            self._metrics.abstentions.labels(reason).inc()
        window = Window(
            index=each.cut.index,
            start_ms=each.cut.start_ms,
            end_ms=each.cut.end_ms,
            probabilities=probabilities,
            abstention=reason,
            speech=each.speech,
            novelty=novelty,
            uncalibrated=uncalibrated,
        )
        if embedded and probabilities is not None:
            posterior.told(embedded, window)
        return window

    def _took(self, stage: str, started: float) -> int:
        elapsed_s = time.perf_counter() - started
        self._metrics.stage_seconds.labels(stage).observe(elapsed_s)
        return int(elapsed_s * 1e6)
