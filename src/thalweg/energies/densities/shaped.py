"""Densities of vectors as densities of images and other arrays; and a Gaussian for each class of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from thalweg.energies.densities.basic import Density, GaussianMixtureEnergy


class ShapedDensity(Density):
    """A density of vectors ``[D]`` as one of arrays ``[*event]`` of D numbers, such as images ``[C, H, W]``.

    Args:
        density: of vectors.
        event_shape: shape of one array.
    """

    def __init__(self, density: Density, event_shape: Sequence[int]):
        super().__init__()
        self.density = density
        self.event_shape = tuple(event_shape)
        self.event_ndim = len(self.event_shape)
        self.support = constraints.independent(constraints.real, self.event_ndim)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.density.log_prob(self._flat(x))

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.density.value_and_gradient(self._flat(x))
        return value, gradient.reshape(x.shape)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.density.draw(n, generator).reshape(n, *self.event_shape)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.dim() - self.event_ndim], math.prod(self.event_shape))


def gaussian_of_classes(x: Tensor, labels: Tensor | None = None) -> Density:
    """A mixture of Gaussians with one component for each class, weighted by how often the class occurs.

    The covariances of a class are shrunk as in :meth:`GaussianMixtureEnergy.from_moments`.

    Args:
        x: inputs ``[n, *event]``.
        labels: ``[n]``; rows with a negative one have none and are passed over. None takes all rows as one class.

    Raises:
        ValueError: if no row has a label.

    Source: where chains start in [Yang 2021].
    """
    rows = x.flatten(1)
    kinds = torch.zeros(len(x), dtype=torch.long, device=x.device) if labels is None else labels.long()
    classes = kinds[kinds >= 0].unique()
    if not len(classes):
        raise ValueError("no row has a label: leave the labels out for a single Gaussian")
    parts = [GaussianMixtureEnergy.from_moments(rows[kinds == k]) for k in classes]
    mixture = GaussianMixtureEnergy(
        torch.cat([part.means for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.stack([(kinds == k).sum() for k in classes]).to(rows.dtype),
    )
    return mixture if x.dim() == 2 else ShapedDensity(mixture, x.shape[1:])
