"""Families of encoders: what export needs to know of one, and which family a source belongs to.

A family is one file here that offers `Backbone`, and one row in `FAMILIES`. Backbones are used at export only: the
server runs the exported graph and never imports torch or transformers.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from services.embedder.backbones.checkpoint import Checkpoint, open_checkpoint
from services.embedder.backbones.clap import ClapBackbone
from services.embedder.backbones.logmel import LogMelBackbone
from services.embedder.backbones.mert import MertBackbone
from services.embedder.backbones.w2v_bert import W2vBertBackbone
from services.embedder.backbones.wav2vec2 import Wav2Vec2Backbone
from services.embedder.backbones.whisper import WhisperBackbone
from services.embedder.contexts import Context
from servox.errors import BadInput

Hidden = NDArray[np.float32] | list[NDArray[np.float32]]
Reference = Callable[[NDArray[np.float32]], Hidden]
"""One clip's samples [n] to its own frames of every layer, by transformers, one clip at a time.

[layers, T, d], or a list of [T, d] where layers differ in T.
"""


class Backbone(Protocol):
    """One encoder, ready to be exported."""

    @property
    def family(self) -> str:
        """Name of the family, as bundles record it."""

    @property
    def name(self) -> str:
        """Hub id or name of the checkpoint's folder."""

    @property
    def sha256(self) -> str:
        """Hash of the weights."""

    @property
    def rate_hz(self) -> int:
        """Sample rate of the graph's input."""

    @property
    def window_samples(self) -> int:
        """That a frame needs: a clip has (samples - window_samples) // frame_step + 1 frames.

        1 where the encoder pads the last frame itself: then a clip has ceil(samples / frame_step).
        """

    @property
    def dims(self) -> int:
        """Size of a frame's vector."""

    @property
    def blocks(self) -> int:
        """Transformer blocks of the whole encoder."""

    @property
    def max_duration_ms(self) -> int:
        """Longest clip that the encoder takes."""

    @property
    def pads(self) -> bool:
        """Whether the encoder was trained on padded clips, so that there is a padded encoder to be close to."""

    @property
    def front_end(self) -> tuple[str, ...]:
        """Which of `bundle.FRONT_END` the graph returns; none where all of it may run in a lower precision."""

    @property
    def default_context(self) -> Context:
        """The policy that fits this family best."""

    def check(self, context: Context, blocks: int) -> None:
        """Refuse a policy or a depth that this encoder does not have.

        Raises:
            BadSetting: naming the flag, its value and what is allowed.
        """

    def frame_step(self, blocks: int) -> int:
        """Samples from the start of one frame to the start of the next, in the last layer of a depth."""

    def layers(self, blocks: int) -> tuple[str, ...]:
        """Names of the exported layers; a layer's number is its place here."""

    def graph(self, context: Context, blocks: int) -> nn.Module:
        """The torch module to trace.

        From pcm float32 [B, samples] and lengths int64 [B] to statistics [B, layers, 2, d] and frames [B, T, d], then
        the tensors named by `front_end`: where the front end, which needs float32, ends and the encoder begins.
        """

    def reference(self, context: Context, blocks: int) -> Reference:
        """The same numbers from transformers' own code."""


def open_backbone(source: str) -> Backbone:
    """The backbone named `logmel`, or of the checkpoint at a folder or a hub id.

    Raises:
        NotFound: when there is no such checkpoint.
        BadInput: when its family is not known.
    """
    if source == LogMelBackbone.family:
        return LogMelBackbone()
    checkpoint = open_checkpoint(source)
    family = checkpoint.config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join([*FAMILIES, LogMelBackbone.family])
        raise BadInput(f"{checkpoint.name} is of the family {family!r}, which cannot be exported: use one of {known}")
    return FAMILIES[family](checkpoint)


FAMILIES: dict[str, Callable[[Checkpoint], Backbone]] = {
    "whisper": WhisperBackbone,
    "wav2vec2": Wav2Vec2Backbone,
    "hubert": Wav2Vec2Backbone,
    "wavlm": Wav2Vec2Backbone,
    "mert_model": MertBackbone,
    "wav2vec2-bert": W2vBertBackbone,
    "clap": ClapBackbone,
    "clap_audio_model": ClapBackbone,
}
