"""Whisper's encoder from waveform to statistics, built for export: no Python branch depends on a clip.

One additive bias on the attention logits carries both what a batch pads and what the context policy weighs: 0 on a
clip's own keys, a large negative number on keys that must not be seen, log(n) on a token that stands for n silent
frames.
Layer 0 is convolutions + positions, k the output of block k; when every block is kept one more layer follows, the
final LayerNorm's output, which is what transformers returns.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu, linear

from services.embedder.backbones.frontend import HOP, LogMel
from services.embedder.backbones.layers import UNSEEN, Norm, linear_layer
from services.embedder.backbones.pooling import frame_weights, statistics
from services.embedder.backbones.silence import BORDER, GOLDEN, WINDOW, Silence, table
from services.embedder.contexts import Context

FRAME = 2 * HOP  # samples a frame: the second convolution halves the mel frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of one Whisper encoder: `blocks` kept out of `all_blocks`."""

    mels: int
    dims: int
    heads: int
    blocks: int
    all_blocks: int

    @property
    def final(self) -> bool:
        """Whether the final LayerNorm is part of the graph."""
        return self.blocks == self.all_blocks


class WhisperGraph(nn.Module):
    """PCM and lengths to statistics [B, layers, 2, d] and the last layer's frames [B, T, d].

    Args:
        weights: the encoder's tensors by their transformers name, without `model.encoder.`.
        shape: sizes of the encoder.
        context: what follows a clip.
        silence: what the encoder makes of silence, which the policy `cached` needs.
    """

    positions: Tensor
    silence_ratio: Tensor
    places: Tensor
    masses: Tensor
    still: Tensor

    def __init__(
        self, weights: Mapping[str, Tensor], *, shape: Shape, context: Context, silence: Silence | None = None
    ) -> None:
        super().__init__()
        self.shape, self.context = shape, context
        self.mel = LogMel(shape.mels)
        self.conv1, self.conv2 = Convolution(weights, "conv1."), Convolution(weights, "conv2.", stride=2)
        self.register_buffer("positions", weights["embed_positions.weight"])
        self.blocks = nn.ModuleList(Block(weights, f"layers.{k}.", heads=shape.heads) for k in range(shape.blocks))
        self.norm = Norm(weights, "layer_norm.") if shape.final else None
        if silence is not None:
            places, counts = table(tokens=context.tokens, sinks=silence.sinks)
            masses = torch.from_numpy(counts).log().clamp(min=UNSEEN).float()
            self.register_buffer("places", torch.from_numpy(places))
            self.register_buffer("masses", masses)
            self.register_buffer("still", torch.from_numpy(silence.states[: max(0, shape.blocks - 1)].copy()))
        else:
            j = torch.arange(context.tokens, dtype=torch.float64)
            self.register_buffer("silence_ratio", (j + ((j + 1) * GOLDEN).frac()).float())

    def forward(self, pcm: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`pcm` float32 [B, samples] up to 30 s, `lengths` int64 [B] in samples.

        The log-mel and the level of silence in it are returned as well, for export to give them their names.
        """
        own = (pcm.shape[1] + FRAME - 1) // FRAME
        valid = torch.div(lengths + (FRAME - 1), FRAME, rounding_mode="floor")
        count = self._count(own)
        log_mel, quiet = self.mel(pcm, lengths, 2 * count + 2)  # two more than the last convolution reads
        hidden, bias = self.tokens(log_mel, quiet, valid, count)
        place = self.places[valid] if self.context.kind == "cached" else None
        weights = frame_weights(valid, own)
        frames = hidden[:, :own]
        pooled = [statistics(frames, weights)]
        for k, block in enumerate(self.blocks, start=1):
            rows = hidden if place is None else hidden[:, : own + BORDER]
            if place is not None and k > 1:
                hidden = torch.cat([rows, self.still[k - 2][place]], dim=1)
            # Nothing reads the context's own tokens after the last block: it computes the clip's rows only.
            hidden = block(hidden, bias, frames if k == self.shape.blocks else rows)
            frames = hidden[:, :own]
            pooled.append(statistics(frames, weights))
        if self.norm is not None:
            frames = self.norm(frames)
            pooled.append(statistics(frames, weights))
        return torch.stack(pooled, dim=1), frames, log_mel, quiet

    def tokens(self, log_mel: Tensor, quiet: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """What the first block reads [B, N, d] and its bias on keys [B, 1, 1, N]; a clip's frames come first."""
        reach = self._reach(valid)
        hidden = self._convolve(log_mel, reach, count)
        index = torch.arange(count)
        hidden = hidden + self.positions[index.clamp(max=WINDOW - 1)]
        seen = index.unsqueeze(0) < torch.minimum(reach, valid + self._margin()).unsqueeze(1)
        bias = torch.where(seen, 0.0, UNSEEN)
        if self.context.compressed:
            stand_in = self._silence if self.context.kind == "silence" else self._cached
            silence, mass = stand_in(valid, quiet)
            hidden, bias = torch.cat([hidden, silence], dim=1), torch.cat([bias, mass], dim=1)
        return hidden, bias.unsqueeze(1).unsqueeze(1)

    def _count(self, own: int) -> int:
        """Frames to compute for a batch whose longest clip has `own`."""
        match self.context.kind:
            case "padded":
                return WINDOW
            case "fixed":
                return _longer(own, self._fixed())
            case "silence" | "cached":
                return own + BORDER
            case _:
                return own

    def _fixed(self) -> int:
        return math.ceil(self.context.seconds * 50)

    def _margin(self) -> int:
        """Frames after its own that a clip may see, before `_reach` cuts them."""
        return {"silence": BORDER, "cached": BORDER, "exact": 0}.get(self.context.kind, WINDOW)

    def _reach(self, valid: Tensor) -> Tensor:
        """Frames of each clip's context [B]: the convolutions see zeros from there on, as at the end of 30 s."""
        if self.context.kind == "exact":
            return valid
        if self.context.kind == "fixed":
            return valid.clamp(min=self._fixed())
        return torch.full_like(valid, WINDOW)

    def _convolve(self, log_mel: Tensor, reach: Tensor, count: int) -> Tensor:
        steps = 2 * count + 2
        inside = (torch.arange(steps).unsqueeze(0) < 2 * reach.unsqueeze(1)).float().unsqueeze(1)
        first = gelu(self.conv1(log_mel.transpose(1, 2) * inside)) * inside
        return gelu(self.conv2(first)).transpose(1, 2)[:, :count]

    def _silence(self, valid: Tensor, quiet: Tensor) -> tuple[Tensor, Tensor]:
        """Silence tokens [B, K, d] and the log of the frames that each stands for [B, K].

        A clip so long that no more than K frames remain gets one token a frame, the plain 30 s padding.
        """
        start = (valid + BORDER).unsqueeze(1)
        remaining = WINDOW - start
        segment = (remaining.float() / self.context.tokens).clamp(min=1.0)
        place = (start + (segment * self.silence_ratio).floor().long()).clamp(max=WINDOW - 1)
        deep, last = self._silent_frames(quiet[:, 0])
        at_end = (place == WINDOW - 1) & (remaining <= self.context.tokens)
        frames = torch.where(at_end.unsqueeze(2), last.unsqueeze(1), deep.unsqueeze(1))
        token = torch.arange(self.context.tokens).unsqueeze(0)
        return frames + self.positions[place], torch.where(token < remaining, segment.log(), UNSEEN)

    def _cached(self, valid: Tensor, quiet: Tensor) -> tuple[Tensor, Tensor]:
        """The same for the policy `cached`, as block 1 sees it: places are looked up by the clip's length."""
        place = self.places[valid]
        deep, last = self._silent_frames(quiet[:, 0])
        frames = torch.where((place == WINDOW - 1).unsqueeze(2), last.unsqueeze(1), deep.unsqueeze(1))
        return frames + self.positions[place], self.masses[valid]

    def _silent_frames(self, quiet: Tensor) -> tuple[Tensor, Tensor]:
        """What the convolutions make [B, d] of silence worth `quiet` [B, 1]: inside the window, and at its very end.

        The last frame sees the zeros beyond 30 s, and the encoder attends to it unlike to any other.
        """
        inside = gelu(quiet * self.conv1.weight.sum(dim=(1, 2)) + self.conv1.bias)
        edge = gelu(quiet * self.conv1.weight[..., :2].sum(dim=(1, 2)) + self.conv1.bias)
        shared = linear(inside, self.conv2.weight[..., :2].sum(dim=2), self.conv2.bias)
        third = self.conv2.weight[..., 2]
        return gelu(shared + linear(inside, third)), gelu(shared + linear(edge, third))


class Convolution(nn.Module):
    """Three-wide convolution over time with a checkpoint's weights, zeros beyond both ends."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("weight", weights[f"{prefix}weight"])
        self.register_buffer("bias", weights[f"{prefix}bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, channels, time]."""
        return conv1d(x, self.weight, self.bias, stride=self.stride, padding=1)


class Block(nn.Module):
    """One pre-norm transformer block; `rows` are the tokens whose output is wanted, `x` those that are attended to."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Norm(weights, f"{prefix}self_attn_layer_norm.")
        self.mlp_norm = Norm(weights, f"{prefix}final_layer_norm.")
        attention = f"{prefix}self_attn."
        scale = (weights[f"{attention}q_proj.weight"].shape[0] // heads) ** -0.5
        self.query = linear_layer(weights, f"{attention}q_proj.", scale=scale)
        self.key = linear_layer(weights, f"{attention}k_proj.")
        self.value = linear_layer(weights, f"{attention}v_proj.")
        self.out = linear_layer(weights, f"{attention}out_proj.")
        self.wide = linear_layer(weights, f"{prefix}fc1.")
        self.narrow = linear_layer(weights, f"{prefix}fc2.")

    def forward(self, x: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
        """`x` [B, N, d], `rows` [B, M, d] (its first M tokens) to [B, M, d]."""
        keys = self.norm(x)
        queries = keys[:, : rows.shape[1]]
        rows = rows + self.out(self.attend(queries, keys, bias))
        wide = gelu(self.wide(self.mlp_norm(rows)))
        return torch.add(rows, self.narrow(wide))

    def attend(self, queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        """Softmax attention of all heads with an additive `bias` on keys."""
        query = self._split(self.query(queries)).transpose(1, 2)
        key = self._split(self.key(keys)).permute(0, 2, 3, 1)
        value = self._split(self.value(keys)).transpose(1, 2)
        weights = torch.softmax(query.matmul(key) + bias, dim=-1)
        return weights.matmul(value).transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1)


def _longer(a: int, b: int) -> int:
    """The larger of two lengths, of which one may be symbolic while the graph is traced."""
    longer: int = torch.sym_max(a, b)  # type: ignore[no-untyped-call]
    return longer
