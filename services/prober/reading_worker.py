"""One process that reads one file at a time in blocks, so that a hostile file harms nobody but itself.

    socket (SOCK_SEQPACKET)   → JSON: max_duration_ms; with it the descriptor of the file
                              ← JSON: rate_hz, channels, promised_ms; blocks of float32; JSON: end, or an error

- A block is sent when there is room for it: a reader that is not read waits.
- It ends when its socket closes: no worker outlives its server, however that died.
- SIGINT and SIGTERM sent to a whole group are for the server, which drains with its workers alive.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

from servox.blocks import open_audio
from servox.confinement import confine, data_bytes, place
from servox.errors import BadInput

PACKET_BYTES = 1 << 16
BLOCK, WORDS = b"B", b"J"  # what a packet holds, by its first byte
MESSAGE_CHARACTERS = 2_000


def words(**content: object) -> bytes:
    """A packet of JSON."""
    return WORDS + json.dumps(content).encode()


def main() -> None:
    """Serves the socket whose descriptor is the first argument; the second bounds the memory of one file."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as peer:
        confine(data_bytes() + int(sys.argv[2]))
        while True:
            packet, files, _, _ = socket.recv_fds(peer, PACKET_BYTES, 1)
            if not packet:
                return
            try:
                peer.send(_read(peer, files[0], json.loads(packet)["max_duration_ms"]))
            finally:
                os.close(files[0])


def _read(peer: socket.socket, file: int, max_duration_ms: int) -> bytes:
    """Sends what is in a file; returns what there is to say at its end."""
    try:
        with open_audio(Path(f"/proc/self/fd/{file}"), max_duration_ms=max_duration_ms) as reader:
            peer.send(words(rate_hz=reader.rate_hz, channels=reader.channels, promised_ms=reader.promised_ms))
            while (block := reader.read()) is not None:
                data = np.ascontiguousarray(block).data.cast("B")
                for start in range(0, len(data), PACKET_BYTES):
                    peer.send(BLOCK + data[start : start + PACKET_BYTES])
    except BadInput as error:
        if isinstance(error.__cause__, MemoryError):  # FFmpeg's, which the decoder took for damage
            return words(error="memory")
        return words(error=type(error).__name__, message=str(error)[:MESSAGE_CHARACTERS])
    except MemoryError:
        return words(error="memory")
    except OSError:
        raise  # the socket is gone
    except Exception as error:  # noqa: BLE001 -- the process's edge; its text may hold data, so only its place is told
        return words(error="bug", message=f"{type(error).__name__} at {place(error)}")
    return words(end=True)


def parsed(packet: bytes) -> dict[str, Any]:
    """What a packet of JSON says.

    Raises:
        ValueError: it is none.
    """
    if packet[:1] != WORDS:
        raise ValueError("a packet of words was due")
    found: dict[str, Any] = json.loads(packet[1:])
    return found


if __name__ == "__main__":
    main()
