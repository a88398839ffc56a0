"""Energies of images from any network, and at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import Energy

UNIT_IMAGES = constraints.independent(constraints.unit_interval, 3)


class ImageEnergy(Energy):
    """E(image) = network(image), images ``[*batch, C, H, W]`` in [0, 1].

    Args:
        network: maps ``[N, C, H, W]`` to ``[N, 1]``.
    """

    event_ndim = 3
    support = UNIT_IMAGES

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.reshape(-1, *x.shape[-3:])).reshape(x.shape[:-3])


class MultiscaleEnergy(Energy):
    """The sum of energies of an image and of its averages over 2 x 2, 4 x 4, ... pixels.

    Args:
        energies: over images, the finest first.

    Source: [Du 2021, sec. 3.3].
    """

    event_ndim = 3
    support = UNIT_IMAGES

    def __init__(self, energies: Sequence[Energy]):
        super().__init__()
        self.energies = nn.ModuleList(energies)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(x.shape[:-3], device=x.device, dtype=x.dtype)
        for i, energy in enumerate(self.energies):
            small = x
            if i:
                small = F.avg_pool2d(x.reshape(-1, *x.shape[-3:]), 2**i)
                small = small.reshape(*x.shape[:-3], *small.shape[-3:])
            total = total + energy(small)
        return total
