"""Energies of the numbers behind a generator's draws: normal ones, tilted by an energy of the draws."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import Energy, event_sum
from thalweg.energies.networks.generator import NoisyGenerator


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


class LatentCompletion(Energy):
    """The energy of what is behind the draws of a noisy generator of which a part is known, and the rest tilted.

    A configuration is (z, noise) ``[*batch, latent_dim + D]``. The noise of the known entries is what is left of
    them beside the mean for z; that of the others is free. U = |z|^2 / 2 + |noise|^2 / 2 + E(x), with x
    the known entries and what is made of the others: exp(-U) is exactly proportional to the conditional
    distribution given the known entries. (Numbers in the places of the known entries' noise follow a standard
    normal of their own, and mean nothing.)

    Args:
        generator: p(x|z); it is put in evaluation mode here.
        known: values ``[*batch, *event]``, or ``[*event]`` for all; those not known may be anything finite.
        mask: True where known, broadcasting against ``known``.
        energy: of draws; None is none.
    """

    event_ndim = 1
    support = constraints.real_vector

    def __init__(self, generator: NoisyGenerator, known: Tensor, mask: Tensor, energy: Energy | None = None):
        super().__init__()
        self.generator, self.energy = generator, energy
        self.known, self.mask = known, mask.expand_as(known)
        self.eval()
        with torch.no_grad():
            like = next(generator.parameters())
            self.event = generator(like.new_zeros(1, generator.latent_dim)).shape[1:]

    def train(self, mode: bool = True) -> LatentCompletion:
        """Generator and energy stay in evaluation mode: a draw depends on no other draw."""
        return super().train(False)

    def _parts(self, configuration: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, the noise that counts, and what is made ``[*batch, *event]``."""
        latent_dim = self.generator.latent_dim
        z, free = configuration[..., :latent_dim], self._as_event(configuration[..., latent_dim:])
        means, std = self.generator(z), self.generator.log_std.exp()
        left = (self.known - means) / std
        return z, torch.where(self.mask, left, free), torch.where(self.mask, self.known, means + std * free)

    def _as_event(self, noise: Tensor) -> Tensor:
        return noise.reshape(*noise.shape[:-1], *self.event)

    def forward(self, configuration: Tensor) -> Tensor:
        z, noise, made = self._parts(configuration)
        idle = torch.where(self.mask, self._as_event(configuration[..., z.shape[-1] :]), 0.0)
        total = 0.5 * (z.square().sum(-1) + event_sum(noise.square() + idle.square(), len(self.event)))
        return total if self.energy is None else total + self.energy(made)

    @torch.no_grad()
    def made(self, configuration: Tensor) -> Tensor:
        """What is made ``[*batch, *event]``, with the known entries bit for bit."""
        return self._parts(configuration)[2]
