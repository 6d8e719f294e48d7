"""What a team writes itself: Python's gRPC, a pool of threads with an encoder each, a bound on what waits.

It decodes in the thread that encodes and has no metrics, traces, health, streams or drain: the least that gRPC in
Python costs.
"""

import asyncio
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc

from bench.peers.encoder import Encoder
from bench.peers.options import GRPC_METHOD, Options


class Embedder:
    """Embeds clips in threads.

    Args:
        options: what the server is told.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(options.workers, initializer=self._equip)
        self._waiting = 0

    async def warm(self) -> None:
        """Until each thread has its encoder."""
        barrier = threading.Barrier(self._options.workers)
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._pool, barrier.wait) for _ in range(self._options.workers)))

    async def embed(self, clip: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
        """The vector of one file, little-endian float32."""
        if self._waiting >= self._options.queue:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        self._waiting += 1
        remaining_s = cast("float | None", context.time_remaining())  # its types know no call without a deadline
        until_s = math.inf if remaining_s is None else time.monotonic() + remaining_s
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._embed, clip, until_s)
        finally:
            self._waiting -= 1

    def _equip(self) -> None:
        self._own.encoder = Encoder(self._options)

    def _embed(self, clip: bytes, until_s: float) -> bytes:
        if time.monotonic() >= until_s:
            return b""  # its caller is gone
        encoder: Encoder = self._own.encoder
        return encoder.embed([clip])[0]


async def serve() -> None:
    """Serves until the process ends."""
    options = Options.from_environment()
    embedder = Embedder(options)
    await embedder.warm()
    server = grpc.aio.server()
    service, method = GRPC_METHOD.strip("/").split("/")
    handler: Any = grpc.unary_unary_rpc_method_handler(embedder.embed)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(f"127.0.0.1:{options.port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
