"""The Open Inference Protocol over the dataplane that `Embedder` has: same admission, deadlines, errors and health.

The first clip of a call is admitted or refused at once, as in `Embed`; the others wait for room, as the items of a
stream do, so that a call may hold more audio than is free just now. A call is answered whole or not at all.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from servox import __version__
from servox.errors import BadInput, DeadlineExpired, NotFound
from servox.inference import open_inference_pb2 as oip
from servox.inference import open_inference_pb2_grpc
from servox.tracing import span

from .dataplane import Dataplane, Embedded, Request
from .inferring import Ask, Model, answer_to_proto, ask_from_proto
from .metrics import EmbedderMetrics
from .servicer import Context, deadline_of

MARGIN_BYTES = 4096  # of an answer around its tensors


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The service `inference.GRPCInferenceService`.

    Args:
        dataplane: what does the work.
        model: the bundle under its name.
        ready: whether the server is SERVING.
        in_flight: most clips of one call between admission and answer.
        most_bytes: largest message.
    """

    def __init__(
        self,
        dataplane: Dataplane,
        *,
        model: Model,
        ready: Callable[[], bool],
        in_flight: int,
        most_bytes: int,
        metrics: EmbedderMetrics,
    ) -> None:
        self._dataplane = dataplane
        self._model = model
        self._ready = ready
        self._in_flight = in_flight
        self._most_bytes = most_bytes - MARGIN_BYTES
        self._metrics = metrics

    async def ServerLive(  # noqa: N802
        self,
        request: oip.ServerLiveRequest,  # noqa: ARG002 -- gRPC's signature, here and below
        context: Context,  # noqa: ARG002
    ) -> oip.ServerLiveResponse:
        """It answers, so it lives."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self,
        request: oip.ServerReadyRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> oip.ServerReadyResponse:
        """What `grpc.health.v1` says."""
        return oip.ServerReadyResponse(ready=self._ready())

    async def ModelReady(  # noqa: N802
        self,
        request: oip.ModelReadyRequest,
        context: Context,  # noqa: ARG002
    ) -> oip.ModelReadyResponse:
        """A model that is not served here is not ready, which is an answer and no error."""
        try:
            self._model.check(request.name, request.version)
        except NotFound:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._ready())

    async def ServerMetadata(  # noqa: N802
        self,
        request: oip.ServerMetadataRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> oip.ServerMetadataResponse:
        """Name and version."""
        return oip.ServerMetadataResponse(name="servox", version=__version__, extensions=["parameters"])

    async def ModelMetadata(  # noqa: N802
        self,
        request: oip.ModelMetadataRequest,
        context: Context,  # noqa: ARG002
    ) -> oip.ModelMetadataResponse:
        """Versions, inputs and outputs."""
        self._model.check(request.name, request.version)
        return self._model.metadata()

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:  # noqa: N802
        """Clips in, embeddings out."""
        began_s = time.monotonic()
        try:
            ask = ask_from_proto(request, self._model, most_bytes=self._most_bytes)
        except BaseException as error:
            self._metrics.count("ModelInfer", error)
            raise
        answers = await self._answers(ask, deadline_of(context), began_s)
        return answer_to_proto(request, ask, answers, self._model, total_s=time.monotonic() - began_s)

    async def _answers(self, ask: Ask, deadline_s: float, began_s: float) -> Sequence[Embedded]:
        if ask.timeout_s is None:
            return await self._embed_all(ask.clips, deadline_s)
        own_s = began_s + ask.timeout_s
        try:
            async with asyncio.timeout(own_s - time.monotonic()):
                return await self._embed_all(ask.clips, min(deadline_s, own_s))
        except TimeoutError:
            raise DeadlineExpired(
                f"the timeout of {ask.timeout_s:g} s passed before all {len(ask.clips)} clips were answered; allow "
                "more time or send less"
            ) from None

    async def _embed_all(self, clips: Sequence[Request], deadline_s: float) -> Sequence[Embedded]:
        if len(clips) == 1:
            return [await self._embed(clips[0], deadline_s, first=True)]
        room = asyncio.Semaphore(self._in_flight)
        tasks = [
            asyncio.create_task(self._embed_in(room, clip, deadline_s, place=place)) for place, clip in enumerate(clips)
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _embed_in(self, room: asyncio.Semaphore, clip: Request, deadline_s: float, *, place: int) -> Embedded:
        async with room:
            try:
                with span("clip"):
                    return await self._embed(clip, deadline_s, first=place == 0)
            except BadInput as error:
                raise type(error)(f"clip {place}: {error}") from error

    async def _embed(self, clip: Request, deadline_s: float, *, first: bool) -> Embedded:
        try:
            if first:
                answer = await self._dataplane.embed(clip, deadline_s=deadline_s)
            else:
                seat = await self._dataplane.seat(clip)
                answer = await self._dataplane.embed_seated(clip, seat, deadline_s=deadline_s)
        except BaseException as error:
            self._metrics.count("ModelInfer", error)
            raise
        self._metrics.count("ModelInfer", None)
        return answer
