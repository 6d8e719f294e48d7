"""Audio that was sent and may have to be sent again: a piece of tape that is cut off behind what has been answered.

One task writes, one task at a time reads, from any frame that is still there. The writer waits while too much is
unanswered, so a server that falls behind slows the source down and nothing grows.
"""

import asyncio
from collections import deque


class Tape:
    """Frames of equal size, numbered from the start of the audio.

    Args:
        frame_bytes: of one frame.
        most_frames: kept before the writer has to wait.
    """

    def __init__(self, *, frame_bytes: int, most_frames: int) -> None:
        self._frame_bytes, self._most = frame_bytes, most_frames
        self._pieces: deque[tuple[int, bytes]] = deque()  # first frame, bytes
        self._start = self._end = 0  # frames that are here
        self._ended = False
        self._changed = asyncio.Condition()

    @property
    def ended(self) -> bool:
        """Whether the whole audio was written."""
        return self._ended

    @property
    def kept_frames(self) -> int:
        """How much is here."""
        return self._end - self._start

    async def write(self, data: bytes) -> None:
        """Appends whole frames, once there is room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.kept_frames < self._most)
            if data:
                self._pieces.append((self._end, data))
                self._end += len(data) // self._frame_bytes
            self._changed.notify_all()

    async def end(self) -> None:
        """No more will come."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def cut(self, frame: int) -> None:
        """Forgets what lies wholly before a frame."""
        async with self._changed:
            while self._pieces and self._after(0) <= frame:
                self._start = self._after(0)
                self._pieces.popleft()
            self._changed.notify_all()

    async def read(self, frame: int) -> bytes:
        """Bytes from a frame on, as many as lie together; nothing at the end of the audio.

        Raises:
            IndexError: the frame was cut off.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._end > frame or self._ended)
            if frame < self._start:
                raise IndexError(f"frame {frame} is gone: the tape begins at {self._start}")
            for number, (first, data) in enumerate(self._pieces):
                if frame < self._after(number):
                    return data[(frame - first) * self._frame_bytes :]
            return b""

    def _after(self, number: int) -> int:
        first, data = self._pieces[number]
        return first + len(data) // self._frame_bytes
