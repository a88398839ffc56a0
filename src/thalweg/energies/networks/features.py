"""Networks that make features: of vectors, images and sets of points."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.SiLU) -> nn.Sequential:
    """Linear layers with an activation after every one, the last included: a feature network."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers)


def convnet(in_channels: int, n_features: int, width: int = 16) -> nn.Sequential:
    """Three strided convolutions and a linear layer: images ``[B, C, H, W]`` -> ``[B, n_features]``."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * width, n_features),
        nn.SiLU(),
    )


class PointNet(nn.Module):
    """Features of a set of points ``[B, n_points, D]`` -> ``[B, n_features]``, blind to their order.

    Source: [Qi 2017], without the spatial transformers.
    """

    def __init__(self, point_dim: int, n_features: int, width: int = 64):
        super().__init__()
        self.points = mlp([point_dim, width, 2 * width])
        self.cloud = mlp([4 * width, n_features])

    def forward(self, x: Tensor) -> Tensor:
        h = self.points(x)
        return self.cloud(torch.cat([h.amax(-2), h.mean(-2)], -1))
