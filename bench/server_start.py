"""Where a server may listen, and when it is ready: the same for every bench that starts servers."""

import asyncio
import socket
import time

from bench.load import Target
from bench.peers.processes import Running

START_S = 120.0
FIRST_ANSWER_S = 10.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def ready(target: Target, running: Running) -> str:
    """Waits until a server answers a clip, and closes `target`; why it will not answer, or nothing."""
    until_s = time.monotonic() + START_S
    last = "no answer"
    try:
        while time.monotonic() < until_s and running.alive:
            try:
                await target.ask(0, patience_s=FIRST_ANSWER_S)
            except Exception as error:  # noqa: BLE001 -- whatever a server does that is not ready yet
                last = repr(error)
                await asyncio.sleep(0.25)
            else:
                running.settle()
                return ""
    finally:
        await target.close()
    state = f"it did not answer within {START_S:g} s ({last})" if running.alive else "it ended"
    return f"{state}; its log ends: {running.last_words()}"
