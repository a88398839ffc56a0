"""Where chains start: at the data, in noise, or where they were left (a replay buffer)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from thalweg.energies.base import standard_normal
from thalweg.energies.densities import Density


class Chains(NamedTuple):
    """Chains of one batch: x ``[R, *x_event]`` or None, positions ``[R, *chains, *event]``, places in a buffer."""

    x: Tensor | None
    position: Tensor
    places: Tensor | None = None


class Start(nn.Module):
    """Where the chains of a batch start, and what becomes of them afterwards."""

    def draw(self, x: Tensor | None, y: Tensor, generator: torch.Generator | None = None) -> Chains:
        """Starts for a batch: x ``[B, *x_event]`` or None, y ``[B, *event]``."""
        raise NotImplementedError

    def store(self, chains: Chains, position: Tensor, energy: Tensor) -> None:
        """Told where the chains ended, and at which energies ``[R, *chains]``."""


class FromData(Start):
    """At the rows themselves, where contrastive divergence starts.

    Args:
        n_chains: chains for each row.
        noise_std: standard deviation of noise added to the start.
    """

    def __init__(self, n_chains: int = 1, noise_std: float = 0.0):
        super().__init__()
        self.n_chains = n_chains
        self.noise_std = noise_std

    def draw(self, x: Tensor | None, y: Tensor, generator: torch.Generator | None = None) -> Chains:
        position = y.unsqueeze(1).expand(-1, self.n_chains, *y.shape[1:])
        if self.noise_std:
            noise = standard_normal(position.shape, y, generator)
            position = position + self.noise_std * noise
        return Chains(x, position)


class FromNoise(Start):
    """In draws from a density, afresh for every batch.

    Args:
        noise: the density.
        n_chains: chains for each row.
    """

    def __init__(self, noise: Density, n_chains: int = 1):
        super().__init__()
        self.noise = noise
        self.n_chains = n_chains

    def draw(self, x: Tensor | None, y: Tensor, generator: torch.Generator | None = None) -> Chains:
        return Chains(x, self.noise.sample((len(y), self.n_chains), generator))


class ReplayBuffer(Start):
    """Where they were left: persistent chains, some of which start afresh at every batch.

    Each chain goes back to the place in the buffer that it came from, so no lineage is lost. A chain that
    ends where energy or position is not finite, or outside the bounds, is dropped: its place starts afresh,
    and ``n_dropped`` counts it. For a conditional energy each chain keeps the x that it runs under.

    Args:
        noise: the density in which chains start.
        size: number of chains kept.
        n_chains: chains that run for each batch.
        restart: probability with which a chain that is drawn starts afresh.
        augment: changes positions ``[N, *event]`` as they are drawn (flips and shifts of images, say).
        bounds: chains whose coordinates leave [low, high] are dropped.
        x_event: shape of one x, for conditional energies; None otherwise.

    Source: persistent chains [Tieleman 2008]; with restarts [Du 2019, sec. 3.2]; augmentation [Du 2021].
    """

    positions: Tensor
    xs: Tensor | None
    n_dropped: Tensor

    def __init__(
        self,
        noise: Density,
        size: int = 10_000,
        n_chains: int = 256,
        restart: float = 0.05,
        augment: Callable[[Tensor], Tensor] | None = None,
        bounds: tuple[float, float] | None = None,
        x_event: tuple[int, ...] | None = None,
    ):
        super().__init__()
        if not 0 <= restart <= 1:
            raise ValueError(f"restart is a probability, got {restart}")
        if size < n_chains:
            raise ValueError(f"a buffer of {size} chains can't give {n_chains} at once")
        self.noise = noise
        self.n_chains = n_chains
        self.restart = restart
        self.augment = augment
        self.bounds = bounds
        self.register_buffer("positions", noise.sample(size, torch.Generator().manual_seed(0)))
        # Whether a place holds a chain that has run: the others start afresh, under an x of the batch.
        self.register_buffer("alive", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("xs", None if x_event is None else torch.zeros(size, *x_event))
        self.register_buffer("n_dropped", torch.zeros((), dtype=torch.long))

    alive: Tensor

    def draw(self, x: Tensor | None, y: Tensor, generator: torch.Generator | None = None) -> Chains:
        size, n, device = len(self.positions), self.n_chains, self.positions.device
        index = torch.randperm(size, generator=generator, device=device)[:n]
        fresh = torch.rand(n, generator=generator, device=device) < self.restart
        fresh = fresh | ~self.alive[index]
        position = self.positions[index]
        if self.augment is not None:
            position = self.augment(position)
        new = self.noise.sample(n, generator).to(position.dtype)
        position = torch.where(fresh.reshape(n, *([1] * (position.dim() - 1))), new, position)
        if x is None:
            if self.xs is not None:
                raise ValueError("the buffer keeps an x for each chain (x_event), and the batch has no x")
            return Chains(None, position, index)
        if self.xs is None:
            raise ValueError("the buffer of a conditional energy needs the shape of x: give x_event")
        row = torch.randint(len(x), (n,), generator=generator, device=device)
        kept = torch.where(fresh.reshape(n, *([1] * (x.dim() - 1))), x[row].to(self.xs.dtype), self.xs[index])
        return Chains(kept.to(x.dtype), position, index)

    def store(self, chains: Chains, position: Tensor, energy: Tensor) -> None:
        assert chains.places is not None
        flat = position.flatten(1)
        sound = torch.isfinite(energy) & torch.isfinite(flat).all(1)
        if self.bounds is not None:
            sound = sound & ((flat >= self.bounds[0]) & (flat <= self.bounds[1])).all(1)
        self.n_dropped += (~sound).sum()
        kept = chains.places[sound]
        self.positions[kept] = position[sound].to(self.positions.dtype)
        if self.xs is not None:
            assert chains.x is not None
            self.xs[kept] = chains.x[sound].to(self.xs.dtype)
        self.alive[chains.places] = sound
