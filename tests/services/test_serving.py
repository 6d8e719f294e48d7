"""`servox serve …`: a signal ends a service in every state, and what started is undone."""

import asyncio
import os
import signal

import pytest

from services.serving import until_stopped
from servox.errors import Unavailable


class Recorded:
    """A service that says what was done to it; `stuck` never gets past its start."""

    def __init__(self, *, stuck: bool = False, fails: Exception | None = None) -> None:
        self.stuck = stuck
        self.fails = fails
        self.starting = asyncio.Event()
        self.stopped = 0

    async def start(self) -> str:
        self.starting.set()
        if self.fails:
            raise self.fails
        if self.stuck:
            await asyncio.Event().wait()
        return "unix:here"

    async def stop(self) -> None:
        await asyncio.sleep(0)
        self.stopped += 1


class Dying(Recorded):
    """A service whose worker dies once it serves."""

    async def wait_failed(self) -> None:
        raise Unavailable("the device is gone")


@pytest.mark.parametrize("stuck", [False, True], ids=["serving", "starting"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_service_that_serves_or_still_starts(stuck: bool, number: signal.Signals) -> None:
    service = Recorded(stuck=stuck)
    serving = asyncio.ensure_future(until_stopped(service))
    await service.starting.wait()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(serving, 30)
    assert service.stopped == 1


async def test_a_start_that_fails_is_undone_and_raised() -> None:
    service = Recorded(fails=Unavailable("the address is taken"))
    with pytest.raises(Unavailable, match="address is taken"):
        await until_stopped(service)
    assert service.stopped == 1


async def test_a_worker_that_dies_ends_the_service_with_its_reason() -> None:
    service = Dying()
    with pytest.raises(Unavailable, match="device is gone"):
        await until_stopped(service)
    assert service.stopped == 1
