"""Maximum likelihood with negatives from a Markov chain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy
from thalweg.objectives.base import Batch, ConditionalObjective
from thalweg.sampling.chain import run_chain
from thalweg.sampling.langevin import Langevin


class LangevinML(ConditionalObjective):
    """E(y_i) - mean_m E(y_m), the y_m from Langevin chains that start at the true target.

    The chains run with the energy in evaluation mode: dropout does not shake them, nor do they enter the
    statistics of a batch normalisation.

    Args:
        noise_std: lambda; a step is y - (lambda^2 / 2) grad E + lambda * noise, the form with temperature 1.
        n_steps: steps of each chain.
        n_chains: chains for each row.

    Source: [Gustafsson 2020b, sec. 3.3].
    """

    def __init__(self, noise_std: float = 0.05, n_steps: int = 16, n_chains: int = 1024):
        super().__init__()
        self.kernel = Langevin(step_size=noise_std**2 / 2)
        self.n_steps = n_steps
        self.n_chains = n_chains

    def per_row(self, energy: ConditionalEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given = energy.given(batch.x)
        start = batch.y.unsqueeze(1).expand(-1, self.n_chains, -1)
        with _evaluating(energy):
            state = run_chain(self.kernel, given.detach(), start, self.n_steps, generator)
        values = given(torch.cat([batch.y.unsqueeze(1), state.position], 1))
        return values[:, 0] - values[:, 1:].mean(1)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every part back in the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
