"""What recipes of sprites share: networks that know the noise level, learning at all levels, drawing down them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.energies.base import Energy, standard_normal
from thalweg.objectives.base import AnyEnergy, Batch, Objective, check_batch, condition
from thalweg.sampling.chain import run_chain
from thalweg.sampling.langevin import Langevin

SIZE = 16
LOWEST, HIGHEST = 0.15, 2.5


def scaled(image: Tensor, level: Tensor) -> Tensor:
    """Noisy images ``[B, SIZE * SIZE]`` as ``[B, 1, SIZE, SIZE]`` of about unit variance."""
    return ((image - 0.1) / (level.square() + 0.06).sqrt()).reshape(-1, 1, SIZE, SIZE)


class LevelFeatures(nn.Sequential):
    """Noise levels ``[B, 1]`` -> ``[B, 64]``."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 64), nn.SiLU())

    def forward(self, level: Tensor) -> Tensor:
        log = level.log()
        return super().forward(torch.cat([log, log.square() / 3, (2 * log).sin(), (2 * log).cos()], 1))


class Modulated(nn.Module):
    """A layer whose channels are scaled and shifted by features ``[B, 64]`` of what is given, then SiLU."""

    def __init__(self, layer: nn.Module, n_channels: int):
        super().__init__()
        self.layer, self.modulation = layer, nn.Linear(64, 2 * n_channels)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = self.layer(x)
        scale, shift = self.modulation(features).reshape(len(h), -1, *([1] * (h.dim() - 2))).chunk(2, 1)
        return F.silu(h * (1 + scale) + shift)


class Denoiser(nn.Module):
    """A small convolutional autoencoder of noisy images ``[B, SIZE * SIZE]``, given their levels and features."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.down = Modulated(nn.Conv2d(1, width, 5, 2, 2), width)
        self.deeper = Modulated(nn.Conv2d(width, 2 * width, 3, 2, 1), 2 * width)
        # Narrow: a wide one knows the training images by heart, and draws what was never seen worse.
        self.dense = Modulated(nn.Linear(32 * width, 192), 192)
        self.spread = nn.Linear(192, 32 * width)
        self.up = Modulated(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), width)
        self.out = nn.ConvTranspose2d(2 * width, 1, 4, 2, 1)

    def forward(self, image: Tensor, level: Tensor, features: Tensor) -> Tensor:
        fine = self.down(scaled(image, level), features)
        coarse = self.deeper(fine, features)
        coarse = coarse + self.spread(self.dense(coarse.flatten(1), features)).reshape(coarse.shape)
        return torch.sigmoid(self.out(torch.cat([self.up(coarse, features), fine], 1))).flatten(1)


def noised(y: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A noise level ``[B, 1]`` for each row, log-uniform, and noise as y."""
    part = torch.rand((len(y), 1), generator=generator, device=y.device)
    return LOWEST * (HIGHEST / LOWEST) ** part, standard_normal(y.shape, y, generator)


def with_level(x: Tensor | None, level: Tensor) -> Tensor:
    """What an energy is given ``[B, X + 1]``: x, if there is any, and the noise level as its last column."""
    return level if x is None else torch.cat([x, level], 1)


class DenoisingAtLevels(Objective):
    """Denoising score matching for an energy that has the noise level as its last input."""

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        level, _ = noised(batch.y, torch.Generator())
        check_batch(energy, batch._replace(x=with_level(batch.x, level)))

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        level, noise = noised(batch.y, generator)
        score = condition(energy, with_level(batch.x, level)).score(batch.y + level * noise)
        return (level * score + noise).square().sum(-1)


def draw_down_levels(
    energy_at: Callable[[float], Energy],
    n: int,
    n_chains: int,
    generator: torch.Generator,
    n_levels: int,
    n_steps: int,
    step_size: float = 0.3,
) -> Tensor:
    """Images ``[n, SIZE * SIZE]`` by Langevin dynamics at ever lower noise; of a few chains the lowest energy.

    Args:
        energy_at: the energy of ``[n_chains * n, SIZE * SIZE]`` at a noise level, the chains of one image n apart.
        step_size: of Langevin dynamics, as a multiple of the squared level.
    """
    x = 0.1 + HIGHEST * torch.randn((n_chains * n, SIZE**2), generator=generator)
    for level in np.geomspace(HIGHEST, LOWEST, n_levels).tolist():
        energy = energy_at(level)
        x = run_chain(Langevin(step_size * level**2), energy, x, n_steps, generator).position
    # To the mean given the noisy image, or the last level's noise would stay.
    x = run_chain(Langevin(LOWEST**2, 0.0), energy, x, 1).position
    with torch.no_grad():
        lowest = energy(x).reshape(n_chains, n).argmin(0)
    return x.reshape(n_chains, n, -1)[lowest, torch.arange(n)].clamp(0, 1)
