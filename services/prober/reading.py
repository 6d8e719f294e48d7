"""Files of strangers, read in processes of their own: block by block, bounded in memory and time.

A file that crashes its decoder, eats its memory or never ends costs its own call and a fresh process, never a neighbour
and never the server. Raw samples need no parser and are read here.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from signal import SIGKILL, Signals
from types import TracebackType
from typing import Any, Self

import numpy as np

from servox import errors
from servox.audio import Samples
from servox.errors import BadAudio, BadInput, ServoxError, TooLarge, Unavailable

from .reading_worker import BLOCK, PACKET_BYTES, parsed

log = logging.getLogger(__name__)

MODULE = "services.prober.reading_worker"
START_S = 60.0  # for the first answer: a fresh process has to import what decodes
FILES_EACH = 200  # that one process reads before a fresh one takes its place
REMEDY = "convert it to wav or flac"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class _Process:
    """A worker and its socket."""

    def __init__(self, memory_bytes: int) -> None:
        self.files = 0
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # In a session of its own, so that Ctrl-C in a terminal reaches the server alone.
            self._process = subprocess.Popen(  # noqa: S603 -- our own module
                [sys.executable, "-P", "-m", MODULE, str(theirs.fileno()), str(memory_bytes)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
            )
        except OSError as error:
            self.socket.close()
            raise Unavailable(f"no process to read the file in: {error.strerror}; try again later") from None
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def end(self) -> int:
        """Kills it if it lives; its exit code, negative for a signal."""
        self.socket.close()
        try:
            return self._process.wait(0.2)  # one that crashed tells how; one that lives sees the socket closed
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()  # of one that crashed and took its time to die, how it did


class RemoteReader:
    """What `servox.blocks.Reader` is, for a file that another process reads; use it as a context manager.

    Attributes:
        rate_hz: of the samples.
        channels: of the source, averaged here.
        promised_ms: length by its header; None where that does not tell.
        spent_s: how long reading took so far.
    """

    def __init__(self, pool: "ReadingPool", process: _Process, file: int, max_duration_ms: int) -> None:
        self.spent_s = 0.0
        self._pool, self._process = pool, process
        self._frames = 0
        self._done = self._closed = False
        self._lock = threading.Lock()
        try:
            header = self._asked(file, max_duration_ms)
        except ServoxError:
            self.close()
            raise
        self.rate_hz, self.channels = int(header["rate_hz"]), int(header["channels"])
        self.promised_ms: int | None = header["promised_ms"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def position_ms(self) -> int:
        """How much has been read."""
        return round(self._frames * 1000 / self.rate_hz)

    def read(self) -> Samples | None:
        """The next samples [n]; None at the end.

        Raises:
            BadAudio: truncated, damaged, holding no numbers, crashing its decoder or taking too long.
            TooLarge: longer than the limit, or taking too much memory.
            Unavailable: the process that read it was killed.
        """
        with self._lock:
            if self._closed or self._done:
                return None
            began_s = time.perf_counter()
            try:
                packet = self._packet(self._pool.timeout_s)
                if packet[:1] != BLOCK:
                    self._words(packet)
                    self._done = True
                    return None
                samples = np.frombuffer(packet, np.float32, offset=1)
                self._frames += len(samples)
                return samples
            finally:
                self.spent_s += time.perf_counter() - began_s

    def close(self) -> None:
        """Lets go of the process: for the next file if this one ended, else it is ended; more than once is fine."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._pool.give_back(self._process, reusable=self._done)

    def _asked(self, file: int, max_duration_ms: int) -> dict[str, Any]:
        try:
            socket.send_fds(self._process.socket, [json.dumps({"max_duration_ms": max_duration_ms}).encode()], [file])
        except OSError:
            raise self._lost() from None
        fresh, self._process.files = not self._process.files, self._process.files + 1
        return self._words(self._packet(max(START_S, self._pool.timeout_s) if fresh else self._pool.timeout_s))

    def _packet(self, timeout_s: float) -> bytes:
        self._process.socket.settimeout(timeout_s)
        try:
            packet = self._process.socket.recv(PACKET_BYTES + 1)
        except TimeoutError:
            self._fail()
            raise BadAudio(f"decoding takes more than {timeout_s:g} s at one place: {REMEDY}") from None
        except OSError:
            packet = b""
        if not packet:
            raise self._lost()
        return packet

    def _words(self, packet: bytes) -> dict[str, Any]:
        try:
            said = parsed(packet)
        except ValueError:
            self._fail()
            raise Unavailable("the process that read the file made no sense and was ended; try again") from None
        if "error" in said:
            self._done = said["error"] not in ("memory", "bug")
            raise self._refused(said["error"], str(said.get("message", "")))
        return said

    def _refused(self, kind: str, message: str) -> ServoxError:
        if not self._done:
            self._fail()
        if kind == "memory":
            return TooLarge(f"decoding takes more than {self._pool.memory_bytes >> 20} MB of memory: {REMEDY}")
        if kind == "bug":
            log.error("the decoder fails", extra={"why": message})
            return BadAudio(f"the decoder fails on this file ({message}): {REMEDY}")
        found = getattr(errors, kind, BadAudio)
        return (found if issubclass(found, BadInput) else BadAudio)(message)

    def _lost(self) -> ServoxError:
        code = self._fail()
        if code == -SIGKILL or code >= 0:
            return Unavailable("the process that read the file was killed; send it again later")
        return BadAudio(f"the audio makes its decoder crash ({Signals(-code).name}): {REMEDY}")

    def _fail(self) -> int:
        self._closed = True
        return self._pool.give_back(self._process, reusable=False)


