"""Latent variables of a few values: E(x, y, z) with z minimised out, or summed out exactly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import ConditionalEnergy, Features, check_temperature, soft_minimum
from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks.conditional import NetworkEnergy


class LatentEnergy(nn.Module):
    """E(x, y, z) of a latent variable z = 0 .. C - 1, which is never observed.

    It becomes a conditional energy of y when z is eliminated: by its lowest value (:meth:`lowest`) or by a sum at
    a temperature (:meth:`marginal`). A subclass writes ``features``, the part that depends on x alone, and
    ``energies``, which returns those of all values of z at once. (For an energy of x alone with a latent label,
    see the two views of :class:`~thalweg.energies.LabelledEnergy`.)

    Source: [LeCun 2006, sec. 1.4 and 2.2.4].
    """

    support: constraints.Constraint = constraints.real_vector
    event_ndim: int = 1

    def features(self, x: Tensor) -> Features:
        """What the energies need of x: a tensor, or a tuple of tensors, each ``[B, ...]``."""
        return x

    def energies(self, features: Features, y: Tensor) -> Tensor:
        """E of every value of z ``[B, *candidates, C]`` at y ``[B, *candidates, *event]``."""
        raise NotImplementedError

    def lowest(self) -> LowestOverLatent:
        """E(x, y) = min_z E(x, y, z)."""
        return LowestOverLatent(self)

    def marginal(self, temperature: float = 1.0) -> MarginalOverLatent:
        """E(x, y) = -T log sum_z exp(-E(x, y, z) / T)."""
        return MarginalOverLatent(self, temperature)

    def posterior(self, x: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
        """p(z|x, y) ``[B, *candidates, C]``, the softmax of -E / T."""
        return torch.softmax(-self.energies(self.features(x), y) / temperature, -1)


class LowestOverLatent(ConditionalEnergy):
    """E(x, y) = min over z of E(x, y, z), exactly. It is nowhere below the free energy of the sum over z.

    Its gradient is that of the lowest z, so that each row teaches one value of z only.

    Args:
        latent: whose energies they are.
    """

    def __init__(self, latent: LatentEnergy):
        super().__init__()
        self.latent = latent
        self.support, self.event_ndim = latent.support, latent.event_ndim

    def features(self, x: Tensor) -> Features:
        return self.latent.features(x)

    def head(self, features: Features, y: Tensor) -> Tensor:
        return self.latent.energies(features, y).amin(-1)


class MarginalOverLatent(ConditionalEnergy):
    """E(x, y) = -T log sum over z of exp(-E(x, y, z) / T), the free energy of the latent variable.

    Its gradient is the mean of that of E(x, y, z) over p(z|x, y).

    Args:
        latent: whose energies they are.
        temperature: T, positive. As it falls to 0 the lowest energy over z is left.

    Raises:
        ValueError: if the temperature is not positive.
    """

    def __init__(self, latent: LatentEnergy, temperature: float = 1.0):
        super().__init__()
        check_temperature(temperature)
        self.latent, self.temperature = latent, temperature
        self.support, self.event_ndim = latent.support, latent.event_ndim

    def features(self, x: Tensor) -> Features:
        return self.latent.features(x)

    def head(self, features: Features, y: Tensor) -> Tensor:
        return soft_minimum(self.latent.energies(features, y), self.temperature)


class LatentNetwork(LatentEnergy):
    """E(x, y, z) from a network of (x, y) with an output for each value of z.

    Args:
        feature_network: maps x ``[B, *x_event]`` to ``[B, n_features]``.
        n_features: its output width.
        n_targets: K, the dimension of y.
        n_latent: C, the number of values of z.
        hidden: width of the joint layers.
        n_residual: number of residual joint layers.
        activation: activation function of the joint layers.
    """

    def __init__(
        self,
        feature_network: nn.Module,
        n_features: int,
        n_targets: int,
        n_latent: int,
        hidden: int = 128,
        n_residual: int = 1,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ):
        super().__init__()
        self.network = NetworkEnergy(
            feature_network, n_features, n_targets, hidden=hidden, n_residual=n_residual, activation=activation
        )
        self.network.out = nn.Linear(hidden, n_latent)

    def features(self, x: Tensor) -> Tensor:
        return self.network.features(x)

    def energies(self, features: Features, y: Tensor) -> Tensor:
        return -self.network.out(self.network.joint(features, y))


class LatentLabels(LabelledEnergy):
    """E(x, k) of labels k with z minimised or summed out of E(x, k, z), from a network with C x Z outputs.

    Given x it is a classifier as any labelled energy is, so the losses over answers are exact.

    Args:
        network: maps inputs ``[N, *event]`` to ``[N, C * Z]``, the outputs of one label side by side.
        n_latent: Z, the number of values of z.
        temperature: of the sum over z; None takes the lowest energy over z.
        input_ndim: how many trailing dimensions make one input: 1 a vector, 3 an image.
        input_support: where the inputs live.

    Raises:
        ValueError: if the temperature is not positive.

    Source: [LeCun 2006, sec. 1.4 and 3.4].
    """

    def __init__(
        self,
        network: nn.Module,
        n_latent: int,
        temperature: float | None = None,
        *,
        input_ndim: int = 1,
        input_support: constraints.Constraint = constraints.real_vector,
    ):
        super().__init__(network, input_ndim=input_ndim, input_support=input_support)
        if temperature is not None:
            check_temperature(temperature)
        self.n_latent, self.temperature = n_latent, temperature

    def all_energies(self, x: Tensor) -> Tensor:
        """E of every label and every z ``[*batch, C, Z]`` for inputs ``[*batch, *event]``."""
        return super().energies(x).unflatten(-1, (-1, self.n_latent))

    def energies(self, x: Tensor) -> Tensor:
        every = self.all_energies(x)
        return every.amin(-1) if self.temperature is None else soft_minimum(every, self.temperature)

    def posterior(self, x: Tensor, labels: Tensor) -> Tensor:
        """p(z|x, k) ``[B, Z]`` of labels ``[B]``, at the temperature of the sum (1 where z is minimised)."""
        own = self.all_energies(x)[torch.arange(len(labels), device=labels.device), labels.long()]
        return torch.softmax(-own / (self.temperature or 1.0), -1)
