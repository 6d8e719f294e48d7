"""A file that comes in pieces, kept on disk while it is recognised, and never longer."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from servox.errors import StorageFull, TooLarge

PIECE_BYTES = 1 << 20  # written at a time


@asynccontextmanager
async def spooled(chunks: AsyncIterator[bytes], *, folder: Path | None, max_bytes: int) -> AsyncIterator[Path]:
    """Writes `chunks` to a temporary file, which is gone afterwards.

    Args:
        chunks: of any length.
        folder: where to keep it; None for the system's own.
        max_bytes: largest file.

    Raises:
        TooLarge: more bytes than that.
        StorageFull: the disk refused them.
    """
    try:
        file = await asyncio.to_thread(_temporary, folder)
    except OSError as error:
        raise StorageFull(f"no temporary file in {folder or 'the system folder'}: {error.strerror}") from None
    try:
        size, kept = 0, bytearray()
        async for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                raise TooLarge(f"the file is over the limit of {max_bytes} bytes (max_file_bytes): send it in parts")
            kept += chunk
            if len(kept) >= PIECE_BYTES:
                await asyncio.to_thread(_write, file, bytes(kept))
                kept.clear()
        await asyncio.to_thread(_write, file, bytes(kept))
        yield Path(file.name)
    finally:
        await asyncio.shield(asyncio.to_thread(file.close))


def _temporary(folder: Path | None) -> IO[bytes]:
    return tempfile.NamedTemporaryFile(dir=folder, prefix="servox-")


def _write(file: IO[bytes], data: bytes) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as error:
        raise StorageFull(f"an upload of {len(data)} more bytes cannot be kept: {error.strerror}; free space") from None
