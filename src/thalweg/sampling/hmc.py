"""Hamiltonian Monte Carlo: a trajectory by leapfrog steps, accepted or refused as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.energies.base import Energy, event_sum, standard_normal
from thalweg.sampling.chain import Place, State, accept


@dataclass(frozen=True)
class HMC:
    """Momenta are drawn afresh, then n_leapfrog steps of the leapfrog, then a Metropolis-Hastings test.

    The state keeps energy and gradient, so a step costs n_leapfrog gradients.

    A trajectory of half a turn, n_leapfrog * step_size about pi deviations of a Gaussian, leads to the mirror
    image of its start, from where the next one leads back: |x| stays as it was. The jitter ends that, but only
    over tens of steps; trajectories of a quarter turn mix best.

    Args:
        step_size: a number, or a tensor that broadcasts against the position (a mass for each coordinate).
        n_leapfrog: steps of a trajectory.
        jitter: the step size of each trajectory is drawn uniformly within this part of it on either side,
            whatever the state, so that the distribution is kept and no coordinate comes back to where it started
            every time.

    Source: [Neal 2011, fig. 2, and sec. 3.2 for the jitter].
    """

    step_size: float | Tensor
    n_leapfrog: int = 10
    jitter: float = 0.2
    discrete = False

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        position, (value, grad) = state.position, state.evaluated(energy)
        here = Place(position, value, grad)
        size = torch.as_tensor(self.step_size, dtype=position.dtype, device=position.device)
        if self.jitter:
            unit = torch.rand((), generator=generator, dtype=position.dtype, device=position.device)
            size = size * (1 + self.jitter * (2 * unit - 1))
        momentum = standard_normal(position.shape, position, generator)
        kinetic = 0.5 * event_sum(momentum.square(), energy.event_ndim)
        momentum = momentum - 0.5 * size * grad
        for _ in range(self.n_leapfrog - 1):
            position = position + size * momentum
            momentum = momentum - size * energy.gradient(position)
        position = position + size * momentum
        value, grad = energy.value_and_gradient(position)
        momentum = momentum - 0.5 * size * grad
        kinetic = kinetic - 0.5 * event_sum(momentum.square(), energy.event_ndim)
        log_ratio = here.energy - value + kinetic
        return accept(here, Place(position, value, grad), log_ratio, generator)