class ReadingPool:
    """Processes that read files; they are started when they are needed, and some are kept.

    Args:
        spare: idle processes that are kept.
        memory_bytes: most that one file may take to decode, on top of what a process needs when idle.
        timeout_s: longest wait for the next block of a file.
    """

    def __init__(self, *, spare: int, memory_bytes: int = 512 << 20, timeout_s: float = 30.0) -> None:
        self.memory_bytes, self.timeout_s = memory_bytes, timeout_s
        self._spare = spare
        self._idle: deque[_Process] = deque()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def idle(self) -> list[int]:
        """Process ids of those that wait for a file."""
        with self._lock:
            return [process.pid for process in self._idle]

    def open(self, source: Path | bytes, *, max_duration_ms: int) -> RemoteReader:
        """A reader of a file, or of a file's bytes; blocks until there is a process for it.

        Raises:
            BadInput: the file cannot be opened.
            BadAudio: not audio, empty, of an impossible layout, or crashing its decoder.
            TooLarge: longer than the limit.
            Unavailable: no process can be started, or it was killed.
        """
        file = _descriptor(source)
        try:
            return RemoteReader(self, self._take(), file, max_duration_ms)
        finally:
            os.close(file)

    def give_back(self, process: _Process, *, reusable: bool) -> int:
        """Takes a process back; its exit code if it was ended, else 0."""
        with self._lock:
            keep = reusable and not self._closed and len(self._idle) < self._spare and process.files < FILES_EACH
            if keep:
                self._idle.append(process)
        return 0 if keep else process.end()

    def close(self) -> None:
        """Ends the idle ones; those at work end with their files."""
        with self._lock:
            self._closed = True
            ended, self._idle = list(self._idle), deque()
        for process in ended:
            process.end()

    def _take(self) -> _Process:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.alive():
                    return process
                process.end()
        return _Process(self.memory_bytes)


def _descriptor(source: Path | bytes) -> int:
    if isinstance(source, Path):
        try:
            return os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadInput(f"{source.name}: {error.strerror}; give a readable audio file") from None
    memory = os.memfd_create("servox-file", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(memory), "wb") as file:
        file.write(source)
    return memory
