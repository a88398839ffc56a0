"""Factor graphs: energies of discrete variables that are sums of tables over a few variables each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import ConditionalEnergy, Energy, Features
from thalweg.energies.discrete import BINARY


class Factor(NamedTuple):
    """A term of an energy: the numbers of its variables, and its table.

    Attributes:
        scope: which variables it is of.
        table: the energy of each of their values ``[K_1, ..., K_a]``, or ``[B, K_1, ..., K_a]`` where each row has
            its own; plus infinity forbids a combination.
    """

    scope: tuple[int, ...]
    table: Tensor


class FactorGraph(Energy):
    """E(y) = sum over factors of table_f[y of its scope], y ``[..., V]`` whole numbers from 0.

    Its structure is open to exact inference: see :mod:`thalweg.inference.message_passing` and
    :mod:`thalweg.inference.exhaustive`.

    Args:
        n_values: K_v, how many values each variable has.
        factors: its terms, as :class:`Factor` or pairs of scope and table. If tables have rows, y is
            ``[B, *candidates, V]``.

    Raises:
        ValueError: for a scope that names no variable, or one twice, or a table whose shape does not fit.

    Source: [Kschischang 2001]; [LeCun 2006, sec. 6].
    """

    event_ndim = 1
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, n_values: Sequence[int], factors: Sequence[Factor | tuple[Sequence[int], Tensor]]):
        super().__init__()
        self.n_values = [int(k) for k in n_values]
        if not self.n_values or min(self.n_values) < 1:
            raise ValueError(f"each variable needs at least one value, got {self.n_values}")
        self.factors = [Factor(tuple(int(v) for v in scope), table) for scope, table in factors]
        rows = set()
        for number, factor in enumerate(self.factors):
            rows.add(self._checked(number, factor))
        sizes = {n for n in rows if n is not None}
        if len(sizes) > 1:
            raise ValueError(
                f"tables have {' and '.join(map(str, sorted(sizes)))} rows: give all the same, or none"
            )
        self.n_rows: int | None = sizes.pop() if sizes else None
        if set(self.n_values) == {2}:
            self.support = BINARY

    def _checked(self, number: int, factor: Factor) -> int | None:
        """The rows of a factor's table; None if it has none."""
        scope, table = factor
        if not scope or len(set(scope)) < len(scope) or not all(0 <= v < len(self.n_values) for v in scope):
            raise ValueError(
                f"factor {number} has the scope {scope}: name one or more of the variables 0 to "
                f"{len(self.n_values) - 1}, each once"
            )
        shape = [self.n_values[v] for v in scope]
        if list(table.shape) == shape:
            return None
        if list(table.shape[1:]) == shape and len(table):
            return len(table)
        raise ValueError(
            f"factor {number} of the variables {scope} needs a table {shape}, or [rows, {str(shape)[1:]}, got "
            f"{list(table.shape)}"
        )

    @property
    def n_configurations(self) -> int:
        """How many values all variables have together."""
        return math.prod(self.n_values)

    @cached_property
    def is_forest(self) -> bool:
        """Whether no way along the factors leads back to its start: message passing is exact then."""
        parent = list(range(len(self.n_values) + len(self.factors)))

        def root(node: int) -> int:
            while parent[node] != node:
                parent[node] = parent[parent[node]]
                node = parent[node]
            return node

        for number, factor in enumerate(self.factors):
            for v in factor.scope:
                a, b = root(v), root(len(self.n_values) + number)
                if a == b:
                    return False
                parent[a] = b
        return True

    def forward(self, y: Tensor) -> Tensor:
        y = y.long()
        total = torch.zeros(y.shape[:-1], device=y.device)
        for scope, table in self.factors:
            index = [y[..., v] for v in scope]
            if table.dim() > len(scope):
                rows = torch.arange(len(table), device=y.device)
                index = [rows.reshape(-1, *([1] * (y.dim() - 2))), *index]
            total = total + table[tuple(index)]
        return total

    def rows(self, index: Tensor | slice) -> FactorGraph:
        """The graphs of a selection of the rows; tables that have no rows are as they were."""
        made = [
            Factor(scope, table[index] if table.dim() > len(scope) else table) for scope, table in self.factors
        ]
        return FactorGraph(self.n_values, made)

    def restricted(self, values: Tensor) -> FactorGraph:
        """The graph with these values ``[B, V]`` forced on it; variables with -1 stay free."""
        extra = []
        for v, k in enumerate(self.n_values):
            known = values[:, v, None]
            if bool((known >= 0).any()):
                wrong = (known >= 0) & (known != torch.arange(k, device=values.device))
                extra.append(
                    Factor((v,), torch.zeros(wrong.shape, device=values.device).masked_fill(wrong, torch.inf))
                )
        return FactorGraph(self.n_values, [*self.factors, *extra])

    def tempered(self, temperature: float) -> FactorGraph:
        """The graph with all energies divided by a temperature."""
        return FactorGraph(self.n_values, [Factor(scope, table / temperature) for scope, table in self.factors])

    def detach(self) -> FactorGraph:
        return FactorGraph(self.n_values, [Factor(scope, table.detach()) for scope, table in self.factors])


class FactorEnergy(ConditionalEnergy):
    """E(x, y) of discrete variables y whose factors are tables that a network makes of the input.

    Args:
        network: maps inputs ``[B, *]`` to all entries of all tables ``[B, n]``, one table after the other;
            None for tables that are learned and the same for all inputs.
        n_values: how many values each variable has.
        scopes: of the factors that the network makes.
        shared: scopes of factors whose tables are learned and the same for all inputs.

    Source: [LeCun 2006, sec. 6]; [Peng 2009].
    """

    event_ndim = 1
    support = FactorGraph.support

    def __init__(
        self,
        network: nn.Module | None,
        n_values: Sequence[int],
        scopes: Sequence[Sequence[int]],
        shared: Sequence[Sequence[int]] = (),
    ):
        super().__init__()
        self.network, self.n_values = network, list(n_values)
        self.scopes = [tuple(scope) for scope in scopes] if network is not None else []
        self.shared = [tuple(scope) for scope in (*shared, *(scopes if network is None else ()))]
        self.tables = nn.ParameterList(torch.zeros([self.n_values[v] for v in scope]) for scope in self.shared)

    @property
    def n_outputs(self) -> int:
        """How many numbers the network must give for each input."""
        return sum(math.prod(self.n_values[v] for v in scope) for scope in self.scopes)

    def features(self, x: Tensor) -> Tensor:
        """All entries of the tables ``[B, n]``."""
        return x.new_zeros(len(x), 0) if self.network is None else self.network(x)

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        return self._graph(features)(y)

    def given(self, x: Tensor) -> FactorGraph:  # type: ignore[override]
        """The factor graph of each of these inputs."""
        return self._graph(self.features(x))

    def _graph(self, features: Tensor) -> FactorGraph:
        shapes = [[self.n_values[v] for v in scope] for scope in self.scopes]
        parts = features.split([math.prod(shape) for shape in shapes], -1) if shapes else ()
        made = [
            Factor(scope, part.reshape(-1, *shape))
            for scope, part, shape in zip(self.scopes, parts, shapes, strict=True)
        ]
        made += [Factor(scope, table) for scope, table in zip(self.shared, self.tables, strict=True)]
        return FactorGraph(self.n_values, made)
