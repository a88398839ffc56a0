"""A kernel is one step of a Markov chain; a chain is a kernel, a start and a length."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from thalweg.energies.base import Energy, check_energy
from thalweg.energies.discrete import Sites


class State(NamedTuple):
    """Where the chains are, and what the next step can use again.

    position ``[*batch, *event]``, the probability ``[*batch]`` with which the last proposal was accepted (1 for
    kernels that always do), and energy ``[*batch]`` and gradient of the energy (as position) at the position,
    or None where no step needed them yet.
    """

    position: Tensor
    acceptance: Tensor
    energy: Tensor | None = None
    grad: Tensor | None = None

    def evaluated(self, energy: Energy) -> tuple[Tensor, Tensor]:
        """Energy and gradient at the position, computed only if they are not known."""
        if self.energy is None or self.grad is None:
            return energy.value_and_gradient(self.position)
        return self.energy, self.grad


class Kernel(Protocol):
    """One step, pure: the state that comes in is not changed.

    A kernel may say by an attribute ``discrete`` that it moves between discrete values only (True) or in
    continuous space only (False); an energy that does not suit is then refused.
    """

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State: ...


def initial_state(energy: Energy, position: Tensor) -> State:
    """The state of chains that stand at ``position``."""
    return State(position.detach(), position.new_ones(position.shape[: position.dim() - energy.event_ndim]))


def check_space(kernel: Kernel, energy: Energy, start: Tensor | None = None) -> None:
    """Refuse, in words, a kernel that doesn't suit the energy's support, or a discrete start outside it.

    Raises:
        ValueError: naming kernels that suit.
    """
    discrete, needed = getattr(kernel, "discrete", None), energy.support.is_discrete
    if discrete is None:
        return
    names = type(kernel).__name__, type(energy).__name__
    if needed and not discrete:
        raise ValueError(
            f"{names[0]} moves in continuous space, and {names[1]} is of discrete values: use GibbsWithGradients "
            "or SingleSiteGibbs"
        )
    if discrete and not needed:
        raise ValueError(
            f"{names[0]} moves between discrete values, and {names[1]} is of continuous ones: use MALA, HMC, "
            "RandomWalk or Langevin"
        )
    if discrete and start is not None:
        Sites(energy).check(start)


def run_chain(
    kernel: Kernel,
    energy: Energy,
    start: Tensor,
    n_steps: int,
    generator: torch.Generator | None = None,
    check: bool = True,
    differentiable_steps: int = 0,
) -> State:
    """Run all chains of ``start`` for n_steps and return the last state.

    It carries no graph, unless some of the last steps are asked to leave one: the gradient of its position
    then flows through those steps into the energy's parameters.

    Args:
        check: whether an energy that does not keep its contract is refused before the first step.
        differentiable_steps: how many of the last steps leave a graph.

    Raises:
        ValueError: if the kernel does not suit the energy's support.
    """
    check_space(kernel, energy, start)
    if differentiable_steps and energy.support.is_discrete:
        raise ValueError("no gradient flows through steps between discrete values: take differentiable_steps=0")
    if check:
        check_energy(energy, start)
    state, fixed = initial_state(energy, start), energy.fixed()
    for _ in range(n_steps - differentiable_steps):
        state = kernel.step(fixed, state, generator)
    if differentiable_steps:
        with torch.enable_grad():
            state, with_graph = State(state.position, state.acceptance), _WithGraph(energy)
            for _ in range(differentiable_steps):
                state = kernel.step(with_graph, state, generator)
    return state


class Draws(NamedTuple):
    """What the chains left behind.

    Attributes:
        position: ``[n_draws, *batch, *event]``.
        energy: ``[n_draws, *batch]``.
        acceptance: mean rate of acceptance after the burn-in.
        state: where the chains are now; ``run_chain`` and ``sample_chain`` can go on from its position.
    """

    position: Tensor
    energy: Tensor
    acceptance: float
    state: State


def sample_chain(
    kernel: Kernel,
    energy: Energy,
    start: Tensor,
    n_draws: int,
    burn_in: int = 0,
    thin: int = 1,
    generator: torch.Generator | None = None,
    on_draw: Callable[[int], None] | None = None,
) -> Draws:
    """Draws from all chains of ``start``: burn_in steps are thrown away, then every thin-th state is kept.

    Args:
        start: ``[*batch, *event]``, one place for each chain.
        on_draw: called after each draw with the number of draws so far.

    Raises:
        ValueError: if the numbers are not positive, the kernel does not suit the energy's support, or the
            energy does not keep its contract at the start.
    """
    if n_draws < 1 or burn_in < 0 or thin < 1:
        raise ValueError(f"n_draws and thin must be at least 1, burn_in 0, got {n_draws}, {thin}, {burn_in}")
    check_space(kernel, energy, start)
    check_energy(energy, start)
    state, energy = initial_state(energy, start), energy.fixed()
    for _ in range(burn_in):
        state = kernel.step(energy, state, generator)
    positions = start.new_empty((n_draws, *start.shape))
    energies = start.new_empty((n_draws, *state.acceptance.shape))
    acceptance = 0.0
    for i in range(n_draws):
        for _ in range(thin):
            state = kernel.step(energy, state, generator)
            acceptance += float(state.acceptance.mean())
        value, grad = state.evaluated(energy)
        state = State(state.position, state.acceptance, value, grad)
        positions[i], energies[i] = state.position, value
        if on_draw is not None:
            on_draw(i + 1)
    return Draws(positions, energies, acceptance / (n_draws * thin), state)


class _WithGraph(Energy):
    """The same energy, whose gradient in a kernel keeps its graph."""

    def __init__(self, energy: Energy):
        super().__init__()
        object.__setattr__(self, "energy", energy)
        self.support = energy.support
        self.event_ndim = energy.event_ndim

    energy: Energy

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x)

    def score(self, x: Tensor) -> Tensor:
        return self.energy.score(x)

    def gradient(self, x: Tensor) -> Tensor:
        return -self.energy.score(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.energy(x).detach(), -self.energy.score(x)


class Place(NamedTuple):
    """A position with its energy, and its gradient if the kernel uses one."""

    position: Tensor
    energy: Tensor
    grad: Tensor | None


def accept(current: Place, proposed: Place, log_ratio: Tensor, generator: torch.Generator | None) -> State:
    """Metropolis-Hastings: take the proposal with probability min(1, exp(log_ratio)), else stay.

    A proposal whose energy is not finite, or whose ratio is not a number, is refused.
    """
    sound = torch.isfinite(proposed.energy) & ~torch.isnan(log_ratio)
    probability = torch.where(sound, log_ratio, -torch.inf).clamp(max=0.0).exp()
    uniform = torch.rand(probability.shape, generator=generator, device=probability.device)
    taken = uniform < probability
    wide = taken.reshape(*taken.shape, *([1] * (current.position.dim() - taken.dim())))
    grad = None
    if proposed.grad is not None and current.grad is not None:
        grad = torch.where(wide, proposed.grad, current.grad)
    return State(
        torch.where(wide, proposed.position, current.position),
        probability,
        torch.where(taken, proposed.energy, current.energy),
        grad,
    )
