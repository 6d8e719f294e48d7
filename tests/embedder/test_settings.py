from pathlib import Path

import pytest

from services.embedder.settings import BUCKETS_S, Settings
from servox.errors import BadSetting


def _load(**flags: object) -> Settings:
    return Settings.load({"bundle": "b", **flags})


def test_the_defaults_are_those_of_the_design() -> None:
    settings = _load()
    assert (settings.address, settings.metrics_port) == ("127.0.0.1:50051", 9101)
    assert settings.bundle == Path("b")


def test_a_bundle_must_be_named() -> None:
    with pytest.raises(BadSetting, match="bundle"):
        Settings.load()


def test_the_environment_speaks_in_the_services_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVOX_EMBEDDER_GRPC_PORT", "6000")
    monkeypatch.setenv("SERVOX_EMBEDDER_BUNDLE", "/bundles/base")
    settings = Settings.load()
    assert (settings.grpc_port, settings.bundle) == (6000, Path("/bundles/base"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"max_inflight_audio_s": 29}, "max_inflight_audio_s = 29 cannot hold one clip"),
        ({"batch_budget_s": 29}, "batch_budget_s = 29 cannot hold one clip"),
        ({"min_duration_ms": 500, "max_duration_ms": 500}, "min_duration_ms = 500"),
        ({"streams": -1}, "streams"),
        ({"engine": "torch"}, "engine"),
    ],
)
def test_combinations_that_would_never_serve_are_refused(flags: dict[str, object], says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        _load(**flags)


@pytest.mark.parametrize(
    ("cpus", "device", "expected"),
    [(1, "cpu", (1, 1, 1)), (2, "auto", (2, 1, 2)), (9, "cpu", (2, 4, 4)), (8, "cuda", (1, 8, 4))],
)
def test_threads_are_those_that_the_machine_grants(
    monkeypatch: pytest.MonkeyPatch, cpus: int, device: str, expected: tuple[int, ...]
) -> None:
    monkeypatch.setattr("servox.cpus.here", lambda: cpus)
    settings = _load(device=device)
    assert (settings.stream_count, settings.threads_per_stream, settings.decoder_count) == expected


def test_what_is_set_is_what_is_used() -> None:
    settings = _load(streams=3, threads=5, decode_workers=7, batch_clips=9)
    assert (settings.stream_count, settings.threads_per_stream, settings.decoder_count) == (3, 5, 7)
    assert settings.clips_per_batch("openvino") == settings.clips_per_batch("onnx") == 9


@pytest.mark.parametrize(
    ("device", "engine", "clips"), [("cpu", "openvino", 2), ("auto", "onnx", 1), ("cuda", "onnx", 64)]
)
def test_company_on_a_cpu_must_not_change_an_answer(device: str, engine: str, clips: int) -> None:
    assert _load(device=device).clips_per_batch(engine) == clips


def test_buckets_ascend_and_end_with_the_longest_clip() -> None:
    assert list(BUCKETS_S) == sorted(set(BUCKETS_S))
    assert BUCKETS_S[-1] * 1000 == _load().max_duration_ms
