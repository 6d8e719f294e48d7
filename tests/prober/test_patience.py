"""What is left of a caller's time, and who is told."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from services.prober.embedder import Embedder
from services.prober.patience import left_s, waiting
from services.prober.settings import Settings
from servox.errors import DeadlineExpired, Unavailable
from servox.rpc import Server
from servox.v1 import embedder_pb2, embedder_pb2_grpc


def test_the_shortest_of_all_waits_counts() -> None:
    assert left_s(60) == 60
    with waiting(None):
        assert left_s(60) == 60
    with waiting(10):
        assert 9 < left_s(60) <= 10
        assert left_s(3) == 3
        with waiting(100):
            assert left_s(60) <= 10
        with waiting(-1):
            assert left_s(60) == 0
        assert left_s(60) > 9
    assert left_s(60) == 60


async def test_tasks_that_are_begun_for_a_call_know_of_it() -> None:
    async def asked() -> float:
        await asyncio.sleep(0)
        return left_s(60)

    with waiting(5):
        inside = asyncio.create_task(asked())
    assert await inside <= 5
    assert await asyncio.create_task(asked()) == 60


class Slow(embedder_pb2_grpc.EmbedderServicer):
    """Notes how long it is given, and takes longer."""

    def __init__(self) -> None:
        self.given_s: list[float] = []

    async def Embed(self, request: Any, context: Any) -> embedder_pb2.EmbedResponse:  # noqa: ANN401, ARG002, N802
        self.given_s.append(context.time_remaining())
        await asyncio.sleep(30)
        return embedder_pb2.EmbedResponse()


@pytest.mark.parametrize(("ours_s", "theirs_s", "error"), [(20.0, 3.0, DeadlineExpired), (3.0, 20.0, Unavailable)])
async def test_the_embedder_is_told_and_who_ran_out_of_time_decides_the_error(
    tmp_path: Path, ours_s: float, theirs_s: float, error: type[Exception]
) -> None:
    slow = Slow()
    server = Server(address=f"unix:{tmp_path / 'e.sock'}", services=[], max_message_bytes=1 << 20)
    embedder_pb2_grpc.add_EmbedderServicer_to_server(slow, server.grpc)  # type: ignore[no-untyped-call]
    address = await server.start()
    embedder = Embedder(Settings.load({"embedder": address, "embed_timeout_s": ours_s, "heads": tmp_path}))
    began_s = time.monotonic()
    with waiting(theirs_s), pytest.raises(error):
        await embedder.answer(embedder_pb2.EmbedRequest())
    assert time.monotonic() - began_s < 15, "neither wait was kept to"
    assert slow.given_s == [pytest.approx(1.6, abs=1.5)]
    await embedder.close()
    await server.stop()
