"""What a peer's process is told: one JSON object in the environment, because each framework parses its own flags."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "SERVOX_BENCH_OPTIONS"
GRPC_METHOD = "/bench.Embedder/Embed"  # of `bench.peers.grpc_server`


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a peer runs the bundle.

    Args:
        bundle: folder of the bundle.
        port: of its HTTP server.
        workers: copies of the encoder, each running one batch at a time.
        threads: of each copy.
        batch: most clips in a batch.
        wait_ms: longest wait for company.
        queue: most requests waiting, where the framework bounds them.
        deadline_ms: after which an answer is of no use, where the framework can be told.
        warm_s: lengths to run once before the peer is ready.
        decoders: processes that only decode, where the framework has stages; 0: the encoder's own process decodes.
    """

    bundle: str
    port: int
    workers: int
    threads: int
    batch: int
    wait_ms: float
    queue: int
    deadline_ms: int
    warm_s: tuple[float, ...] = ()
    decoders: int = 0

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return Path(self.bundle)

    def to_environment(self) -> dict[str, str]:
        """What `from_environment` reads."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> "Options":
        """The options of this process."""
        return cls(**json.loads(os.environ[VARIABLE]))
