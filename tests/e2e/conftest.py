"""Sample runs to look at in a browser, and the browser."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


@pytest.fixture(scope="session")
def browser_command() -> Callable[[str], list[str]]:
    """The command that runs a script of this folder; skips the test where there is no browser."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here: install Node.js 20 or later")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}: apt-get install chromium, or set CHROMIUM")
    if not (ROOT / "node_modules" / "playwright-core").is_dir():
        pytest.skip("no playwright-core: run npm install")
    return lambda script: [node, str(ROOT / "tests" / "e2e" / script)]


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
