"""Many small layers of one shape as one batched product: the members of an ensemble that share no weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class BatchedLinear(nn.Module):
    """n_members linear layers as one batched product: ``[n_members, B, n_in]`` -> ``[..., n_out]``."""

    def __init__(self, n_members: int, n_in: int, n_out: int, gain: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_members, n_in, n_out) * gain / math.sqrt(n_in))
        self.bias = nn.Parameter(torch.zeros(n_members, 1, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)
