from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedder.decoding import Decoder, guess_s
from servox.audio import Limits, Pcm
from servox.errors import BadAudio, TooLarge

RATE = 16_000


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [("WAV", "PCM_16", 0.01), ("WAV", "FLOAT", 0.01), ("FLAC", "PCM_16", 1e-9), ("MP3", None, 3.0), ("OGG", None, 3.0)],
)
@pytest.mark.parametrize(("rate_hz", "channels"), [(16_000, 1), (44_100, 2)])
def test_the_guess_is_exact_where_a_header_tells_and_sane_elsewhere(
    speech: Callable[..., np.ndarray],
    encoded: Callable[..., bytes],
    kind: str,
    subtype: str | None,
    tolerance: float,
    rate_hz: int,
    channels: int,
) -> None:
    samples = speech(4.0, rate_hz=rate_hz, channels=channels)
    samples += np.random.default_rng(0).normal(0, 0.05, samples.shape).astype(np.float32)
    data = encoded(samples, rate_hz=rate_hz, kind=kind, subtype=subtype)
    guess = guess_s(data, longest_s=30)
    assert 4 / (1 + tolerance) <= guess <= 4 * (1 + tolerance)


def test_the_guess_of_pcm_is_its_length() -> None:
    assert guess_s(Pcm(data=b"\0" * 64_000, rate_hz=8_000, channels=2), longest_s=30) == 2.0
    assert guess_s(Pcm(data=b"\0" * 64_000, rate_hz=8_000, encoding="f32le"), longest_s=30) == 2.0


@given(data=st.one_of(st.binary(max_size=100), st.binary(max_size=60).map(lambda tail: b"fLaC" + tail),
                      st.binary(max_size=60).map(lambda tail: b"RIFFxxxxWAVEfmt " + tail)))  # fmt: skip
def test_no_header_makes_a_clip_free_or_endless(data: bytes) -> None:
    assert 0.1 <= guess_s(data, longest_s=30) <= 30


@given(rate=st.integers(-10, 400_000), channels=st.integers(-3, 100), size=st.integers(0, 1_000))
def test_no_pcm_makes_a_clip_free_or_endless(rate: int, channels: int, size: int) -> None:
    assert 0.1 <= guess_s(Pcm(data=b"\0" * size, rate_hz=rate, channels=channels), longest_s=30) <= 30


def test_bytes_count_whatever_the_header_claims() -> None:
    claims_nothing = b"fLaC" + bytes(40) + bytes(60_000_000)
    assert guess_s(claims_nothing, longest_s=30) > 9


async def test_decoding_cuts_where_it_is_asked_to_and_says_so(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    decoder = Decoder(workers=2, rate_hz=RATE, limits=Limits(max_duration_ms=3_000))
    clip = encoded(speech(2.0))
    whole = await decoder.decode(clip, truncate_ms=0)
    assert (len(whole.samples), whole.duration_ms, whole.truncated) == (2 * RATE, 2_000, False)
    for keep_ms, cut in ((1_999, True), (2_000, False), (2_001, False), (9_000, False)):
        kept = await decoder.decode(clip, truncate_ms=keep_ms)
        assert kept.truncated is cut
        assert kept.duration_ms == min(keep_ms, 2_000)
        np.testing.assert_array_equal(kept.samples, whole.samples[: kept.duration_ms * RATE // 1000])
    with pytest.raises(TooLarge):
        await decoder.decode(encoded(speech(3.5)), truncate_ms=0)
    capped = await decoder.decode(encoded(speech(3.5)), truncate_ms=9_000)
    assert (capped.duration_ms, capped.truncated) == (3_000, True)
    with pytest.raises(BadAudio):
        await decoder.decode(b"no audio", truncate_ms=500)
    decoder.close()
