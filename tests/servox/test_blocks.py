"""Audio in blocks: the numbers of `servox.audio`, without the file in memory, up to where it is damaged."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from servox.audio import Limits, Pcm, Samples, decode
from servox.blocks import BLOCK_FRAMES, open_audio
from servox.errors import BadAudio, BadInput, TooLarge
from tests.servox.test_audio import FORMATS, tone, written

HOUR_MS = 3_600_000
RATES = (8_000, 16_000, 22_050, 44_100, 48_000)


def read(source: Path | bytes | Pcm, *, max_duration_ms: int = HOUR_MS) -> tuple[Samples, int]:
    with open_audio(source, max_duration_ms=max_duration_ms) as reader:
        blocks = []
        while (block := reader.read()) is not None:
            blocks.append(block)
        return np.concatenate(blocks), reader.rate_hz


def until_damage(source: Path | bytes) -> tuple[int, str]:
    """Milliseconds that could be read, and what was said then."""
    with open_audio(source, max_duration_ms=HOUR_MS) as reader:
        try:
            while reader.read() is not None:
                pass
        except BadAudio as error:
            return reader.position_ms, str(error)
    raise AssertionError("nothing was said")


def speechlike(seconds: float, rate_hz: int, channels: int = 1) -> Samples:
    random = np.random.default_rng(rate_hz + channels)
    return np.asarray(random.uniform(-0.5, 0.5, (int(seconds * rate_hz), channels)), dtype=np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_what_decoding_it_whole_gives(name: str, tmp_path: Path) -> None:
    data = FORMATS[name](tone(48_000, seconds=2.0), 48_000)
    path = tmp_path / "audio"
    path.write_bytes(data)
    whole = decode(data, 48_000, Limits(max_duration_ms=HOUR_MS))
    for source in (data, path):
        samples, rate_hz = read(source)
        assert rate_hz == whole.source_rate_hz
        np.testing.assert_array_equal(samples, whole.samples)


@pytest.mark.parametrize("rate_hz", RATES)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_file_and_raw_samples_give_the_same_numbers(rate_hz: int, channels: int) -> None:
    wave = np.rint(speechlike(1.3, rate_hz, channels) * 32767).astype("<i2")
    raw, _ = read(Pcm(data=wave.tobytes(), rate_hz=rate_hz, channels=channels))
    for kind in ("WAV", "FLAC"):
        samples, rate = read(written(wave, rate_hz, kind=kind))
        assert rate == rate_hz
        np.testing.assert_array_equal(samples, raw)


def test_the_position_and_the_promised_length_are_told() -> None:
    with open_audio(written(tone(16_000, seconds=5.0), 16_000), max_duration_ms=HOUR_MS) as reader:
        assert (reader.promised_ms, reader.position_ms) == (5000, 0)
        block = reader.read()
        assert block is not None
        assert len(block) == BLOCK_FRAMES
        assert reader.position_ms == BLOCK_FRAMES // 16
        assert reader.spent_s > 0


def test_a_reader_that_is_closed_reads_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(written(tone(16_000, seconds=5.0), 16_000, kind="FLAC"))
    reader = open_audio(path, max_duration_ms=HOUR_MS)
    assert reader.read() is not None
    reader.close()
    reader.close()
    assert reader.read() is None


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "opus", "mp3", "m4a", "webm"])
def test_a_file_that_is_cut_gives_what_is_there_and_names_the_position(kind: str, tmp_path: Path) -> None:
    whole = FORMATS[kind](speechlike(8, 48_000), 48_000)
    path = tmp_path / "cut"
    path.write_bytes(whole[: len(whole) // 2])
    if kind == "m4a":  # its index is at the end: nothing can be read of half of it
        with pytest.raises(BadAudio, match=r"truncated|not audio"):
            open_audio(path, max_duration_ms=HOUR_MS)
        return
    position_ms, message = until_damage(path)
    assert 1000 < position_ms < 7000
    assert f"after {position_ms} ms" in message
    assert "send the whole file" in message


def test_a_file_that_is_damaged_in_the_middle_gives_what_is_before(tmp_path: Path) -> None:
    data = bytearray(written(speechlike(20, 16_000), 16_000, kind="FLAC"))
    middle = len(data) // 2
    data[middle:] = bytes(len(data) - middle)
    path = tmp_path / "damaged.flac"
    path.write_bytes(data)
    position_ms, message = until_damage(path)
    assert 5000 < position_ms < 10_500
    assert f"after {position_ms} ms" in message


def test_values_that_are_no_sound_are_refused_with_their_position() -> None:
    wave = speechlike(5, 16_000)
    wave[70_000] = np.nan
    position_ms, message = until_damage(written(wave, 16_000, subtype="FLOAT"))
    assert position_ms == 4096
    assert "after 4096 ms: 1 of" in message


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "m4a", "webm"])
def test_longer_audio_than_allowed_is_refused(kind: str) -> None:
    data = FORMATS[kind](tone(48_000, seconds=3.0), 48_000)
    with pytest.raises(TooLarge, match="over the limit of 2 s"):
        read(data, max_duration_ms=2000)


def test_what_is_no_audio_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match="empty"):
        open_audio(b"", max_duration_ms=HOUR_MS)
    (tmp_path / "empty").touch()
    with pytest.raises(BadAudio, match="empty"):
        open_audio(tmp_path / "empty", max_duration_ms=HOUR_MS)
    with pytest.raises(BadAudio, match="empty"):
        open_audio(Pcm(data=b"", rate_hz=16_000), max_duration_ms=HOUR_MS)
    with pytest.raises(BadAudio, match="multiple of 2"):
        open_audio(Pcm(data=b"123", rate_hz=16_000), max_duration_ms=HOUR_MS)
    with pytest.raises(BadAudio, match="out of range"):
        open_audio(Pcm(data=b"12", rate_hz=10), max_duration_ms=HOUR_MS)
    with pytest.raises(BadAudio, match="not audio"):
        open_audio(b"no audio at all" * 100, max_duration_ms=HOUR_MS)
    with pytest.raises(BadInput, match=r"none\.wav: No such file"):
        open_audio(tmp_path / "none.wav", max_duration_ms=HOUR_MS)
    header = io.BytesIO()
    soundfile.write(header, np.zeros(0, np.float32), 16_000, format="WAV")
    with pytest.raises(BadAudio, match="empty"):
        read(header.getvalue())
