"""Energies of images from any network, with labels and without, and at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.utils.parametrizations import spectral_norm

from thalweg.energies.base import ConditionalEnergy, Energy, Features
from thalweg.energies.composition import WeightedSum

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


class LabelledImageEnergy(ConditionalEnergy):
    """E(label, image) = -network(image)[label], given labels ``[B]``.

    Args:
        network: maps ``[N, C, H, W]`` to ``[N, n_labels]``.
    """

    event_ndim = 3
    support = UNIT_IMAGES

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def energies(self, images: Tensor) -> Tensor:
        """E of every label ``[*batch, n_labels]`` for images ``[*batch, C, H, W]``."""
        values = -self.network(images.reshape(-1, *images.shape[-3:]))
        return values.reshape(*images.shape[:-3], -1)

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        energies = self.energies(y)
        label = features.long().reshape(-1, *([1] * (energies.dim() - 1)))
        return energies.gather(-1, label.expand(*energies.shape[:-1], 1)).squeeze(-1)


class LabelledEnsemble(ConditionalEnergy):
    """E(label, image) = mean over members of E_i(label, image): a product of experts, each to the power 1/n.

    Args:
        members: labelled energies with ``energies``, of the same labels; of snapshots of one network's weights
            along its training, say. Everything costs as many times as much as there are members.

    Source: [Du 2019], "historical ensemble".
    """

    event_ndim = 3
    support = UNIT_IMAGES

    def __init__(self, members: Sequence[Any]):
        super().__init__()
        self.members: Any = nn.ModuleList(members)

    def energies(self, images: Tensor) -> Tensor:
        """E of every label ``[*batch, n_labels]`` for images ``[*batch, C, H, W]``."""
        return torch.stack([member.energies(images) for member in self.members]).mean(0)

    def head(self, features: Features, y: Tensor) -> Tensor:
        return self._mean(features)(y)

    def value_and_grad(self, features: Features, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._mean(features).value_and_grad(y)

    def fixed(self, features: Features) -> Energy:
        return self._mean(features).fixed()

    def _mean(self, labels: Any) -> WeightedSum:
        n = len(self.members)
        return WeightedSum([member.given(labels) for member in self.members], [1 / n] * n)


class LowestOverLabels(Energy):
    """E(image) = min over labels of E(label, image): how far an image is from anything known.

    Args:
        labelled: a conditional energy with ``energies``.
    """

    event_ndim = 3
    support = UNIT_IMAGES

    def __init__(self, labelled: Any):
        super().__init__()
        self.labelled = labelled

    def forward(self, x: Tensor) -> Tensor:
        return self.labelled.energies(x).amin(-1)


class MarginalOverLabels(Energy):
    """E(image) = -T log sum over labels of exp(-E(label, image) / T), so that exp(-E / T) is their sum.

    Args:
        labelled: a conditional energy with ``energies``.
        temperature: T, positive. As it falls to 0 the lowest energy over labels is left.
    """

    event_ndim = 3
    support = UNIT_IMAGES

    def __init__(self, labelled: Any, temperature: float = 1.0):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"a temperature must be positive, got {temperature}")
        self.labelled, self.temperature = labelled, temperature

    def forward(self, x: Tensor) -> Tensor:
        return -self.temperature * torch.logsumexp(self.labelled.energies(x) / -self.temperature, -1)


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


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, then half the size."""

    def __init__(self, n_in: int, n_out: int, spectral: bool, halve: bool):
        super().__init__()
        wrap = spectral_norm if spectral else lambda layer: layer
        self.first = wrap(nn.Conv2d(n_in, n_out, 3, padding=1))
        self.second = wrap(nn.Conv2d(n_out, n_out, 3, padding=1))
        self.shortcut = nn.Identity() if n_in == n_out else wrap(nn.Conv2d(n_in, n_out, 1))
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(F.leaky_relu(self.first(x), 0.2))
        h = F.leaky_relu(h + self.shortcut(x), 0.2)
        return F.avg_pool2d(h, 2) if self.halve else h


def residual_network(
    channels: int, n_outputs: int, width: int = 64, n_blocks: int = 3, spectral: bool = True
) -> nn.Sequential:
    """The residual network of the image recipes: no batch normalisation, spectral norm on all but the last layer.

    Each block but the first halves the image; the last features are summed over places.

    Args:
        channels: of the image.
        n_outputs: 1, or the number of labels.
        width: channels of the first block; they double until 4 times as many.
        n_blocks: residual blocks.
        spectral: normalise each weight by its largest singular value.

    Source: [Du 2019, app. A.9]; [Miyato 2018].
    """
    wrap = spectral_norm if spectral else lambda layer: layer
    widths = [width * min(4, 2 ** max(0, i - 1)) for i in range(n_blocks + 1)]
    layers: list[nn.Module] = [_Centre(), wrap(nn.Conv2d(channels, widths[0], 3, padding=1)), nn.LeakyReLU(0.2)]
    for i in range(n_blocks):
        layers.append(ResidualBlock(widths[i], widths[i + 1], spectral, halve=True))
    return nn.Sequential(*layers, _SumPlaces(), nn.Linear(widths[-1], n_outputs))


class _Centre(nn.Module):
    """[0, 1] to [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


class _SumPlaces(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum((-2, -1))
