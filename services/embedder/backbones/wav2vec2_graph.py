"""wav2vec 2.0 and its kin (HuBERT, WavLM, MERT) from waveform to statistics, built for export.

A stack of convolutions reads the waveform itself, one projection leads into the transformer, and one wide convolution
stands for positions. Two bodies exist: base models normalise the first convolution over time and each block's output
(post-norm); large ones normalise every convolution over channels and each block's input (`do_stable_layer_norm`).

A clip in a batch must be the clip alone. Three places reach beyond its end, and each is told where that is: the
waveform's own mean and variance, the first convolution's statistics over time, and the positional convolution, which
sees zeros from there on; keys of the attention are masked. transformers masks none of the first convolution's
statistics, so its base models change with their batch; ours equal transformers for the clip alone.

Layer 0 is what the first block reads, k the output of block k. Pre-norm models have a final LayerNorm, which follows as
one more layer when every block is kept: transformers' `last_hidden_state`, which its versions before 5 also put in the
place of the last block's output in `hidden_states`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu

from services.embedder.backbones.layers import EPSILON, UNSEEN, Norm, linear_layer, own_items
from services.embedder.backbones.pooling import frame_weights, statistics

VARIANCE_FLOOR = 1e-7  # of transformers' feature extractors


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one checkpoint's config says.

    Args:
        strides: steps of the convolutions.
        heads: of the attention.
        blocks: kept, of `all_blocks`.
        all_blocks: of the checkpoint.
        normalise: whether the waveform is brought to zero mean and unit variance.
        group_norm: whether the first convolution is normalised over time, instead of all over channels.
        pre_norm: whether blocks normalise what they read, instead of what they give.
        epsilon: of the transformer's normalisations.
        residual: by which a post-norm block multiplies what it read before it adds to it (DeepNorm); 1 is plain.
        buckets: of WavLM's relative positions; 0 for the others.
        max_distance: beyond which they share a bucket.
        max_frames: of the longest clip.
    """

    strides: tuple[int, ...]
    heads: int
    blocks: int
    all_blocks: int
    normalise: bool
    group_norm: bool
    pre_norm: bool
    epsilon: float
    residual: float = 1.0
    buckets: int = 0
    max_distance: int = 0
    max_frames: int = 0

    @property
    def final(self) -> bool:
        """Whether the final LayerNorm is part of the graph."""
        return self.pre_norm and self.blocks == self.all_blocks


class Wav2Vec2Graph(nn.Module):
    """PCM and lengths to statistics [B, layers, 2, d] and the last layer's frames [B, T, d].

    Args:
        weights: the model's tensors by their transformers name, without the model's own prefix.
        shape: sizes and variant.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.convolutions = nn.ModuleList(
            Convolution(weights, f"feature_extractor.conv_layers.{k}.", stride=stride, over_time=shape.group_norm)
            for k, stride in enumerate(shape.strides)
        )
        projected = "feature_projection.layer_norm."
        self.feature_norm = Norm(weights, projected, epsilon=shape.epsilon) if f"{projected}weight" in weights else None
        self.project = linear_layer(weights, "feature_projection.projection.")
        self.positions = Positions(weights)
        self.norm = Norm(weights, "encoder.layer_norm.", epsilon=shape.epsilon)
        self.distances = Distances(weights, shape) if shape.buckets and shape.blocks else None
        self.blocks = nn.ModuleList(Block(weights, f"encoder.layers.{k}.", shape=shape) for k in range(shape.blocks))

    def forward(self, pcm: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`pcm` float32 [B, samples], at least one frame's window wide, `lengths` int64 [B] in samples."""
        features, valid = self.features(self._waveform(pcm, lengths), lengths)
        own = own_items(valid, features.shape[1])
        hidden = self.tokens(features, own)
        bias = torch.where(own, 0.0, UNSEEN).unsqueeze(1).unsqueeze(1)
        distances = None if self.distances is None else self.distances(features.shape[1])
        weights = frame_weights(valid, features.shape[1])
        pooled = [statistics(hidden, weights)]
        for block in self.blocks:
            hidden = block(hidden, bias, distances)
            pooled.append(statistics(hidden, weights))
        if self.shape.final:
            hidden = self.norm(hidden)
            pooled.append(statistics(hidden, weights))
        return torch.stack(pooled, dim=1), hidden

    def features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the convolutions make [B, T, c] of a waveform [B, samples], and how much of it is each clip's [B].

        A frame of a clip's own reads only its own samples, so nothing needs a mask but statistics over time.
        """
        hidden, valid = waveform.unsqueeze(1), lengths
        for convolution in self.convolutions:
            hidden, valid = convolution(hidden, valid)
        return hidden.transpose(1, 2), valid

    def tokens(self, features: Tensor, own: Tensor) -> Tensor:
        """What the first block reads [B, T, d]."""
        projected: Tensor = self.project(features if self.feature_norm is None else self.feature_norm(features))
        hidden: Tensor = projected * own.unsqueeze(2)
        hidden = hidden + self.positions(hidden)
        if not self.shape.pre_norm:
            hidden = self.norm(hidden)
        return hidden

    def _waveform(self, pcm: Tensor, lengths: Tensor) -> Tensor:
        """The clip's own samples, of zero mean and unit variance where the model wants them so; zeros after them."""
        own = own_items(lengths, pcm.shape[1])
        if not self.shape.normalise:
            return pcm * own
        weights = own / lengths.unsqueeze(1)
        centred = (pcm - (pcm * weights).sum(dim=1, keepdim=True)) * own
        variance = (centred.square() * weights).sum(dim=1, keepdim=True)
        return centred / (variance + VARIANCE_FLOOR).sqrt()


