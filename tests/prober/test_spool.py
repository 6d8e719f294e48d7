"""Files that come in pieces, kept on disk for a while."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.prober.spool import BLOCK_BYTES, IN_MEMORY_BYTES, spooled
from servox.errors import StorageFull, TooLarge


def held(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def pieces(*sizes: int) -> AsyncIterator[bytes]:
    for number, size in enumerate(sizes):
        yield bytes([number % 256]) * size


async def test_the_file_is_what_came_and_is_gone_afterwards(tmp_path: Path) -> None:
    sizes = (0, 1, BLOCK_BYTES - 1, 3, IN_MEMORY_BYTES, 2 * BLOCK_BYTES, 7)
    async with spooled(pieces(*sizes), folder=tmp_path, max_bytes=1 << 30) as path:
        assert path.read_bytes() == b"".join([piece async for piece in pieces(*sizes)])
        assert path.stat().st_mode & 0o077 == 0, "audio is nobody else's business"
        assert not held(tmp_path), "it has no name"
    assert not path.exists()


async def test_a_file_over_the_limit_is_refused_and_gone(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match=r"limit of 10 bytes \(max_file_bytes\)"):
        async with spooled(pieces(5, 5, 1), folder=tmp_path, max_bytes=10):
            pass


async def test_a_caller_who_leaves_leaves_no_file(tmp_path: Path) -> None:
    taken = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield bytes(2 * IN_MEMORY_BYTES)
        taken.set()
        await asyncio.Event().wait()

    async def spool() -> None:
        async with spooled(endless(), folder=tmp_path, max_bytes=1 << 30):
            pass

    def files() -> int:
        return sum(
            str(tmp_path) in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
        )

    task = asyncio.create_task(spool())
    await taken.wait()
    assert files() == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert files() == 0


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="cannot keep an upload of 1 bytes in the scratch folder: No such file"):
        async with spooled(pieces(1), folder=tmp_path / "none", max_bytes=10):
            pass
