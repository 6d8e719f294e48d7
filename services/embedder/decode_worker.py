"""One process that decodes, one clip at a time, so that a hostile file harms nobody but itself.

    socket (SOCK_SEQPACKET, JSON)   → bytes, truncate_ms          ← samples, duration_ms, truncated, or an error
    shared memory                   → the file, from offset 0     ← mono float32 samples, from offset 0

- It imports what decodes and nothing else: no device, no gRPC server, no event loop.
- Memory is bounded by `RLIMIT_DATA` above what it needs when idle; time by an alarm of its own, should the server be
  gone; it writes no file and leaves no core, for both would hold audio. The kernel is told to kill it first.
- It ends when its socket closes: no worker outlives its server, however that died.
- SIGINT and SIGTERM sent to a whole group are for the server, which drains with its workers alive.
"""

import json
import mmap
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from servox import audio
from servox.confinement import confine, data_bytes, place
from servox.errors import BadInput

PACKET_BYTES = 1 << 15
MESSAGE_CHARACTERS = 2_000
ALARM_MARGIN_S = 1.0
WORN_SHARE = 0.25  # of the memory limit still held between clips: time for a fresh process


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a worker is started with: file descriptors, the size of the shared memory, the target, the limits."""

    socket: int
    memory: int
    shared_bytes: int
    rate_hz: int
    memory_bytes: int
    timeout_s: float
    max_bytes: int
    min_duration_ms: int
    max_duration_ms: int
    silence_dbfs: float

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @property
    def limits(self) -> audio.Limits:
        """What a clip may be; `truncate_ms` is set by each request."""
        return audio.Limits(
            max_bytes=self.max_bytes,
            min_duration_ms=self.min_duration_ms,
            max_duration_ms=self.max_duration_ms,
            silence_dbfs=self.silence_dbfs,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Mono samples [n] at the encoder's rate, how long they last, and whether more was there."""

    samples: audio.Samples
    duration_ms: int
    truncated: bool


def decode(data: bytes | audio.Pcm, rate_hz: int, limits: audio.Limits, truncate_ms: int) -> Decoded:
    """Samples of one clip, cut after `truncate_ms` where that is positive.

    Raises:
        BadAudio: it cannot be decoded or holds nothing.
        TooLarge: over a limit, and no `truncate_ms` was given.
    """
    if truncate_ms <= 0:
        clip = audio.decode(data, rate_hz, limits)
        return Decoded(samples=clip.samples, duration_ms=clip.duration_ms, truncated=False)
    # One millisecond more than is kept, so that a clip of exactly that length is not called truncated.
    keep_ms = min(truncate_ms, limits.max_duration_ms)
    wider = audio.Limits(
        max_bytes=limits.max_bytes,
        min_duration_ms=limits.min_duration_ms,
        max_duration_ms=limits.max_duration_ms + 1,
        truncate_ms=keep_ms + 1,
        silence_dbfs=limits.silence_dbfs,
    )
    clip = audio.decode(data, rate_hz, wider)
    return Decoded(
        samples=clip.samples[: keep_ms * rate_hz // 1000],
        duration_ms=min(clip.duration_ms, keep_ms),
        truncated=clip.duration_ms > keep_ms,
    )


def main() -> None:
    """Serves the order given as the only argument until the socket closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    order = Order(**json.loads(sys.argv[1]))
    with socket.socket(fileno=order.socket) as peer, mmap.mmap(order.memory, order.shared_bytes) as shared:
        os.close(order.memory)
        idle_bytes = data_bytes()
        confine(idle_bytes + order.memory_bytes)
        peer.send(b"{}")  # ready
        while packet := peer.recv(PACKET_BYTES):
            signal.setitimer(signal.ITIMER_REAL, order.timeout_s + ALARM_MARGIN_S)
            reply = _answer(json.loads(packet), order, shared)
            signal.setitimer(signal.ITIMER_REAL, 0)
            reply["worn"] = data_bytes() - idle_bytes > WORN_SHARE * order.memory_bytes
            peer.send(json.dumps(reply).encode())


def _answer(request: dict[str, int], order: Order, shared: mmap.mmap) -> dict[str, Any]:
    try:
        clip = decode(shared[: request["bytes"]], order.rate_hz, order.limits, request["truncate_ms"])
        shared[: clip.samples.nbytes] = np.ascontiguousarray(clip.samples).data.cast("B")
    except BadInput as error:
        if isinstance(error.__cause__, MemoryError):  # FFmpeg's, which the decoder took for damage
            return {"error": "memory"}
        return {"error": type(error).__name__, "message": str(error)[:MESSAGE_CHARACTERS]}
    except MemoryError:
        return {"error": "memory"}
    except Exception as error:  # noqa: BLE001 -- the process's edge; its text may hold data, so only its place is told
        return {"error": "bug", "message": f"{type(error).__name__} at {place(error)}"}
    return {"samples": len(clip.samples), "duration_ms": clip.duration_ms, "truncated": clip.truncated}


if __name__ == "__main__":
    main()
