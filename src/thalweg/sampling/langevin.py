"""Langevin dynamics: a step down the energy and a draw of noise; MALA corrects it to be exact."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from thalweg.energies.base import Energy
from thalweg.sampling.chain import State, accept


@dataclass(frozen=True)
class Langevin:
    """x' = x - step_size * grad E(x) + noise_scale * noise, without correction.

    Args:
        step_size: multiplies the gradient.
        noise_scale: standard deviation of the noise; None is sqrt(2 * step_size), the form whose
            stationary law tends to exp(-E) (temperature 1) as the step gets small.

    Source: [Roberts 1996, eq. 2]; separate scales as in [Grathwohl 2020].
    """

    step_size: float
    noise_scale: float | None = None

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        scale = math.sqrt(2 * self.step_size) if self.noise_scale is None else self.noise_scale
        position = state.position
        noise = torch.randn(position.shape, generator=generator, device=position.device, dtype=position.dtype)
        position = torch.add(position, state.grad, alpha=-self.step_size).add_(noise, alpha=scale)
        value, grad = energy.value_and_grad(position)
        return State(position, value, grad, torch.ones_like(value))


@dataclass(frozen=True)
class MALA:
    """Langevin proposals with a Metropolis-Hastings test: exp(-E) is stationary for any step size.

    The state keeps energy and gradient, so a step costs one gradient.

    Args:
        step_size: a number, or a tensor that broadcasts against the position.

    Source: [Roberts 1996, sec. 1.4.1].
    """

    step_size: float | torch.Tensor

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        size = torch.as_tensor(self.step_size, dtype=state.position.dtype, device=state.position.device)
        position = state.position
        noise = torch.randn(position.shape, generator=generator, device=position.device, dtype=position.dtype)
        proposal = position - size * state.grad + (2 * size).sqrt() * noise
        value, grad = energy.value_and_grad(proposal)
        event = tuple(range(-energy.event_ndim, 0))
        back = (position - proposal + size * grad).square() / (4 * size)
        log_ratio = state.energy - value + (0.5 * noise.square() - back).sum(event)
        return accept(state, State(proposal, value, grad, log_ratio), log_ratio, generator)
