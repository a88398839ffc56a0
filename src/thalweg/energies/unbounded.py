"""The unit box in coordinates without bounds, where every kernel for vectors can move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.energies.base import Energy
from thalweg.energies.densities.basic import Density


class LogitEnergy(Energy):
    """An energy over [0, 1]^D as one of z = logit x: E'(z) = E(x) - sum_d log x_d (1 - x_d).

    exp(-E') is the density of z where x follows exp(-E), with the same log Z. z is a vector ``[*batch, D]``
    whatever the shape of x.

    Args:
        energy: over the unit box, or one that is to be cut off at its faces.
        event_shape: of x, ``energy.event_ndim`` numbers.
    """

    def __init__(self, energy: Energy, event_shape: Sequence[int]):
        super().__init__()
        if len(event_shape) != energy.event_ndim:
            raise ValueError(f"x has {energy.event_ndim} dimensions, got event_shape {tuple(event_shape)}")
        self.energy, self.event_shape = energy, tuple(event_shape)

    def forward(self, z: Tensor) -> Tensor:
        return self.energy(self._x(z)) - _log_slope(z)

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach()
        x = self._x(z)
        value, grad = self.energy.value_and_gradient(x)
        x = x.flatten(x.dim() - len(self.event_shape))
        return value - _log_slope(z), torch.addcmul(2 * x - 1, grad.reshape(z.shape), x * (1 - x))

    def fixed(self) -> LogitEnergy:
        return LogitEnergy(self.energy.fixed(), self.event_shape)

    def _x(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z).reshape(*z.shape[:-1], *self.event_shape)


class LogisticEnergy(Density):
    """Independent standard logistic numbers ``[D]``: the logits of uniform ones.

    Args:
        n_dimensions: D.
    """

    place: Tensor

    def __init__(self, n_dimensions: int):
        super().__init__()
        self.register_buffer("place", torch.zeros(n_dimensions))

    def log_prob(self, x: Tensor) -> Tensor:
        return _log_slope(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return -_log_slope(x.detach()), 2 * torch.sigmoid(x.detach()) - 1

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        like = self.place
        uniform = torch.rand((n, len(like)), generator=generator, device=like.device, dtype=like.dtype)
        # Of numbers on a grid of 2^-24 the first is 0, which has no logit.
        return torch.logit(uniform, eps=2.0**-25)


def _log_slope(z: Tensor) -> Tensor:
    """log of the density of logits, sum_d log x_d (1 - x_d) ``[*batch]``."""
    return (F.logsigmoid(z) + F.logsigmoid(-z)).sum(-1)
