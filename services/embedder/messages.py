"""Between the embedder's messages and the dataplane's values; the only module that knows both."""

from servox import __version__
from servox.audio import Encoding, Pcm
from servox.errors import BadInput
from servox.v1 import common_pb2, embedder_pb2
from servox.wire import array_to_proto

from .bundle import Bundle
from .dataplane import Embedded, Pooling, Request, Spent

_POOLINGS: dict[int, Pooling] = {
    embedder_pb2.POOLING_UNSPECIFIED: "mean",
    embedder_pb2.POOLING_MEAN: "mean",
    embedder_pb2.POOLING_MEAN_STD: "mean_std",
    embedder_pb2.POOLING_FRAMES: "frames",
}
_ENCODINGS: dict[int, Encoding] = {
    common_pb2.SAMPLE_FORMAT_S16: "s16le",
    common_pb2.SAMPLE_FORMAT_F32: "f32le",
}


def audio_from_proto(message: common_pb2.Audio) -> bytes | Pcm:
    """The audio of a request.

    Raises:
        BadInput: there is none, or its sample format is unknown.
    """
    source = message.WhichOneof("source")
    if source == "container":
        return message.container
    if source is None:
        raise BadInput("the request holds no audio: set audio.container to a whole file, or audio.pcm to raw samples")
    pcm = message.pcm
    encoding = _ENCODINGS.get(pcm.format)
    if encoding is None:
        raise BadInput(f"pcm.format {pcm.format} is unknown: use SAMPLE_FORMAT_S16 or SAMPLE_FORMAT_F32")
    return Pcm(data=pcm.data, rate_hz=pcm.rate_hz, channels=pcm.channels or 1, encoding=encoding)


def request_from_proto(message: embedder_pb2.EmbedRequest) -> Request:
    """What is asked for.

    Raises:
        BadInput: no audio, or an enum value that this server does not know.
    """
    pooling = _POOLINGS.get(message.pooling)
    if pooling is None:
        raise BadInput(f"pooling {message.pooling} is unknown: use POOLING_MEAN, POOLING_MEAN_STD or POOLING_FRAMES")
    return Request(
        audio=audio_from_proto(message.audio),
        pooling=pooling,
        layers=tuple(message.layers),
        truncate_ms=message.truncate_ms,
        patience_ms=message.patience_ms,
    )


def bundle_to_proto(bundle: Bundle) -> common_pb2.Bundle:
    """What says which artefact made an answer."""
    return common_pb2.Bundle(
        digest=bundle.digest,
        source=bundle.source,
        family=bundle.family,
        context=str(bundle.context),
        blocks=bundle.blocks,
        precision=bundle.precision,
    )


def response_to_proto(embedded: Embedded, bundle: common_pb2.Bundle) -> embedder_pb2.EmbedResponse:
    """The answer to one clip."""
    return embedder_pb2.EmbedResponse(
        embedding=array_to_proto(embedded.embedding),
        layers=embedded.layers,
        bundle=bundle,
        timings=_timings(embedded.spent),
        duration_ms=embedded.duration_ms,
        truncated=embedded.truncated,
    )


def description_to_proto(
    bundle: Bundle, *, runtime: str, device: str, min_duration_ms: int, max_duration_ms: int, max_message_bytes: int
) -> embedder_pb2.DescribeResponse:
    """What this server runs and accepts."""
    return embedder_pb2.DescribeResponse(
        bundle=bundle_to_proto(bundle),
        rate_hz=bundle.rate_hz,
        frames_per_s=bundle.frame_rate_hz,
        dims=bundle.dims,
        layers=bundle.layers,
        default_layer=bundle.default_layer,
        min_duration_ms=min_duration_ms,
        max_duration_ms=max_duration_ms,
        max_message_bytes=max_message_bytes,
        runtime=runtime,
        device=device,
        parity={figure.name: figure.value for figure in bundle.parity},
        version=__version__,
    )


def _timings(spent: Spent) -> common_pb2.Timings:
    return common_pb2.Timings(
        decode_us=round(spent.decode_s * 1e6),
        queue_us=round(spent.queue_s * 1e6),
        inference_us=round(spent.inference_s * 1e6),
        total_us=round(spent.total_s * 1e6),
    )
