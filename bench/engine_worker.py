"""One engine in a process of its own: reads orders as lines of JSON, answers each with one.

    {"embed": CLIPS, "out": FILE}          vectors of all clips
    {"warm": CLIPS, "clips": N}            the first N clips once: shapes met for the first time cost more
    {"time": CLIPS, "seconds": S}          whole passes over the clips for at least S seconds
    {"peak": S}                            GFLOP/s of matrix products

The engine is opened once for each of its streams: `streams` clips at a time, `threads` threads each.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from bench.engine_peers import Embed, Samples, Setup, open_engine
from bench.engine_speech import read_clips
from bench.engine_work import peaks


class Streams:
    """As many clips at a time as there are copies of the engine."""

    def __init__(self, make: Callable[[], Embed], streams: int) -> None:
        self._free: SimpleQueue[Embed] = SimpleQueue()
        for _ in range(streams):
            self._free.put(make())
        self._pool = ThreadPoolExecutor(streams)

    def embed(self, clips: list[Samples]) -> list[Samples]:
        """Vectors in the order of the clips."""
        return list(self._pool.map(self._one, clips))

    def _one(self, clip: Samples) -> Samples:
        engine = self._free.get()
        try:
            return engine(clip)
        finally:
            self._free.put(engine)


def timed(streams: Streams, clips: list[Samples], seconds: float) -> dict[str, float]:
    """Passes over the clips, longest first so that the streams end together; the time of the wall and of the CPU."""
    ordered = sorted(clips, key=len, reverse=True)
    began, cpu, passes = time.perf_counter(), time.process_time(), 0
    while not passes or time.perf_counter() - began < seconds:
        streams.embed(ordered)
        passes += 1
    count = passes * len(clips)
    return {
        "clips": count,
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "rss_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """Of this process alone: `ru_maxrss` would begin with what the process held that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def answer(order: dict[str, Any], streams: Streams | None, threads: int) -> dict[str, Any]:
    """What an order asks for."""
    if streams is None:
        return peaks(threads, order["peak"])
    if "embed" in order:
        vectors = np.stack(streams.embed(read_clips(Path(order["embed"]))))
        np.save(order["out"], vectors.astype(np.float32))
        return {"vectors": len(vectors)}
    if "warm" in order:
        return {"vectors": len(streams.embed(read_clips(Path(order["warm"]))[: order["clips"]]))}
    return timed(streams, read_clips(Path(order["time"])), order["seconds"])


def main() -> None:
    """Open the engine named by the first line, then obey the others."""
    reply = sys.stdout
    sys.stdout = sys.stderr
    setup = json.loads(sys.stdin.readline())
    streams = None
    if setup["package"] != "peak":
        opened = Setup(
            path=Path(setup["path"]),
            padded=setup["context"] == "padded",
            precision=setup["precision"],
            mels=setup["mels"],
            threads=setup["threads"],
        )
        streams = Streams(lambda: open_engine(setup["package"], opened), setup["streams"])
    print(json.dumps({"ready": True}), file=reply, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), streams, setup["threads"])), file=reply, flush=True)


if __name__ == "__main__":
    main()
