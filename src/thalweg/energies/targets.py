"""Energies whose density is known in closed form: targets to test and to demonstrate with."""

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

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x.detach() - self.mean) / self.std
        return 0.5 * z.square().sum(-1), z / self.std

    @property
    def log_normaliser(self) -> Tensor:
        """log Z, exact."""
        return self.std.log().sum() + 0.5 * self.mean.shape[-1] * math.log(2 * math.pi)


class GaussianMixtureEnergy(Energy):
    """E(x) = -log sum_k w_k N(x; mean_k, std_k^2), normalised (log Z = 0).

    Args:
        means: ``[C, K]``.
        stds: ``[C, K]``, positive.
        weights: ``[C]``, positive; normalised here.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor):
        super().__init__()
        self.register_buffer("means", torch.as_tensor(means))
        self.register_buffer("stds", torch.as_tensor(stds))
        weights = torch.as_tensor(weights)
        self.register_buffer("log_weights", (weights / weights.sum()).log())

    means: Tensor
    stds: Tensor
    log_weights: Tensor

    def forward(self, x: Tensor) -> Tensor:
        z = (x.unsqueeze(-2) - self.means) / self.stds
        log_normal = -0.5 * z.square() - self.stds.log() - 0.5 * math.log(2 * math.pi)
        return -torch.logsumexp(log_normal.sum(-1) + self.log_weights, -1)
