"""Random-walk Metropolis: the slow ancestor, which asks nothing of the energy but its value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.energies.base import Energy, standard_normal
from thalweg.sampling.chain import Place, State, accept


@dataclass(frozen=True)
class RandomWalk:
    """x~ = x + step_size * noise, accepted with probability min(1, exp(E(x) - E(x~))).

    Args:
        step_size: standard deviation of a proposal, a number or a tensor that broadcasts against the position.

    Source: [Metropolis 1953, eq. 4].
    """

    step_size: float | Tensor
    discrete = False

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        position = state.position
        noise = standard_normal(position.shape, position, generator)
        proposal = position + self.step_size * noise
        with torch.no_grad():
            value = energy(proposal)
            current = energy(position) if state.energy is None else state.energy
        log_ratio = current - value
        return accept(Place(position, current, None), Place(proposal, value, None), log_ratio, generator)
