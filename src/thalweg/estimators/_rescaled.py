"""An energy in the units of a table, and one in coordinates in which chains move freely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thalweg.energies.base import Energy
from thalweg.energies.densities import GaussianMixtureEnergy
from thalweg.energies.densities.any_order import AnyOrderDensity

_FARTHEST = 1e12


class Rescaled(Energy):
    """The energy of rows in their own units, from one over (x - location) / scale.

    Rows in double precision are standardised in it, and handed on in single precision.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, inner: Energy, location: Any, scale: Any):
        super().__init__()
        self.inner = inner
        self.register_buffer("location", torch.as_tensor(location, dtype=torch.float64))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float64))

    def forth(self, x: Tensor) -> Tensor:
        # Beyond that squares are infinite in single precision; a row so far out is as unlikely as one there.
        return ((x - self.location) / self.scale).clamp(-_FARTHEST, _FARTHEST).float()

    def back(self, z: Tensor) -> Tensor:
        return self.location + self.scale * z.double()

    def forward(self, x: Tensor) -> Tensor:
        z, log_scale = self.forth(x), self.scale.log()
        if isinstance(self.inner, AnyOrderDensity):
            return self.inner(z) + self.inner.log_volume(z, log_scale)
        return self.inner(z) + log_scale.sum()


class Standardised(Rescaled):
    """The energy of rows in their own units that is no density there: without the volume of the scale."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.forth(x))


class Whitened(Energy):
    """The energy of u where x = L u: chains move freely where the columns are closely correlated.

    Args:
        factor: L, lower triangular ``[D, D]``.
    """

    def __init__(self, inner: Energy, factor: Tensor):
        super().__init__()
        object.__setattr__(self, "inner", inner)
        self.factor = factor
        self.log_volume = float(factor.diagonal().log().sum())

    inner: Energy

    def forth(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, x.T, upper=False).T

    def back(self, u: Tensor) -> Tensor:
        return u @ self.factor.T

    def of_mixture(self, mixture: GaussianMixtureEnergy) -> GaussianMixtureEnergy:
        """The same mixture, of u."""
        scales = torch.linalg.solve_triangular(self.factor, mixture.scales, upper=False)
        return GaussianMixtureEnergy(self.forth(mixture.means), scales, mixture.log_weights.exp())

    def forward(self, u: Tensor) -> Tensor:
        return self.inner(self.back(u))

    def value_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = self.inner.value_and_gradient(self.back(u))
        return value, grad @ self.factor
