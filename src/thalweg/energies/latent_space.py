"""The energy of the numbers behind a generator's draws: normal ones, tilted by an energy of the draws."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import Energy


class LatentSpaceEnergy(Energy):
    """U(z) = |z|^2 / 2 + weight * E(G(z)), for latent z ``[*batch, latent_dim]``.

    Of a classical GAN, whose energy E = log p_G - log p_data is minus the logit of its critic, the draws G(z) with
    weight 1 have the density of the data, as far as the generator reaches. A constant energy leaves z normal.

    Args:
        generator: maps ``[N, latent_dim]`` to ``[N, *event]``; it is put in evaluation mode here.
        energy: of its draws.
        weight: of the energy.

    Source: [Che 2020, eq. 4]; [Arbel 2021].
    """

    event_ndim = 1
    support = constraints.real_vector

    def __init__(self, generator: nn.Module, energy: Energy, weight: float = 1.0):
        super().__init__()
        self.generator, self.energy, self.weight = generator, energy, weight
        self.eval()

    def train(self, mode: bool = True) -> LatentSpaceEnergy:
        """Generator and energy stay in evaluation mode: a draw depends on no other draw."""
        return super().train(False)

    def forward(self, z: Tensor) -> Tensor:
        drawn = self.generator(z.reshape(-1, z.shape[-1]))
        return 0.5 * z.square().sum(-1) + self.weight * self.energy(drawn).reshape(z.shape[:-1])

    @torch.no_grad()
    def made(self, z: Tensor) -> Tensor:
        """The draws ``[*batch, *event]`` of latent z ``[*batch, latent_dim]``."""
        drawn = self.generator(z.reshape(-1, z.shape[-1]))
        return drawn.reshape(*z.shape[:-1], *drawn.shape[1:])
