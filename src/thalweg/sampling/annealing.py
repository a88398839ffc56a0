"""Annealed importance sampling: log Z between a lower and an upper bound in expectation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.energies.base import ConditionalEnergy, Conditioned, Energy
from thalweg.energies.composition import WeightedSum
from thalweg.energies.densities import Density
from thalweg.sampling.chain import Kernel, check_space, initial_state
from thalweg.sampling.hmc import HMC


class LogNormaliser(NamedTuple):
    """An estimate of log Z.

    Attributes:
        estimate: in nats.
        standard_error: standard error of the estimate, by the delta method on the weights; too small where few
            weights rule.
        effective_sample_size: (sum w)^2 / sum w^2, at most the number of chains.
        position: where the chains ended ``[n_chains, *event]``.
        log_weights: ``[n_chains]``.
    """

    estimate: float
    standard_error: float
    effective_sample_size: float
    position: Tensor
    log_weights: Tensor


class Bracket(NamedTuple):
    """log Z from both sides: the forward estimate is low and the reverse one high, in expectation."""

    lower: LogNormaliser
    upper: LogNormaliser

    @property
    def estimate(self) -> float:
        return 0.5 * (self.lower.estimate + self.upper.estimate)

    @property
    def width(self) -> float:
        return self.upper.estimate - self.lower.estimate


def annealed_importance_sampling(
    energy: Energy,
    base: Density,
    n_chains: int = 100,
    n_steps: int = 1000,
    kernel_at: Callable[[float], Kernel] | None = None,
    generator: torch.Generator | None = None,
) -> LogNormaliser:
    """log Z of ``energy`` by chains that are led from ``base`` to it.

    The distribution moves along E_b = (1 - b) E_base + b E. Each chain's weight is the product of the ratios
    exp(E_b - E_b') at where it stands *before* its step at b'. The weights' mean is unbiased for Z, so their
    log is low in expectation.

    Args:
        base: normalised, covering where exp(-E) is: a Gaussian with the data's moments, say.
        n_steps: bridges, and steps.
        kernel_at: the kernel at each b in (0, 1]; None is HMC of 5 leapfrog steps, whose size is found for
            each b by a short run of its own.

    Raises:
        ValueError: if ``energy`` and ``base`` live in different spaces, if it is given more than one x, each
            of which has a log Z of its own, if the kernel does not suit their support, or if energies are not
            finite.
        TypeError: for a conditional energy that isn't given an x.

    Source: [Neal 2001, eq. 11].
    """
    kernel_at = kernel_at or step_sizes(energy, base, generator=generator)
    position = base.sample(n_chains, generator)
    return _anneal(energy, base, position, torch.linspace(0, 1, n_steps + 1).tolist(), kernel_at, generator, 1.0)


def reverse_annealed_importance_sampling(
    energy: Energy,
    base: Density,
    samples: Tensor,
    n_steps: int = 1000,
    kernel_at: Callable[[float], Kernel] | None = None,
    generator: torch.Generator | None = None,
) -> LogNormaliser:
    """log Z by the way back, from draws of exp(-E) to ``base``: high in expectation.

    Args:
        samples: ``[n, *event]``, which must be draws of exp(-E) for the bound to hold.

    Source: [Burda 2015, sec. 4]; [Grosse 2015].
    """
    kernel_at = kernel_at or step_sizes(energy, base, generator=generator)
    betas = torch.linspace(1, 0, n_steps + 1).tolist()
    return _anneal(energy, base, samples, betas, kernel_at, generator, -1.0)


def bracket_log_normaliser(
    energy: Energy,
    base: Density,
    samples: Tensor | None = None,
    n_chains: int = 100,
    n_steps: int = 1000,
    generator: torch.Generator | None = None,
) -> Bracket:
    """Both runs. Without ``samples`` the way back starts where the way there ended, drawn by the weights."""
    kernel_at = step_sizes(energy, base, generator=generator)
    lower = annealed_importance_sampling(energy, base, n_chains, n_steps, kernel_at, generator)
    if samples is None:
        weights = (lower.log_weights - lower.log_weights.max()).exp()
        index = torch.multinomial(weights, n_chains, replacement=True, generator=generator)
        samples = lower.position[index]
    upper = reverse_annealed_importance_sampling(energy, base, samples, n_steps, kernel_at, generator)
    return Bracket(lower, upper)


def step_sizes(
    energy: Energy,
    base: Density,
    n_leapfrog: int = 5,
    n_chains: int = 64,
    n_levels: int = 20,
    target: float = 0.8,
    generator: torch.Generator | None = None,
) -> Callable[[float], Kernel]:
    """HMC with a step size for every bridge, found by a pilot run along the same path.

    The pilot's chains are others than those that are weighted, so the kernels are fixed for the latter.
    """
    _check_one_law(energy)
    check_space(HMC(1.0), energy)
    position = base.sample(n_chains, generator)
    log_size, logs = math.log(0.1 * float(position.std()) + 1e-12), []
    betas = torch.linspace(0, 1, n_levels).tolist()
    for beta in betas:
        bridge = _bridge(energy, base, beta)
        state = initial_state(bridge, position)
        for t in range(15):
            state = HMC(math.exp(log_size), n_leapfrog).step(bridge, state, generator)
            log_size += (1.0 if t < 10 else 0.3) * (float(state.acceptance.mean()) - target)
        position = state.position
        logs.append(log_size)

    def kernel_at(beta: float) -> Kernel:
        place = beta * (n_levels - 1)
        low = min(int(place), n_levels - 2)
        part = place - low
        return HMC(math.exp((1 - part) * logs[low] + part * logs[low + 1]), n_leapfrog)

    return kernel_at


def _check_one_law(energy: Energy) -> None:
    if isinstance(energy, ConditionalEnergy):
        raise TypeError(f"{type(energy).__name__} is conditional: anneal energy.given(x), with one row of x")
    for part in energy.modules():
        if isinstance(part, Conditioned) and part.n_rows > 1:
            raise ValueError(
                f"{type(part.parent).__name__} is given {part.n_rows} rows of x, and each has a log Z of its own: "
                "anneal one row at a time, given.rows(slice(i, i + 1))"
            )


def _bridge(energy: Energy, base: Density, beta: float) -> WeightedSum:
    return WeightedSum([base, energy], [1 - beta, beta])


def _anneal(
    energy: Energy,
    base: Density,
    position: Tensor,
    betas: list[float],
    kernel_at: Callable[[float], Kernel],
    generator: torch.Generator | None,
    sign: float,
) -> LogNormaliser:
    _check_one_law(energy)
    check_space(kernel_at(1.0), energy, position)
    log_weights = torch.zeros(position.shape[: position.dim() - energy.event_ndim], dtype=torch.float64)
    log_weights = log_weights.to(position.device)
    energy = energy.fixed()
    for before, beta in itertools.pairwise(betas):
        (base_value, base_grad), (value, grad) = (
            base.value_and_gradient(position),
            energy.value_and_gradient(position),
        )
        log_weights += (beta - before) * (base_value - value).double()
        if 0 < beta < 1:
            bridge = _bridge(energy, base, beta)
            mixed = (1 - beta) * base_value + beta * value, (1 - beta) * base_grad + beta * grad
            state = initial_state(bridge, position)._replace(energy=mixed[0], grad=mixed[1])
            position = kernel_at(beta).step(bridge, state, generator).position
    if not torch.isfinite(log_weights).all():
        raise ValueError("annealing met energies that are not finite: does the base cover the energy's support?")
    return summarised(log_weights, position, sign)


def summarised(log_weights: Tensor, position: Tensor, sign: float = 1.0) -> LogNormaliser:
    """What unnormalised log weights ``[n]`` say of log Z (of -log Z with sign -1), in double precision."""
    log_weights = log_weights.double()
    n = len(log_weights)
    top = log_weights.max()
    weights = (log_weights - top).exp()
    mean = weights.mean()
    error = float(weights.std() / mean / math.sqrt(n)) if n > 1 else math.nan
    return LogNormaliser(
        sign * float(mean.log() + top),
        error,
        float(weights.sum().square() / weights.square().sum()),
        position,
        log_weights,
    )
