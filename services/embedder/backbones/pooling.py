"""Statistics over a clip's own frames, inside the graph, so that only small vectors leave the device."""

import torch
from torch import Tensor


def frame_weights(valid: Tensor, frames: int) -> Tensor:
    """Weights [B, frames] that are 1/valid on a clip's own frames and 0 after them; `valid` is int64 [B]."""
    own = torch.arange(frames).unsqueeze(0) < valid.unsqueeze(1)
    return own.float() / valid.unsqueeze(1).float()


def statistics(hidden: Tensor, weights: Tensor) -> Tensor:
    """Mean and population standard deviation [B, 2, d] of `hidden` [B, T, d] under `weights` [B, T].

    Two passes: Whisper has dimensions whose mean is tens of times their spread, where E[x²] - E[x]² cancels.
    """
    row = weights.unsqueeze(1)
    mean = torch.matmul(row, hidden)
    variance = torch.matmul(row, (hidden - mean).square())
    return torch.cat([mean, variance.sqrt()], dim=1)
