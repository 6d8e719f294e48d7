"""The embedder as a process: a bundle on a device, gRPC and /metrics.

Draining: NOT_SERVING, a wait for endpoints to notice, open streams told to stop reading, admitted work to its end.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from servox.audio import Limits
from servox.errors import BundleError, ServoxError, Unavailable
from servox.inference import open_inference_pb2_grpc
from servox.telemetry import Metrics
from servox.v1 import embedder_pb2_grpc

from . import bundle as bundles
from .admission import Admission
from .batching import Budget
from .bundle import Bundle
from .dataplane import Dataplane
from .decoding import Decoder
from .device import Device
from .engine import Engine
from .gate import Gate
from .health import Health
from .inferring import Model
from .messages import description_to_proto
from .metrics import EmbedderMetrics
from .open_inference import OpenInferenceServicer
from .runtimes import Runtime, lanes
from .servicer import EmbedderServicer
from .settings import BUCKETS_S, Settings
from .slices import DEFAULT_NS, HANDOVER_S, SHORT_NS, set_slice

log = logging.getLogger(__name__)

FIRST_COST_S = 0.01  # a second of audio costs the device this much until a batch was measured


class EmbedderServer:
    """One embedder.

    Args:
        settings: the bundle, the device, the limits, where it listens.
        metrics: the registry that /metrics shows.
        opened: makes the runtimes of a bundle.
    """

    def __init__(self, settings: Settings, metrics: Metrics, *, opened: Callable[..., list[Runtime]] = lanes) -> None:
        self._settings = settings
        self._opened = opened
        self._metrics = metrics
        self._counters = EmbedderMetrics(metrics)
        self._server = settings.server(
            "servox.v1.Embedder", "inference.GRPCInferenceService", door=settings.door(metrics)
        )
        self._decoder: Decoder | None = None
        self._engine: Engine | None = None
        self._health: Health | None = None
        self._servicer: EmbedderServicer | None = None
        self._stopping: asyncio.Future[None] | None = None

    async def start(self) -> str:
        """Loads the bundle, listens, warms the device, serves.

        Returns:
            The address that clients use.

        Raises:
            BundleError: the bundle is missing or corrupt.
            BadSetting: a setting does not fit the bundle.
            Unavailable: the device or the address is not to be had.
        """
        began_s = time.monotonic()
        set_slice(SHORT_NS)  # the event loop's thread, and what it starts
        bundle = await asyncio.to_thread(bundles.load, self._settings.bundle)
        self._check_length(bundle)
        self._metrics.start(self._settings.metrics_host, self._settings.metrics_port)
        try:
            address = await self._start(bundle)
        except ServoxError:
            await self.stop()
            raise
        log.info(
            "serving",
            extra={"address": address, "bundle": bundle.digest[:12], "took_s": round(time.monotonic() - began_s, 2)},
        )
        return address

    async def stop(self) -> None:
        """Drains and closes; nothing admitted is lost within `drain_grace_s`.

        Also after a start that failed or was cancelled, and more than once.
        """
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        if self._servicer:
            asyncio.get_running_loop().call_later(self._settings.drain_wait_s, self._servicer.drain)
        if self._health:
            self._health.close()
        await self._server.stop()
        if self._engine:
            await self._engine.close()
        if self._decoder:
            await self._decoder.close()
        self._metrics.stop()

    async def wait_failed(self) -> None:
        """Returns never.

        Raises:
            Unavailable: the device is gone; the process must end.
        """
        if self._health is None:
            raise Unavailable("the embedder was not started; call start first")
        await self._health.wait_failed()

    async def _start(self, bundle: Bundle) -> str:
        settings = self._settings
        runtimes = await asyncio.to_thread(self._runtimes, bundle)
        device = Device(runtimes, streams=settings.stream_count, stuck_after_s=settings.stuck_after_s)
        if not device.queues:
            sys.setswitchinterval(HANDOVER_S)
        longest_s = self._longest_ms(bundle) / 1000
        self._engine = Engine(
            device,
            budget=self._budget(bundle, engine=runtimes[0].name),
            rate_hz=bundle.rate_hz,
            metrics=self._counters,
            canary_every_s=settings.canary_every_s,
        )
        self._decoder = Decoder(
            workers=settings.decoder_count,
            rate_hz=bundle.rate_hz,
            limits=self._limits(bundle),
            memory_bytes=settings.decode_memory_mb << 20,
            timeout_s=settings.decode_timeout_s,
            replaced=lambda reason: self._counters.decode_restarts.labels(reason).inc(),
            lost=self._engine.fail,
        )
        admission = Admission(
            budget_s=settings.max_inflight_audio_s, longest_s=longest_s, streams=settings.stream_count
        )
        self._counters.inflight.set_function(lambda: admission.load.audio_s)
        self._counters.inflight_limit.set(settings.max_inflight_audio_s)
        self._counters.serves(bundle, runtime=runtimes[0].name, device=runtimes[0].device)
        dataplane = Dataplane(
            bundle,
            engine=self._engine,
            gate=Gate(admission, clock=time.monotonic),
            decoder=self._decoder,
            longest_s=longest_s,
            metrics=self._counters,
        )
        self._servicer = EmbedderServicer(
            dataplane,
            description=description_to_proto(
                bundle,
                runtime=runtimes[0].name,
                device=runtimes[0].device,
                min_duration_ms=self._shortest_ms(bundle),
                max_duration_ms=self._longest_ms(bundle),
                max_message_bytes=settings.max_message_bytes,
            ),
            stream_in_flight=settings.stream_in_flight,
            metrics=self._counters,
        )
        embedder_pb2_grpc.add_EmbedderServicer_to_server(self._servicer, self._server.grpc)  # type: ignore[no-untyped-call]
        self._speak_open_inference(bundle, dataplane)
        self._health = Health(self._server, self._engine.failed)
        # Listening before warm: probes are answered NOT_SERVING instead of being refused.
        address = await self._server.start()
        await asyncio.gather(self._decoder.start(), self._engine.start())
        await self._health.ready()
        return address

    def _speak_open_inference(self, bundle: Bundle, dataplane: Dataplane) -> None:
        servicer = OpenInferenceServicer(
            dataplane,
            model=Model(bundle=bundle, name=self._settings.model_name or Path(bundle.source).name),
            ready=lambda: self._server.ready,
            in_flight=self._settings.stream_in_flight,
            most_bytes=self._settings.max_message_bytes,
            metrics=self._counters,
        )
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, self._server.grpc)  # type: ignore[no-untyped-call]

    def _runtimes(self, bundle: Bundle) -> list[Runtime]:
        settings = self._settings
        set_slice(DEFAULT_NS)  # threads that an engine starts here are the encoder's
        return self._opened(
            bundle,
            settings.device,
            engine=settings.engine,
            streams=settings.stream_count,
            threads=settings.threads_per_stream,
        )

    def _budget(self, bundle: Bundle, *, engine: str) -> Budget:
        settings, rate_hz = self._settings, bundle.rate_hz
        longest = self._longest_ms(bundle) * rate_hz // 1000
        below = [int(seconds * rate_hz) for seconds in BUCKETS_S if seconds * rate_hz < longest]
        return Budget(
            samples=int(settings.batch_budget_s * rate_hz),
            clips=settings.clips_per_batch(engine),
            buckets=(*below, longest),
            step=max(1, settings.pad_step_ms * rate_hz // 1000),
            cost_s=FIRST_COST_S / rate_hz,
            alike=settings.device != "cuda",
        )

    def _limits(self, bundle: Bundle) -> Limits:
        return Limits(
            max_bytes=self._settings.max_message_bytes,
            min_duration_ms=self._shortest_ms(bundle),
            max_duration_ms=self._longest_ms(bundle),
        )

    def _longest_ms(self, bundle: Bundle) -> int:
        return min(self._settings.max_duration_ms, bundle.max_duration_ms)

    def _shortest_ms(self, bundle: Bundle) -> int:
        return max(self._settings.min_duration_ms, bundle.min_duration_ms)

    def _check_length(self, bundle: Bundle) -> None:
        if bundle.rate_hz < 1 or self._longest_ms(bundle) <= self._shortest_ms(bundle):
            raise BundleError(
                f"bundle {self._settings.bundle} takes at most {bundle.max_duration_ms} ms at {bundle.rate_hz} Hz, "
                f"under min_duration_ms = {self._shortest_ms(bundle)}; export it again"
            )
