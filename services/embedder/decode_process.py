"""One decode worker seen from the server: its process, its socket, and the memory shared with it.

The memory cannot be resized once it is made, so that a worker gone bad cannot pull it away from under the server; what
a worker claims of its answer is checked before it is read.
"""

import asyncio
import fcntl
import json
import mmap
import os
import socket
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, replace
from signal import SIGABRT
from typing import Any

import numpy as np

from .decode_worker import PACKET_BYTES, Decoded, Order

MODULE = "services.embedder.decode_worker"
START_S = 60.0
COPY_BYTES = 1 << 20  # what is copied at once; the event loop runs in between
KEPT_BYTES = 4 << 20  # of the shared memory between clips; what a large file took beyond is given back
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there are no samples: the class of an error of ours, `memory` or `bug`."""

    kind: str
    message: str


class Lost(Exception):
    """The worker is dead, or does not keep to the protocol."""


class Process:
    """A running worker.

    Args:
        order: what it is started with; socket and memory are put in here.

    Raises:
        Lost: the process cannot be started.
    """

    def __init__(self, order: Order) -> None:
        self.asked = False  # whether an answer is due
        self.worn = False  # whether it holds too much memory to go on
        self._order = order
        self._used_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._packets: deque[bytes] = deque()  # that came and were not asked for yet; an empty one is the end
        self._coming: asyncio.Future[None] | None = None
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        memory = os.memfd_create("servox-decode", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memory, order.shared_bytes)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._shared = mmap.mmap(memory, order.shared_bytes)
            given = replace(order, socket=theirs.fileno(), memory=memory)
            # In a session of its own, so that Ctrl-C in a terminal reaches the server alone.
            self._process = subprocess.Popen(  # noqa: S603 -- our own module
                [sys.executable, "-P", "-m", MODULE, given.to_json()],
                pass_fds=(given.socket, given.memory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
            )
        except OSError as error:
            self._socket.close()
            raise Lost(f"cannot start a process: {error.strerror}") from None
        finally:
            theirs.close()
            os.close(memory)
        self._loop.add_reader(self._socket, self._read)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ready(self) -> None:
        """Waits until it is.

        Raises:
            Lost: it ended instead, or takes too long.
        """
        try:
            async with asyncio.timeout(START_S):
                await self._receive()
        except TimeoutError:
            raise Lost(f"it is not ready after {START_S:g} s") from None

    async def send(self, data: bytes, truncate_ms: int) -> None:
        """Asks for one clip; one at a time.

        Raises:
            Lost: it is dead.
        """
        if self._packets:
            self._process.send_signal(SIGABRT)  # of no effect on one that ended
            raise Lost("it ended, or spoke before it was asked")
        with memoryview(data) as view:
            for start in range(0, len(data), COPY_BYTES):
                part = view[start : start + COPY_BYTES]
                self._shared[start : start + len(part)] = part
                if len(data) > COPY_BYTES:
                    await asyncio.sleep(0)
        self._used_bytes = len(data)
        try:
            self._socket.send(json.dumps({"bytes": len(data), "truncate_ms": truncate_ms}).encode())
        except OSError:
            raise Lost("it closed its socket") from None
        self.asked = True

    async def reply(self) -> Decoded | Refusal:
        """The answer to what was sent.

        Raises:
            Lost: it died, or makes no sense, in which case it is made to die.
        """
        found = await self._receive()
        try:
            self.worn = bool(found["worn"])
            answer = Refusal(found["error"], str(found.get("message"))) if "error" in found else self._decoded(found)
        except (KeyError, TypeError, ValueError) as error:
            raise self._senseless() from error
        self.asked = False
        if self._used_bytes > KEPT_BYTES:
            self._shared.madvise(mmap.MADV_REMOVE, KEPT_BYTES, self._order.shared_bytes - KEPT_BYTES)
        return answer

    def wait(self) -> int:
        """Its exit code, negative for a signal; blocks until it has ended."""
        return self._process.wait()

    def kill(self) -> None:
        """Ends it, whatever it does; blocks until it has ended."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Gives back what a dead worker held."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._shared.close()

    def _decoded(self, found: dict[str, Any]) -> Decoded:
        count = int(found["samples"])
        if not 0 < count * 4 <= self._order.shared_bytes:
            raise ValueError(count)
        self._used_bytes = max(self._used_bytes, count * 4)
        samples = np.frombuffer(self._shared, np.float32, count).copy()
        return Decoded(samples=samples, duration_ms=int(found["duration_ms"]), truncated=bool(found["truncated"]))

    async def _receive(self) -> dict[str, Any]:
        if not self._packets:
            self._coming = self._loop.create_future()
            await self._coming
        if not self._packets[0]:
            raise Lost("it ended")
        try:
            found: dict[str, Any] = json.loads(self._packets.popleft())
        except ValueError as error:
            raise self._senseless() from error
        return found

    def _senseless(self) -> Lost:
        self._process.send_signal(SIGABRT)
        return Lost("its answer makes no sense")

    def _read(self) -> None:
        """A packet came, or the end."""
        try:
            packet = self._socket.recv(PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._loop.remove_reader(self._socket)
        self._packets.append(packet)
        if self._coming and not self._coming.done():
            self._coming.set_result(None)
