"""Finding a kernel's step size: dual averaging towards a rate of acceptance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thalweg.energies.base import Energy
from thalweg.sampling.chain import Kernel, State, check_space, initial_state

TARGETS = {"RandomWalk": 0.234, "MALA": 0.574, "HMC": 0.8}


class Adapted(NamedTuple):
    """The kernel with its step size fixed, and the state in which the warm-up ended."""

    kernel: Any
    state: State


def adapt_step_size(
    kernel: Kernel,
    energy: Energy,
    start: Tensor,
    n_steps: int = 200,
    target: float | None = None,
    generator: torch.Generator | None = None,
) -> Adapted:
    """Run ``kernel`` for a warm-up in which its step size moves until proposals are accepted as often as wished.

    The steps are a warm-up: a kernel that still adapts does not leave exp(-E) invariant.

    Args:
        kernel: one with a ``step_size`` and a test of acceptance: :class:`MALA`, :class:`HMC`,
            :class:`RandomWalk`. A tensor keeps its proportions and is scaled.
        start: ``[*batch, *event]``.
        target: rate of acceptance; None is the one that theory finds best for the kernel.

    Raises:
        ValueError: if the kernel accepts always, has no step size, or does not suit the energy's support.

    Source: [Hoffman 2014, alg. 5]; rates: [Roberts 2001].
    """
    check_space(kernel, energy, start)
    name = type(kernel).__name__
    if not hasattr(kernel, "step_size") or name not in TARGETS:
        raise ValueError(f"{name} has no rate of acceptance to adapt to: use {', '.join(TARGETS)}")
    target = TARGETS[name] if target is None else target
    base: Any = kernel
    centre, shrink, offset, power = math.log(10.0), 0.05, 10.0, 0.75
    log_scale, log_average, error = 0.0, 0.0, 0.0
    state, energy = initial_state(energy, start), energy.fixed()
    for t in range(1, n_steps + 1):
        state = kernel.step(energy, state, generator)
        rate = float(state.acceptance.mean())
        error += (target - rate - error) / (t + offset)
        log_scale = min(centre - math.sqrt(t) / shrink * error, 20.0)
        weight = t**-power
        log_average = weight * log_scale + (1 - weight) * log_average
        kernel = replace(base, step_size=base.step_size * math.exp(log_scale))
    return Adapted(replace(base, step_size=base.step_size * math.exp(log_average)), state)
