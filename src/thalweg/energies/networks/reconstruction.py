"""A conditional energy of many dimensions: how far y is from what a network of x and y makes of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy, Features
from thalweg.energies.networks.conditional import NetworkEnergy


class ReconstructionEnergy(ConditionalEnergy):
    """E(x, y) = s (sqrt(|y - g(x, y)|^2 + r^2) - r), with a network g of x and y and a learned slope s.

    Each y that g leaves where it is has a valley of its own, the energy 0 and the same slope all round, but within
    about r, where the valley is round. A network whose output is a single number must have the gradients of all
    dimensions of y in its first layer's weights; here g has an output for each. The slope suits energy matching,
    whose flow goes at an even speed: s is the length of the lines, about the standard deviation of the noise times
    the root of K.

    Args:
        feature_network: maps x ``[B, *x_event]`` to ``[B, n_features]``.
        n_features: its output width.
        n_targets: K, the dimension of y.
        hidden: width of the joint layers of g.
        n_residual: number of residual joint layers.
        slope: s at the start, positive.
        radius: r, positive.

    Raises:
        ValueError: for a slope or a radius that is not positive.

    Source: a squared distance [Salimans 2021]; its root [Zhao 2017, sec. 2.3].
    """

    def __init__(
        self,
        feature_network: nn.Module,
        n_features: int,
        n_targets: int,
        hidden: int = 128,
        n_residual: int = 1,
        slope: float = 1.0,
        radius: float = 1.0,
    ):
        super().__init__()
        if not (slope > 0 and radius > 0):
            raise ValueError(f"slope and radius must be positive, got {slope} and {radius}")
        self.network = NetworkEnergy(feature_network, n_features, n_targets, hidden=hidden, n_residual=n_residual)
        self.network.out = nn.Linear(hidden, n_targets)
        self.log_slope = nn.Parameter(torch.tensor(slope).log())
        self.radius = radius

    def features(self, x: Tensor) -> Tensor:
        return self.network.features(x)

    def reconstruct(self, features: Features, y: Tensor) -> Tensor:
        """g(x, y) ``[B, *candidates, K]``."""
        return self.network.out(self.network.joint(features, y))

    def head(self, features: Features, y: Tensor) -> Tensor:
        squared = (y - self.reconstruct(features, y)).square().sum(-1)
        return self.log_slope.exp() * ((squared + self.radius**2).sqrt() - self.radius)
