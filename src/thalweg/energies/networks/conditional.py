"""Networks that make features of x, and conditional energies of y on top of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy, Features, align


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


class NetworkEnergy(ConditionalEnergy):
    """E(x, y) from a feature network of x and a head on (features, y).

    The first layer of the head is split in two, so the part that multiplies the features of x is
    computed once for each row however many candidates y there are.

    Args:
        feature_network: maps x ``[B, *x_event]`` to ``[B, n_features]``; any module (MLP, convnet, ...).
        n_features: its output width.
        n_targets: K, the dimension of y.
        y_hidden: widths of the layers on y alone, before it meets x; may be empty.
        hidden: width of the joint layers.
        n_residual: number of residual joint layers.
        activation: of the y layers and the joint layers. It must be smooth for score matching.
    """

    def __init__(
        self,
        feature_network: nn.Module,
        n_features: int,
        n_targets: int,
        y_hidden: Sequence[int] = (),
        hidden: int = 128,
        n_residual: int = 1,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ):
        super().__init__()
        self.feature_network = feature_network
        self.n_targets = n_targets
        self.activation = activation()
        self.y_network = mlp([n_targets, *y_hidden], activation)
        self.from_x = nn.Linear(n_features, hidden)
        self.from_y = nn.Linear([n_targets, *y_hidden][-1], hidden, bias=False)
        self.residual = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(n_residual))
        self.out = nn.Linear(hidden, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.from_x(self.feature_network(x))

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        h = self.activation(align(features, y) + self.from_y(self.y_network(y)))
        for layer in self.residual:
            h = h + self.activation(layer(h))
        return -self.out(h).squeeze(-1)


def source_network(n_inputs: int, n_targets: int = 1, width: int = 10) -> NetworkEnergy:
    """The network of the 1-D experiments of [Gustafsson 2020b]: ReLU on x, tanh on y and on both."""
    return NetworkEnergy(
        mlp([n_inputs, width, width], nn.ReLU),
        width,
        n_targets,
        y_hidden=(width,),
        hidden=width,
        n_residual=2,
        activation=nn.Tanh,
    )


class ModuleEnergy(ConditionalEnergy):
    """Any module as a conditional energy.

    Args:
        module: called as ``module(x, y)`` with x ``[N, *x_event]`` and y ``[N, K]``; returns ``[N]``.
        sign: 1 if the module returns an energy, -1 if it returns an unnormalised log-density.
    """

    def __init__(self, module: nn.Module, sign: float = 1.0):
        super().__init__()
        self.module = module
        self.sign = sign

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        batch = y.shape[:-1]
        x = features.reshape(features.shape[0], *([1] * (len(batch) - 1)), *features.shape[1:])
        x = x.expand(*batch, *features.shape[1:])
        value = self.module(x.reshape(-1, *features.shape[1:]), y.reshape(-1, y.shape[-1]))
        return self.sign * value.reshape(*batch, *value.shape[1:])
