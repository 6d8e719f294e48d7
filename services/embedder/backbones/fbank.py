"""Kaldi's log-mel filter bank as transformers' SeamlessM4T feature extractor computes it, in a form that exports.

Windows of 400 samples every 160, none beyond the clip; 16-bit scale; each window loses its mean, is pre-emphasised
(0.97) and weighted by Povey's window; power of a 512-point transform; 80 triangles in Kaldi's mel scale from 20 Hz;
logarithm floored at float32's epsilon; each band normalised over the clip (zero mean, unit variance with n - 1).

transformers computes in float64. float32 leaves an error of 1e-7 of the loudest band's amplitude in every band, which a
logarithm shows where a band is 60 dB below: up to 1e-3 there, 1e-5 (RMS) over all.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank, window_function

from services.embedder.backbones.layers import own_items

RATE_HZ = 16_000
HOP = 160
WINDOW = 400
HALF = WINDOW // 2
TRANSFORM = 512
MELS = 80
SCALE = 2.0**15
PREEMPHASIS = 0.97
FLOOR = 1.192092955078125e-07
VARIANCE_FLOOR = 1e-7


class Fbank(nn.Module):
    """PCM to normalised log-mel bands."""

    cosines: Tensor
    sines: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        cosines, sines = _folded_basis()
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)
        self.register_buffer("filters", torch.from_numpy(_filters()))

    def forward(self, pcm: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Bands [B, windows, 80], zero after a clip's own windows, and how many of those it has [B].

        `pcm` is float32 [B, samples], `lengths` int64 [B] in samples; whatever lies after a clip's end is ignored.
        """
        windows = (pcm.shape[1] - WINDOW) // HOP + 1
        own = own_items(lengths, pcm.shape[1])
        log = self._log_mel(pcm * own * SCALE, windows)
        # A variance needs two windows: a clip too short for them has silence for the second.
        valid = (torch.div(lengths - WINDOW, HOP, rounding_mode="floor") + 1).clamp(min=2)
        return _normalised(log, valid, windows), valid

    def _log_mel(self, samples: Tensor, windows: int) -> Tensor:
        index = (torch.arange(windows).unsqueeze(1) * HOP + torch.arange(WINDOW).unsqueeze(0)).flatten()
        cut = samples.index_select(1, index).reshape(samples.shape[0], windows, WINDOW)
        before = torch.cat([cut[..., :1], cut[..., :-1]], dim=2)
        # (x[n] - mean) - 0.97 (x[n - 1] - mean) with differences of neighbours first, which float32 takes exactly.
        sharp = (cut - before) + (1.0 - PREEMPHASIS) * (before - cut.mean(dim=2, keepdim=True))
        # Folding about the window's centre halves both the work and the rounding error of the transform.
        late, early = sharp[..., HALF:], sharp[..., :HALF].flip(-1)
        power = (late + early).matmul(self.cosines).square() + (late - early).matmul(self.sines).square()
        return power.matmul(self.filters).clamp(min=FLOOR).log()


def _normalised(log: Tensor, valid: Tensor, windows: int) -> Tensor:
    own = own_items(valid, windows).unsqueeze(2)
    count = valid.reshape(-1, 1, 1).float()
    centred = (log - (log * own).sum(dim=1, keepdim=True) / count) * own
    variance = centred.square().sum(dim=1, keepdim=True) / (count - 1.0)
    return centred / (variance + VARIANCE_FLOOR).sqrt()


def _filters() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    filters = mel_filter_bank(
        TRANSFORM // 2 + 1, MELS, 20.0, RATE_HZ / 2, RATE_HZ,
        norm=None, mel_scale="kaldi", triangularize_in_mel_space=True,
    )  # fmt: skip
    return np.ascontiguousarray(filters, dtype=np.float32)


def _folded_basis() -> tuple[Tensor, Tensor]:
    """Windowed cosines and sines [200, 257] about the window's centre, which lies between two samples."""
    window = window_function(WINDOW, "povey", periodic=False)[HALF:]
    phase = np.outer(np.arange(HALF) + 0.5, np.arange(TRANSFORM // 2 + 1)) * (2 * math.pi / TRANSFORM)
    cosines, sines = window[:, None] * np.cos(phase), window[:, None] * np.sin(phase)
    return torch.from_numpy(cosines.astype(np.float32)), torch.from_numpy(sines.astype(np.float32))
