"""What an embedder takes beside its encoder: processor time a clip, by thread, where the encoder takes none.

    python -m bench.overhead [--bundle FOLDER] [--data FOLDER] [--rounds 5] [--seconds 4] [--clients 16]

The whole embedder runs as it is served, with one thing replaced: the encoder's threads sleep for `--encoder-ms` and
answer zeros. What is left is the transport, admission, decoding, the queue and the answer: the event loop, gRPC's own
threads, the encoder's threads outside the encoder, the processes that decode. On a busy machine processor time drifts
less than time does; the smallest of the rounds is the figure. Ends with one line of JSON.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from bench import material
from bench.load import GrpcTarget, closed_loop
from bench.peers.catalogue import ours_body
from bench.peers.processes import PROC
from services.embedder.bundle import Bundle
from services.embedder.runtimes import Lengths, Pcm, Result, Runtime
from services.embedder.server import EmbedderServer
from services.embedder.settings import Settings
from servox.rpc import channel
from servox.telemetry import Metrics

PATIENCE_S = 30.0


class Idle:
    """A runtime that sleeps instead of computing."""

    name = "idle"
    device = "cpu"

    def __init__(self, bundle: Bundle, *, sleep_s: float) -> None:
        self._shape = (len(bundle.layers), 2, bundle.dims)
        self._sleep_s = sleep_s

    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:  # noqa: ARG002 -- a runtime's signature
        """Zeros."""
        time.sleep(self._sleep_s)
        return Result(statistics=np.zeros((len(pcm), *self._shape), np.float32), frames=None)

    def close(self) -> None:
        """Nothing to free."""


def _cpu_ms(task: Path) -> float:
    """Processor time of one thread; 0 when it is gone."""
    with suppress(OSError):
        return int((task / "schedstat").read_text(encoding="ascii").split()[0]) / 1e6
    return 0.0


def spent_ms() -> dict[str, float]:
    """Processor time of this process's threads, and of the processes that it started, by what they do."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found: dict[str, float] = defaultdict(float)
    for task in (PROC / "self").glob("task/*"):
        name = names.get(int(task.name)) or "gRPC's threads"
        found[name.split("-")[0].replace("MainThread", "event loop")] += _cpu_ms(task)
    children = PROC / "self" / "task" / str(threading.main_thread().native_id) / "children"
    for child in children.read_text(encoding="ascii").split():
        found["decoders"] += sum(_cpu_ms(task) for task in (PROC / child).glob("task/*"))
    return dict(found)


async def serve(given: argparse.Namespace) -> None:
    """Serves, and answers each line on standard input with `spent_ms`; ends with its input."""
    settings = Settings.load({"bundle": given.bundle, "grpc_socket": given.socket, "metrics_port": 0})

    def opened(bundle: Bundle, *_: object, streams: int, **__: object) -> list[Runtime]:
        return [Idle(bundle, sleep_s=given.encoder_ms / 1000) for _ in range(streams)]

    server = EmbedderServer(settings, Metrics(), opened=opened)
    await server.start()
    try:
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(spent_ms()), flush=True)
    finally:
        await server.stop()


def _ask(server: "subprocess.Popen[str]") -> dict[str, float]:
    if server.stdin is None or server.stdout is None:
        raise RuntimeError("the server was started without pipes")
    server.stdin.write("\n")
    server.stdin.flush()
    found: dict[str, float] = json.loads(server.stdout.readline())
    return found


async def measure(given: argparse.Namespace, server: "subprocess.Popen[str]") -> list[dict[str, float]]:
    """Milliseconds a clip by thread, for each round; the generator's own and the answers a second beside them."""
    speech = material.speech(given.clips, data=given.data)
    bodies = [ours_body(data) for data in speech.files]
    target = GrpcTarget(channel(f"unix:{given.socket}"), "/servox.v1.Embedder/Embed", bodies)
    rounds = []
    try:
        for number in range(given.rounds + 1):
            before, began_s, own_s = _ask(server), time.monotonic(), time.process_time()
            burst = await closed_loop(
                target,
                clients=given.clients,
                clips=len(bodies),
                ramp_s=0.0,
                window_s=given.seconds,
                patience_s=PATIENCE_S,
                seed=number,
            )
            count, took_s, after = len(burst.shots), time.monotonic() - began_s, _ask(server)
            found = {name: (after[name] - before.get(name, 0.0)) / count for name in after}
            found["generator"] = 1000 * (time.process_time() - own_s) / count
            rounds.append({**found, "answers a second": count / took_s})
    finally:
        await target.close()
    return rounds[1:]  # the first one warms


def report(rounds: list[dict[str, float]]) -> Mapping[str, float]:
    """Prints and gives the least of each thread, and of all of them together, over the rounds."""
    parts = sorted({name for each in rounds for name in each} - {"answers a second", "generator"})
    least = {name: min(each.get(name, 0.0) for each in rounds) for name in parts}
    for name, value in sorted(least.items(), key=lambda item: -item[1]):
        print(f"{name:20} {value:6.3f} ms a clip")
    sums = [sum(each.get(name, 0.0) for name in parts) for each in rounds]
    print(f"{'all of it':20} {min(sums):6.3f} ms a clip")
    generator = min(each["generator"] for each in rounds)
    print(f"{'(generator)':20} {generator:6.3f} ms a clip")
    return {**least, "all": min(sums), "generator": generator}


def main() -> None:
    """Measures, prints a table, and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="default: the demo's bundle, exported where it is missing")
    parser.add_argument("--data", type=Path, help="folder with corpora/ and models/; default: SERVOX_DATA")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--encoder-ms", type=float, default=10.0, help="for which the encoder's threads sleep")
    parser.add_argument("--socket", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.socket:
        asyncio.run(serve(given))
        return
    given.bundle = material.bundle(given.bundle, data=given.data).folder
    with tempfile.TemporaryDirectory() as folder:
        given.socket = Path(folder) / "e.sock"
        command = [sys.executable, "-m", "bench.overhead", "--socket", str(given.socket), "--bundle", str(given.bundle)]
        command += ["--encoder-ms", str(given.encoder_ms)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            if server.stdout is None or server.stdout.readline() != "ready\n":
                raise RuntimeError("the server does not start; what it wrote is above")
            try:
                figures = report(asyncio.run(measure(given, server)))
            finally:
                if server.stdin:
                    server.stdin.close()
    print(json.dumps({"bench": "overhead", "clients": given.clients, "ms_a_clip": figures}))


if __name__ == "__main__":
    main()
