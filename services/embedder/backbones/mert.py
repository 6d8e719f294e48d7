"""MERT: HuBERT's body for music at 24 kHz, read from its checkpoint's layout; none of its remote code is run.

A checkpoint holds HuBERT's tensors under HuBERT's names without a prefix, and a config of its own type that says which
of MERT's additions it uses (arXiv 2306.00107):

- `deepnorm`: post-norm blocks multiply what they read by (2 · blocks)^¼ before they add to it (arXiv 2203.00555).
- `attention_relax`: logits are divided, shifted by their maximum and multiplied again before the softmax, which keeps
  half precision in range and changes no result: a softmax does not see a shift.
- `feature_extractor_cqt`: a constant-Q spectrogram beside the convolutions. No released model uses it; refused here.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import HubertConfig, PretrainedConfig

from services.embedder.backbones.checkpoint import Checkpoint
from services.embedder.backbones.wav2vec2 import KINDS, Kind, Reference, Wav2Vec2Backbone, Wav2Vec2Reference
from services.embedder.backbones.wav2vec2_graph import Shape
from services.embedder.contexts import Context
from servox.errors import BadInput

OWN_FIELDS = ("model_type", "architectures", "auto_map")
SHRUNK = ("attention.out_proj.", "feed_forward.output_dense.")


class MertBackbone(Wav2Vec2Backbone):
    """One MERT checkpoint.

    Raises:
        BadInput: when it uses what the graph cannot express, or its tensors do not fit its config.
    """

    own_rate_hz: ClassVar[int] = 24_000

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.family = "mert"
        if self.deepnorm and self.config.do_stable_layer_norm:
            raise BadInput(f"{self.name} has deepnorm together with do_stable_layer_norm, which exclude each other")
        for key, value in {"feature_extractor_cqt": False, "sample_rate": self.rate_hz}.items():
            found = checkpoint.config.get(key, value)
            if found != value:
                raise BadInput(f"{self.name} has {key} {found!r}, which cannot be exported: only {value!r} can")

    @property
    def kind(self) -> Kind:
        """HuBERT's, without a prefix."""
        return replace(KINDS["hubert"], prefix="")

    @property
    def deepnorm(self) -> bool:
        """Whether residuals are scaled."""
        return bool(self.checkpoint.config.get("deepnorm", False))

    @property
    def residual(self) -> float:
        """By how much."""
        return float((2.0 * self.blocks) ** 0.25) if self.deepnorm else 1.0

    def configured(self) -> PretrainedConfig:
        """HuBERT's config with MERT's sizes."""
        return HubertConfig(**{key: v for key, v in self.checkpoint.config.items() if key not in OWN_FIELDS})

    def shape(self, blocks: int) -> Shape:
        """As of HuBERT, and how much residuals are scaled by in the whole model."""
        return replace(super().shape(blocks), residual=self.residual)

    def reference(self, context: Context, blocks: int) -> Reference:
        """HuBERT of transformers with the same weights; it has no DeepNorm, so that is worked into them."""
        self.check(context, blocks)
        reference = Wav2Vec2Reference(self, _shrunk(self.weights(), self.residual), blocks=blocks)
        for module in reference.model.encoder.layers.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps /= self.residual**2
        return reference


def _shrunk(weights: Mapping[str, Tensor], residual: float) -> dict[str, Tensor]:
    """Weights for which norm(x + f(x)), its epsilon divided by `residual` squared, is norm(residual · x + f(x))."""
    divided = {name: any(part in name for part in SHRUNK) for name in weights}
    return {name: torch.div(t, residual) if divided[name] else t for name, t in weights.items()}
