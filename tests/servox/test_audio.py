import io
import socket
import struct
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from servox import containers
from servox.audio import Clip, Limits, Pcm, decode
from servox.errors import BadAudio, TooLarge

RATE = 16_000
Wave = NDArray[np.float32]


def tone(rate_hz: int, *, seconds: float = 1.0, hz: float = 440.0, channels: int = 1) -> Wave:
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    mono = 0.5 * np.sin(2 * np.pi * hz * time)
    return np.repeat(mono[:, None], channels, axis=1).astype(np.float32)


def written(wave: NDArray[Any], rate_hz: int, *, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate_hz, format=kind, subtype=subtype)
    return buffer.getvalue()


def contained(wave: Wave, rate_hz: int, *, kind: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave.T), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
        fifo = av.AudioFifo()
        fifo.write(frame)
        while (piece := fifo.read(1024, partial=True)) is not None:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def peak_hz(clip: Clip) -> float:
    spectrum = np.abs(np.fft.rfft(clip.samples * np.hanning(len(clip.samples))))
    return float(spectrum.argmax() * clip.rate_hz / len(clip.samples))


FORMATS: dict[str, Callable[[Wave, int], bytes]] = {
    "wav": written,
    "wav24": lambda w, r: written(w, r, subtype="PCM_24"),
    "wav_float": lambda w, r: written(w, r, subtype="FLOAT"),
    "wav_ulaw": lambda w, r: written(w, r, subtype="ULAW"),
    "flac": lambda w, r: written(w, r, kind="FLAC"),
    "ogg": lambda w, r: written(w, r, kind="OGG"),
    "opus": lambda w, r: written(w, r, kind="OGG", subtype="OPUS"),
    "mp3": lambda w, r: written(w, r, kind="MP3"),
    "m4a": lambda w, r: contained(w, r, kind="ipod", codec="aac"),
    "mp4": lambda w, r: contained(w, r, kind="mp4", codec="aac"),
    "webm": lambda w, r: contained(w, r, kind="webm", codec="libopus"),
    "avi": lambda w, r: contained(w, r, kind="avi", codec="mp3"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_pitch_length_and_level(name: str) -> None:
    clip = decode(FORMATS[name](tone(48_000, seconds=1.5, hz=1000.0), 48_000), RATE)
    assert clip.samples.dtype == np.float32
    assert clip.samples.ndim == 1
    assert clip.rate_hz == RATE
    assert clip.source_rate_hz == 48_000
    assert abs(clip.duration_ms - 1500) <= 60  # lossy codecs pad to whole frames
    assert peak_hz(clip) == pytest.approx(1000.0, abs=1.0)
    middle = clip.samples[4_000:20_000]
    assert float(np.sqrt(np.mean(middle**2))) == pytest.approx(0.5 / np.sqrt(2), rel=0.06)  # LAME scales by 0.95


def test_a_long_mp3_has_no_gaps() -> None:
    data = FORMATS["mp3"](tone(48_000, seconds=12.0), 48_000)
    at_once, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_array_equal(decode(data, 48_000).samples, at_once)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_resampling_agrees_with_scipy_inside_the_band(rate_hz: int) -> None:
    rng = np.random.default_rng(rate_hz)
    low, high = scipy.signal.butter(8, 0.35 * min(rate_hz, RATE), fs=rate_hz)
    wave = scipy.signal.filtfilt(low, high, rng.normal(0, 0.1, rate_hz)).astype(np.float32)
    clip = decode(written(wave[:, None], rate_hz, subtype="FLOAT"), RATE)
    ratio = Fraction(RATE, rate_hz)
    expected = scipy.signal.resample_poly(wave, ratio.numerator, ratio.denominator, window=("kaiser", 12.0))
    assert abs(len(clip.samples) - len(expected)) <= 1
    inner = slice(400, min(len(expected), len(clip.samples)) - 400)
    error = clip.samples[inner] - expected[inner]
    assert np.sqrt(np.mean(error**2)) < 0.01 * np.sqrt(np.mean(expected[inner] ** 2))


def test_nothing_above_the_new_band_folds_back() -> None:
    clip = decode(written(tone(48_000, hz=11_000.0), 48_000, subtype="FLOAT"), RATE, Limits(silence_dbfs=-200))
    assert np.abs(clip.samples[400:-400]).max() < 1e-4


def test_the_same_rate_is_not_touched() -> None:
    wave = tone(RATE)
    clip = decode(written(wave, RATE, subtype="FLOAT"), RATE)
    np.testing.assert_array_equal(clip.samples, wave[:, 0])


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_channels_are_averaged(channels: int) -> None:
    rng = np.random.default_rng(channels)
    wave = rng.uniform(-0.5, 0.5, (RATE, channels)).astype(np.float32)
    clip = decode(written(wave, RATE, subtype="FLOAT"), RATE)
    assert clip.source_channels == channels
    np.testing.assert_allclose(clip.samples, wave.mean(axis=1), atol=1e-7)


def test_eight_channels_at_192_khz() -> None:
    clip = decode(written(tone(192_000, channels=8, hz=700.0), 192_000), RATE)
    assert (clip.source_channels, clip.source_rate_hz, clip.duration_ms) == (8, 192_000, 1000)
    assert peak_hz(clip) == pytest.approx(700.0, abs=1.0)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("encoding", "dtype", "subtype"), [("s16le", "<i2", "PCM_16"), ("f32le", "<f4", "FLOAT")])
def test_pcm_and_file_give_the_same_numbers(encoding: str, dtype: str, subtype: str, channels: int) -> None:
    wave = tone(22_050, channels=channels)
    values = np.rint(wave * 32767).astype(np.int16) if dtype == "<i2" else wave
    from_pcm = decode(
        Pcm(data=values.astype(dtype).tobytes(), rate_hz=22_050, channels=channels, encoding=encoding),  # type: ignore[arg-type]
        RATE,
    )
    from_file = decode(written(values, 22_050, subtype=subtype), RATE)
    np.testing.assert_array_equal(from_pcm.samples, from_file.samples)
    assert from_pcm.duration_ms == from_file.duration_ms == 1000


def float_wav(values: list[float], rate_hz: int = RATE) -> bytes:
    return written(np.array(values, np.float32)[:, None], rate_hz, subtype="FLOAT")


WHOLE = {name: FORMATS[name](tone(16_000, seconds=2.0), 16_000) for name in ("wav", "flac", "ogg", "mp3", "m4a", "avi")}

BAD: dict[str, tuple[bytes | Pcm, str]] = {
    "empty": (b"", "empty"),
    "empty PCM": (Pcm(data=b"", rate_hz=RATE), "empty"),
    "a page of text": (b"<html>not audio</html>" * 50, "not audio"),
    "noise": (np.random.default_rng(0).bytes(5000), "not audio"),
    "silent": (written(np.zeros((RATE, 1), np.float32), RATE), "silent"),
    "all but silent": (written(tone(RATE) * 1e-4, RATE, subtype="FLOAT"), "silent"),
    "opposite channels": (written(tone(RATE, channels=2) * [1, -1], RATE), "silent"),
    "NaN": (float_wav([0.1] * 1000 + [float("nan")] + [0.1] * 1000), "1 of 2001 samples are not finite"),
    "infinite": (float_wav([0.1] * 1000 + [float("inf")]), "not finite"),
    "huge": (float_wav([0.1] * 1000 + [1e30]), "scale float audio"),
    "0.01 s": (written(tone(RATE, seconds=0.01), RATE), "10.0 ms, under the minimum of 25 ms"),
    "no samples": (written(np.zeros((0, 1), np.float32), RATE), "minimum"),
    "a header alone": (WHOLE["wav"][:40], "truncated"),
    "rate 0": (Pcm(data=b"\1\0" * 9000, rate_hz=0), "sample rate of 0 Hz"),
    "no channels": (Pcm(data=b"\1\0" * 9000, rate_hz=RATE, channels=0), "0 channels"),
    "odd PCM": (Pcm(data=b"\1" * 9001, rate_hz=RATE), "truncated"),
    "unknown PCM": (Pcm(data=b"\1" * 9000, rate_hz=RATE, encoding="s24le"), "s16le or f32le"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD)
def test_bad_audio_is_named_with_its_remedy(name: str) -> None:
    data, words = BAD[name]
    with pytest.raises(BadAudio, match=words) as caught:
        decode(data, RATE)
    assert any(verb in str(caught.value) for verb in ("send", "use", "need", "write", "scale"))


@pytest.mark.parametrize("part", [0.98, 0.7, 0.4])
@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_file_is_refused(name: str, part: float) -> None:
    decode(WHOLE[name], RATE)
    with pytest.raises(BadAudio):
        decode(WHOLE[name][: int(len(WHOLE[name]) * part)], RATE)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3"])
def test_a_cut_file_is_called_truncated(name: str) -> None:
    with pytest.raises(BadAudio, match="truncated"):
        decode(WHOLE[name][: len(WHOLE[name]) * 2 // 3], RATE)


def test_a_streamed_wav_with_an_open_size_is_read_to_its_end() -> None:
    data = bytearray(written(tone(RATE), RATE))
    at = data.index(b"data")
    struct.pack_into("<I", data, at + 4, 0xFFFFFFFF)
    struct.pack_into("<I", data, 4, 0xFFFFFFFF)
    assert containers.missing(bytes(data)) is None
    assert decode(bytes(data), RATE).duration_ms == 1000


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3", "m4a", "webm"])
def test_over_long_is_refused_or_cut(name: str) -> None:
    data = FORMATS[name](tone(16_000, seconds=4.0), 16_000)
    with pytest.raises(TooLarge, match="limit of 3 s"):
        decode(data, RATE, Limits(max_duration_ms=3000))
    clip = decode(data, RATE, Limits(max_duration_ms=3000, truncate_ms=2500))
    assert clip.duration_ms == 2500
    whole = decode(data, RATE)
    np.testing.assert_allclose(clip.samples[:-100], whole.samples[: 40_000 - 100], atol=1e-6)  # the resampler's edge


def test_over_long_is_seen_in_the_header_before_any_decoding() -> None:
    wave = np.zeros((RATE * 60, 1), np.float32)
    data = written(wave, RATE, kind="FLAC")  # silent: decoding it first would complain of that
    with pytest.raises(TooLarge, match=r"60\.00 s"):
        decode(data, RATE)


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(TooLarge, match="over the limit of 100"):
        decode(WHOLE["wav"], RATE, Limits(max_bytes=100))


def test_limits_are_exact() -> None:
    limits = Limits(min_duration_ms=100, max_duration_ms=200)
    for samples, error in ((1599, BadAudio), (1600, None), (3200, None), (3201, TooLarge)):
        pcm = Pcm(data=np.full(samples, 1000, "<i2").tobytes(), rate_hz=RATE)
        if error is None:
            assert len(decode(pcm, RATE, limits).samples) == samples
        else:
            with pytest.raises(error):
                decode(pcm, RATE, limits)


def test_a_video_without_sound_says_so() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(BadAudio, match="no audio stream"):
        decode(buffer.getvalue(), RATE)


def test_a_list_of_other_files_reads_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "secret.wav", tone(RATE), RATE)
    monkeypatch.chdir(tmp_path)
    for text in (
        "ffconcat version 1.0\nfile secret.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:9.0,\nsecret.wav\n#EXT-X-ENDLIST\n",
    ):
        with pytest.raises(BadAudio, match="not audio that can be decoded"):
            decode(text.encode(), RATE)


def test_tags_in_any_encoding_are_no_obstacle() -> None:
    tagged = WHOLE["m4a"].replace(b"isom", b"is\xf3m")
    assert tagged != WHOLE["m4a"]
    np.testing.assert_array_equal(decode(tagged, RATE).samples, decode(WHOLE["m4a"], RATE).samples)


def test_a_codec_that_is_unknown_is_named_as_such() -> None:
    with pytest.raises(BadAudio, match="codec of the audio stream is unknown"):
        decode(FORMATS["webm"](tone(RATE), RATE).replace(b"A_OPUS", b"A_ZZZZ"), RATE)


def test_a_session_description_opens_no_socket() -> None:
    """It once listened for ten seconds on a port that the sender chose."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] & ~1
    text = f"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n"
    with pytest.raises(BadAudio, match="not audio that can be decoded") as caught:
        decode(text.encode(), RATE)
    assert not isinstance(caught.value.__cause__, TimeoutError)


def test_errors_never_hold_audio_or_tags() -> None:
    secret = b"SECRET-SPOKEN-WORDS"
    data = WHOLE["wav"][:44] + secret * 40
    with pytest.raises(BadAudio) as caught:
        decode(data, RATE)
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(caught.value.__cause__)


def outcome(data: bytes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            clip = decode(data, RATE, Limits(max_duration_ms=5000))
        except (BadAudio, TooLarge) as error:
            return type(error).__name__
    assert np.isfinite(clip.samples).all()
    assert len(clip.samples) <= 5 * RATE + 1
    return "decoded"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_containers_only_raise_our_errors(data: st.DataObject) -> None:
    whole = WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))]
    damaged = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    for _ in range(data.draw(st.integers(0, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    outcome(bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(
    head=st.sampled_from(
        [b"", b"RIFF\0\1\0\0WAVE", b"OggS\0\2", b"ID3\4\0\0", b"\xff\xfb\x90\0", b"fLaC", b"\0\0\0 ftyp"]
    ),
    tail=st.binary(max_size=400),
)
def test_random_bytes_only_raise_our_errors(head: bytes, tail: bytes) -> None:
    containers.missing(head + tail)
    assert outcome(head + tail) in ("BadAudio", "TooLarge", "decoded")


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=0, max_size=600),
    channels=st.integers(1, 4),
    rate_hz=st.integers(0, 400_000),
)
def test_any_pcm_gives_finite_samples_or_our_errors(values: list[float], channels: int, rate_hz: int) -> None:
    pcm = Pcm(data=np.array(values, "<f4").tobytes(), rate_hz=rate_hz, channels=channels, encoding="f32le")
    try:
        clip = decode(pcm, RATE, Limits(min_duration_ms=0))
    except (BadAudio, TooLarge):
        return
    assert np.isfinite(clip.samples).all()


def test_real_flac_equals_soundfile(data_root: Path) -> None:
    path = min((data_root / "corpora").rglob("*.flac"))
    expected, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    clip = decode(path.read_bytes(), rate_hz)
    np.testing.assert_allclose(clip.samples, expected.mean(axis=1), atol=1e-7)
