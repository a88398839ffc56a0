"""Draws of a generator corrected by an energy, through chains in its latent space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.energies.base import Energy, standard_normal
from thalweg.energies.latent_space import LatentSpaceEnergy
from thalweg.sampling.chain import Kernel, State, run_chain
from thalweg.sampling.langevin import MALA


class LatentSampler:
    """Chains over z, from independent normal numbers, whose draws G(z) an energy weighs.

    It takes any generator and any energy. There is one chain for each draw, so that draws stay independent.

    Args:
        generator: any module that maps ``[N, latent_dim]`` to ``[N, *event]``.
        energy: of its draws: of a GAN minus the critic's logit.
        latent_dim: how many numbers z has.
        weight: of the energy beside the normal distribution of z.
        n_steps: of each chain.
        kernel: a step; None is MALA with a step of 0.05, which has the right stationary distribution.

    Example:
        >>> import torch
        >>> from thalweg.energies import GaussianMixtureEnergy
        >>> narrow = GaussianMixtureEnergy(torch.zeros(1, 2), torch.ones(1, 2))
        >>> LatentSampler(torch.nn.Linear(3, 2), narrow, 3, n_steps=5).draw(4).shape
        torch.Size([4, 2])

    Source: [Che 2020, alg. 1]; [Arbel 2021].
    """

    def __init__(
        self,
        generator: nn.Module,
        energy: Energy,
        latent_dim: int,
        weight: float = 1.0,
        n_steps: int = 100,
        kernel: Kernel | None = None,
    ):
        self.energy = LatentSpaceEnergy(generator, energy, weight)
        self.latent_dim, self.n_steps = latent_dim, n_steps
        self.kernel: Kernel = MALA(0.05) if kernel is None else kernel

    def chains(self, n: int, generator: torch.Generator | None = None) -> State:
        """The last state of n chains; its position is z ``[n, latent_dim]``."""
        like = next(self.energy.parameters(), torch.empty(0))
        start = standard_normal((n, self.latent_dim), like.detach(), generator)
        return run_chain(self.kernel, self.energy, start, self.n_steps, generator)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws ``[n, *event]``."""
        return self.energy.made(self.chains(n, generator).position)
