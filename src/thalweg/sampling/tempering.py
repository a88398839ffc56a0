"""Parallel tempering: copies at higher temperatures cross the barriers, and hand their places down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.energies.base import Conditioned, Energy
from thalweg.sampling.chain import Kernel, State


@dataclass(frozen=True)
class ParallelTempering:
    """Each chain is one of a ladder: level t samples exp(-E / T_t), and neighbours swap places.

    Positions are ``[levels, *batch, *event]``; ``position[0]`` are the chains at temperature 1. The state's
    energy and gradient are those of E itself. After every step of ``kernel`` on all levels at once, the even
    or the odd pairs of neighbours (by the toss of a coin) are offered a swap, which leaves all levels'
    distributions as they are. A conditional energy is tempered given one row of inputs at a time.

    Args:
        kernel: steps of each level; give :class:`MALA` or :class:`HMC` a tensor of step sizes
            ``[levels, 1, ...]`` that grows with the temperature.
        temperatures: one for each level, 1 first, rising.

    Source: [Geyer 1991]; [Swendsen 1986].
    """

    kernel: Kernel
    temperatures: Sequence[float]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.temperatures, self.temperatures[1:], strict=False))
        if not self.temperatures or self.temperatures[0] != 1 or not rising:
            raise ValueError(f"temperatures must start at 1 and rise, got {list(self.temperatures)}")

    @property
    def discrete(self) -> bool | None:
        return getattr(self.kernel, "discrete", None)

    def start(self, position: Tensor) -> Tensor:
        """Every level at the same place: ``[*batch, *event]`` -> ``[levels, *batch, *event]``."""
        return position.expand(len(self.temperatures), *position.shape).clone()

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        n_levels = len(self.temperatures)
        if isinstance(energy, Conditioned) and energy.n_rows > 1:
            raise ValueError(
                f"levels take the dimension of the rows: temper the energy given one row of inputs, not "
                f"{energy.n_rows}"
            )
        if len(state.position) != n_levels:
            raise ValueError(
                f"positions must be [levels, *batch, *event] with {n_levels} levels, got "
                f"{tuple(state.position.shape)}: use start()"
            )
        value, grad = state.evaluated(energy)
        beta = 1 / torch.as_tensor(self.temperatures, dtype=value.dtype, device=value.device)
        beta = beta.reshape(-1, *([1] * (value.dim() - 1)))
        wide = beta.reshape(-1, *([1] * (state.position.dim() - 1)))
        tempered = _Tempered(energy, beta, wide)
        state = State(state.position, state.acceptance, beta * value, wide * grad)
        state = self.kernel.step(tempered, state, generator)
        value, grad = state.evaluated(tempered)
        value, grad = value / beta, grad / wide
        first = int(torch.randint(2, (), generator=generator, device=value.device))
        lower = torch.arange(n_levels - 1, device=value.device)[first::2]
        if not len(lower):
            return State(state.position, state.acceptance, value, grad)
        log_ratio = (beta[lower] - beta[lower + 1]) * (value[lower] - value[lower + 1])
        uniform = torch.rand(log_ratio.shape, generator=generator, device=value.device)
        swap = uniform.log() < log_ratio
        return State(
            exchanged(state.position, lower, swap),
            state.acceptance,
            exchanged(value, lower, swap),
            exchanged(grad, lower, swap),
        )


def geometric_temperatures(n_levels: int, highest: float) -> list[float]:
    """From 1 to ``highest`` by equal factors."""
    return [1.0] + [highest ** (i / (n_levels - 1)) for i in range(1, n_levels)]


class _Tempered(Energy):
    """beta_t E, with one beta for each level."""

    def __init__(self, energy: Energy, beta: Tensor, wide: Tensor):
        super().__init__()
        object.__setattr__(self, "energy", energy)
        self.beta, self.wide = beta, wide
        self.event_ndim, self.support = energy.event_ndim, energy.support

    energy: Energy

    def forward(self, x: Tensor) -> Tensor:
        return self.beta * self.energy(x)

    def differences(self, x: Tensor, sites: Tensor) -> Tensor | None:
        closed = self.energy.differences(x, sites)
        return None if closed is None else self.beta[..., None, None] * closed

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = self.energy.value_and_gradient(x)
        return self.beta * value, self.wide * grad


def exchanged(t: Tensor, lower: Tensor, swap: Tensor) -> Tensor:
    """Exchange level i and i + 1 for every i in ``lower`` where ``swap`` says so."""
    swap = swap.reshape(*swap.shape, *([1] * (t.dim() - swap.dim())))
    below, above = t[lower], t[lower + 1]
    t = t.clone()
    t[lower] = torch.where(swap, above, below)
    t[lower + 1] = torch.where(swap, below, above)
    return t
