import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor

from services.embedder.backbones.frontend import WINDOW_SAMPLES, LogMel
from services.embedder.speechlike import speechlike

RATE = 16_000


def expected(samples: NDArray[np.float32], mels: int) -> NDArray[np.float32]:
    extract = WhisperFeatureExtractor(feature_size=mels)  # type: ignore[no-untyped-call]
    return np.asarray(extract(samples, sampling_rate=RATE, return_tensors="np").input_features[0].T)


def actual(samples: NDArray[np.float32], mels: int, frames: int) -> tuple[NDArray[np.float32], float]:
    with torch.inference_mode():
        log_mel, quiet = LogMel(mels)(torch.from_numpy(samples[None]), torch.tensor([len(samples)]), frames)
    return log_mel[0].numpy(), float(quiet)


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("samples", [50, 400, 16_000, 33_333, WINDOW_SAMPLES - 100, WINDOW_SAMPLES])
def test_it_agrees_with_the_feature_extractor(samples: int, mels: int) -> None:
    clip = speechlike(samples, duration_s=samples / RATE + 0.5, rate_hz=RATE)[:samples]
    whole = expected(clip, mels)
    frames = min(3_000, -(-samples // 160) + 20)
    log_mel, quiet = actual(clip, mels, frames)
    assert np.abs(log_mel - whole[:frames]).max() < 1e-4
    assert np.abs(log_mel - whole[:frames]).mean() < 1e-6
    if samples < WINDOW_SAMPLES // 2:
        assert quiet == pytest.approx(float(whole[-1].min()), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(400, 20_000), seed=st.integers(0, 1000), level=st.floats(1e-4, 1.0))
def test_what_follows_a_clip_never_matters(samples: int, seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    clip = (level * rng.uniform(-1, 1, samples)).astype(np.float32)
    after = np.concatenate([clip, rng.uniform(-9, 9, 7_000).astype(np.float32)])
    module = LogMel(80)
    with torch.inference_mode():
        alone, _ = module(torch.from_numpy(clip[None]), torch.tensor([samples]), 200)
        batched, _ = module(torch.from_numpy(after[None]), torch.tensor([samples]), 200)
    torch.testing.assert_close(alone, batched, atol=1e-6, rtol=0)
