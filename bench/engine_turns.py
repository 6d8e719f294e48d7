"""Engines in processes of their own, one at a time in turn: features first, then rounds of timing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.engine_models import ROOT, Engine, Models
from bench.engine_speech import Speech

PEAK = "peak"
PEAK_S = 0.5

Measured = dict[str, list[dict[str, float]]]


class Worker:
    """A process with one engine; it works only while `ask` waits for it."""

    def __init__(self, setup: dict[str, Any]) -> None:
        threads = str(setup["threads"])
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
        self._name = setup["name"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.engine_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, **dict.fromkeys(names, threads), **quiet},
        )
        self.ask(setup)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """The answer to one order.

        Raises:
            RuntimeError: when the process ended.
        """
        assert self.process.stdin is not None  # both are pipes
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine {self._name!r} ended: run python -m bench.engine_worker to see why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def layout(engine: Engine, cpus: int) -> tuple[int, int]:
    """Clips at a time, and threads of each: transformers as it comes, everyone else one thread a clip."""
    return (1, cpus) if engine.package == "transformers" else (cpus, 1)


@contextmanager
def opened(engine: Engine, models: Models, cpus: int) -> Iterator[Worker]:
    """The engine's process, ended afterwards."""
    streams, threads = layout(engine, cpus)
    worker = Worker(
        {
            "name": engine.name,
            "package": engine.package,
            "path": str(models.path(engine)),
            "context": engine.context,
            "precision": engine.precision,
            "mels": models.sizes().mels,
            "streams": streams,
            "threads": threads,
        }
    )
    try:
        yield worker
    finally:
        worker.close()


def feature_path(engine: Engine, models: Models, speech: Speech, cache: Path) -> Path:
    """Where the engine's vectors of a corpus are kept."""
    what = f"{engine.name}-{models.blocks(engine)}-{engine.context}-{models.identity(engine)}"
    name = "".join(letter if letter.isalnum() else "_" for letter in what)
    return cache / "features" / f"{models.sha256[:12]}-{name}" / f"{speech.digest[:16]}.npy"


def features(
    engine: Engine, models: Models, corpora: Sequence[Speech], cache: Path, cpus: int
) -> list[NDArray[np.float32]]:
    """Vectors [clips, d] of each corpus; what the cache lacks is computed now."""
    paths = [feature_path(engine, models, speech, cache) for speech in corpora]
    if not all(path.is_file() for path in paths):
        with opened(engine, models, cpus) as worker:
            for path, speech in zip(paths, corpora, strict=True):
                if not path.is_file():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    partial = path.with_suffix(".partial.npy")
                    worker.ask({"embed": str(speech.path), "out": str(partial)})
                    partial.rename(path)
    return [np.load(path) for path in paths]


def rounds(
    engines: Sequence[Engine], models: Models, clips: Path, *, count: int, seconds: float, cpus: int
) -> Iterator[tuple[int, str, dict[str, float]]]:
    """What each engine, and the machine's peak, gave in each round."""
    with ExitStack() as stack:
        peak = Worker({"name": PEAK, "package": PEAK, "streams": 1, "threads": cpus})
        stack.callback(peak.close)
        workers = {engine.name: stack.enter_context(opened(engine, models, cpus)) for engine in engines}
        for engine in engines:
            # A padded engine knows one shape only.
            workers[engine.name].ask({"warm": str(clips), "clips": cpus if engine.context == "padded" else 10_000})
        for number in range(count):
            yield number, PEAK, peak.ask({"peak": PEAK_S})
            for engine in engines:
                yield number, engine.name, workers[engine.name].ask({"time": str(clips), "seconds": seconds})
