"""Sample runs for the tests of the report."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def build_run() -> Callable[..., Path]:
    """Writes a sample run into a folder and returns it: `build_run(folder, synthetic=, paper=, heads=)`."""
    path = Path(__file__).with_name("sample.py")
    spec = importlib.util.spec_from_file_location("report_sample", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build: Callable[..., Path] = module.build
    return build


@pytest.fixture
def sample_run(build_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A run of two heads on five corpora, and two cells of the paper's protocol."""
    return build_run(tmp_path / "run", paper=True)
