"""An energy whose normaliser is known in closed form: a target to test and to demonstrate with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.energies.base import Energy


class GaussianEnergy(Energy):
    """E(x) = |(x - mean) / std|^2 / 2, a Gaussian with independent coordinates.

    Args:
        mean: ``[K]``.
        std: ``[K]``, positive.
    """

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean))
        self.register_buffer("std", torch.as_tensor(std))

    mean: Tensor
    std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x - self.mean) / self.std).square().sum(-1)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x.detach() - self.mean) / self.std
        return 0.5 * z.square().sum(-1), z / self.std

    @property
    def log_normaliser(self) -> Tensor:
        """log Z, exact."""
        return self.std.log().sum() + 0.5 * self.mean.shape[-1] * math.log(2 * math.pi)
