"""gRPC adapters over the dataplane."""
# ruff: noqa: ARG002, N802 -- gRPC names the methods and their arguments

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from servox.audio import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ
from servox.errors import BadInput
from servox.v1 import prober_pb2, prober_pb2_grpc

from . import messages
from .dataplane import Dataplane
from .metrics import ProberMetrics
from .patience import waiting
from .posterior import Posterior
from .promotion_servicer import PromotionServicer
from .recognizer import Answer
from .sound import Chunks, encoding_of
from .tenants.servicer import TenantServicer
from .windows import Samples, check_next_window, grid

Context = grpc.aio.ServicerContext[Any, Any]
Requests = AsyncIterator[prober_pb2.RecognizeStreamRequest]
Answers = AsyncGenerator[Answer]


class ProberServicer(PromotionServicer, TenantServicer, prober_pb2_grpc.ProberServicer):
    """The `Prober` service.

    Args:
        dataplane: does the work.
        metrics: counts calls.
    """

    def __init__(self, dataplane: Dataplane, metrics: ProberMetrics) -> None:
        self._dataplane = dataplane
        self._metrics = metrics

    async def Train(
        self, request: prober_pb2.TrainRequest, context: Context
    ) -> AsyncIterator[prober_pb2.TrainResponse]:
        """Events of a training; it stops when the caller goes away."""
        orders = [messages.order_from_proto(head) for head in request.heads]
        with self._metrics.call("Train"):
            async with aclosing(self._dataplane.train(request.store_url, orders)) as events:
                async for event in events:
                    yield messages.event_to_proto(event)

    async def Predict(self, request: prober_pb2.PredictRequest, context: Context) -> prober_pb2.PredictResponse:
        """Scores of embeddings."""
        with self._metrics.call("Predict"):
            prediction = await self._dataplane.predict(
                request.head,
                bundle=request.bundle_digest,
                source=messages.source_from_proto(request),
                variants=[messages.variant_from_proto(variant) for variant in request.variants],
            )
            return messages.prediction_to_proto(prediction)

    async def Recognize(self, request: prober_pb2.RecognizeRequest, context: Context) -> prober_pb2.RecognizeResponse:
        """Emotions of one clip."""
        with self._metrics.call("Recognize"), waiting(context.time_remaining()):
            posterior = await self._dataplane.posterior(messages.ask_from_proto(request.config))
            recognition = await self._dataplane.recognize(
                request.audio,
                posterior,
                window_ms=request.config.window_ms,
                hop_ms=request.config.hop_ms,
                every_window=request.config.every_window,
            )
            return messages.recognition_to_proto(recognition, posterior)

    async def RecognizeStream(
        self, request_iterator: AsyncIterator[prober_pb2.RecognizeStreamRequest], context: Context
    ) -> AsyncIterator[prober_pb2.RecognizeStreamResponse]:
        """Emotions of live audio, or of a file that comes in pieces."""
        with self._metrics.call("RecognizeStream"):
            requests = self._dataplane.patient(aiter(request_iterator))
            config = await _config(requests)
            posterior = await self._dataplane.posterior(messages.ask_from_proto(config.recognize))
            answers = self._file if config.container else self._live
            async with aclosing(answers(config, requests, posterior)) as windows:
                async for window, bundle in windows:
                    yield messages.window_answered(window, posterior, bundle)

    async def _live(self, config: prober_pb2.StreamConfig, requests: Requests, posterior: Posterior) -> Answers:
        shape = grid(config.recognize.window_ms, config.recognize.hop_ms, config.rate_hz)
        chunks = Chunks(encoding_of(config.format), config.channels or 1)
        windows = self._dataplane.stream(
            _samples(requests, chunks),
            shape,
            posterior,
            next_window=config.next_window,
            every_window=config.recognize.every_window,
        )
        async with aclosing(windows):
            async for each in windows:
                yield each

    async def _file(self, config: prober_pb2.StreamConfig, requests: Requests, posterior: Posterior) -> Answers:
        asked = config.recognize
        grid(asked.window_ms, asked.hop_ms, MAX_RATE_HZ)  # lengths are refused before the file is sent
        async with self._dataplane.spooled(_chunks(requests)) as path:
            windows = self._dataplane.file(
                path,
                asked.window_ms,
                asked.hop_ms,
                posterior,
                next_window=config.next_window,
                every_window=asked.every_window,
            )
            async with aclosing(windows):
                async for each in windows:
                    yield each

    async def ListHeads(self, request: prober_pb2.ListHeadsRequest, context: Context) -> prober_pb2.ListHeadsResponse:
        """Heads by the beginning of their names."""
        with self._metrics.call("ListHeads"):
            entries = await self._dataplane.heads(request.prefix)
            return prober_pb2.ListHeadsResponse(heads=[messages.summary_to_proto(entry) for entry in entries])

    async def GetHead(self, request: prober_pb2.GetHeadRequest, context: Context) -> prober_pb2.GetHeadResponse:
        """One head and its card."""
        with self._metrics.call("GetHead"):
            entry = await self._dataplane.entry(request.head)
            summary = messages.summary_to_proto(entry)
            known = await self._dataplane.evaluation(entry)
            return prober_pb2.GetHeadResponse(
                summary=summary, card_json=entry.card.to_json(), evaluation_json=known.to_json() if known else ""
            )


async def _config(requests: Requests) -> prober_pb2.StreamConfig:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "config":
        raise BadInput("the stream began without a config: send one first, then chunks")
    config = first.config
    check_next_window(config.next_window)
    if config.container:
        if config.rate_hz or config.channels or config.format:
            raise BadInput("container = true: the file tells rate_hz, channels and format; leave them out")
        return config
    if not MIN_RATE_HZ <= config.rate_hz <= MAX_RATE_HZ:
        raise BadInput(f"rate_hz = {config.rate_hz}: give {MIN_RATE_HZ} to {MAX_RATE_HZ}")
    if not 0 <= config.channels <= MAX_CHANNELS:
        raise BadInput(f"channels = {config.channels}: give 1 to {MAX_CHANNELS}")
    return config


async def _chunks(requests: Requests) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("message") != "chunk":
            raise BadInput("the stream holds a second config: open another stream to change it")
        yield request.chunk


async def _samples(requests: Requests, chunks: Chunks) -> AsyncIterator[Samples]:
    async for chunk in _chunks(requests):
        yield chunks.push(chunk)
    chunks.finish()
