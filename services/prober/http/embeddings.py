"""`POST /v1/embeddings`: audio in, what the encoder makes of it out, as JSON or as bare little-endian float32."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.prober.dataplane import Dataplane
from services.prober.metrics import ProberMetrics
from services.prober.settings import Settings
from servox.errors import BadInput
from servox.v1 import embedder_pb2
from servox.wire import Floats, array_from_proto

from .bodies import Intake, check_length, taken
from .encoding import dumps, to_json
from .leaving import unless_gone
from .media import BINARY, JSON, sent, wanted
from .queries import Query, bad_value
from .recognition import ENVELOPE_BYTES, audio_of

PARAMETERS = ("layers", "pooling", "truncate_ms")
POOLINGS = {
    "mean": embedder_pb2.POOLING_MEAN,
    "mean_std": embedder_pb2.POOLING_MEAN_STD,
    "frames": embedder_pb2.POOLING_FRAMES,
}


class Embeddings:
    """The route.

    Args:
        dataplane: does the work.
        settings: limits.
        metrics: counts calls.
    """

    def __init__(self, dataplane: Dataplane, settings: Settings, metrics: ProberMetrics) -> None:
        self._dataplane, self._settings, self._metrics = dataplane, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        request = Request(scope)
        form, packed = wanted(request.headers, (JSON, BINARY)), sent(request.headers)
        asked = asked_of(Query(request.query_params, PARAMETERS))
        limit = min(self._settings.max_message_bytes - ENVELOPE_BYTES, self._settings.max_file_bytes)
        intake = Intake(max_bytes=limit, idle_s=self._settings.http_idle_s, scratch=self._settings.scratch)
        check_length(request.headers, limit)
        await self._check_layers(list(asked.layers))
        async with taken(receive, intake, packed.boundary) as body:
            asked.audio.CopyFrom(audio_of(packed, await body.data()))
        reply = await unless_gone(receive, self._embedded(asked))
        response = await asyncio.to_thread(_shown, reply, form)
        await response(scope, receive, send)

    async def _embedded(self, asked: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        with self._metrics.call("Embed"):
            return await self._dataplane.embed(asked)

    async def _check_layers(self, layers: list[int]) -> None:
        described = await self._dataplane.describe()
        lacking = [layer for layer in layers if layer not in described.layers]
        if lacking:
            raise BadInput(
                f"layers = {','.join(map(str, layers))}: the embedder has no layer {lacking[0]}; "
                f"it has {', '.join(map(str, described.layers))}"
            )


def asked_of(query: Query) -> embedder_pb2.EmbedRequest:
    """What the query asks of the embedder.

    Raises:
        Refusal: 400, a value that cannot be read.
    """
    pooling, layers = query.text("pooling", "mean"), query.text("layers", "")
    if pooling not in POOLINGS:
        raise bad_value("pooling", pooling, f"give {', '.join(POOLINGS)}")
    numbers = layers.split(",") if layers else []
    if not all(number.isascii() and number.isdecimal() and len(number) < 5 for number in numbers):
        raise bad_value("layers", layers, "give numbers of layers with commas, such as 0,4")
    return embedder_pb2.EmbedRequest(
        pooling=POOLINGS[pooling], layers=map(int, numbers), truncate_ms=query.integer("truncate_ms")
    )


def _shown(reply: embedder_pb2.EmbedResponse, form: str) -> Response:
    values = array_from_proto(reply.embedding, name="embedding")
    return _bytes(reply, values) if form == BINARY else _object(reply, values)


def _object(reply: embedder_pb2.EmbedResponse, values: Floats) -> Response:
    array = {"dtype": "float32", "shape": list(values.shape), "values": values.astype("f4").tolist()}
    return Response(dumps({**to_json(reply), "embedding": array}), media_type=JSON)


def _bytes(reply: embedder_pb2.EmbedResponse, values: Floats) -> Response:
    headers = {
        "X-Embedding-Shape": ",".join(map(str, values.shape)),
        "X-Embedding-Dtype": "float32",
        "X-Embedding-Layers": ",".join(map(str, reply.layers)),
        "X-Bundle-Digest": reply.bundle.digest,
        "X-Duration-Ms": str(reply.duration_ms),
    }
    return Response(values.astype("<f4").tobytes(), headers=headers, media_type=BINARY)
