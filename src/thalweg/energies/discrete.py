"""Configurations made of sites: bits, or groups of which one entry is 1; and what a change of one site does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from thalweg.energies.base import Energy

BINARY = constraints.independent(constraints.boolean, 1)


class OneHotGroups(constraints.Constraint):
    """Vectors ``[D * K]`` of D groups of K entries, of which one is 1 and the others 0.

    Args:
        n_categories: K, at least 2.
    """

    is_discrete = True
    event_dim = 1

    def __init__(self, n_categories: int):
        if n_categories < 2:
            raise ValueError(f"a site needs at least 2 categories, got {n_categories}")
        self.n_categories = n_categories

    def check(self, value: Tensor) -> Tensor:
        if value.shape[-1] % self.n_categories:
            return torch.zeros(value.shape[:-1], dtype=torch.bool, device=value.device)
        groups = value.unflatten(-1, (-1, self.n_categories))
        return (((groups == 0) | (groups == 1)).all(-1) & (groups.sum(-1) == 1)).all(-1)


class Sites:
    """How an energy's configurations are made of sites, each with one of K values: read from its support.

    Bits have K = 2; their event may have any number of dimensions. A site changes by a shift j = 1, ..., K - 1,
    to the j-th value after its own, cyclically; the shift K - j undoes it.

    Args:
        energy: over bits (``constraints.boolean``) or :class:`OneHotGroups`.

    Raises:
        ValueError: if its support is neither.
    """

    def __init__(self, energy: Energy):
        support: Any = energy.support
        self.event_ndim = energy.event_ndim
        self.one_hot = isinstance(support, OneHotGroups)
        self.n_values = support.n_categories if self.one_hot else 2
        if not self.one_hot and getattr(support, "base_constraint", support) is not constraints.boolean:
            raise ValueError(
                f"{type(energy).__name__} has support {support}: an energy of discrete sites has bits or "
                "OneHotGroups"
            )

    def check(self, x: Tensor) -> None:
        """Refuse, in words, what is not made of such sites."""
        if self.one_hot:
            if not OneHotGroups(self.n_values).check(x).all():
                raise ValueError(
                    f"each group of {self.n_values} entries must be 0 but for one that is 1, got values of shape "
                    f"{tuple(x.shape)} that are not so"
                )
        elif not constraints.boolean.check(x).all():
            wrong = x[(x != 0) & (x != 1)]
            raise ValueError(f"bits must be 0 or 1, got {float(wrong[0]):.4g} (one of {len(wrong)} such values)")

    def count(self, x: Tensor) -> int:
        """D, the number of sites."""
        n = x[(0,) * (x.dim() - self.event_ndim)].numel()
        return n // self.n_values if self.one_hot else n

    def changed(self, x: Tensor, sites: Tensor, shifts: Tensor) -> Tensor:
        """x with one site of each configuration shifted: sites and shifts (0 for none) are ``[*batch]``."""
        flat = x.flatten(x.dim() - self.event_ndim)
        index = sites.unsqueeze(-1)
        if not self.one_hot:
            old = flat.gather(-1, index)
            new = torch.where(shifts.unsqueeze(-1) == 1, 1 - old, old)
            return flat.scatter(-1, index, new).reshape(x.shape)
        k = torch.arange(self.n_values, device=x.device)
        base = index * self.n_values
        new = flat.gather(-1, base + (k - shifts.unsqueeze(-1)) % self.n_values)
        return flat.scatter(-1, base + k, new)

    def slopes(self, x: Tensor, grad: Tensor) -> Tensor:
        """What each change adds to the energy to first order ``[*batch, D, K - 1]``, by the gradient at x."""
        if not self.one_hot:
            return ((1 - 2 * x) * grad).flatten(x.dim() - self.event_ndim).unsqueeze(-1)
        groups, grads = (t.unflatten(-1, (-1, self.n_values)) for t in (x, grad))
        now = groups.argmax(-1, keepdim=True)
        values = (now + torch.arange(self.n_values, device=x.device)) % self.n_values
        ahead = grads.gather(-1, values)
        return ahead[..., 1:] - ahead[..., :1]

    def differences(self, energy: Energy, x: Tensor, sites: Tensor) -> Tensor:
        """E(x') - E(x) ``[*batch, n, K - 1]`` for every change of each of the sites, with a graph.

        In closed form where the energy has one, else by evaluating all of x' at once.

        Args:
            sites: ``[n]``, or ``[*batch, n]`` where each configuration has its own.
        """
        closed = energy.differences(x, sites)
        if closed is not None:
            return closed
        batch = x.shape[: x.dim() - self.event_ndim]
        each = (*batch, sites.shape[-1], self.n_values - 1)
        shifts = torch.arange(1, self.n_values, device=x.device).expand(each).flatten(-2)
        changing = sites.unsqueeze(-1).expand(each).flatten(-2)
        here = x.unsqueeze(len(batch))
        copies = here.expand(*batch, shifts.shape[-1], *x.shape[len(batch) :])
        values = energy(torch.cat([here, self.changed(copies, changing, shifts)], len(batch)))
        return (values[..., 1:] - values[..., :1]).reshape(each)


def all_states(n_sites: int, n_categories: int | None = None) -> Tensor:
    """Every configuration: ``[2^D, D]`` bits, the first site slowest, or ``[K^D, D * K]`` one-hot groups."""
    k = n_categories or 2
    powers = k ** torch.arange(n_sites - 1, -1, -1)
    values = torch.arange(k**n_sites).unsqueeze(-1) // powers % k
    if n_categories is None:
        return values.float()
    return torch.nn.functional.one_hot(values, k).flatten(-2).float()


def binary_states(n: int, like: Tensor, chunk: int = 1 << 14) -> Iterator[Tensor]:
    """All 2^n vectors of bits, ``[at most chunk, n]`` at a time, of the type of ``like``."""
    powers = torch.arange(n, device=like.device)
    for start in range(0, 1 << n, chunk):
        codes = torch.arange(start, min(start + chunk, 1 << n), device=like.device)
        yield (codes.unsqueeze(1) >> powers & 1).to(like.dtype)
