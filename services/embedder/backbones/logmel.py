"""Weight-free control: Whisper's log-mel frames as the only layer.

Whatever an encoder is said to know, it must know more than this. It needs no download, so it also carries smoke runs.
"""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from services.embedder.backbones.frontend import HOP, RATE_HZ, WINDOW_FRAMES, LogMel
from services.embedder.backbones.pooling import frame_weights, statistics
from services.embedder.bundle import FRONT_END
from services.embedder.contexts import Context
from servox.errors import BadSetting

MELS = 80


class LogMelGraph(nn.Module):
    """PCM and lengths to statistics [B, 1, 2, 80] and frames [B, T, 80], one every 10 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel(MELS)

    def forward(self, pcm: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`pcm` float32 [B, samples] up to 30 s, `lengths` int64 [B] in samples."""
        own = (pcm.shape[1] + HOP - 1) // HOP
        valid = torch.div(lengths + (HOP - 1), HOP, rounding_mode="floor")
        log_mel, quiet = self.mel(pcm, lengths, own)
        return statistics(log_mel, frame_weights(valid, own)).unsqueeze(1), log_mel.clone(), log_mel, quiet


class LogMelBackbone:
    """The control as a backbone; a source named `logmel`."""

    family: ClassVar[str] = "logmel"
    name = "logmel"
    sha256 = ""
    rate_hz = RATE_HZ
    frame_samples = HOP
    window_samples = 1
    dims = MELS
    blocks = 0
    max_duration_ms = WINDOW_FRAMES * 10
    pads = False
    front_end = FRONT_END
    default_context = Context(kind="exact")

    def frame_step(self, blocks: int) -> int:
        """The same at every depth."""
        self.check(self.default_context, blocks)
        return self.frame_samples

    def check(self, context: Context, blocks: int) -> None:
        """Only `exact` and depth 0: there is nothing that could see padding."""
        if context.kind != "exact":
            raise BadSetting(f"--context {context} does not fit logmel, which sees nothing but the clip: use exact")
        if blocks != 0:
            raise BadSetting(f"--blocks {blocks} does not fit logmel, which has no blocks: use 0 or leave it out")

    def layers(self, blocks: int) -> tuple[str, ...]:
        """The one layer."""
        self.check(self.default_context, blocks)
        return ("log-mel",)

    def graph(self, context: Context, blocks: int) -> LogMelGraph:
        """The module to trace."""
        self.check(context, blocks)
        return LogMelGraph()

    def reference(self, context: Context, blocks: int) -> "LogMelReference":
        """The feature extractor of transformers."""
        self.check(context, blocks)
        return LogMelReference(MELS)


class LogMelReference:
    """Log-mel frames [1, T, mels] of one clip by `transformers.WhisperFeatureExtractor`."""

    def __init__(self, mels: int) -> None:
        self.extract = WhisperFeatureExtractor(feature_size=mels)  # type: ignore[no-untyped-call]

    def whole(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """All 3,000 frames [3000, mels] of the clip padded to 30 s."""
        features = self.extract(samples, sampling_rate=RATE_HZ, return_tensors="np").input_features[0]
        return np.ascontiguousarray(features.T, dtype=np.float32)

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The clip's own frames."""
        return self.whole(samples)[None, : -(-len(samples) // HOP)]
