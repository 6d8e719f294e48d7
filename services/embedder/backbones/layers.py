"""Layers that take a checkpoint's tensors as they are, shared by the families' graphs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

UNSEEN = -1e9  # added to the attention logit of a key that must not be seen
EPSILON = 1e-5  # torch's own for normalisations


class Norm(nn.Module):
    """LayerNorm with a checkpoint's weights."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, *, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("weight", weights[f"{prefix}weight"])
        self.register_buffer("bias", weights[f"{prefix}bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis."""
        return layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)


def linear_layer(weights: Mapping[str, Tensor], prefix: str, *, scale: float = 1.0) -> nn.Linear:
    """The projection named `prefix`, its weight and bias (where it has one) times `scale`."""
    weight, bias = weights[f"{prefix}weight"], weights.get(f"{prefix}bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight * scale, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias * scale, requires_grad=False)
    return layer


def own_items(lengths: Tensor, count: int) -> Tensor:
    """Whether each of `count` items is a clip's own: bool [B, count] for `lengths` int64 [B]."""
    return torch.arange(count).unsqueeze(0) < lengths.unsqueeze(1)
