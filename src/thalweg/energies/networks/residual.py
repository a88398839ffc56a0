"""The residual network of the image recipes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


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
        channels: number of channels of the image.
        n_outputs: 1, or the number of labels.
        width: channels of the first block; they double until 4 times as many.
        n_blocks: residual blocks.
        spectral: normalise each weight by its largest singular value.

    Source: [Du 2019, app. A.9]; [Miyato 2018].
    """
    wrap = spectral_norm if spectral else lambda layer: layer
    widths = [width * min(4, 2 ** max(0, i - 1)) for i in range(n_blocks + 1)]
    layers: list[nn.Module] = [Centre(), wrap(nn.Conv2d(channels, widths[0], 3, padding=1)), nn.LeakyReLU(0.2)]
    for i in range(n_blocks):
        layers.append(ResidualBlock(widths[i], widths[i + 1], spectral, halve=True))
    return nn.Sequential(*layers, _SumPlaces(), nn.Linear(widths[-1], n_outputs))


class Centre(nn.Module):
    """[0, 1] to [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


class _SumPlaces(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum((-2, -1))
