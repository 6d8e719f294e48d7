"""Where tests find real speech and real encoders: one setting, `SERVOX_DATA`. What hypothesis may complain of."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

# How long an example takes says how busy the machine is, nothing of the code.
SLOW = (hypothesis.HealthCheck.too_slow,)
hypothesis.settings.register_profile("servox", deadline=None, suppress_health_check=SLOW, print_blob=True)
hypothesis.settings.load_profile("servox")

ROOT = Path(__file__).resolve().parent.parent


def _data_root() -> Path | None:
    named = os.environ.get("SERVOX_DATA")
    root = Path(named) if named else ROOT.parent / "shared"
    return root if (root / "corpora").is_dir() else None


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with `corpora/` and `models/`; tests that need it are skipped where it is absent."""
    root = _data_root()
    if root is None:
        pytest.skip("no real speech here: set SERVOX_DATA to a folder with corpora/ and models/")
    return root


@pytest.fixture(scope="session")
def whisper_base(data_root: Path) -> Path:
    """Checkpoint folder of whisper-base's encoder."""
    folder = data_root / "models" / "whisper-base"
    if not folder.is_dir():
        pytest.skip(f"no checkpoint at {folder}")
    return folder


@pytest.fixture(scope="session")
def whisper_tiny(data_root: Path) -> Path:
    """Checkpoint folder of whisper-tiny.en's encoder."""
    folder = data_root / "models" / "whisper-tiny.en"
    if not folder.is_dir():
        pytest.skip(f"no checkpoint at {folder}")
    return folder


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Where every span that ends during one test goes."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # OpenTelemetry lets a process set its provider once; other tests of this process must not be traced.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()
