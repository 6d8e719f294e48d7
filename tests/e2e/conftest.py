"""Sample runs to look at in a browser."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def build_run() -> Callable[..., Path]:
    """Writes a sample run into a folder and returns it: `build_run(folder, synthetic=, paper=, heads=)`."""
    path = Path(__file__).resolve().parents[1] / "evaluator" / "report" / "sample.py"
    spec = importlib.util.spec_from_file_location("report_sample", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build: Callable[..., Path] = module.build
    return build
