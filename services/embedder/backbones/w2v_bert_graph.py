"""w2v-BERT 2.0 from waveform to statistics, built for export: Kaldi's filter bank, two windows a frame, a Conformer.

Nothing but attention looks ahead: its convolutions pad on the left only. So a mask on keys, and statistics of the front
end over each clip's own windows, make a clip in a batch the clip alone. Of an odd number of windows the last is heard
only by the front end's statistics, as in transformers, which masks its half-filled frame.

Layer 0 is the projected filter bank, k the output of block k, which ends in a LayerNorm of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad, silu

from services.embedder.backbones.fbank import HOP, MELS, WINDOW, Fbank
from services.embedder.backbones.layers import UNSEEN, Norm, linear_layer, own_items
from services.embedder.backbones.pooling import frame_weights, statistics

STRIDE = 2  # windows a frame
FRAME = STRIDE * HOP
REACH = WINDOW + (STRIDE - 1) * HOP  # samples that a frame reads


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformerShape:
    """Sizes of one encoder: `left` and `right` are the farthest distances, in frames, that attention tells apart."""

    heads: int
    blocks: int
    left: int
    right: int
    epsilon: float


class W2vBertGraph(nn.Module):
    """PCM and lengths to statistics [B, layers, 2, d], frames [B, T, d] of the last layer, and the filter bank.

    Args:
        weights: the model's tensors by their transformers name, without the model's own prefix.
        shape: sizes.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, shape: ConformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.mel = Fbank()
        self.feature_norm = Norm(weights, "feature_projection.layer_norm.", epsilon=shape.epsilon)
        self.project = linear_layer(weights, "feature_projection.projection.")
        self.blocks = nn.ModuleList(
            ConformerBlock(weights, f"encoder.layers.{k}.", shape=shape) for k in range(shape.blocks)
        )

    def forward(self, pcm: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`pcm` float32 [B, samples], at least 560 wide, `lengths` int64 [B] in samples."""
        bands, windows = self.mel(pcm, lengths)
        frames = bands.shape[1] // STRIDE
        valid = torch.div(windows, STRIDE, rounding_mode="floor")
        pairs = bands[:, : frames * STRIDE].reshape(bands.shape[0], frames, STRIDE * MELS)
        hidden = self.project(self.feature_norm(pairs))
        bias = torch.where(own_items(valid, frames), 0.0, UNSEEN).unsqueeze(1).unsqueeze(1)
        places = self._places(frames)
        weights = frame_weights(valid, frames)
        pooled = [statistics(hidden, weights)]
        for block in self.blocks:
            hidden = block(hidden, bias, places)
            pooled.append(statistics(hidden, weights))
        return torch.stack(pooled, dim=1), hidden, bands

    def _places(self, frames: int) -> Tensor:
        """Where in a flat table [frames, left + 1 + right] each query [frames] finds each key: int64 [frames²]."""
        place = torch.arange(frames)
        distance = place.unsqueeze(0) - place.unsqueeze(1)
        near = distance.clamp(min=-self.shape.left, max=self.shape.right) + self.shape.left
        return (near + place.unsqueeze(1) * (self.shape.left + 1 + self.shape.right)).flatten()


class ConformerBlock(nn.Module):
    """Half an MLP, attention, convolution, half an MLP, LayerNorm (arXiv 2005.08100)."""

    distances: Tensor

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, *, shape: ConformerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.first, self.second = (Mlp(weights, f"{prefix}ffn{n}", epsilon=shape.epsilon) for n in (1, 2))
        self.attention_norm = Norm(weights, f"{prefix}self_attn_layer_norm.", epsilon=shape.epsilon)
        attention = f"{prefix}self_attn."
        scale = (weights[f"{attention}linear_q.weight"].shape[0] // shape.heads) ** -0.5
        self.query = linear_layer(weights, f"{attention}linear_q.", scale=scale)
        self.key = linear_layer(weights, f"{attention}linear_k.")
        self.value = linear_layer(weights, f"{attention}linear_v.")
        self.out = linear_layer(weights, f"{attention}linear_out.")
        self.register_buffer("distances", weights[f"{attention}distance_embedding.weight"].T.contiguous())
        self.convolution = ConvolutionModule(weights, f"{prefix}conv_module.", epsilon=shape.epsilon)
        self.norm = Norm(weights, f"{prefix}final_layer_norm.", epsilon=shape.epsilon)

    def forward(self, x: Tensor, bias: Tensor, places: Tensor) -> Tensor:
        """`x` [B, T, d], `bias` [B, 1, 1, T] on keys, `places` as `W2vBertGraph` makes them."""
        x = x + 0.5 * self.first(x)
        x = x + self.attend(self.attention_norm(x), bias, places)
        x = x + self.convolution(x)
        y: Tensor = self.norm(x + 0.5 * self.second(x))
        return y

    def attend(self, x: Tensor, bias: Tensor, places: Tensor) -> Tensor:
        """Softmax attention with a learnt key for each distance (arXiv 1803.02155), without its residual.

        Every query meets the few distances there are once; a flat gather then spreads the results over all keys, so
        nothing larger than the attention's own matrix is made.
        """
        query = self._split(self.query(x)).transpose(1, 2)
        key = self._split(self.key(x)).permute(0, 2, 3, 1)
        value = self._split(self.value(x)).transpose(1, 2)
        content = query.matmul(key)
        position = query.matmul(self.distances).flatten(2).index_select(2, places).reshape(content.shape)
        weights = torch.softmax(content + position + bias, dim=-1)
        out: Tensor = self.out(weights.matmul(value).transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1)


class Mlp(nn.Module):
    """A normalised feed-forward layer, without its residual; `prefix` ends in its number."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, *, epsilon: float) -> None:
        super().__init__()
        self.norm = Norm(weights, f"{prefix}_layer_norm.", epsilon=epsilon)
        self.wide = linear_layer(weights, f"{prefix}.intermediate_dense.")
        self.narrow = linear_layer(weights, f"{prefix}.output_dense.")

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, d]."""
        narrow: Tensor = self.narrow(silu(self.wide(self.norm(x))))
        return narrow


class ConvolutionModule(nn.Module):
    """A gated, causal convolution of each dimension over time, without its residual."""

    depthwise: Tensor

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, *, epsilon: float) -> None:
        super().__init__()
        self.norm = Norm(weights, f"{prefix}layer_norm.", epsilon=epsilon)
        self.inner_norm = Norm(weights, f"{prefix}depthwise_layer_norm.", epsilon=epsilon)
        names = ("pointwise_conv1.", "pointwise_conv2.")
        points = {f"{name}weight": weights[f"{prefix}{name}weight"].squeeze(2) for name in names}
        self.gate, self.out = (linear_layer(points, name) for name in names)
        self.register_buffer("depthwise", weights[f"{prefix}depthwise_conv.weight"])

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, d]."""
        signal, gate = self.gate(self.norm(x)).chunk(2, dim=-1)
        signal = (signal * torch.sigmoid(gate)).transpose(1, 2)
        channels, _, width = self.depthwise.shape
        past = conv1d(pad(signal, (width - 1, 0)), self.depthwise, groups=channels).transpose(1, 2)
        out: Tensor = self.out(silu(self.inner_norm(past)))
        return out
