"""What the prober does, behind every transport: train, predict, recognise, and look after heads.

- One training at a time, in worker threads; others wait their turn. Predictions and recognitions go on meanwhile.
- A training whose caller goes away stops after the epochs at work; the heads that were finished stay.
- Heads are kept in memory by version. A version never changes, so what is kept is never stale; what a bare name means
  is looked up on each call.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from servox import visits
from servox.arrays import read_clip_set
from servox.errors import BadInput
from servox.priors import softmax
from servox.v1 import common_pb2, embedder_pb2

from .answers import Recognition
from .asking import Ask
from .comparison import Comparison
from .embedder import Embedder
from .evaluations import Evaluation
from .gate import load_rules
from .heads import TRAINING, AnyFloats, Floats, Head, Standardisation
from .hosting import Hosted
from .metrics import ProberMetrics
from .posterior import Listener, Posterior, Stage, explicit
from .prior import Prior
from .progress import Event, Progress, Stopped
from .promotion import Promotions, folder_of
from .purposes import Purposes, policy_at
from .recognizer import Answer, Limits, Recognizer
from .registry import Entry, Registry
from .rollout import Rollouts
from .settings import Settings
from .sound import patient
from .sources import Sources
from .spool import spooled
from .tenants.calibrations import Calibrations
from .tenants.calls import space_of
from .tenants.statistics import Space, State
from .trainer import Order, Workshop, train
from .vectors import Vectors
from .voice import Voice
from .windows import Grid, Samples

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Embeddings in a store, named by a clip set."""

    store_url: str
    clip_set_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Scores of one head: logits before temperature and probabilities, both [variants, clips, K]."""

    head: Head
    logits: Floats
    probabilities: Floats


class Dataplane:
    """The prober.

    Args:
        settings: folders, addresses, limits.
        metrics: its counters.

    Raises:
        BadSetting: a device to train on, or a detector's file, that is not there.
    """

    def __init__(self, settings: Settings, metrics: ProberMetrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._registry = Registry(settings.heads)
        self._vectors = Vectors(settings.cache_bytes)
        self._embedder = Embedder(settings)
        self._purposes = Purposes(policy_at(settings.policy), metrics.registry)
        limits = Limits(
            clip_ms=settings.max_duration_ms,
            file_ms=settings.max_file_ms,
            windows=settings.max_windows,
            in_flight=settings.windows_in_flight,
        )
        voice = Voice(settings.vad) if settings.vad else None
        self._sources = Sources(
            files=settings.files_at_a_time,
            wait_s=settings.embed_timeout_s,
            memory_mb=settings.decode_memory_mb,
            timeout_s=settings.decode_timeout_s,
        )
        self._recognizer = Recognizer(self._embedder, self._sources, voice, metrics, limits)
        self._training = asyncio.Lock()
        if settings.train_device != "cpu":
            from .training import check_device  # torch takes seconds to import, and only a GPU can be missing

            check_device(settings.train_device)
        self._hosted = Hosted(self._registry, settings.heads_in_memory)
        self.promotions = Promotions(self._registry, load_rules(settings.gate))
        self._rollouts = Rollouts(folder_of(self._registry), self._hosted, metrics)
        self.comparison = Comparison(metrics)
        self.tenants = Calibrations(settings, metrics.registry)

    async def train(self, store_url: str, orders: Sequence[Order]) -> AsyncGenerator[Event]:
        """Events of a training; closing the iterator stops it.

        Raises:
            BadInput: no heads, or more than one call may ask for.
            StorageFull: a head cannot be written.
            Unavailable: torch or scikit-learn is not installed.
        """
        if not 1 <= len(orders) <= self._settings.max_heads:
            raise BadInput(f"{len(orders)} heads were asked for: ask for 1 to {self._settings.max_heads} in one call")
        if self._training.locked():
            yield Progress(done=0, total=len(orders), fraction=0.0, eta_s=0.0)
        with self._metrics.trainings_waiting.track_inprogress():
            await self._training.acquire()
        try:
            async for event in self._train(store_url, orders):
                yield event
        finally:
            self._training.release()

    async def _train(self, store_url: str, orders: Sequence[Order]) -> AsyncGenerator[Event]:
        loop, events, stop = asyncio.get_running_loop(), asyncio.Queue[Event | None](), threading.Event()
        workshop = Workshop(
            registry=self._registry,
            vectors=self._vectors,
            threads=self._settings.train_threads,
            scratch=self._settings.scratch,
            metrics=self._metrics,
            device=self._settings.train_device,
        )

        def report(event: Event | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            try:
                train(workshop, store_url, orders, report=report, stop=stop)
            finally:
                report(None)

        working = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            while (event := await events.get()) is not None:
                yield event
            await working
        finally:
            stop.set()
            await _ended(working)

    async def predict(
        self,
        name: str,
        *,
        bundle: str,
        source: AnyFloats | Stored,
        variants: Sequence[Standardisation] = (),
    ) -> Prediction:
        """Scores of embeddings.

        Args:
            name: of the head, or `name:version`.
            bundle: digest of the bundle that made the embeddings.
            source: the embeddings, or where they are stored.
            variants: statistics to standardise by; none for the training ones.

        Raises:
            NotFound: no such head, clip set or stored embedding.
            HeadMismatch: the embeddings are of another bundle.
            BadInput: embeddings or statistics of a wrong shape.
        """
        head = await self._head(name)
        head.check_bundle(bundle)
        logits = await asyncio.to_thread(self._logits, head, source, variants or (TRAINING,))
        self._metrics.clips.labels("predict").inc(logits.shape[1])
        probabilities = softmax(head.card.scaling.apply(logits)).astype(np.float32)
        return Prediction(head=head, logits=logits, probabilities=probabilities)

    def _logits(self, head: Head, source: AnyFloats | Stored, variants: Sequence[Standardisation]) -> Floats:
        if not isinstance(source, Stored):
            return np.stack([head.logits(source, variant) for variant in variants])
        card, keys = head.card, [clip.key for clip in read_clip_set(source.clip_set_url)]
        if card.kind == "frame-mlp":
            if len(variants) > 1 or variants[0].replaces:
                raise BadInput(f"head {card.tag} reads frames and standardises nothing; send no variants")
            parts = self._vectors.frames(source.store_url, bundle=card.bundle, keys=keys)
            return np.concatenate([head.logits(frames) for part in parts for frames in part])[None]
        x = self._vectors.pooled(source.store_url, bundle=card.bundle, layers=card.layers, keys=keys)
        return np.stack([head.logits(x, variant) for variant in variants])

    async def posterior(self, ask: Ask) -> Posterior:
        """The head that answers, under a prior, for the three ways to recognise.

        Raises:
            NotFound: no such head.
            BadInput: a prior that does not fit it; a tenant's name that is none.
            Forbidden: the caller has a tenant of their own, and names another; a purpose that is not allowed here.
        """
        notice = self._purposes.check(ask.purpose)
        chosen = await asyncio.to_thread(self._rollouts.choose, ask.head, ask.session)
        visit = await self.tenants.visit(ask.tenant, chosen.head)

        def made(head: Head, *, stage: Stage = "shadow", listeners: Sequence[Listener] = ()) -> Posterior:
            return Posterior(
                head,
                ask.prior,
                calibration=visit.calibrated(head),
                stage=stage,
                notice=notice,
                uncalibrated=ask.uncalibrated,
                listeners=listeners,
            )

        listeners = (*self.comparison.listeners(chosen, made), *visit.listeners)
        return made(chosen.head, stage=chosen.stage, listeners=listeners)

    async def space(self, head: str) -> Space | None:
        """The features that a head reads; None where none is named.

        Raises:
            NotFound: no such head.
            BadInput: it reads frames, and standardises nothing.
        """
        if not head:
            return None
        found = await self._head(head)
        if found.card.kind == "frame-mlp":
            raise BadInput(f"head {found.card.tag} reads frames and standardises nothing; name a head of another kind")
        return space_of(found)

    async def set_prior(self, tenant: str, head: str, prior: Prior | None) -> list[State]:
        """Sets a tenant's own prior in the feature space of a head; None for none.

        Raises:
            NotFound: no such head.
            BadInput: no head, a prior that does not fit it, or one that refers to itself.
        """
        space = await self.space(head)
        if space is None:
            raise BadInput("head: it is missing; name the head whose classes the prior is of")
        if prior is not None and prior.kind == "tenant":
            raise BadInput("prior: a tenant's own cannot be the tenant's own; give another kind")
        if prior is not None and prior.kind == "explicit":
            explicit((await self._head(head)).card, prior)
        return await self.tenants.set_prior(tenant, space, prior)

    async def recognize(
        self,
        sound: common_pb2.Audio,
        posterior: Posterior,
        *,
        window_ms: int = 0,
        hop_ms: int = 0,
        every_window: bool = False,
    ) -> Recognition:
        """Emotions of one clip; see `Recognizer`."""
        with self.comparison.call(posterior):
            if window_ms:
                return await self._recognizer.windowed(sound, window_ms, hop_ms, posterior, every_window=every_window)
            if hop_ms:
                raise BadInput(f"hop_ms = {hop_ms} without window_ms: give both, or neither for the whole clip")
            return await self._recognizer.clip(sound, posterior, every_window=every_window)

    def stream(
        self,
        chunks: AsyncIterator[Samples],
        shape: Grid,
        posterior: Posterior,
        *,
        next_window: int = 0,
        every_window: bool = False,
    ) -> AsyncGenerator[Answer]:
        """Emotions of live audio; see `Recognizer`."""
        return self._counted(
            self._recognizer.stream(chunks, shape, posterior, next_window=next_window, every_window=every_window),
            posterior,
        )

    def file(
        self,
        path: Path,
        window_ms: int,
        hop_ms: int,
        posterior: Posterior,
        *,
        next_window: int = 0,
        every_window: bool = False,
    ) -> AsyncGenerator[Answer]:
        """Emotions of a file of any length, in constant memory; see `Recognizer`."""
        return self._counted(
            self._recognizer.file(
                path, window_ms, hop_ms, posterior, next_window=next_window, every_window=every_window
            ),
            posterior,
        )

    async def _counted(self, answers: AsyncGenerator[Answer], posterior: Posterior) -> AsyncGenerator[Answer]:
        with self.comparison.call(posterior):
            async with aclosing(answers):
                async for each in answers:
                    yield each

    def spooled(self, chunks: AsyncIterator[bytes]) -> AbstractAsyncContextManager[Path]:
        """A file that comes in pieces, on disk for as long as the context lasts; see `spool`."""
        return spooled(chunks, folder=self._settings.scratch, max_bytes=self._settings.max_file_bytes)

    def patient(self, messages: AsyncIterator[T]) -> AsyncIterator[T]:
        """Messages of a live stream, unless it falls silent; see `sound.patient`."""
        return patient(messages, self._settings.stream_idle_s)

    async def describe(self) -> embedder_pb2.DescribeResponse:
        """What the embedder runs and what it accepts; see `Embedder.describe`."""
        return await self._embedder.describe()

    async def embed(self, request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        """Embeddings of one clip; see `Embedder.answer`."""
        visits.visit().left()
        reply = await self._embedder.answer(request)
        visits.visit().hear(reply.duration_ms / 1000, already=True)
        return reply

    async def heads(self, prefix: str) -> list[Entry]:
        """Heads whose name begins with `prefix`."""
        return await asyncio.to_thread(self._entries, prefix)

    def _entries(self, prefix: str) -> list[Entry]:
        return [self.promotions.staged(entry) for entry in self._registry.entries(prefix)]

    async def entry(self, name: str) -> Entry:
        """One head."""
        return await asyncio.to_thread(self.promotions.entry, name)

    async def evaluation(self, entry: Entry) -> Evaluation | None:
        """What is stored of a head's scores on other corpora."""
        return await asyncio.to_thread(self.promotions.evaluation, entry)

    async def close(self) -> None:
        """Closes the connection to the embedder and ends the processes that read files, and the shadow's thread."""
        await asyncio.to_thread(self.comparison.close)
        await self.tenants.close()
        await self._embedder.close()
        await self._sources.close()

    async def _head(self, name: str) -> Head:
        return await asyncio.to_thread(self._hosted.get, name)


async def _ended(working: asyncio.Future[None]) -> None:
    """Waits until a training has left its threads, whatever it raised: the next one must not start beside it."""
    while not working.done():
        try:
            await asyncio.wait({working})
        except asyncio.CancelledError:
            continue  # it stops within an epoch
    error = working.exception()
    if error and not isinstance(error, Stopped):
        log.info("a training ended with an error", extra={"error": str(error)})
