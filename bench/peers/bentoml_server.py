"""BentoML with adaptive batching: each worker process has a dispatcher that learns how long batches take."""

import base64
import importlib

from bench.peers.encoder import Encoder
from bench.peers.options import Options

bentoml = importlib.import_module("bentoml")
OPTIONS = Options.from_environment()


class Embed:
    """The encoder behind /embed; a caller posts a list of one file, and BentoML joins the lists."""

    def __init__(self) -> None:
        self._encoder = Encoder(OPTIONS)

    def embed(self, clips: list[str]) -> list[str]:
        """Vectors of a batch, in base64 like the files."""
        vectors = self._encoder.embed([base64.b64decode(clip) for clip in clips])
        return [base64.b64encode(vector).decode() for vector in vectors]


Embed.embed = bentoml.api(batchable=True, max_batch_size=OPTIONS.batch, max_latency_ms=OPTIONS.deadline_ms)(Embed.embed)  # type: ignore[method-assign]
Service = bentoml.service(
    name="embed",
    workers=OPTIONS.workers,
    traffic={"timeout": OPTIONS.deadline_ms / 1000, "max_concurrency": OPTIONS.queue},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)(Embed)
