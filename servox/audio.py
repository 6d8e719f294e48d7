"""Audio bytes to mono float32 at one rate, within limits: the only module that knows audio libraries.

- wav, flac, ogg, mp3 and whatever else libsndfile reads go through soundfile; m4a, webm, mp4, avi through PyAV.
- Channels are averaged (not picked, not summed), then the mono signal is resampled with soxr's HQ recipe.
- The same samples give the same numbers whether they come in a file or as raw PCM.
- Length is checked in the header before anything is decoded, and again while decoding where the header does not tell.
- FFmpeg also reads lists of other files (concat), playlists and session descriptions, which open files and sockets of
  this machine: only containers that hold their own samples are let through, and no protocol.
- Audio is personal data: an error names sizes, rates and durations, never samples or metadata.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import av
import av.error
import numpy as np
import soundfile
import soxr
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from servox import containers
from servox.errors import BadAudio, ShortAudio, SilentAudio, TooLarge

Samples = NDArray[np.float32]
Encoding = Literal["s16le", "f32le"]

REMEDY = "send a whole wav, flac, ogg, mp3, m4a, webm, mp4 or avi file, or raw PCM with its rate"
PLAUSIBLE_PEAK = 1e4  # float audio lies within ±1; far beyond it the numbers are something else
SHORTFALL_MS = 250  # a container's own duration is rounded, and encoders pad: less than this is not a cut
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
MAX_CHANNELS = 64
READ_FRAMES = 1 << 18
SELF_CONTAINED = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,nut,ogg,rm,tta,"
    "voc,w64,wav,wv"
)
OPTIONS = {"format_whitelist": SELF_CONTAINED, "protocol_whitelist": "none"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pcm:
    """Raw little-endian samples, channels interleaved."""

    data: bytes
    rate_hz: int
    channels: int = 1
    encoding: Encoding = "s16le"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a clip may be.

    Args:
        max_bytes: of the encoded data.
        min_duration_ms: shorter clips are refused: one analysis window of the encoders.
        max_duration_ms: longer clips are refused, unless `truncate_ms` says to cut them.
        truncate_ms: keep this much from the start of a longer clip; 0 refuses instead.
        silence_dbfs: a clip whose peak stays below this holds nothing to embed.
    """

    max_bytes: int = 64 * 1024 * 1024
    min_duration_ms: int = 25
    max_duration_ms: int = 30_000
    truncate_ms: int = 0
    silence_dbfs: float = -80.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Mono float32 `samples` [n] at `rate_hz`, and what they were made of."""

    samples: Samples
    rate_hz: int
    duration_ms: int
    source_rate_hz: int
    source_channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raw:
    """Decoded samples [n, channels] at the source's rate."""

    samples: Samples
    rate_hz: int


class SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read from its start to its end and never sought in.

    soundfile seeks to where it is after every piece that it reads. An MP3 decoder loses its reservoir of bits by that:
    the next piece would begin with silence.
    """

    def seekable(self) -> bool:
        """No."""
        return False


def decode(data: bytes | Pcm, rate_hz: int, limits: Limits | None = None) -> Clip:
    """Mono samples of `data` at `rate_hz`.

    Raises:
        BadAudio: empty, truncated, silent, not finite, too short, or not audio at all.
        TooLarge: over a limit of bytes or duration.
    """
    limits = limits or Limits()
    size = len(data.data if isinstance(data, Pcm) else data)
    if size == 0:
        raise BadAudio(f"the audio is empty (0 bytes): {REMEDY}")
    if size > limits.max_bytes:
        raise TooLarge(
            f"the audio has {size} bytes, over the limit of {limits.max_bytes}: send a shorter or compressed file"
        )
    raw = _from_pcm(data, limits) if isinstance(data, Pcm) else _from_file(data, limits)
    return _finish(raw, rate_hz, limits)


def _from_pcm(pcm: Pcm, limits: Limits) -> _Raw:
    check_layout(pcm.rate_hz, pcm.channels)
    step = frame_bytes(pcm)
    frames = _frames_to_read(len(pcm.data) // step, pcm.rate_hz, limits)
    values = values_of(memoryview(pcm.data)[: frames * step], pcm.encoding)
    return _Raw(samples=values.reshape(-1, pcm.channels), rate_hz=pcm.rate_hz)


def frame_bytes(pcm: Pcm) -> int:
    """Bytes of one sample of every channel.

    Raises:
        BadAudio: an unknown encoding, or data that is no whole number of them.
    """
    width = {"s16le": 2, "f32le": 4}.get(pcm.encoding)
    if width is None:
        raise BadAudio(f"PCM encoding {pcm.encoding!r} is unknown: use s16le or f32le")
    step = width * pcm.channels
    if len(pcm.data) % step:
        raise BadAudio(
            f"PCM of {len(pcm.data)} bytes is truncated: {pcm.channels} channels of {pcm.encoding} "
            f"need a multiple of {step} bytes"
        )
    return step


def values_of(data: bytes | memoryview, encoding: Encoding) -> Samples:
    """Raw samples as numbers [n], full scale 1."""
    values = np.frombuffer(data, dtype="<i2" if encoding == "s16le" else "<f4")
    return values.astype(np.float32) * np.float32(1 / 32768 if encoding == "s16le" else 1)


def _from_file(data: bytes, limits: Limits) -> _Raw:
    if lack := containers.missing(data):
        raise BadAudio(f"the audio is truncated: {lack}; send the whole file")
    try:
        with SoundFile(io.BytesIO(data)) as file:
            return _read_soundfile(file, limits)
    except soundfile.LibsndfileError:
        return _from_container(data, limits)


def _read_soundfile(file: SoundFile, limits: Limits) -> _Raw:
    check_layout(file.samplerate, file.channels)
    promised = file.frames if 0 <= file.frames < 1 << 62 else None
    wanted = _frames_to_read(promised if promised is not None else 1 << 62, file.samplerate, limits)
    if promised is None:
        wanted = _ceiling_frames(file.samplerate, limits)
    try:
        samples = _read_blocks(file, wanted)
    except soundfile.LibsndfileError as error:
        raise BadAudio(
            f"the audio is truncated or damaged: its {file.format} decoder stopped early; send the whole file"
        ) from error
    short = 0 if promised is None else (wanted - len(samples)) * 1000 / file.samplerate
    if short > (SHORTFALL_MS if file.format == "MP3" else 0):
        raise BadAudio(
            f"the audio is truncated: its header promises {wanted} samples and {len(samples)} are there; "
            "send the whole file"
        )
    return _Raw(samples=samples, rate_hz=file.samplerate)


def _read_blocks(file: SoundFile, wanted: int) -> Samples:
    """Up to `wanted` frames, in pieces: a header that lies about its length must not allocate for it."""
    parts: list[Samples] = []
    left = wanted
    while left > 0:
        part = file.read(min(left, READ_FRAMES), dtype="float32", always_2d=True)
        if not len(part):
            break
        parts.append(part)
        left -= len(part)
    return np.concatenate(parts) if parts else np.zeros((0, file.channels), np.float32)


def _from_container(data: bytes, limits: Limits) -> _Raw:
    try:
        # Tags are in whatever encoding their writer liked; they are not read, and must not be in the way.
        with av.open(io.BytesIO(data), mode="r", options=OPTIONS, metadata_errors="replace") as container:
            return _read_stream(container, audio_stream(container), limits)
    except av.error.FFmpegError as error:
        raise BadAudio(f"the {len(data)} bytes are not audio that can be decoded: {REMEDY}") from error


def audio_stream(container: InputContainer) -> AudioStream:
    """The first audio stream.

    Raises:
        BadAudio: there is none, or nobody knows its codec.
    """
    if not container.streams.audio:
        raise BadAudio(f"the file holds no audio stream: {REMEDY}")
    if not isinstance(container.streams.audio[0].codec_context, av.AudioCodecContext):
        raise BadAudio(f"the codec of the audio stream is unknown: {REMEDY}")
    return container.streams.audio[0]


def _read_stream(container: InputContainer, stream: AudioStream, limits: Limits) -> _Raw:
    rate_hz, channels = stream.rate or 0, stream.channels or 0
    check_layout(rate_hz, channels)
    promised = promised_frames(container, stream, rate_hz)
    wanted = _ceiling_frames(rate_hz, limits) if promised is None else _frames_to_read(promised, rate_hz, limits)
    # The promise is rounded: read on to a little past it, so that nothing real is lost and a lie is noticed.
    ceiling = max(wanted, _ceiling_frames(rate_hz, limits))
    samples = _decode_stream(container, stream, ceiling)
    if promised is not None and (wanted - len(samples)) * 1000 > SHORTFALL_MS * rate_hz:
        raise BadAudio(
            f"the audio is truncated: its header promises {promised / rate_hz:.2f} s "
            f"and {len(samples) / rate_hz:.2f} s are there; send the whole file"
        )
    return _Raw(samples=samples, rate_hz=rate_hz)


def promised_frames(container: InputContainer, stream: AudioStream, rate_hz: int) -> int | None:
    """Length of the stream by its header; the container's own length only where the audio is all that it holds."""
    if stream.duration and stream.time_base:
        return int(stream.duration * stream.time_base * rate_hz)
    if container.duration and len(container.streams) == 1:
        return int(container.duration * rate_hz // av.time_base)
    return None


def _decode_stream(container: InputContainer, stream: AudioStream, ceiling: int) -> Samples:
    parts: list[Samples] = []
    count = 0
    for piece in pieces(container, stream):
        parts.append(piece)
        count += len(piece)
        if count >= ceiling:
            break
    return np.concatenate(parts)[:ceiling] if parts else np.zeros((0, stream.channels), np.float32)


def pieces(container: InputContainer, stream: AudioStream) -> Iterator[Samples]:
    """Samples [n, channels] of a stream, packet by packet.

    Raises:
        BadAudio: it changes its layout on the way.
        av.error.FFmpegError: it is damaged.
    """
    resampler = av.AudioResampler(format="fltp", layout=stream.layout.name, rate=stream.rate)
    for frame in container.decode(stream):
        try:
            found = resampler.resample(frame)
        except ValueError as error:
            raise BadAudio(f"the audio changes its rate or its channels on the way: {REMEDY}") from error
        for piece in found:
            yield piece.to_ndarray().T.astype(np.float32, copy=False)


def check_layout(rate_hz: int, channels: int) -> None:
    """Refuses a rate or a number of channels that nobody records.

    Raises:
        BadAudio: out of range.
    """
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise BadAudio(f"a sample rate of {rate_hz} Hz is out of range: use {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise BadAudio(f"{channels} channels are out of range: use 1 to {MAX_CHANNELS}")


def _frames_to_read(frames: int, rate_hz: int, limits: Limits) -> int:
    """How many of `frames` to decode: all of them, or what `truncate_ms` keeps."""
    if limits.truncate_ms > 0:
        return min(frames, _ceiling_frames(rate_hz, limits))
    if frames * 1000 > limits.max_duration_ms * rate_hz:
        raise TooLarge(
            f"the clip lasts {frames / rate_hz:.2f} s, over the limit of {limits.max_duration_ms / 1000:g} s: "
            "send a shorter clip or ask for it to be cut (truncate_ms)"
        )
    return frames


def _ceiling_frames(rate_hz: int, limits: Limits) -> int:
    """Frames to stop at: exactly what is kept of a longer clip, or one more than is allowed."""
    if limits.truncate_ms > 0:
        return min(limits.truncate_ms, limits.max_duration_ms) * rate_hz // 1000
    return limits.max_duration_ms * rate_hz // 1000 + 1


def _finish(raw: _Raw, rate_hz: int, limits: Limits) -> Clip:
    frames, channels = raw.samples.shape
    _frames_to_read(frames, raw.rate_hz, limits)
    if frames * 1000 < limits.min_duration_ms * raw.rate_hz:
        raise ShortAudio(
            f"the clip lasts {frames * 1000 / raw.rate_hz:.1f} ms, under the minimum of "
            f"{limits.min_duration_ms} ms: send a longer clip"
        )
    check_values(raw.samples)
    mono = raw.samples[:, 0] if channels == 1 else raw.samples.mean(axis=1, dtype=np.float32)
    peak = float(np.abs(mono).max())
    if peak < 10 ** (limits.silence_dbfs / 20):
        raise SilentAudio(f"the clip is silent: its peak stays under {limits.silence_dbfs:g} dBFS; send audible speech")
    samples = mono if raw.rate_hz == rate_hz else soxr.resample(mono, raw.rate_hz, rate_hz, quality="HQ")
    return Clip(
        samples=np.ascontiguousarray(samples, dtype=np.float32),
        rate_hz=rate_hz,
        duration_ms=round(frames * 1000 / raw.rate_hz),
        source_rate_hz=raw.rate_hz,
        source_channels=channels,
    )


def check_values(samples: Samples) -> None:
    """Refuses what is no sound.

    Raises:
        BadAudio: NaN, infinite, or numbers far beyond ±1.
    """
    finite = np.isfinite(samples)
    if not finite.all():
        bad = int(finite.size - np.count_nonzero(finite))
        raise BadAudio(
            f"{bad} of {finite.size} samples are not finite (NaN or infinite): write the file again from its source"
        )
    peak = float(np.abs(samples).max())
    if peak > PLAUSIBLE_PEAK:
        raise BadAudio(f"samples reach {peak:.3g}, far beyond ±1: scale float audio to ±1")