class Convolution(nn.Module):
    """One convolution of the feature extractor, without padding, its normalisation if it has one, and GELU.

    Args:
        weights: of the model.
        prefix: of the convolution.
        stride: its step.
        over_time: whether its normalisation is of each channel over time, instead of each step over channels.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, *, stride: int, over_time: bool) -> None:
        super().__init__()
        self.stride, self.over_time = stride, over_time
        self.register_buffer("weight", weights[f"{prefix}conv.weight"])
        self.register_buffer("bias", weights.get(f"{prefix}conv.bias"))
        norm = f"{prefix}layer_norm."
        self.norm = Norm(weights, norm) if f"{norm}weight" in weights else None

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """[B, channels, time] and how much of it is each clip's own [B], to the same after the convolution."""
        x = conv1d(x, self.weight, self.bias, stride=self.stride)
        steps = torch.div(valid - self.weight.shape[2], self.stride, rounding_mode="floor") + 1
        valid = steps.clamp(min=1)  # a clip shorter than one window still has one frame, of its samples and silence
        if self.norm is not None:
            x = self._over_time(x, valid, self.norm) if self.over_time else self.norm(x.transpose(1, 2)).transpose(1, 2)
        return gelu(x), valid

    def _over_time(self, x: Tensor, valid: Tensor, norm: Norm) -> Tensor:
        weights = frame_weights(valid, x.shape[2]).transpose(1, 2)
        centred = x - (x * weights).sum(dim=2, keepdim=True)
        variance = (centred.square() * weights).sum(dim=2, keepdim=True)
        # One factor a channel: the long axis is walked once less.
        return centred * ((variance + EPSILON).rsqrt() * norm.weight.unsqueeze(1)) + norm.bias.unsqueeze(1)


