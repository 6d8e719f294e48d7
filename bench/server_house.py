"""Starts the servers that are compared, each marked, with what all of them share."""

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Burst, Target
from bench.peers import environment as environments
from bench.peers.catalogue import SERVERS, Server, Setting, interpreter, options
from bench.peers.options import Options
from bench.peers.processes import MARK, Running
from bench.server_start import free_port, ready
from servox import cpus

STARTS = 3
NOTHING: Mapping[str, str] = {}
ROOT = Path(__file__).resolve().parent.parent


@dataclass(kw_only=True)
class Subject:
    """A server that runs, and what was measured on it."""

    name: str
    server: Server
    told: Options
    running: Running
    files: Sequence[bytes]
    capacity: float = 0.0
    lost: str = ""  # the load under which it stopped to answer anything
    bursts: dict[tuple[str, float], list[Burst]] = field(default_factory=dict)
    cpu_s: dict[tuple[str, float], float] = field(default_factory=dict)
    recovery_s: dict[tuple[str, float], list[float]] = field(default_factory=dict)

    def target(self) -> Target:
        """A new connection."""
        return self.server.target(self.told.port, self.files)


class House:
    """Starts servers, with what all of them share.

    Args:
        bundle: that they serve.
        files: the clips.
        environments: folder of the peers'.
        mark: of everything that is started.
        scratch: for logs.
        deadline_s: of a request.
    """

    def __init__(
        self, bundle: Path, files: Sequence[bytes], *, environments: Path, mark: str, scratch: Path, deadline_s: float
    ) -> None:
        self.bundle = bundle.resolve()
        self.files = files
        self.mark = mark
        self.scratch = scratch
        self._environments = environments.resolve()
        self._deadline_ms = round(1000 * deadline_s)
        self._number = 0

    @property
    def variables(self) -> dict[str, str]:
        """The environment of every process: one thread where a library would take more, no reports to anyone."""
        return {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "BENTOML_HOME": str(self.scratch / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "XDG_CACHE_HOME": str(self.scratch / "cache"),
        }

    def told(self, setting: Setting) -> Options:
        """The options of one server, at a port of its own."""
        return options(
            bundle=self.bundle,
            port=free_port(),
            cores=cpus.here(),
            deadline_ms=self._deadline_ms,
            setting=setting,
        )

    async def start(
        self, name: str, setting: Setting, *, alias: str = "", environment: Mapping[str, str] = NOTHING
    ) -> Subject | str:
        """A server that answers, or why there is none.

        Args:
            name: in the catalogue.
            setting: of a peer.
            alias: what it is called in tables; its name, if empty.
            environment: more variables of the process.
        """
        server = SERVERS[name]
        if server.environment and (why := environments.make(self._environments, server.environment)):
            return f"its environment could not be made: {why}"
        why = ""
        for _ in range(STARTS):
            self._number += 1
            told = self.told(setting)
            running = Running(
                f"{name}-{self._number}",
                [interpreter(server, self._environments), *server.command(told)],
                environment={**self.variables, **told.to_environment(), **environment},
                mark=self.mark,
                log=self.scratch / f"{name}-{self._number}.log",
            )
            subject = Subject(name=alias or name, server=server, told=told, running=running, files=self.files)
            why = await ready(subject.target(), running)
            if not why:
                return subject
            running.stop()
        return why

    def start_bare(self) -> subprocess.Popen[str]:
        """The same work without a server (`bench.peers.bare`)."""
        clips = self.scratch / "clips.pickle"
        clips.write_bytes(pickle.dumps(list(self.files)))
        told = self.told({})
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers.bare", str(clips)],
            env={**os.environ, **self.variables, **told.to_environment(), MARK: f"{self.mark}/bare/"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        read_line(process)
        return process


def read_line(process: subprocess.Popen[str]) -> str:
    """What the process without a server says next.

    Raises:
        RuntimeError: it ended.
    """
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise RuntimeError("the process without a server ended; run it alone to see why: python -m bench.peers.bare")
    return line.strip()
