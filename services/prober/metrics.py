"""Every metric of the prober: names, units, buckets, closed label sets."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from servox.errors import ServoxError
from servox.telemetry import Metrics

_STAGE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_HTTP_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)
_TRAIN_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_SHARE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_NATS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)


class ProberMetrics:
    """The prober's counters and histograms in one registry."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.requests = Counter(
            "servox_prober_requests",
            "Calls by method and outcome: ok, the class of the error, cancelled, or crash.",
            ["method", "outcome"],
            registry=registry,
        )
        self.train_seconds = Histogram(
            "servox_prober_train_seconds",
            "Wall time of one Train call that ran to its end.",
            buckets=_TRAIN_BUCKETS,
            registry=registry,
        )
        self.heads_trained = Counter(
            "servox_prober_heads_trained",
            "Heads asked of Train by kind and outcome: trained, reused, failed.",
            ["kind", "outcome"],
            registry=registry,
        )
        self.trainings_waiting = Gauge(
            "servox_prober_trainings_waiting", "Train calls that wait for the one that runs.", registry=registry
        )
        self.stage_seconds = Histogram(
            "servox_prober_recognise_stage_seconds",
            "Time of one stage of a recognition: decode, embed, head, total.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self.clips = Counter(
            "servox_prober_clips",
            "Clips or windows that a head has scored, by method.",
            ["method"],
            registry=registry,
        )
        self.abstentions = Counter(
            "servox_prober_abstentions",
            "Windows that abstained, by reason: silence, too_short, out_of_distribution.",
            ["reason"],
            registry=registry,
        )

        self.stage_windows = Counter(
            "servox_prober_stage_windows",
            "Windows of heads that are rolled out, by name, stage and answer: a class, or out_of_distribution.",
            ["head", "stage", "label"],
            registry=registry,
        )
        self.stage_confidence = Histogram(
            "servox_prober_stage_confidence",
            "Probability of the most probable class, by name and stage; heads that are rolled out.",
            ["head", "stage"],
            buckets=_SHARE_BUCKETS,
            registry=registry,
        )
        self.stage_calls = Counter(
            "servox_prober_stage_calls",
            "Calls of heads that are rolled out, by name, stage and outcome: ok, class of the error, cancelled, crash.",
            ["head", "stage", "outcome"],
            registry=registry,
        )
        self.canary_fallbacks = Counter(
            "servox_prober_canary_fallbacks",
            "Calls that production answered because the canary could not: missing, damaged, bundle.",
            ["head", "reason"],
            registry=registry,
        )
        self.shadow_windows = Counter(
            "servox_prober_shadow_windows",
            "Windows left to a shadow, by name and outcome: agreed, disagreed (another class), dropped, unfit.",
            ["head", "outcome"],
            registry=registry,
        )
        self.shadow_divergence = Histogram(
            "servox_prober_shadow_divergence_nats",
            "Jensen-Shannon divergence between a shadow's probabilities and production's; at most ln 2.",
            ["head"],
            buckets=_NATS_BUCKETS,
            registry=registry,
        )
        self.shadow_confidence = Histogram(
            "servox_prober_shadow_confidence",
            "Probability of the most probable class on the windows that both scored: production, shadow.",
            ["head", "by"],
            buckets=_SHARE_BUCKETS,
            registry=registry,
        )

        self.http_requests = Counter(
            "servox_prober_http_requests",
            "HTTP requests by route, method and status; 499 is a caller who left. Streams by the code of their close.",
            ["route", "method", "status"],
            registry=registry,
        )
        self.http_seconds = Histogram(
            "servox_prober_http_seconds",
            "Wall time of an HTTP request from its headers to the end of its answer, by route; streams are left out.",
            ["route"],
            buckets=_HTTP_BUCKETS,
            registry=registry,
        )
        self.http_under_way = Gauge(
            "servox_prober_http_under_way",
            "HTTP requests that hold audio and streams of the WebSocket at this moment, by kind: request, stream.",
            ["kind"],
            registry=registry,
        )
        self.registry = registry

    @contextmanager
    def call(self, method: str) -> Iterator[None]:
        """Counts one call with its outcome."""
        outcome = "cancelled"
        try:
            yield
            outcome = "ok"
        except ServoxError as error:
            outcome = type(error).__name__
            raise
        except ConnectionAbortedError:  # the caller left
            raise
        except Exception:
            outcome = "crash"
            raise
        finally:
            self.requests.labels(method, outcome).inc()
