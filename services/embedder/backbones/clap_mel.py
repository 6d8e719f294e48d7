"""CLAP's front end: the clip repeated to fill 10 s, log-mel bands in decibels, normalised and stretched to an image.

Equal to `transformers.ClapFeatureExtractor` without fusion, and to the first steps of its audio tower: a 1024-sample
periodic Hann window every 480 samples, centred, reflected at both ends of the 10 s; Slaney's mel filters; decibels
floored at 1e-10; the batch norm's running statistics; bicubic from 1,001 windows to the image's width.

Filters end at 14 kHz at most, so the transform's bins beyond them are never computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers.audio_utils import mel_filter_bank

from services.embedder.backbones.frontend import folded_basis
from services.embedder.backbones.layers import EPSILON

RATE_HZ = 48_000
HOP = 480
TRANSFORM = 1024
HALF = TRANSFORM // 2
SECONDS = 10
SAMPLES = SECONDS * RATE_HZ
WINDOWS = SAMPLES // HOP + 1
FLOOR = 1e-10

Padding = Literal["repeatpad", "repeat", "pad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClapFrontEnd:
    """What a checkpoint's preprocessor_config says.

    Args:
        mels: bands.
        low_hz: where the first band starts.
        high_hz: where the last one ends.
        padding: what follows a clip: it again as often as it fits whole and then silence, it again up to the end, or
            silence.
    """

    mels: int
    low_hz: float
    high_hz: float
    padding: Padding

    def filters(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Slaney's mel filters [bins, mels], without the bins at the end that no band reads."""
        filters = mel_filter_bank(
            HALF + 1, self.mels, self.low_hz, self.high_hz, RATE_HZ, norm="slaney", mel_scale="slaney"
        )
        read = int(np.flatnonzero(filters.any(axis=1)).max()) + 1
        return np.ascontiguousarray(filters[:read], dtype=np.float32)


class ClapMel(nn.Module):
    """PCM to the normalised, stretched log-mel.

    Args:
        weights: of the audio tower; its batch norm is read.
        front_end: the extractor's settings.
        width: to which 1,001 windows are stretched.
    """

    cosines: Tensor
    sines: Tensor
    filters: Tensor
    scale: Tensor
    shift: Tensor
    stretch: Tensor

    def __init__(self, weights: Mapping[str, Tensor], *, front_end: ClapFrontEnd, width: int) -> None:
        super().__init__()
        self.padding = front_end.padding
        filters = torch.from_numpy(front_end.filters())
        cosines, sines = folded_basis(HALF)
        self.register_buffer("cosines", cosines[:, : len(filters)].contiguous())
        self.register_buffer("sines", sines[:, : len(filters)].contiguous())
        self.register_buffer("filters", filters)
        scale = weights["batch_norm.weight"] / (weights["batch_norm.running_var"] + EPSILON).sqrt()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", weights["batch_norm.bias"] - weights["batch_norm.running_mean"] * scale)
        self.register_buffer("stretch", _stretch(width))

    def forward(self, pcm: Tensor, lengths: Tensor) -> Tensor:
        """Bands [B, width, mels] of `pcm` float32 [B, samples] up to 10 s, `lengths` int64 [B] in samples."""
        filled = self._filled(pcm, lengths.unsqueeze(1))
        centre = torch.arange(WINDOWS).unsqueeze(1) * HOP + HALF
        offset = torch.arange(HALF).unsqueeze(0)
        late, early = _gather(filled, centre + offset), _gather(filled, centre - offset)
        power = (late + early).matmul(self.cosines).square() + (late - early).matmul(self.sines).square()
        decibels = power.matmul(self.filters).clamp(min=FLOOR).log10() * 10.0
        return self.stretch.matmul(decibels * self.scale + self.shift)

    def _filled(self, pcm: Tensor, length: Tensor) -> Tensor:
        """The 10 s that the encoder hears [B, 480000 + 1024], reflected at both ends; `length` is [B, 1]."""
        place = torch.arange(-HALF, SAMPLES + HALF)
        # No abs(): OpenVINO 2026.4 leaves whole numbers as they are under it.
        place = torch.maximum(place, -place)
        place = torch.minimum(place, 2 * (SAMPLES - 1) - place).unsqueeze(0)
        heard = pcm.gather(1, place - _whole_times(place, length) * length)
        return heard if self.padding == "repeat" else heard * (place < self._end(length))

    def _end(self, length: Tensor) -> Tensor:
        """Where silence begins [B, 1]."""
        if self.padding == "pad":
            return length
        return _whole_times(torch.full_like(length, SAMPLES), length) * length


def _whole_times(place: Tensor, length: Tensor) -> Tensor:
    """How often `length` fits into `place`, both int64; engines divide in float32, and some by a rounded reciprocal.

    Half a sample more keeps the quotient farther from the next whole number than any of them errs.
    """
    return ((place.float() + 0.5) / length.float()).floor().long()


def _gather(samples: Tensor, index: Tensor) -> Tensor:
    return samples.index_select(1, index.flatten()).reshape(samples.shape[0], *index.shape)


def _stretch(width: int) -> Tensor:
    """Bicubic interpolation along time as a matrix [width, 1001]; it is the identity where nothing is stretched."""
    identity = torch.eye(WINDOWS)
    if width == WINDOWS:
        return identity
    size = (width, WINDOWS)
    return interpolate(identity[None, None], size, mode="bicubic", align_corners=True)[0, 0]
