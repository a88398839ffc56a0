"""Contrastive divergence whose chains run behind a generator that stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.energies.latent_space import LatentSpaceEnergy
from thalweg.objectives.base import AnyEnergy, Batch, Objective, check_draws, continuous, evaluating
from thalweg.objectives.likelihood import dequantise
from thalweg.sampling.buffer import ReplayBuffer
from thalweg.sampling.chain import Kernel, run_chain


class LatentContrastiveDivergence(Objective):
    """E(x_i) - mean E(G(z_m)), the z_m from chains whose energy is |z|^2 / 2 + E(G(z)).

    Its gradient is that of the likelihood of p(x) = p_G(x) exp(-E(x)) / Z, where p_G is the distribution of the
    generator's draws and the chains have reached theirs. E corrects the generator, which is not changed.

    Args:
        generator: maps ``[N, latent_dim]`` to ``[N, *event]``; of a variational autoencoder a map of both of its
            noises (:class:`~thalweg.energies.FromBothNoises`). It is no part of the objective: its weights neither
            move nor are kept.
        kernel: what a step of the chains is.
        n_steps: steps of the chains for each update.
        start: where they start: a buffer of z, whose noise is N(0, I).
        energy_l2: weight of the squares of both energies, which keeps them near zero.
        resolution: spacing of the grid that the data are rounded to: uniform noise of that width is added to them
            afresh at every step.

    Source: [Xiao 2021, eq. 8 and alg. 1], in the space of independent noise; a buffer of it [Xiao 2021, app. E].
    """

    def __init__(
        self,
        generator: nn.Module,
        kernel: Kernel,
        n_steps: int,
        start: ReplayBuffer,
        energy_l2: float = 0.0,
        resolution: float = 0.0,
    ):
        super().__init__()
        # Not a part of this module, so that no optimiser and no moving average touches it.
        object.__setattr__(self, "generator", generator)
        self.kernel, self.n_steps, self.start = kernel, n_steps, start
        self.energy_l2, self.resolution = energy_l2, resolution

    generator: nn.Module

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """As :meth:`Objective.check`; the generator's draws must have the shape of the data, too."""
        super().check(energy, batch)
        continuous(self, energy, batch.rows(slice(0, 2)))
        self.generator.to(self.start.positions.device)
        with torch.no_grad(), evaluating(self.generator):
            made = self.generator(self.start.positions[:2])
        check_draws(made, batch)

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        y = dequantise(batch.y, self.resolution, generator)
        given, chains = batch.given(energy), self.start.draw(None, y, generator)
        self.generator.to(y.device)
        with evaluating(energy), torch.no_grad():
            behind = LatentSpaceEnergy(self.generator, given)
            state = run_chain(self.kernel, behind, chains.position, self.n_steps, generator, check=False)
            drawn = behind.made(state.position)
        n = len(y)
        values = given(torch.cat([y, drawn]))
        positive, negative = values[:n], values[n:]
        if self.training:
            self.start.store(chains, state.position, negative.detach())
        loss = positive - negative.mean()
        self.metrics = {
            "energy gap": float(loss.detach().mean()),
            "acceptance": float(state.acceptance.mean()),
            "size of latent numbers": float(state.position.square().mean().sqrt()),
        }
        if self.energy_l2:
            loss = loss + self.energy_l2 * (positive.square() + negative.square().mean())
        return loss
