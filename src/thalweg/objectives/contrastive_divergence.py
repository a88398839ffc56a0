"""Contrastive divergence: the energy of the data against that of where Markov chains take it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.energies.base import Energy
from thalweg.energies.discrete import Sites
from thalweg.energies.machines.fully_connected import BoltzmannMachine
from thalweg.objectives.base import AnyEnergy, Batch, Objective, condition, evaluating, frozen
from thalweg.objectives.likelihood import dequantise
from thalweg.sampling.buffer import Chains, FromData, ReplayBuffer, Start
from thalweg.sampling.chain import Kernel, run_chain
from thalweg.sampling.gibbs import SingleSiteGibbs
from thalweg.sampling.langevin import Langevin


class ContrastiveDivergence(Objective):
    """E(y_i) - mean E(y_m), the y_m from chains of ``kernel`` after n_steps: CD-k, persistent CD, IGEBM.

    Its gradient is that of the likelihood where the chains have reached the model. Chains that start
    at the data give CD-k, chains from a replay buffer persistent CD. No gradient flows through the chains,
    which run with the energy in evaluation mode: dropout does not shake them, nor do they enter the
    statistics of a batch normalisation.

    Args:
        kernel: what a step of the chains is.
        n_steps: k.
        start: where chains start: :class:`FromData`, :class:`FromNoise`, :class:`ReplayBuffer`.
        energy_l2: weight of the squares of both energies, which keeps them near zero.
        resolution: spacing of the grid that the data are rounded to (grey levels): uniform noise of that width
            is added afresh to the data at every step.
        bounds: what the data are kept within after that.

    Source: CD [Hinton 2002]; persistent [Tieleman 2008]; with the squares [Du 2019, eq. 5].
    """

    def __init__(
        self,
        kernel: Kernel,
        n_steps: int = 20,
        start: Start | None = None,
        energy_l2: float = 0.0,
        resolution: float = 0.0,
        bounds: tuple[float, float] | None = None,
    ):
        super().__init__()
        self.kernel = kernel
        self.n_steps = n_steps
        self.start = FromData() if start is None else start
        self.energy_l2 = energy_l2
        self.resolution = resolution
        self.bounds = bounds

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        loss, _, _ = self._contrast(energy, batch, generator)
        return loss

    def _contrast(
        self,
        energy: AnyEnergy,
        batch: Batch,
        generator: torch.Generator | None,
        differentiable_steps: int = 0,
    ) -> tuple[Tensor, Chains, Tensor]:
        """The loss of each row, the chains, and where they ended (with a graph, if steps were to leave one)."""
        if self.resolution:
            y = dequantise(batch.y, self.resolution, generator)
            batch = batch._replace(y=y if self.bounds is None else y.clamp(*self.bounds))
        if isinstance(energy, Energy) and energy.support.is_discrete:
            Sites(energy).check(batch.y)
        chains = self.start.draw(batch.x, batch.y, generator)
        with evaluating(energy), torch.no_grad():
            sampled = condition(energy, chains.x)
        with evaluating(energy):
            if differentiable_steps:
                sampled = condition(energy, chains.x)
            state = run_chain(
                self.kernel,
                sampled,
                chains.position,
                self.n_steps,
                generator,
                check=False,
                differentiable_steps=differentiable_steps,
            )
        end = state.position.detach()
        positive, negative = _values(energy, batch, chains, end)
        if self.training:
            self.start.store(chains, end, negative.detach())
        loss = positive - _by_row(negative, len(positive))
        self.metrics = {
            "energy of data": float(positive.detach().mean()),
            "energy gap": float(loss.detach().mean()),
            "acceptance": float(state.acceptance.mean()),
        }
        if isinstance(self.start, ReplayBuffer):
            self.metrics["chains dropped"] = float(self.start.n_dropped)
        if self.energy_l2:
            squares = positive.square() + _by_row(negative.square(), len(positive))
            loss = loss + self.energy_l2 * squares
        return loss, chains, state.position


class BoltzmannLearning(ContrastiveDivergence):
    """Contrastive divergence of a machine with hidden units: E(v_i, h_i) - mean E(v_m, h_m).

    In the positive phase the h_i are drawn by Gibbs sweeps over the hidden units with the visible ones clamped
    at the data; in the negative phase chains of visible and hidden units run free. With persistent chains and
    enough steps its gradient is that of the likelihood.

    Args:
        kernel, n_steps, start: as in :class:`ContrastiveDivergence`, over all units.
        n_clamped: sweeps of the positive phase, from hidden units at random.

    Raises:
        TypeError: for an energy that is no Boltzmann machine.
        ValueError: if the data are not bits, or not as many as the machine has visible units.

    Source: [Ackley 1985]; persistent [Tieleman 2008].
    """

    def __init__(
        self, kernel: Kernel | None = None, n_steps: int = 1, start: Start | None = None, n_clamped: int = 10
    ):
        super().__init__(SingleSiteGibbs() if kernel is None else kernel, n_steps, start)
        self.n_clamped = n_clamped

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        self._machine(energy, batch)

    @staticmethod
    def _machine(energy: AnyEnergy, batch: Batch) -> BoltzmannMachine:
        """The energy, unless it is no Boltzmann machine or the rows are not of its visible units."""
        if not isinstance(energy, BoltzmannMachine):
            raise TypeError(f"BoltzmannLearning trains a BoltzmannMachine, got {type(energy).__name__}")
        if batch.y.shape[-1] != energy.n_visible:
            raise ValueError(
                f"the machine has {energy.n_visible} visible units, got data of width {batch.y.shape[-1]}"
            )
        return energy

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        machine = self._machine(energy, batch)
        v, n_visible = batch.y, machine.n_visible
        half = torch.full((*v.shape[:-1], machine.n_hidden), 0.5, dtype=v.dtype, device=v.device)
        x = torch.cat([v, torch.bernoulli(half, generator=generator)], -1)
        if machine.n_hidden:
            clamped = SingleSiteGibbs(sites=range(n_visible, x.shape[-1]))
            x = run_chain(clamped, machine, x, self.n_clamped, generator, check=False).position
        return super().per_row(energy, batch._replace(y=x), generator)


class LangevinML(ContrastiveDivergence):
    """Maximum likelihood with many short Langevin chains for each row, all from the true target.

    Args:
        noise_std: lambda; a step is y - (lambda^2 / 2) grad E + lambda * noise, the form with temperature 1.
        n_steps: steps of each chain.
        n_chains: chains for each row.

    Source: [Gustafsson 2020b, sec. 3.3].
    """

    def __init__(self, noise_std: float = 0.05, n_steps: int = 16, n_chains: int = 1024):
        super().__init__(Langevin(step_size=noise_std**2 / 2), n_steps, FromData(n_chains))


class ImprovedContrastiveDivergence(ContrastiveDivergence):
    """Contrastive divergence with the term it leaves out: the chains' own dependence on the energy.

    The chains' distribution q moves with the energy, and CD's gradient ignores it. Here KL(q || exp(-E)) is
    lowered
    too: mean E*(y_m) - H[q], with E* an energy whose parameters get no gradient from its value and y_m
    carrying the graph of the last steps. The entropy of q is estimated, up to a constant and a factor D, by the
    mean logarithm of the distances to the nearest other chain.

    Args:
        kernel, n_steps, start, energy_l2: as in :class:`ContrastiveDivergence`.
        differentiable_steps: how many of the last steps the gradient flows through.
        kl_weight: weight of mean E*(y_m).
        entropy_weight: weight of the entropy.
        n_neighbours: how many of the chains the nearest other one is looked for among.

    Source: [Du 2021, eq. 8 and 11] and its code (one step, entropy at 0.3, 100 neighbours).
    """

    def __init__(
        self,
        kernel: Kernel,
        n_steps: int = 20,
        start: Start | None = None,
        energy_l2: float = 0.0,
        resolution: float = 0.0,
        bounds: tuple[float, float] | None = None,
        differentiable_steps: int = 1,
        kl_weight: float = 1.0,
        entropy_weight: float = 0.3,
        n_neighbours: int = 100,
    ):
        super().__init__(kernel, n_steps, start, energy_l2, resolution, bounds)
        self.differentiable_steps = _checked_steps(differentiable_steps, n_steps)
        self.kl_weight = kl_weight
        self.entropy_weight = entropy_weight
        self.n_neighbours = n_neighbours

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        with_graph = self.differentiable_steps if self.kl_weight or self.entropy_weight else 0
        loss, chains, end = self._contrast(energy, batch, generator, with_graph)
        if self.kl_weight:
            with frozen(energy):
                loss = loss + self.kl_weight * condition(energy, chains.x)(end).mean()
        flat = end.flatten(0, -batch.y.dim()).flatten(1)
        if self.entropy_weight and len(flat) > 1:
            loss = loss - self.entropy_weight * self._entropy(flat, generator)
        return loss

    def _entropy(self, chains: Tensor, generator: torch.Generator | None) -> Tensor:
        order = torch.randperm(len(chains), generator=generator, device=chains.device)[: self.n_neighbours]
        # Not by way of a matrix product, which is faster and loses small distances in rounding.
        distances = torch.cdist(chains, chains.detach()[order], compute_mode="donot_use_mm_for_euclid_dist")
        # A chain is no neighbour of itself.
        itself = order == torch.arange(len(chains), device=chains.device)[:, None]
        nearest = distances.masked_fill(itself, math.inf).amin(1)
        # (The only neighbour there is has none, if it is the chain itself.)
        nearest = nearest[torch.isfinite(nearest)]
        entropy = nearest.clamp_min(1e-6).log().mean()
        self.metrics["entropy"] = float(entropy.detach())
        return entropy


class TetheredContrastiveDivergence(ContrastiveDivergence):
    """Contrastive divergence whose chains learn to end near the data: + closeness * mean (y_m - y_i)^2.

    The mean is over the coordinates of y. The gradient of this term flows through the last steps of the chains, so
    that the energy learns to be walked down in so few steps.

    Args:
        kernel, n_steps, start, energy_l2: as in :class:`ContrastiveDivergence`; every row has chains of its own,
            which end near its data.
        differentiable_steps: how many of the last steps the gradient flows through.
        closeness: weight of the squared distances.

    Raises:
        ValueError: if no step leaves a graph, or more than there are; or for chains of a buffer.

    Source: the loss of samples near demonstrations [Mordatch 2018]; gradients through steps [Belanger 2017].
    """

    def __init__(
        self,
        kernel: Kernel,
        n_steps: int = 10,
        start: Start | None = None,
        energy_l2: float = 0.0,
        differentiable_steps: int = 10,
        closeness: float = 1.0,
    ):
        super().__init__(kernel, n_steps, start, energy_l2)
        if isinstance(start, ReplayBuffer):
            raise ValueError("the chains of a buffer belong to no row: start them at the data or in noise")
        self.differentiable_steps = _checked_steps(differentiable_steps, n_steps)
        self.closeness = closeness

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        loss, _, end = self._contrast(energy, batch, generator, self.differentiable_steps)
        data = batch.y if end.dim() == batch.y.dim() else batch.y.unsqueeze(1)
        off = (end - data).square().reshape(len(batch.y), -1).mean(1)
        self.metrics["distance from the data"] = float(off.detach().mean().sqrt())
        return loss + self.closeness * off


def _checked_steps(differentiable_steps: int, n_steps: int) -> int:
    if not 0 < differentiable_steps <= n_steps:
        raise ValueError(f"differentiable_steps must be in 1..{n_steps}, got {differentiable_steps}")
    return differentiable_steps


def _values(energy: AnyEnergy, batch: Batch, chains: Chains, end: Tensor) -> tuple[Tensor, Tensor]:
    """Energies of the data ``[B]`` and of the chains' ends, in one forward pass of the network."""
    if end.dim() > batch.y.dim():
        values = batch.given(energy)(torch.cat([batch.y.unsqueeze(1), end], 1))
        return values[:, 0], values[:, 1:]
    x = None if chains.x is None else torch.cat([batch.x, chains.x])
    values = condition(energy, x)(torch.cat([batch.y, end]))
    return values[: len(batch.y)], values[len(batch.y) :]


def _by_row(values: Tensor, n_rows: int) -> Tensor:
    """Means over each row's own chains ``[B, chains]``, or over all chains ``[N]`` where rows have none."""
    return values.mean(1) if values.dim() > 1 else values.mean().expand(n_rows)
