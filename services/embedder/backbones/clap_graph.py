"""CLAP's audio tower (HTSAT: a Swin transformer over a folded spectrogram) from waveform to statistics, for export.

The spectrogram of 10 s is cut into equal parts along time, which are laid below each other: a square image. Patches of
it are tokens on a grid; blocks attend within windows of the grid, every second block within windows shifted by half
(arXiv 2103.14030, 2202.00874). After each stage but the last, four neighbours are merged into one token of twice the
dimensions.

Stages differ in their tokens' dimensions. What stays the same is a column of the grid: half as many rows of twice the
size. So a frame is a column, the rows of its frequencies side by side, and every layer of every stage has frames of one
size; a stage's frames last twice as long as those of the stage before.

Layer 0 is the embedded patches, k the output of block k, counted over all stages and before any merging; when every
block is kept one more follows, the final LayerNorm's output: transformers' `last_hidden_state`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu

from services.embedder.backbones.clap_mel import SAMPLES, ClapFrontEnd, ClapMel
from services.embedder.backbones.layers import Norm, linear_layer
from services.embedder.backbones.pooling import frame_weights, statistics

APART = -100.0  # Swin's own: added to the logit of a key that only the shift has brought near


@dataclass(frozen=True, slots=True, kw_only=True)
class SwinShape:
    """Sizes of one audio tower.

    Args:
        side: of the image, in pixels.
        parts: of the spectrogram, laid below each other.
        stride: from patch to patch, down and across.
        padding: of the image, down and across.
        window: side of an attention window, in tokens.
        depths: blocks of each stage.
        heads: of each stage.
        blocks: kept, of all stages.
        epsilon: of the blocks' normalisations.
    """

    side: int
    parts: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    window: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    blocks: int
    epsilon: float

    @property
    def final(self) -> bool:
        """Whether the final LayerNorm is part of the graph."""
        return self.blocks == sum(self.depths)

    def stage(self, block: int) -> int:
        """Stage of a block, counted from 1; the patches (0) belong to the first."""
        ends = [sum(self.depths[: k + 1]) for k in range(len(self.depths))]
        return next(k for k, end in enumerate(ends) if block <= end)

    def grid(self, stage: int) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.side // self.stride[0] >> stage, self.side // self.stride[1] >> stage

    def frames(self, stage: int) -> int:
        """Columns of 10 s."""
        return self.parts * self.grid(stage)[1]

    def step_samples(self, stage: int) -> int:
        """From the start of one column to the next."""
        return SAMPLES // self.frames(stage)


class ClapGraph(nn.Module):
    """PCM and lengths to statistics [B, layers, 2, d], frames [B, T, d] of the last layer, and the log-mel.

    Args:
        weights: the audio encoder's tensors by their transformers name, without `audio_encoder.`.
        shape: sizes.
        front_end: the feature extractor's settings.
    """

    patch: Tensor
    patch_bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], *, shape: SwinShape, front_end: ClapFrontEnd) -> None:
        super().__init__()
        self.shape = shape
        self.mel = ClapMel(weights, front_end=front_end, width=shape.side * shape.parts)
        self.register_buffer("patch", weights["patch_embed.proj.weight"])
        self.register_buffer("patch_bias", weights["patch_embed.proj.bias"])
        normed = "patch_embed.norm.weight" in weights
        self.patch_norm = Norm(weights, "patch_embed.norm.") if normed else None
        self.blocks, self.merges = nn.ModuleList(), nn.ModuleList()
        for block in range(1, shape.blocks + 1):
            stage = shape.stage(block)
            if stage > shape.stage(block - 1):
                self.merges.append(Merge(weights, f"layers.{stage - 1}.downsample.", grid=shape.grid(stage)))
            self.blocks.append(_block(weights, shape, block))
        self.norm = Norm(weights, "norm.") if shape.final else None

    def forward(self, pcm: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`pcm` float32 [B, samples] up to 10 s, `lengths` int64 [B] in samples."""
        log_mel = self.mel(pcm, lengths)
        tokens = self.tokens(log_mel)
        stage = 0
        frames = self.columns(tokens, stage)
        pooled = [self._statistics(frames, lengths, stage)]
        for number, block in enumerate(self.blocks, start=1):
            if self.shape.stage(number) > stage:
                tokens, stage = self.merges[stage](tokens), stage + 1
            tokens = block(tokens)
            frames = self.columns(tokens, stage)
            pooled.append(self._statistics(frames, lengths, stage))
        if self.norm is not None:
            frames = self.columns(self.norm(tokens), stage)
            pooled.append(self._statistics(frames, lengths, stage))
        return torch.stack(pooled, dim=1), frames, log_mel

    def tokens(self, log_mel: Tensor) -> Tensor:
        """What the first block reads [B, rows · columns, d] of a log-mel [B, parts · side, mels]."""
        side, parts = self.shape.side, self.shape.parts
        batch, mels = log_mel.shape[0], log_mel.shape[2]
        image = log_mel.reshape(batch, parts, side, mels).transpose(2, 3).reshape(batch, 1, side, side)
        patches = conv2d(image, self.patch, self.patch_bias, stride=self.shape.stride, padding=self.shape.padding)
        tokens = patches.flatten(2).transpose(1, 2)
        return tokens if self.patch_norm is None else self.patch_norm(tokens)

    def columns(self, tokens: Tensor, stage: int) -> Tensor:
        """Frames in the order of time [B, columns, rows of one part · dimensions] of a grid of tokens."""
        rows, across = self.shape.grid(stage)
        parts, dims = self.shape.parts, tokens.shape[2]
        grid = tokens.reshape(tokens.shape[0], parts, rows // parts, across, dims).transpose(2, 3)
        return grid.reshape(tokens.shape[0], parts * across, rows // parts * dims)

    def _statistics(self, frames: Tensor, lengths: Tensor, stage: int) -> Tensor:
        step = self.shape.step_samples(stage)
        valid = torch.div(lengths + (step - 1), step, rounding_mode="floor")
        return statistics(frames, frame_weights(valid, frames.shape[1]))


def _block(weights: Mapping[str, Tensor], shape: SwinShape, block: int) -> "SwinBlock":
    stage = shape.stage(block)
    place = block - 1 - sum(shape.depths[:stage])
    grid = shape.grid(stage)
    shift = shape.window // 2 if place % 2 and min(grid) > shape.window else 0
    prefix = f"layers.{stage}.blocks.{place}."
    return SwinBlock(weights, prefix, shape=shape, heads=shape.heads[stage], grid=grid, shift=shift)


class SwinBlock(nn.Module):
    """One pre-norm block that attends within windows of the grid rolled by `shift`."""

    bias: Tensor
    order: Tensor
    place: Tensor

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        prefix: str,
        *,
        shape: SwinShape,
        heads: int,
        grid: tuple[int, int],
        shift: int,
    ) -> None:
        super().__init__()
        self.heads, self.window = heads, shape.window
        self.norm = Norm(weights, f"{prefix}layernorm_before.", epsilon=shape.epsilon)
        self.mlp_norm = Norm(weights, f"{prefix}layernorm_after.", epsilon=shape.epsilon)
        attention = f"{prefix}attention.self."
        scale = (weights[f"{attention}query.weight"].shape[0] // heads) ** -0.5
        self.query = linear_layer(weights, f"{attention}query.", scale=scale)
        self.key = linear_layer(weights, f"{attention}key.")
        self.value = linear_layer(weights, f"{attention}value.")
        self.out = linear_layer(weights, f"{prefix}attention.output.dense.")
        self.wide = linear_layer(weights, f"{prefix}intermediate.dense.")
        self.narrow = linear_layer(weights, f"{prefix}output.dense.")
        order = window_order(grid, self.window, shift)
        self.register_buffer("order", order)
        self.register_buffer("place", order.argsort())
        bias = relative_bias(weights[f"{attention}relative_position_bias_table"], self.window)
        self.register_buffer("bias", bias if shift == 0 else bias + neighbours(grid, self.window, shift).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, rows · columns, d]."""
        windows = self.norm(x).index_select(1, self.order).reshape(x.shape[0], -1, self.window**2, x.shape[2])
        x = x + self.attend(windows).flatten(1, 2).index_select(1, self.place)
        y: Tensor = x + self.narrow(gelu(self.wide(self.mlp_norm(x))))
        return y

    def attend(self, x: Tensor) -> Tensor:
        """Softmax attention of all heads within windows [B, windows, window², d], without its residual."""
        query = self._split(self.query(x)).transpose(2, 3)
        key = self._split(self.key(x)).permute(0, 1, 3, 4, 2)
        value = self._split(self.value(x)).transpose(2, 3)
        weights = torch.softmax(query.matmul(key) + self.bias, dim=-1)
        out: Tensor = self.out(weights.matmul(value).transpose(2, 3).flatten(3))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:3], self.heads, -1)


class Merge(nn.Module):
    """Four neighbours become one token of the next stage, whose grid is `grid`."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, *, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.norm = Norm(weights, f"{prefix}norm.")
        self.reduce = linear_layer(weights, f"{prefix}reduction.")

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, 4 · tokens, d] to [B, tokens, 2 · d]; of the four, rows come before columns."""
        rows, columns = self.grid
        four = x.reshape(x.shape[0], rows, 2, columns, 2, x.shape[2]).permute(0, 1, 3, 4, 2, 5)
        merged: Tensor = self.reduce(self.norm(four.reshape(x.shape[0], rows * columns, 4 * x.shape[2])))
        return merged


def window_order(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """Which token of a grid, rolled by `shift` up and to the left, stands where when windows follow each other."""
    place = torch.arange(grid[0] * grid[1]).reshape(grid).roll((-shift, -shift), dims=(0, 1))
    return place.reshape(grid[0] // window, window, grid[1] // window, window).transpose(1, 2).flatten()


def relative_bias(table: Tensor, window: int) -> Tensor:
    """Bias [heads, window², window²] of each query on each key, from a row of `table` for each way to lie apart."""
    place = torch.arange(window**2)
    row, column = torch.div(place, window, rounding_mode="floor"), place % window
    down, across = row.unsqueeze(1) - row.unsqueeze(0), column.unsqueeze(1) - column.unsqueeze(0)
    return table[(down + window - 1) * (2 * window - 1) + across + window - 1].permute(2, 0, 1).contiguous()


def neighbours(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """Bias [windows, window², window²]: 0 between tokens that were neighbours before a grid was rolled by `shift`."""
    down, across = (
        (torch.arange(size) >= size - window).long() + (torch.arange(size) >= size - shift).long() for size in grid
    )
    region = (down.unsqueeze(1) * 3 + across.unsqueeze(0)).reshape(grid[0] // window, window, grid[1] // window, window)
    region = region.transpose(1, 2).reshape(-1, window**2)
    return torch.where(region.unsqueeze(1) == region.unsqueeze(2), 0.0, APART)
