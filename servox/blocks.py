"""Audio of any length in blocks: mono float32 at its own rate, in constant memory.

- The same decoders, checks and numbers as `servox.audio`; nothing is resampled, so that blocks may be cut anywhere.
- A file that is cut or damaged gives what is before the damage, then an error that names the position.
- A reader is read by one thread at a time, and may be closed by another: closing waits for the block at hand.
"""

import io
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import av
import av.error
import numpy as np
import soundfile
from av.audio.stream import AudioStream
from av.container import InputContainer

from servox import audio, containers
from servox.audio import REMEDY, SHORTFALL_MS, Pcm, Samples, SoundFile
from servox.errors import BadAudio, BadInput, TooLarge

BLOCK_FRAMES = 1 << 15
WHOLE = "send the whole file"


class Reader:
    """Blocks of one piece of audio; use it as a context manager, or close it.

    Attributes:
        rate_hz: of the samples.
        channels: of the source, averaged here.
        promised_ms: length by its header; None where that does not tell.
        spent_s: how long reading took so far.
    """

    def __init__(
        self,
        blocks: Iterator[Samples],
        *,
        rate_hz: int,
        channels: int,
        max_duration_ms: int,
        promised: int | None = None,
        missing: Callable[[], str | None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        if promised is not None:
            _check_length(promised, rate_hz, max_duration_ms)
        self.rate_hz, self.channels = rate_hz, channels
        self.promised_ms = None if promised is None else round(promised * 1000 / rate_hz)
        self.spent_s = 0.0
        self._blocks, self._max_duration_ms = blocks, max_duration_ms
        self._missing, self._close = missing, close
        self._frames = 0
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def position_ms(self) -> int:
        """How much has been read."""
        return round(self._frames * 1000 / self.rate_hz)

    def read(self) -> Samples | None:
        """The next samples [n]; None at the end.

        Raises:
            BadAudio: truncated, damaged, or holding no numbers; the message names the position.
            TooLarge: longer than the limit.
        """
        with self._lock:
            if self._closed:
                return None
            began_s = time.perf_counter()
            try:
                block = next(self._blocks, None)
                if block is None:
                    self._check_end()
                    return None
                return self._mono(block)
            finally:
                self.spent_s += time.perf_counter() - began_s

    def close(self) -> None:
        """Lets go of the file; more than once is fine."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close()

    def _mono(self, block: Samples) -> Samples:
        try:
            audio.check_values(block)
        except BadAudio as error:
            raise BadAudio(f"after {self.position_ms} ms: {error}") from None
        self._frames += len(block)
        if self._frames * 1000 > self._max_duration_ms * self.rate_hz:
            raise _too_long(f"more than {self._max_duration_ms / 1000:g} s", self._max_duration_ms)
        return np.asarray(block.mean(axis=1, dtype=np.float32))

    def _check_end(self) -> None:
        if lack := self._missing():
            raise BadAudio(f"the audio is truncated after {self.position_ms} ms: {lack}; {WHOLE}")
        if not self._frames:
            raise BadAudio(f"the audio is empty (0 samples): {REMEDY}")


def open_audio(source: Path | bytes | Pcm, *, max_duration_ms: int) -> Reader:
    """A reader of a file, of a file's bytes, or of raw samples.

    Args:
        source: what to read.
        max_duration_ms: longer audio is refused, by its header where that tells, else on the way.

    Raises:
        BadInput: the file cannot be opened.
        BadAudio: not audio, empty, or of an impossible layout.
        TooLarge: longer than the limit.
    """
    if isinstance(source, Pcm):
        return _open_pcm(source, max_duration_ms)
    with ExitStack() as stack:
        file, data = _opened(source, stack)
        if not len(data):
            raise BadAudio(f"the audio is empty (0 bytes): {REMEDY}")
        reader = _open_soundfile(file, data, max_duration_ms, stack) or _open_av(file, data, max_duration_ms, stack)
        stack.pop_all()
        return reader


def _opened(source: Path | bytes, stack: ExitStack) -> tuple[BinaryIO, bytes | mmap.mmap]:
    if isinstance(source, bytes):
        return io.BytesIO(source), source
    try:
        file = stack.enter_context(source.open("rb"))
        if not source.stat().st_size:
            return file, b""
        return file, stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise BadInput(f"{source.name}: {error.strerror}; give a readable audio file") from None


def _open_pcm(pcm: Pcm, max_duration_ms: int) -> Reader:
    audio.check_layout(pcm.rate_hz, pcm.channels)
    if not pcm.data:
        raise BadAudio(f"the audio is empty (0 bytes): {REMEDY}")
    step = audio.frame_bytes(pcm)

    def blocks() -> Iterator[Samples]:
        for at in range(0, len(pcm.data), BLOCK_FRAMES * step):
            yield audio.values_of(pcm.data[at : at + BLOCK_FRAMES * step], pcm.encoding).reshape(-1, pcm.channels)

    return Reader(
        blocks(),
        rate_hz=pcm.rate_hz,
        channels=pcm.channels,
        max_duration_ms=max_duration_ms,
        promised=len(pcm.data) // step,
    )


# ---- libsndfile ------------------------------------------------------------------------------------------------------


def _open_soundfile(file: BinaryIO, data: bytes | mmap.mmap, max_duration_ms: int, stack: ExitStack) -> Reader | None:
    try:
        sound = stack.enter_context(SoundFile(file))
    except soundfile.LibsndfileError:
        file.seek(0)
        return None
    audio.check_layout(sound.samplerate, sound.channels)
    promised = sound.frames if 0 <= sound.frames < 1 << 62 else None
    frames = _Count()

    def missing() -> str | None:
        short_ms = 0 if promised is None else (promised - frames.value) * 1000 / sound.samplerate
        if short_ms > (SHORTFALL_MS if sound.format == "MP3" else 0):
            return f"its header promises {promised} samples and {frames.value} could be decoded"
        return containers.missing(data)

    return Reader(
        _soundfile_blocks(sound, frames),
        rate_hz=sound.samplerate,
        channels=sound.channels,
        max_duration_ms=max_duration_ms,
        promised=promised,
        missing=missing,
        close=stack.pop_all().close,
    )


class _Count:
    """Frames that a decoder has given."""

    def __init__(self) -> None:
        self.value = 0


def _soundfile_blocks(sound: Any, frames: _Count) -> Iterator[Samples]:  # noqa: ANN401 -- soundfile has no types
    while True:
        try:
            block = sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _damaged(frames.value, sound.samplerate) from error
        if not len(block):
            return
        frames.value += len(block)
        yield block


# ---- FFmpeg ----------------------------------------------------------------------------------------------------------


def _open_av(file: BinaryIO, data: bytes | mmap.mmap, max_duration_ms: int, stack: ExitStack) -> Reader:
    try:
        container = stack.enter_context(av.open(file, mode="r", options=audio.OPTIONS, metadata_errors="replace"))
    except av.error.FFmpegError as error:
        if lack := containers.missing(data):
            raise BadAudio(f"the audio is truncated: {lack}; {WHOLE}") from error
        raise BadAudio(f"the {len(data)} bytes are not audio that can be decoded: {REMEDY}") from error
    stream = audio.audio_stream(container)
    rate_hz, channels = stream.rate or 0, stream.channels or 0
    audio.check_layout(rate_hz, channels)
    promised = audio.promised_frames(container, stream, rate_hz)
    frames = _Count()

    def missing() -> str | None:
        if promised is not None and (promised - frames.value) * 1000 > SHORTFALL_MS * rate_hz:
            return f"its header promises {promised / rate_hz:.2f} s"
        return containers.missing(data)

    return Reader(
        _av_blocks(container, stream, frames),
        rate_hz=rate_hz,
        channels=channels,
        max_duration_ms=max_duration_ms,
        promised=promised,
        missing=missing,
        close=stack.pop_all().close,
    )


def _av_blocks(container: InputContainer, stream: AudioStream, frames: _Count) -> Iterator[Samples]:
    parts: list[Samples] = []
    try:
        for piece in audio.pieces(container, stream):
            parts.append(piece)
            if sum(map(len, parts)) >= BLOCK_FRAMES:
                frames.value += sum(map(len, parts))
                yield np.concatenate(parts)
                parts.clear()
    except av.error.FFmpegError as error:
        raise _damaged(frames.value + sum(map(len, parts)), stream.rate or 1) from error
    if parts:
        frames.value += sum(map(len, parts))
        yield np.concatenate(parts)


# ---- what both say ---------------------------------------------------------------------------------------------------


def _damaged(frames: int, rate_hz: int) -> BadAudio:
    return BadAudio(f"the audio is damaged after {round(frames * 1000 / rate_hz)} ms: its decoder stopped; {WHOLE}")


def _check_length(frames: int, rate_hz: int, max_duration_ms: int) -> None:
    if frames * 1000 > max_duration_ms * rate_hz:
        raise _too_long(f"{frames / rate_hz:.2f} s", max_duration_ms)


def _too_long(lasts: str, max_duration_ms: int) -> TooLarge:
    return TooLarge(f"the audio lasts {lasts}, over the limit of {max_duration_ms / 1000:g} s: send it in parts")
