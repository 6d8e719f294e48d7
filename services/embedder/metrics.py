"""Every metric of the embedder: name, unit, help, buckets.

Labels are closed sets; histograms can be added up over replicas, so there are no summaries. Scaling reads
`servox_embedder_queued_audio_seconds`. How busy the device is: the rate of `batch_seconds_sum` by its streams; what
padding costs: 1 less the rate of `clip_audio_seconds_sum` by that of `computed_audio_seconds_total`.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from servox.errors import ServoxError, leaves
from servox.telemetry import Metrics

from .bundle import Bundle
from .decoding import REASONS

METHODS = ("Describe", "Embed", "EmbedStream", "ModelInfer")
OUTCOMES = ("ok", "cancelled", "internal", *(cls.__name__ for cls in leaves()))

_STAGE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 30.0)
_AUDIO_S = (0.5, 1, 2, 3, 4, 6, 8, 12, 20, 30, 60, 300)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class EmbedderMetrics:
    """Metrics of one embedder in the registry of `metrics`."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.requests = Counter(
            "servox_embedder_requests",
            "Clips (and descriptions) answered, by method and by outcome: ok, or the class of the error.",
            ["method", "outcome"],
            registry=registry,
        )
        for method in METHODS:
            for outcome in OUTCOMES:
                self.requests.labels(method, outcome)
        self.decode = _stage("decode", "decoding and resampling a clip, waiting for a worker included", registry)
        self.decode_restarts = Counter(
            "servox_embedder_decode_restarts",
            "Decode workers replaced, by why: crashed, killed, out of memory or time, caller left, worn.",
            ["reason"],
            registry=registry,
        )
        for reason in REASONS:
            self.decode_restarts.labels(reason)
        self.queue = _stage("queue", "waiting decoded for the device, by clips that gave up as well", registry)
        self.inference = _stage("inference", "running the batch that a clip was in", registry)
        self.total = _stage("total", "on a clip from admission to answer", registry)
        self.batch = _stage("batch", "by the device on one batch", registry)
        self.audio = Histogram(
            "servox_embedder_clip_audio_seconds", "Length of the clips embedded.", buckets=_AUDIO_S, registry=registry
        )
        self.computed = Counter(
            "servox_embedder_computed_audio_seconds",
            "Audio that the device computed, padding included.",
            registry=registry,
        )
        self.inflight = Gauge(
            "servox_embedder_inflight_audio_seconds", "Audio between admission and answer.", registry=registry
        )
        self.inflight_limit = Gauge(
            "servox_embedder_inflight_limit_audio_seconds",
            "Audio in flight above which single calls are refused.",
            registry=registry,
        )
        self.open_streams = Gauge("servox_embedder_open_streams", "Calls of EmbedStream under way.", registry=registry)
        self.bundle = Gauge(
            "servox_embedder_bundle_info",
            "Always 1; its labels say which bundle is served, on what.",
            ["digest", "source", "context", "precision", "runtime", "device"],
            registry=registry,
        )
        self.queued = Gauge(
            "servox_embedder_queued_audio_seconds", "Audio decoded and waiting for the device.", registry=registry
        )
        self.batch_fill = Histogram(
            "servox_embedder_batch_fill_ratio",
            "Padded audio of a batch by its budget.",
            buckets=_SHARES,
            registry=registry,
        )
        self.batch_padding = Histogram(
            "servox_embedder_batch_padding_ratio",
            "Share of a batch that was padding.",
            buckets=_SHARES,
            registry=registry,
        )
        self.batch_clips = Histogram(
            "servox_embedder_batch_clips", "Clips in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )

    def serves(self, bundle: Bundle, *, runtime: str, device: str) -> None:
        """Says what is served."""
        told = (bundle.digest[:12], bundle.source, str(bundle.context), bundle.precision, runtime, device)
        self.bundle.labels(*told).set(1)

    def count(self, method: str, error: BaseException | None) -> None:
        """Counts one answer; `error` None means that it was good."""
        self.requests.labels(method, _outcome(error)).inc()


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, ServoxError):
        return type(error).__name__
    return "internal" if isinstance(error, Exception) else "cancelled"


def _stage(name: str, what: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"servox_embedder_{name}_seconds", f"Time spent {what}.", buckets=_STAGE_S, registry=registry)
