"""Bodies of requests, counted while they come and spooled.

A body is refused at the first byte over the limit; a client that stops in the middle is given up after a while.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Receive

from services.prober.spool import Spool
from servox.errors import BadAudio, TooLarge

from .multipart import OneFile
from .problems import Gone, Refusal

MULTIPART_BYTES = 64 << 10  # what boundaries and part headers may add


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """How bodies are taken in.

    Attributes:
        max_bytes: of the audio.
        idle_s: longest wait for the next byte.
        scratch: folder for long bodies; the system's if None.
    """

    max_bytes: int
    idle_s: float
    scratch: Path | None = None


def check_length(headers: Headers, limit: int) -> int | None:
    """The promised length, None where the body comes in chunks.

    Raises:
        TooLarge: over the limit.
    """
    text = headers.get("content-length")
    if text is None:
        return None
    if int(text) > limit + MULTIPART_BYTES:
        raise _too_large(f"{text} bytes", limit)
    return int(text)


def _too_large(said: str, limit: int) -> TooLarge:
    return TooLarge(f"the body has {said}, over the limit of {limit}: send shorter or compressed audio")


@asynccontextmanager
async def taken(
    receive: Receive, intake: Intake, boundary: bytes | None = None, *, to_file: bool = False
) -> AsyncIterator[Spool]:
    """The body of a request, or its one file part where there is a boundary; gone when the block ends.

    Raises:
        BadAudio: nothing came.
        TooLarge: more came than may.
        Refusal: 408 where nothing came for too long, 400 where multipart is malformed.
        Gone: the caller left in the middle.
        StorageFull: the scratch folder is full.
    """
    spool, form = Spool(intake.scratch), OneFile(boundary) if boundary is not None else None
    try:
        async for chunk in chunks(receive, intake, overhead=MULTIPART_BYTES if form else 0):
            for part in form.push(chunk) if form else (chunk,):
                await spool.write(part)
            if spool.size > intake.max_bytes:
                raise _too_large(f"{spool.size} bytes or more", intake.max_bytes)
        if form:
            form.finish()
        if not spool.size:
            raise BadAudio("the audio is empty (0 bytes): send a file, or raw samples as audio/pcm")
        await spool.finish(to_file=to_file)
        yield spool
    finally:
        spool.close()


async def chunks(receive: Receive, intake: Intake, overhead: int = 0) -> AsyncIterator[bytes]:
    """The body as it comes; see `taken`."""
    count, more = 0, True
    while more:
        try:
            async with asyncio.timeout(intake.idle_s):
                message = await receive()
        except TimeoutError:
            raise Refusal(
                HTTPStatus.REQUEST_TIMEOUT,
                f"nothing of the body came for {intake.idle_s:g} s after {count} bytes: send it without a pause",
                headers={"Connection": "close"},
            ) from None
        if message["type"] == "http.disconnect":
            raise Gone
        body, more = message.get("body", b""), message.get("more_body", False)
        count += len(body)
        if count > intake.max_bytes + overhead:
            raise _too_large(f"{count} bytes or more", intake.max_bytes)
        yield body
