"""`servox serve …`: a signal ends a service in every state, and what started is undone."""

import asyncio
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from services.serving import until_stopped
from servox.errors import Unavailable


class Recorded:
    """A service that says what was done to it."""

    def __init__(self, *, fails: Exception | None = None) -> None:
        self.fails = fails
        self.stopped = 0

    async def start(self) -> str:
        if self.fails:
            raise self.fails
        return "unix:here"

    async def stop(self) -> None:
        await asyncio.sleep(0)
        self.stopped += 1


class Dying(Recorded):
    """A service whose worker dies once it serves."""

    async def wait_failed(self) -> None:
        raise Unavailable("the device is gone")


# In a process of its own, because signals are a whole process's. "starting" never gets past its start.
SIGNALLED = textwrap.dedent("""
    import asyncio, sys
    from services.serving import until_stopped

    class Service:
        async def start(self):
            if sys.argv[1] == "starting":
                await self.wait_failed()
            return "unix:here"

        async def wait_failed(self):
            print("here", flush=True)
            await asyncio.Event().wait()

        async def stop(self):
            await asyncio.sleep(0)
            print("stopped", flush=True)

    asyncio.run(until_stopped(Service()))
""")


@pytest.mark.parametrize("state", ["serving", "starting"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_service_that_serves_or_still_starts(state: str, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SIGNALLED, state]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        assert process.communicate(timeout=60)[0] == "stopped\n"
    assert process.returncode == 0


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