class Positions(nn.Module):
    """The grouped convolution that tells frames apart by what surrounds them; its weight norm is folded here."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        prefix = "encoder.pos_conv_embed.conv."
        length, direction = (weights[f"{prefix}parametrizations.weight.original{part}"] for part in (0, 1))
        self.register_buffer("weight", direction * (length / direction.norm(dim=(0, 1), keepdim=True)))
        self.register_buffer("bias", weights[f"{prefix}bias"])

    def forward(self, x: Tensor) -> Tensor:
        """From frames [B, T, d], zero where they are no clip's own, to what is added to them."""
        channels, share, width = self.weight.shape
        around = conv1d(x.transpose(1, 2), self.weight, self.bias, padding=width // 2, groups=channels // share)
        return gelu(around[..., : x.shape[1]]).transpose(1, 2)  # an even width gives one frame too many


class Distances(nn.Module):
    """WavLM's bias by how far two frames lie apart: a table of all distances, so no logarithm runs in the graph."""

    table: Tensor

    def __init__(self, weights: Mapping[str, Tensor], shape: Shape) -> None:
        super().__init__()
        self.reach = shape.max_frames
        distance = torch.arange(-self.reach, self.reach + 1)
        bucket = relative_bucket(distance, buckets=shape.buckets, max_distance=shape.max_distance)
        self.register_buffer("table", weights["encoder.layers.0.attention.rel_attn_embed.weight"][bucket])

    def forward(self, frames: int) -> Tensor:
        """Bias [1, heads, frames, frames] of every query on every key."""
        place = torch.arange(frames)
        return self.table[place.unsqueeze(0) - place.unsqueeze(1) + self.reach].permute(2, 0, 1).unsqueeze(0)


def relative_bucket(distance: Tensor, *, buckets: int, max_distance: int) -> Tensor:
    """WavLM's bucket of each distance (key - query): half for either side, exact near by, logarithmic beyond."""
    half = buckets // 2
    exact = half // 2
    far = distance.abs().clamp(min=1).float() / exact
    log = (exact + far.log() / math.log(max_distance / exact) * (half - exact)).long().clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(distance.abs() < exact, distance.abs(), log)


class Block(nn.Module):
    """One transformer block, pre-norm or post-norm."""

    gate_constant: Tensor

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, *, shape: Shape) -> None:
        super().__init__()
        self.heads, self.pre_norm, self.residual = shape.heads, shape.pre_norm, shape.residual
        self.norm = Norm(weights, f"{prefix}layer_norm.", epsilon=shape.epsilon)
        self.mlp_norm = Norm(weights, f"{prefix}final_layer_norm.", epsilon=shape.epsilon)
        attention = f"{prefix}attention."
        scale = (weights[f"{attention}q_proj.weight"].shape[0] // shape.heads) ** -0.5
        self.query = linear_layer(weights, f"{attention}q_proj.", scale=scale)
        self.key = linear_layer(weights, f"{attention}k_proj.")
        self.value = linear_layer(weights, f"{attention}v_proj.")
        self.out = linear_layer(weights, f"{attention}out_proj.")
        self.wide = linear_layer(weights, f"{prefix}feed_forward.intermediate_dense.")
        self.narrow = linear_layer(weights, f"{prefix}feed_forward.output_dense.")
        self.gate = None
        if shape.buckets:
            self.gate = linear_layer(weights, f"{attention}gru_rel_pos_linear.")
            self.register_buffer("gate_constant", weights[f"{attention}gru_rel_pos_const"])

    def forward(self, x: Tensor, bias: Tensor, distances: Tensor | None) -> Tensor:
        """`x` [B, T, d], `bias` [B, 1, 1, T] on keys, `distances` [1, heads, T, T] of WavLM."""
        if self.pre_norm:
            x = x + self.attend(self.norm(x), bias, distances)
            return x + self.mlp(self.mlp_norm(x))
        x = self.norm(x * self.residual + self.attend(x, bias, distances))
        y: Tensor = self.mlp_norm(x * self.residual + self.mlp(x))
        return y

    def mlp(self, x: Tensor) -> Tensor:
        """The block's second half, without its residual."""
        narrow: Tensor = self.narrow(gelu(self.wide(x)))
        return narrow

    def attend(self, x: Tensor, bias: Tensor, distances: Tensor | None) -> Tensor:
        """Softmax attention of all heads with an additive bias, without its residual."""
        query = self._split(self.query(x)).transpose(1, 2)
        key = self._split(self.key(x)).permute(0, 2, 3, 1)
        value = self._split(self.value(x)).transpose(1, 2)
        if distances is not None:
            bias = bias + self._gated(x) * distances
        weights = torch.softmax(query.matmul(key) + bias, dim=-1)
        out: Tensor = self.out(weights.matmul(value).transpose(1, 2).flatten(2))
        return out

    def _gated(self, x: Tensor) -> Tensor:
        """How much each query [B, heads, T, 1] heeds distance: WavLM's gate (arXiv 2110.13900, eq. 5 to 8)."""
        if self.gate is None:
            return torch.ones(1)
        raw = self.gate(self._split(x).transpose(1, 2))
        update, reset = torch.sigmoid(raw.unflatten(-1, (2, 4)).sum(dim=-1, keepdim=True)).unbind(dim=-2)
        gated: Tensor = update * (reset * self.gate_constant - 1.0) + 2.0
        return gated

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1)
