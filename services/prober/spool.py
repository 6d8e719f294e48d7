"""Audio that comes in pieces: kept in memory or, if it is long, in an unnamed file for as long as it is needed.

The file has no name, so that nothing is left behind by a process that dies; it is read again by its descriptor.
"""

import asyncio
import errno
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from servox.errors import StorageFull, TooLarge

IN_MEMORY_BYTES = 4 << 20
BLOCK_BYTES = 1 << 20


class Spool:
    """Bytes in memory or, beyond some, in an unnamed file."""

    def __init__(self, scratch: Path | None) -> None:
        self._scratch = scratch
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None
        # A caller may leave while a thread still writes: its descriptor must not become another file's meanwhile.
        self._lock = threading.Lock()
        self._closed = False
        self.size = 0

    @property
    def path(self) -> Path | None:
        """Where a long body can be opened, by this process and its workers; None where all is in memory."""
        return _path(self._file) if self._file else None

    async def write(self, data: bytes) -> None:
        """Takes bytes.

        Raises:
            StorageFull: the scratch folder is full or not there.
        """
        self.size += len(data)
        self._buffer += data
        if len(self._buffer) >= (BLOCK_BYTES if self._file else IN_MEMORY_BYTES + 1):
            await asyncio.to_thread(self._flush)

    async def finish(self, *, to_file: bool) -> None:
        """Brings the last bytes where the first ones are, or all of them to a file."""
        if self._file or to_file:
            await asyncio.to_thread(self._flush)

    async def finished(self) -> Path:
        """Brings all to a file, whose path this is."""
        file = await asyncio.to_thread(self._flush)
        return _path(file)

    def _flush(self) -> IO[bytes]:
        try:
            with self._lock:
                file = self._opened()
                view = memoryview(self._buffer)
                while view:
                    view = view[os.write(file.fileno(), view) :]
        except OSError as error:
            raise StorageFull(
                f"cannot keep an upload of {self.size} bytes in the scratch folder: {error.strerror}; "
                "make room there or set another one (scratch)"
            ) from None
        self._buffer = bytearray()
        return file

    def _opened(self) -> IO[bytes]:
        if self._closed:
            raise OSError(errno.EBADF, "it was closed")
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._scratch, buffering=0)  # noqa: SIM115 -- until `close`
        return self._file

    async def data(self) -> bytes:
        """All of it."""
        if (path := self.path) is None:
            return bytes(self._buffer)
        return await asyncio.to_thread(path.read_bytes)

    def close(self) -> None:
        """Gives the file back."""
        with self._lock:
            self._closed = True
            if self._file:
                self._file.close()


def _path(file: IO[bytes]) -> Path:
    return Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")


@asynccontextmanager
async def spooled(chunks: AsyncIterator[bytes], *, folder: Path | None, max_bytes: int) -> AsyncIterator[Path]:
    """Writes `chunks` to a file, which is gone afterwards.

    Args:
        chunks: of any length.
        folder: where to keep it; None for the system's own.
        max_bytes: largest file.

    Raises:
        TooLarge: more bytes than that.
        StorageFull: the disk refused them.
    """
    spool = Spool(folder)
    try:
        async for chunk in chunks:
            await spool.write(chunk)
            if spool.size > max_bytes:
                raise TooLarge(f"the file is over the limit of {max_bytes} bytes (max_file_bytes): send it in parts")
        yield await spool.finished()
    finally:
        spool.close()
