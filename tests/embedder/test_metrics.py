import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.embedder.metrics import METHODS, OUTCOMES, EmbedderMetrics
from services.embedder.server import EmbedderServer
from services.embedder.settings import Settings
from servox.client import Client, Clip, pcm
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


async def test_every_metric_moves_when_a_server_works(
    tiny_bundle: Path, tmp_path: Path, speech: Callable[..., np.ndarray]
) -> None:
    metrics = Metrics()
    flags = {"bundle": tiny_bundle, "grpc_socket": tmp_path / "e.sock", "metrics_port": 0, "decode_workers": 1}
    server = EmbedderServer(Settings.load({**flags, "streams": 1, "max_inflight_audio_s": 60}), metrics)
    address = await server.start()

    def value(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(f"servox_embedder_{name}", labels) or 0.0

    answered, streaming = asyncio.Event(), list[float]()

    async def clips() -> AsyncIterator[Clip]:
        for n in range(4):
            yield Clip(id=str(n), audio=pcm(speech(1.23), 16_000))
        await answered.wait()  # the call is open for as long as there may be more to send
        streaming.append(value("open_streams"))

    async with Client(embedder=address) as client:
        async for _ in client.embed(clips()):
            answered.set()
        digest = (await client.describe()).bundle.digest
    async with asyncio.timeout(10):
        while value("open_streams"):  # noqa: ASYNC110 -- a gauge has no event
            await asyncio.sleep(0.005)
    await server.stop()
    assert streaming == [1]
    for stage in ("decode", "queue", "inference", "total"):
        assert value(f"{stage}_seconds_count") == 4
        assert value(f"{stage}_seconds_sum") > 0
    assert value("total_seconds_sum") >= max(value(f"{s}_seconds_sum") for s in ("decode", "queue", "inference"))
    assert value("clip_audio_seconds_sum") == pytest.approx(4 * 1.23)
    assert value("computed_audio_seconds_total") == pytest.approx(4 * 1.3), "padded to the next 100 ms"
    assert value("batch_seconds_count") == value("batch_clips_sum") == 4, "one clip a batch while none waits"
    assert value("batch_padding_ratio_sum") == pytest.approx(4 * (1 - 1.23 / 1.3), abs=1e-3)
    assert value("batch_fill_ratio_sum") == pytest.approx(4 * 1.3 / 30, abs=1e-3)
    assert (value("inflight_audio_seconds"), value("queued_audio_seconds")) == (0, 0)
    assert value("inflight_limit_audio_seconds") == 60
    (bundle,) = (family for family in metrics.registry.collect() if family.name.endswith("bundle_info"))
    served = {each.labels["digest"] for each in bundle.samples}
    assert served == {digest[:12]}
