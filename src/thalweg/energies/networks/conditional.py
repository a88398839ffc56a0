"""Conditional energies of y on top of a network that makes features of x."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy, Features, align
from thalweg.energies.networks.features import mlp


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
        activation: activation function of the y layers and the joint layers. It must be smooth for score matching.
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
        return -self.out(self.joint(features, y)).squeeze(-1)

    def joint(self, features: Features, y: Tensor) -> Tensor:
        """The last hidden layer ``[B, *candidates, hidden]``, which has seen x and y."""
        assert isinstance(features, Tensor)
        h = self.activation(align(features, y) + self.from_y(self.y_network(y)))
        for layer in self.residual:
            h = h + self.activation(layer(h))
        return h


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


class DirectRegression(ConditionalEnergy):
    """E(x, y) = |y - f(x)|^2 / 2: plain regression as an energy, lowest at the network's answer f(x).

    Args:
        feature_network: maps x to ``[B, n_features]``.
        n_features: its output width.
        n_targets: K.
    """

    def __init__(self, feature_network: nn.Module, n_features: int, n_targets: int):
        super().__init__()
        self.feature_network = feature_network
        self.out = nn.Linear(n_features, n_targets)

    def features(self, x: Tensor) -> Tensor:
        """f(x) ``[B, K]``."""
        return self.out(self.feature_network(x))

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        return 0.5 * (y - align(features, y)).square().sum(-1)
