import asyncio

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.embedder.metrics import METHODS, OUTCOMES, EmbedderMetrics
from servox.errors import BadAudio, Overloaded, leaves
from servox.telemetry import Metrics


def _registry() -> tuple[EmbedderMetrics, CollectorRegistry]:
    metrics = Metrics()
    return EmbedderMetrics(metrics), metrics.registry


def test_every_metric_is_named_after_the_service_and_says_what_it_is() -> None:
    _, registry = _registry()
    families = list(registry.collect())
    assert len(families) >= 10
    for family in families:
        assert family.name.startswith("servox_embedder_")
        assert family.type in ("counter", "gauge", "histogram"), "a summary cannot be added up over replicas"
        assert family.documentation.endswith(".")


def test_labels_are_a_closed_set_that_shows_from_the_start() -> None:
    _, registry = _registry()
    for method in METHODS:
        for outcome in OUTCOMES:
            labels = {"method": method, "outcome": outcome}
            assert registry.get_sample_value("servox_embedder_requests_total", labels) == 0
    assert {cls.__name__ for cls in leaves()} <= set(OUTCOMES)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (BadAudio("x"), "BadAudio"),
        (Overloaded("x"), "Overloaded"),
        (LookupError("x"), "internal"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_an_answer_is_counted_by_its_outcome(error: BaseException | None, outcome: str) -> None:
    metrics, registry = _registry()
    metrics.count("Embed", error)
    assert registry.get_sample_value("servox_embedder_requests_total", {"method": "Embed", "outcome": outcome}) == 1
    counted = [line for line in generate_latest(registry).decode().splitlines() if "requests_total{" in line]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in counted) == 1
