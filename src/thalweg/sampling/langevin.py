"""Langevin dynamics: a step down the energy and a draw of noise; MALA corrects it to be exact."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from thalweg.energies.base import Energy, event_sum, standard_normal
from thalweg.sampling.chain import Place, State, accept


@dataclass(frozen=True)
class Langevin:
    """x' = x - step_size * grad E(x) + noise_scale * noise, without correction.

    Args:
        step_size: multiplies the gradient.
        noise_scale: standard deviation of the noise; None is sqrt(2 * step_size), the form whose
            stationary distribution tends to exp(-E) (temperature 1) as the step gets small.

    Source: [Roberts 1996, eq. 2]; separate scales as in [Grathwohl 2020].
    """

    step_size: float
    noise_scale: float | None = None
    discrete = False

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        scale = math.sqrt(2 * self.step_size) if self.noise_scale is None else self.noise_scale
        position = state.position
        noise = standard_normal(position.shape, position, generator)
        grad = energy.gradient(position) if state.grad is None else state.grad
        return State(torch.add(position, grad, alpha=-self.step_size).add_(noise, alpha=scale), state.acceptance)


@dataclass(frozen=True)
class MALA:
    """Langevin proposals with a Metropolis-Hastings test: exp(-E) is stationary for any step size.

    The state keeps energy and gradient, so a step costs one gradient.

    Args:
        step_size: a number, or a tensor that broadcasts against the position.

    Source: [Roberts 1996, sec. 1.4.1].
    """

    step_size: float | torch.Tensor
    discrete = False

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        size = torch.as_tensor(self.step_size, dtype=state.position.dtype, device=state.position.device)
        position, (value, grad) = state.position, state.evaluated(energy)
        noise = standard_normal(position.shape, position, generator)
        proposal = position - size * grad + (2 * size).sqrt() * noise
        new_value, new_grad = energy.value_and_gradient(proposal)
        back = (position - proposal + size * new_grad).square() / (4 * size)
        log_ratio = value - new_value + event_sum(0.5 * noise.square() - back, energy.event_ndim)
        here, there = Place(position, value, grad), Place(proposal, new_value, new_grad)
        return accept(here, there, log_ratio, generator)


@dataclass(frozen=True)
class ColdLangevin:
    """The image recipes' walk: noise, then a step down the clipped gradient, then back into the box.

    x~ = x + noise_scale * noise;  x' = clamp(x~ - step_size * clip(grad E(x~))). Its noise is far smaller than
    its step asks for at temperature 1, so it finds low places and does not sample exp(-E).

    Args:
        step_size: multiplies the gradient.
        noise_scale: standard deviation of the noise.
        clip_grad: each component of the gradient is clipped to this size (None: not).
        low, high: bounds of x (None: none).

    Source: [Du 2019, alg. 1] and its code; without clipping and bounds that of [Grathwohl 2020].
    """

    step_size: float
    noise_scale: float
    clip_grad: float | None = None
    low: float | None = None
    high: float | None = None
    discrete = False

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        position = state.position
        noise = standard_normal(position.shape, position, generator)
        noised = torch.add(position, noise, alpha=self.noise_scale)
        grad = energy.gradient(noised)
        if self.clip_grad is not None:
            grad = grad.clamp(-self.clip_grad, self.clip_grad)
        moved = torch.add(noised, grad, alpha=-self.step_size)
        if self.low is not None or self.high is not None:
            moved = moved.clamp(self.low, self.high)
        return State(moved, state.acceptance)
