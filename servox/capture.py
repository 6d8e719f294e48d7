"""The microphone, through `sounddevice`, which a bare install does not bring."""

import asyncio
import importlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import numpy.typing as npt

from servox.errors import BadSetting, Unavailable

QUEUE_S = 30  # of sound that waits for a reader before the recording is given up


class Microphone:
    """Sound as it is recorded: iterate over it, once at a time, for chunks [n, channels] of int16.

        async for heard in client.stream(Microphone(), head="emodb-mlp", window_ms=3000, hop_ms=1000):
            ...

    Args:
        rate_hz: of the samples.
        channels: to record.
        block_ms: length of a chunk.
        device: name or number, as `python -m sounddevice` lists them; the system's own if None.

    Raises:
        BadSetting: sounddevice or the PortAudio library that it needs is not installed.
    """

    def __init__(
        self, *, rate_hz: int = 16_000, channels: int = 1, block_ms: int = 100, device: int | str | None = None
    ) -> None:
        self.rate_hz = rate_hz
        self._channels, self._device = channels, device
        self._block_ms = block_ms
        self._sounddevice = _sounddevice()

    async def __aiter__(self) -> AsyncIterator[npt.NDArray[np.int16]]:
        """Chunks until the reader stops.

        Raises:
            Unavailable: there is no such device, it was lost, or the reader fell behind for too long.
        """
        chunks: asyncio.Queue[npt.NDArray[np.int16]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def heard(data: npt.NDArray[np.int16], *_: object) -> None:
            loop.call_soon_threadsafe(chunks.put_nowait, data.copy())  # PortAudio uses its buffer again

        try:
            with self._open(heard):
                while True:
                    if chunks.qsize() * self._block_ms > QUEUE_S * 1000:
                        raise Unavailable(f"{QUEUE_S} s of recorded sound wait to be sent: the connection is too slow")
                    yield await chunks.get()
        except self._sounddevice.PortAudioError as error:
            raise Unavailable(
                f"microphone {self._device if self._device is not None else '(default)'}: {error}; "
                "`python -m sounddevice` lists the devices"
            ) from None

    def _open(self, heard: Any) -> Any:  # noqa: ANN401 -- sounddevice has no types
        return self._sounddevice.InputStream(
            samplerate=self.rate_hz,
            channels=self._channels,
            dtype="int16",
            blocksize=self.rate_hz * self._block_ms // 1000,
            device=self._device,
            callback=heard,
        )


def _sounddevice() -> Any:  # noqa: ANN401 -- it has no types
    try:
        return importlib.import_module("sounddevice")
    except ModuleNotFoundError:
        raise BadSetting("a microphone needs the package sounddevice: pip install sounddevice") from None
    except OSError as error:
        raise BadSetting(
            f"sounddevice is installed, but {error}: install PortAudio (on Debian: apt install libportaudio2)"
        ) from None
