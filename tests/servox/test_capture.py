"""The microphone, with a driver of our own where sounddevice would be: its sound, its faults, what is missing."""
# ruff: noqa: ANN401 -- the driver takes what sounddevice takes

import asyncio
import sys
import threading
from types import ModuleType
from typing import Any, Self

import numpy as np
import pytest

from servox.capture import Microphone
from servox.errors import BadSetting, Unavailable


class Driver(ModuleType):
    """Plays a ramp into the callback from a thread, as PortAudio does, with one buffer for all blocks."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, *, blocks: int = 5, broken: bool = False) -> None:
        super().__init__("sounddevice")
        self.blocks, self.broken = blocks, broken
        self.asked: dict[str, Any] = {}
        self.closed = False

    def InputStream(self, **asked: Any) -> "Driver":  # noqa: N802 -- its name there
        if self.broken:
            raise self.PortAudioError("Error querying device -1")
        self.asked = asked
        return self

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self._play)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join()
        self.closed = True

    def _play(self) -> None:
        buffer = np.zeros((self.asked["blocksize"], self.asked["channels"]), dtype=np.int16)
        for block in range(self.blocks):
            buffer[:] = block
            self.asked["callback"](buffer, len(buffer), None, None)


async def test_blocks_come_as_they_were_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "sounddevice", driver)
    sound = aiter(Microphone(rate_hz=8000, channels=2, block_ms=50, device="usb"))
    heard = [await anext(sound) for _ in range(5)]
    await sound.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert [int(block[0, 0]) for block in heard] == [0, 1, 2, 3, 4], "each with its own samples"
    assert {block.shape for block in heard} == {(400, 2)}
    assert (driver.asked["samplerate"], driver.asked["device"], driver.asked["dtype"]) == (8000, "usb", "int16")
    assert driver.closed


async def test_a_reader_that_falls_behind_for_too_long_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", driver := Driver(blocks=40))
    sound = aiter(Microphone(rate_hz=100, block_ms=1000))
    await anext(sound)
    driver.thread.join()
    await asyncio.sleep(0.01)  # what it called into the loop
    with pytest.raises(Unavailable, match="wait to be sent"):
        await anext(sound)
    assert driver.closed


async def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", Driver(broken=True))
    with pytest.raises(Unavailable, match=r"microphone usb: Error querying device -1; `python -m sounddevice` lists"):
        await anext(aiter(Microphone(device="usb")))


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(BadSetting, match="pip install sounddevice"):
        Microphone()


def test_without_portaudio_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(BadSetting, match=r"PortAudio library not found.*libportaudio2"):
        Microphone()
