"""Down the gradient of an energy in continuous time, as an energy that was matched to a flow generates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from thalweg.energies.base import Energy, standard_normal
from thalweg.sampling.chain import State


@dataclass(frozen=True)
class Heun:
    """x' = x - (step_size / 2) (grad E(x) + grad E(x~)) + noise, with x~ = x - step_size * grad E(x).

    Without temperature it follows dx/dt = -grad E to second order in the step, at two gradients a step; with one,
    its noise has the standard deviation sqrt(2 * temperature * step_size), and exp(-E / temperature) is nearly
    stationary.

    Args:
        step_size: time of a step.
        temperature: 0 adds no noise.

    Source: [Heun 1900]; as in [Balcerak 2025].
    """

    step_size: float
    temperature: float = 0.0
    discrete = False

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        here = state.position
        grad = energy.gradient(here)
        ahead = torch.add(here, grad, alpha=-self.step_size)
        moved = torch.add(here, grad + energy.gradient(ahead), alpha=-0.5 * self.step_size)
        if self.temperature:
            noise = standard_normal(moved.shape, moved, generator)
            moved = torch.add(moved, noise, alpha=math.sqrt(2 * self.temperature * self.step_size))
        return State(moved, state.acceptance)
