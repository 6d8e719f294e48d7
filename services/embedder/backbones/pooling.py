"""Statistics over a clip's own frames, inside the graph, so that only small vectors leave the device."""

import torch
from torch import Tensor


def frame_weights(valid: Tensor, frames: int) -> Tensor:
    """Weights [B, frames, 1] that are 1/valid on a clip's own frames and 0 after them; `valid` is int64 [B]."""
    own = torch.arange(frames).unsqueeze(0) < valid.unsqueeze(1)
    return (own.float() / valid.unsqueeze(1).float()).unsqueeze(2)


def statistics(hidden: Tensor, weights: Tensor) -> Tensor:
    """Mean and population standard deviation [B, 2, d] of `hidden` [B, T, d] under `weights` [B, T, 1].

    Two passes: Whisper has dimensions whose mean is tens of times their spread, where E[x²] - E[x]² cancels. Sums, not
    matrix products: an engine told to compute in bf16 lowers the products and leaves sums behind them in float32.
    """
    mean = (hidden * weights).sum(dim=1, keepdim=True)
    variance = ((hidden - mean).square() * weights).sum(dim=1, keepdim=True)
    return torch.cat([mean, variance.sqrt()], dim=1)
