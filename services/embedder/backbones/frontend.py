"""Whisper's log-mel front end as gathers and matrix products, so that it exports and runs fast everywhere.

Equal to `transformers.WhisperFeatureExtractor` on the clip padded with zeros to 30 s, computed only as far as asked:
a 400-sample periodic Hann window every 160 samples, centred, reflected at both ends of the 30 s; 201 power bins; mel
filters; log10 floored at 1e-10; clamped to the clip's own maximum - 8; (x + 4) / 4. Silence never raises the maximum,
so the clamp does not depend on how far a clip is padded or on what else is in its batch.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

RATE_HZ = 16_000
HOP = 160
HALF_WINDOW = 200
WINDOW_FRAMES = 3_000
WINDOW_SAMPLES = WINDOW_FRAMES * HOP
FLOOR_LOG10 = -10.0


class LogMel(nn.Module):
    """PCM to Whisper's log-mel frames.

    Args:
        mels: number of mel bands, 80 or 128.
    """

    cosines: Tensor
    sines: Tensor
    filters: Tensor

    def __init__(self, mels: int) -> None:
        super().__init__()
        cosines, sines = folded_basis(HALF_WINDOW)
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)
        self.register_buffer("filters", torch.from_numpy(mel_filters(mels)))

    def forward(self, pcm: Tensor, lengths: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Log-mel [B, frames, mels], and the value that pure silence has in each clip [B, 1, 1].

        `pcm` is float32 [B, samples], `lengths` int64 [B] in samples: whatever lies after a clip's end is ignored.
        """
        own = torch.arange(pcm.shape[1]).unsqueeze(0) < lengths.unsqueeze(1)
        reach = nn.functional.pad(pcm * own, (0, frames * HOP + HALF_WINDOW - pcm.shape[1]))
        centre = torch.arange(frames).unsqueeze(1) * HOP
        offset = torch.arange(HALF_WINDOW).unsqueeze(0)
        late, early = _gather(reach, centre + offset), _gather(reach, centre - offset)
        # Folding about the window's centre halves both the work and the rounding error of the transform.
        power = (late + early).matmul(self.cosines).square() + (late - early).matmul(self.sines).square()
        log = power.matmul(self.filters).clamp(min=10.0**FLOOR_LOG10).log10()
        floor = (log.amax(dim=(1, 2), keepdim=True) - 8.0).clamp(min=FLOOR_LOG10)
        return (torch.maximum(log, floor) + 4.0) / 4.0, (floor + 4.0) / 4.0


def mel_filters(mels: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Slaney's mel filters [201, mels] of 0-8 kHz, as Whisper uses them."""
    filters = mel_filter_bank(HALF_WINDOW + 1, mels, 0.0, 8000.0, RATE_HZ, norm="slaney", mel_scale="slaney")
    return np.ascontiguousarray(filters, dtype=np.float32)


def _gather(samples: Tensor, index: Tensor) -> Tensor:
    """`samples` [B, n] at `index` [frames, 200], reflected at the start of the clip and at the end of the 30 s."""
    reflected = (WINDOW_SAMPLES - 1) - (index.abs() - (WINDOW_SAMPLES - 1)).abs()
    return samples.index_select(1, reflected.flatten()).reshape(samples.shape[0], *index.shape)


def folded_basis(half: int) -> tuple[Tensor, Tensor]:
    """Windowed cosines and sines [half, half + 1] about the centre, for x[c + m] + x[c - m] and their difference.

    The sample `half` before the centre has weight 0 in a periodic Hann window, and the centre itself is counted twice.
    """
    offset = np.arange(half)
    window = 0.5 + 0.5 * np.cos(math.pi * offset / half)
    window[0] *= 0.5
    phase = np.outer(offset, np.arange(half + 1)) * (math.pi / half)
    cosines, sines = window[:, None] * np.cos(phase), window[:, None] * np.sin(phase)
    return torch.from_numpy(cosines.astype(np.float32)), torch.from_numpy(sines.astype(np.float32))
