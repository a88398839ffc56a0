"""Layers of units that are independent of each other given the field that they stand in.

A layer's state s has the distribution p(s) = exp(feature(s)'field - base(s)) / exp(log_partition(field)): what
couples a layer to its neighbours is its feature, which is the state itself but for Gaussian units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import standard_normal
from thalweg.energies.discrete import BINARY, OneHotGroups


class Units(nn.Module):
    """A layer of units whose states take ``width`` numbers.

    Attributes:
        width: numbers in a state.
        support: where a state lives.
    """

    width: int
    support: constraints.Constraint

    def __init__(self, n: int):
        super().__init__()
        if n < 1:
            raise ValueError(f"a layer needs at least one unit, got {n}")
        self.width = n

    def feature(self, state: Tensor) -> Tensor:
        """What couples to the neighbours ``[*batch, width]``."""
        return state

    def base(self, state: Tensor) -> Tensor:
        """The part of the energy that no bias or weight takes part in ``[*batch]``."""
        return state.new_zeros(state.shape[:-1])

    def slope(self, state: Tensor, field: Tensor) -> Tensor:
        """The gradient of base(s) - feature(s)'field in s ``[*batch, width]``."""
        return -field

    @property
    def parts(self) -> list[tuple[Units, slice]]:
        """The units of one kind each, and their places in a state."""
        return [(self, slice(0, self.width))]

    def mean(self, field: Tensor) -> Tensor:
        """Of the state, ``[*batch, width]``."""
        raise NotImplementedError

    def sample(self, field: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A state for every field ``[*batch, width]``."""
        raise NotImplementedError

    def log_partition(self, field: Tensor) -> Tensor:
        """log of the sum over all states of exp(feature(s)'field - base(s)), ``[*batch]``."""
        raise NotImplementedError

    def bias_of(self, states: Tensor) -> Tensor:
        """The bias ``[width]`` under which units without neighbours have the mean of ``[N, width]`` states."""
        raise NotImplementedError

    def check(self, states: Tensor) -> None:
        """Raises ValueError for states ``[*batch, width]`` that are not of these units, in words."""
        if states.shape[-1] != self.width:
            raise ValueError(f"a state of these units has {self.width} numbers, got {states.shape[-1]}")
        if not torch.isfinite(states).all():
            raise ValueError("states hold numbers that are not finite")


class Binary(Units):
    """n units that are 0 or 1."""

    def __init__(self, n: int):
        super().__init__(n)
        self.support = BINARY

    def mean(self, field: Tensor) -> Tensor:
        return torch.sigmoid(field)

    def sample(self, field: Tensor, generator: torch.Generator | None = None) -> Tensor:
        uniform = torch.rand(field.shape, generator=generator, device=field.device, dtype=field.dtype)
        return torch.lt(uniform, torch.sigmoid(field), out=uniform)

    def log_partition(self, field: Tensor) -> Tensor:
        return F.softplus(field).sum(-1)

    def bias_of(self, states: Tensor) -> Tensor:
        # One row more of each kind, so that a unit that is always on or off has a finite bias.
        mean = (states.sum(0) + 1) / (len(states) + 2)
        return torch.logit(mean)

    def check(self, states: Tensor) -> None:
        super().check(states)
        if not ((states == 0) | (states == 1)).all():
            odd = states[(states != 0) & (states != 1)].reshape(-1)[0]
            raise ValueError(f"binary units are 0 or 1, got {float(odd):g}: round or binarise first")


class Categorical(Units):
    """n units with k states each; a state is n blocks of k numbers, one of which is 1 and the others 0.

    Also called softmax or Potts units.
    """

    def __init__(self, n: int, k: int):
        super().__init__(n * k)
        self.n, self.k = n, k
        self.support = OneHotGroups(k)

    def mean(self, field: Tensor) -> Tensor:
        return torch.softmax(field.unflatten(-1, (self.n, self.k)), -1).flatten(-2)

    def sample(self, field: Tensor, generator: torch.Generator | None = None) -> Tensor:
        blocks = field.unflatten(-1, (self.n, self.k))
        uniform = torch.rand(blocks.shape, generator=generator, device=field.device, dtype=field.dtype)
        # The largest of the fields with Gumbel noise is distributed as the softmax says [Gumbel 1954].
        chosen = (blocks - (-uniform.clamp_min(1e-30).log()).log()).argmax(-1)
        return F.one_hot(chosen, self.k).to(field.dtype).flatten(-2)

    def log_partition(self, field: Tensor) -> Tensor:
        return torch.logsumexp(field.unflatten(-1, (self.n, self.k)), -1).sum(-1)

    def bias_of(self, states: Tensor) -> Tensor:
        mean = (states.sum(0) + 1) / (len(states) + self.k)
        return mean.log()

    def check(self, states: Tensor) -> None:
        super().check(states)
        blocks = states.unflatten(-1, (self.n, self.k))
        if not (((states == 0) | (states == 1)).all() and (blocks.sum(-1) == 1).all()):
            raise ValueError(f"each block of {self.k} numbers must have one 1 and else 0: encode categories first")


class Gaussian(Units):
    """n real units with a learned standard deviation: base s^2 / (2 std^2), feature s / std^2.

    Given the field, the mean is the field itself.

    Source: [Cho 2011, eq. 3].
    """

    def __init__(self, n: int):
        super().__init__(n)
        self.support = constraints.real_vector
        self.log_std = nn.Parameter(torch.zeros(n))

    @property
    def std(self) -> Tensor:
        return self.log_std.exp()

    def feature(self, state: Tensor) -> Tensor:
        return state * (-2 * self.log_std).exp()

    def base(self, state: Tensor) -> Tensor:
        return 0.5 * (state / self.std).square().sum(-1)

    def slope(self, state: Tensor, field: Tensor) -> Tensor:
        return self.feature(state - field)

    def mean(self, field: Tensor) -> Tensor:
        return field

    def sample(self, field: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return field + self.std * standard_normal(field.shape, field, generator)

    def log_partition(self, field: Tensor) -> Tensor:
        return (0.5 * (field / self.std).square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def bias_of(self, states: Tensor) -> Tensor:
        return states.mean(0)


class Mixed(Units):
    """Units of several kinds side by side in one layer; a state is theirs, one after the other.

    Args:
        kinds: such as ``[Binary(3), Categorical(2, 4), Gaussian(5)]``; one of each kind at most.
    """

    def __init__(self, kinds: Sequence[Units]):
        names = [type(unit).__name__ for unit in kinds]
        if not kinds or len(set(names)) < len(names):
            raise ValueError(f"mixed units take one part of each kind, got {names}")
        super().__init__(sum(unit.width for unit in kinds))
        self.kinds: Any = nn.ModuleList(kinds)
        self.support = MixedSupport([(unit.support, place) for unit, place in self.parts])

    @property
    def parts(self) -> list[tuple[Units, slice]]:
        ends = list(itertools.accumulate(unit.width for unit in self.kinds))
        return [(unit, slice(end - unit.width, end)) for unit, end in zip(self.kinds, ends, strict=True)]

    def feature(self, state: Tensor) -> Tensor:
        return torch.cat([unit.feature(state[..., place]) for unit, place in self.parts], -1)

    def base(self, state: Tensor) -> Tensor:
        return torch.stack([unit.base(state[..., place]) for unit, place in self.parts]).sum(0)

    def slope(self, state: Tensor, field: Tensor) -> Tensor:
        return torch.cat([unit.slope(state[..., place], field[..., place]) for unit, place in self.parts], -1)

    def mean(self, field: Tensor) -> Tensor:
        return torch.cat([unit.mean(field[..., place]) for unit, place in self.parts], -1)

    def sample(self, field: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([unit.sample(field[..., place], generator) for unit, place in self.parts], -1)

    def log_partition(self, field: Tensor) -> Tensor:
        return torch.stack([unit.log_partition(field[..., place]) for unit, place in self.parts]).sum(0)

    def bias_of(self, states: Tensor) -> Tensor:
        return torch.cat([unit.bias_of(states[:, place]) for unit, place in self.parts])

    def check(self, states: Tensor) -> None:
        super().check(states)
        for unit, place in self.parts:
            unit.check(states[..., place])


class MixedSupport(constraints.Constraint):
    """Vectors made of pieces, each with a support of its own; counted as discrete where a piece is.

    Args:
        pieces: supports of vectors, and their places.
    """

    event_dim = 1

    def __init__(self, pieces: Sequence[tuple[constraints.Constraint, slice]]):
        self.pieces = pieces

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return any(support.is_discrete for support, _ in self.pieces)

    def check(self, value: Tensor) -> Tensor:
        return torch.stack([support.check(value[..., place]) for support, place in self.pieces]).all(0)
