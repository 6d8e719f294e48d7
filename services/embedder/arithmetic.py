"""What an encoder costs: floating-point operations of its matrix products and convolutions, in closed form.

- One multiplication and one addition are two operations. Norms, activations, softmax and sums are left out, as
  `torch.utils.flop_counter` leaves them out; so is the spectrogram, which is no part of the encoder.
- Whisper's last block computes the clip's own rows only: nothing reads what its context's tokens would become. Tokens
  of `cached:K` are only ever keys and values.
- `Work` is what the graph of a bundle cut at a depth does for one clip alone. `padded` is what a window of Whisper
  costs transformers, every row in every block: the yardstick of every figure that is relative.
- Pure: no torch, no bundle. Sizes come from a checkpoint's config by `encoder_of`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.embedder.contexts import Context
from servox.errors import BadSetting

WHISPER_WINDOW = 1_500
WHISPER_BORDER = 2


class Encoder(Protocol):
    """Sizes of an encoder that know what it costs."""

    @property
    def blocks(self) -> int:
        """Of the whole encoder."""

    def flops(self, frames: int, *, context: Context, blocks: int) -> float:
        """Operations for a clip of `frames` under a policy, stopped after `blocks`."""

    def yardstick(self, frames: int) -> float:
        """Operations of the whole encoder as its makers run it on such a clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisper:
    """Two convolutions over mel bands, pre-norm blocks."""

    mels: int
    dims: int
    wide: int
    blocks: int

    def flops(self, frames: int, *, context: Context, blocks: int) -> float:
        """See `Encoder`."""
        own = frames
        computed, tokens = context_frames(context, own)
        cost = self._convolutions(computed + 1)  # the graph makes one frame more than it reads
        cost += 6.0 * self.dims * self.dims if context.compressed else 0.0  # the two frames of silence itself
        rows = computed if context.kind == "cached" else tokens
        cost += sum(self._block(rows, tokens) for _ in range(blocks - 1))
        return cost + (self._block(own, tokens) if blocks else 0.0)

    def yardstick(self, frames: int) -> float:  # noqa: ARG002 - Whisper pads every clip to its window
        """Every clip costs a window."""
        return self._convolutions(WHISPER_WINDOW) + self.blocks * self._block(WHISPER_WINDOW, WHISPER_WINDOW)

    def _convolutions(self, frames: int) -> float:
        return 2.0 * 3 * self.dims * (self.mels * 2 * frames + self.dims * frames)

    def _block(self, rows: int, tokens: int) -> float:
        return block_flops(self.dims, self.wide, rows=rows, tokens=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolutional:
    """Convolutions over the waveform, one over positions, blocks: wav2vec 2.0, HuBERT, WavLM, MERT."""

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    dims: int
    wide: int
    blocks: int
    position_width: int
    position_groups: int
    gates: int = 0  # outputs of WavLM's gate, each of a head's part of a frame

    def flops(self, frames: int, *, context: Context, blocks: int) -> float:
        """See `Encoder`; these encoders hear a clip at its own length, whatever `context` says of others."""
        if context.kind != "exact":
            raise BadSetting(f"context {context}: an encoder that hears the waveform has only exact")
        cost = self._features(frames) + 2.0 * frames * self.channels[-1] * self.dims
        placed = frames + 1 - self.position_width % 2  # an even width gives one frame too many
        cost += 2.0 * placed * self.dims * self.position_width * (self.dims // self.position_groups)
        gate = 2.0 * frames * self.dims * self.gates
        return cost + blocks * (block_flops(self.dims, self.wide, rows=frames, tokens=frames) + gate)

    def yardstick(self, frames: int) -> float:
        """The whole encoder on the clip."""
        return self.flops(frames, context=Context(kind="exact"), blocks=self.blocks)

    def _features(self, frames: int) -> float:
        """The convolutions, for the fewest samples that give so many frames."""
        cost, steps = 0.0, frames
        sources = (1, *self.channels)
        for out, source, kernel, stride in reversed(
            list(zip(self.channels, sources, self.kernels, self.strides, strict=False))
        ):
            cost += 2.0 * steps * out * source * kernel
            steps = (steps - 1) * stride + kernel
        return cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformer:
    """w2v-BERT 2.0: a projected filter bank, Conformer blocks with a learnt key for each distance."""

    inputs: int
    dims: int
    wide: int
    blocks: int
    kernel: int
    distances: int

    def flops(self, frames: int, *, context: Context, blocks: int) -> float:
        """See `Encoder`."""
        if context.kind != "exact":
            raise BadSetting(f"context {context}: w2v-BERT hears a clip at its own length: it has only exact")
        d, n = self.dims, frames
        mlps = 2 * 2.0 * n * 2 * d * self.wide
        attention = 2.0 * n * 4 * d * d + 4.0 * n * n * d + 2.0 * n * self.distances * d
        convolution = 2.0 * n * (2 * d * d + d * d + self.kernel * d)
        return 2.0 * n * self.inputs * d + blocks * (mlps + attention + convolution)

    def yardstick(self, frames: int) -> float:
        """The whole encoder on the clip."""
        return self.flops(frames, context=Context(kind="exact"), blocks=self.blocks)


def block_flops(dims: int, wide: int, *, rows: int, tokens: int) -> float:
    """A transformer block: keys and values of `tokens`, everything else of its first `rows`."""
    projections = 2.0 * dims * dims * (2 * rows + 2 * tokens)
    return projections + 4.0 * rows * tokens * dims + 4.0 * rows * dims * wide


def context_frames(context: Context, own: int) -> tuple[int, int]:
    """Frames that Whisper's convolutions make for a clip of `own`, and tokens that its blocks see."""
    match context.kind:
        case "padded":
            return WHISPER_WINDOW, WHISPER_WINDOW
        case "fixed":
            frames = max(own, math.ceil(context.seconds * 50))
            return frames, frames
        case "silence" | "cached":
            frames = own + WHISPER_BORDER
            return frames, frames + context.tokens
        case _:
            return own, own


def encoder_of(family: str, config: Mapping[str, Any]) -> Encoder:
    """Sizes of a family's encoder from its config (transformers' `to_dict`).

    Raises:
        BadSetting: the family has no closed form.
    """
    if family == "whisper":
        return Whisper(
            mels=config["num_mel_bins"],
            dims=config["d_model"],
            wide=config["encoder_ffn_dim"],
            blocks=config["encoder_layers"],
        )
    if family == "wav2vec2-bert":
        return Conformer(
            inputs=config["feature_projection_input_dim"],
            dims=config["hidden_size"],
            wide=config["intermediate_size"],
            blocks=config["num_hidden_layers"],
            kernel=config["conv_depthwise_kernel_size"],
            distances=config["left_max_position_embeddings"] + config["right_max_position_embeddings"] + 1,
        )
    if family in ("wav2vec2", "hubert", "wavlm", "mert"):
        return Convolutional(
            channels=tuple(config["conv_dim"]),
            kernels=tuple(config["conv_kernel"]),
            strides=tuple(config["conv_stride"]),
            dims=config["hidden_size"],
            wide=config["intermediate_size"],
            blocks=config["num_hidden_layers"],
            position_width=config["num_conv_pos_embeddings"],
            position_groups=config["num_conv_pos_embedding_groups"],
            gates=8 if family == "wavlm" else 0,
        )
    raise BadSetting(
        f"the cost of a {family!r} encoder has no closed form here: study one of whisper, wav2vec2, hubert, wavlm, "
        "mert or wav2vec2-bert"
    )
