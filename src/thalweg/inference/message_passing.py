"""Message passing on factor graphs: sum-product and max-product, exact without cycles, damped where there are any.

All messages of all factors and rows move at once, in log space. Where the graph has no cycle they come to rest
after as many rounds as its longest way, and everything is exact; elsewhere it is loopy belief propagation, and the
result says that it is not exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.energies.factors.graph import FactorGraph

Reduce = Callable[[Tensor, list[int]], Tensor]


class Beliefs(NamedTuple):
    """What sum-product finds.

    Attributes:
        marginals: p(value) of each variable ``[B, V, K]``, K the most values of any; 0 for values that it lacks.
        factor_marginals: of the values of each factor's scope together ``[B, K_1, ..., K_a]``.
        free_energy: -log Z ``[B]``; with a graph to the tables, and its gradient is the factors' marginals.
        exact: whether the graph has no cycle, so that all this is exact.
        converged: whether the messages came to rest.
        n_rounds: how often all messages were sent.
    """

    marginals: Tensor
    factor_marginals: list[Tensor]
    free_energy: Tensor
    exact: bool
    converged: bool
    n_rounds: int


class Lowest(NamedTuple):
    """What max-product finds.

    Attributes:
        values: of lowest energy ``[B, V]``; of several one.
        energy: theirs ``[B]``.
        lowest_given_each: the lowest energy with each value of each variable ``[B, V, K]``, infinite for those
            that it lacks; up to an error where the graph has cycles.
        exact, converged, n_rounds: as of :class:`Beliefs`.
    """

    values: Tensor
    energy: Tensor
    lowest_given_each: Tensor
    exact: bool
    converged: bool
    n_rounds: int


def sum_product(
    graph: FactorGraph, *, max_rounds: int = 500, damping: float = 0.5, tolerance: float = 1e-6
) -> Beliefs:
    """Marginals and -log Z of a factor graph.

    Args:
        max_rounds: at most so many, where the graph has cycles.
        damping: how much of a message is kept in every round, where the graph has cycles.
        tolerance: largest change of a message at rest, in nats.

    Source: [Kschischang 2001]; with cycles -log Z is that of Bethe [Yedidia 2005].
    """
    messages = _Messages(graph, _log_sum)
    with torch.no_grad():
        converged, n_rounds = messages.settle(max_rounds, damping, tolerance)
        joint = [_normalised(messages.joint(number)) for number in range(len(graph.factors))]
        of_variables = torch.softmax(messages.beliefs(), -1).nan_to_num(0.0)
    free = messages.free_energy()
    return Beliefs(of_variables, joint, free, graph.is_forest, converged, n_rounds)


def max_product(
    graph: FactorGraph, *, max_rounds: int = 500, damping: float = 0.5, tolerance: float = 1e-6
) -> Lowest:
    """The values of lowest energy (min-sum).

    The arguments are those of :func:`sum_product`. Values are chosen factor by factor from a root, each given
    those chosen before, so that of several best configurations one is returned, never a mixture.

    Raises:
        ValueError: if no configuration is allowed.
    """
    with torch.no_grad():
        messages = _Messages(graph, _maximum)
        converged, n_rounds = messages.settle(max_rounds, damping, tolerance)
        values = messages.traced(1, lambda scores: scores.argmax(-1))[0]
        energy = graph(values)
        if bool(energy.isinf().any()) and graph.is_forest:
            raise ValueError("no configuration is allowed: all have infinite energy")
        scores = messages.beliefs()
        each = energy[:, None, None] + scores.amax(-1, keepdim=True) - scores
    return Lowest(values, energy, each, graph.is_forest, converged, n_rounds)


def draw(graph: FactorGraph, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Independent draws of the variables ``[n, B, V]`` of a graph without cycles.

    Raises:
        ValueError: if the graph has cycles.
    """
    if not graph.is_forest:
        raise ValueError("draws are exact only without cycles: run a chain of Gibbs steps on this graph instead")

    def chosen(scores: Tensor) -> Tensor:
        return torch.multinomial(torch.softmax(scores, -1), 1, generator=generator).squeeze(-1)

    with torch.no_grad():
        messages = _Messages(graph, _log_sum)
        messages.settle(1, 0.0, 1e-6)
        return messages.traced(n, chosen)


class _Group:
    """The factors of so many variables each, as one table of scores ``[B, F, K, ..., K]``."""

    def __init__(self, graph: FactorGraph, numbers: list[int], width: int):
        self.numbers, self.arity = numbers, len(graph.factors[numbers[0]].scope)
        self.scopes = torch.tensor(
            [graph.factors[n].scope for n in numbers], device=graph.factors[numbers[0]].table.device
        )
        rows, padded = graph.n_rows or 1, []
        for n in numbers:
            scope, table = graph.factors[n]
            table = table if table.dim() > len(scope) else table.unsqueeze(0)
            missing = [p for v in reversed(scope) for p in (0, width - graph.n_values[v])]
            table = torch.nn.functional.pad(-table, missing, value=-torch.inf)
            padded.append(table.expand(rows, *table.shape[1:]))
        self.scores = torch.stack(padded, 1)

    def along(self, message: Tensor, slot: int) -> Tensor:
        """A message ``[B, F, K]`` where the table has this slot."""
        shape = [1] * self.arity
        shape[slot] = message.shape[-1]
        return message.reshape(*message.shape[:2], *shape)


class _Messages:
    """The messages of all factors to their variables, and back.

    Args:
        graph: whose they are.
        reduce: sums, or takes the maximum, over dimensions of scores.
    """

    def __init__(self, graph: FactorGraph, reduce: Reduce):
        self.graph, self.reduce = graph, reduce
        self.rows, self.width = graph.n_rows or 1, max(graph.n_values)
        arities = sorted({len(factor.scope) for factor in graph.factors})
        self.groups = [
            _Group(graph, [n for n, f in enumerate(graph.factors) if len(f.scope) == a], self.width)
            for a in arities
        ]
        first = graph.factors[0].table if graph.factors else torch.zeros(1)
        self.like = first.detach()
        missing = torch.arange(self.width) >= torch.tensor(graph.n_values)[:, None]
        self.missing = missing.to(self.like.device)
        shapes = [(self.rows, *g.scopes.shape, self.width) for g in self.groups]
        self.to_variables = [self.like.new_zeros(shape) for shape in shapes]
        self.to_factors = [self.like.new_zeros(shape) for shape in shapes]
        for group, messages in zip(self.groups, self.to_factors, strict=True):
            messages.masked_fill_(self.missing[group.scopes], -torch.inf)

    def settle(self, max_rounds: int, damping: float, tolerance: float) -> tuple[bool, int]:
        """Send messages until they rest; whether they do, and after how many rounds."""
        if self.graph.is_forest:
            # No way is longer than this, and after it nothing can change.
            max_rounds, damping = len(self.graph.n_values) + len(self.graph.factors) + 1, 0.0
        for n in range(1, max_rounds + 1):
            if self._round(damping) <= tolerance:
                return True, n
        return self.graph.is_forest, max_rounds

    def _round(self, damping: float) -> float:
        change = 0.0
        for number, group in enumerate(self.groups):
            scores = group.scores.detach()
            old = self.to_variables[number]
            new = torch.empty_like(old)
            for slot in range(group.arity):
                total = scores
                for other in range(group.arity):
                    if other != slot:
                        total = total + group.along(self.to_factors[number][:, :, other], other)
                others = [2 + s for s in range(group.arity) if s != slot]
                new[:, :, slot] = _centred(self.reduce(total, others) if others else total)
            if damping:
                new = (1 - damping) * new + damping * old
            moved = (new - old).nan_to_num(0.0, torch.inf, torch.inf).abs()
            change = max(change, float(moved.max()))
            self.to_variables[number] = new
        # What a variable sends a factor is what all its others say. Infinities, which can't be taken out of a sum,
        # are counted apart.
        finite, infinite = self._sums()
        for number, group in enumerate(self.groups):
            own = self.to_variables[number]
            rest = finite[:, group.scopes] - own.masked_fill(own.isinf(), 0.0)
            n_infinite = infinite[:, group.scopes] - own.isinf().to(own.dtype)
            forbidden = (n_infinite > 0) | self.missing[group.scopes]
            self.to_factors[number] = _centred(rest.masked_fill(forbidden, -torch.inf))
        return change

    def _sums(self) -> tuple[Tensor, Tensor]:
        """Of the messages into each variable the finite ones' sum, and how many are minus infinity."""
        shape = (self.rows, len(self.graph.n_values), self.width)
        finite, infinite = self.like.new_zeros(shape), self.like.new_zeros(shape)
        for group, messages in zip(self.groups, self.to_variables, strict=True):
            index, flat = group.scopes.reshape(-1), messages.flatten(1, 2)
            finite.index_add_(1, index, flat.masked_fill(flat.isinf(), 0.0))
            infinite.index_add_(1, index, flat.isinf().to(flat.dtype))
        return finite, infinite

    def beliefs(self) -> Tensor:
        """The score of each value of each variable ``[B, V, K]``, up to a constant for each."""
        finite, infinite = self._sums()
        return finite.masked_fill((infinite > 0) | self.missing, -torch.inf)

    def joint(self, number: int, detached: bool = True) -> Tensor:
        """The scores of a factor with all that its variables bring ``[B, K_1, ..., K_a]``."""
        for place, group in enumerate(self.groups):
            if number in group.numbers:
                k = group.numbers.index(number)
                total = group.scores[:, k].detach() if detached else group.scores[:, k]
                for slot in range(group.arity):
                    shape = [1] * group.arity
                    shape[slot] = self.width
                    total = total + self.to_factors[place][:, k, slot].reshape(-1, *shape)
                kept = [slice(self.graph.n_values[v]) for v in self.graph.factors[number].scope]
                return total[(slice(None), *kept)]
        raise AssertionError("each factor is in a group")

    def free_energy(self) -> Tensor:
        """-log Z ``[B]``: Bethe's formula, stationary in the messages, so that these need no graph."""
        log_z = torch.logsumexp(self.beliefs(), -1).sum(-1)
        for place, group in enumerate(self.groups):
            total = group.scores
            for slot in range(group.arity):
                total = total + group.along(self.to_factors[place][:, :, slot], slot)
            log_z = log_z + torch.logsumexp(total.flatten(2), -1).sum(-1)
            both = self.to_variables[place] + self.to_factors[place]
            log_z = log_z - torch.logsumexp(both, -1).sum((-1, -2))
        return -log_z

    def traced(self, n: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """n configurations of each row ``[n, B, V]``, chosen factor by factor, each given those before."""
        rows = torch.arange(self.rows, device=self.like.device).repeat(n)
        values = torch.full((len(rows), len(self.graph.n_values)), -1, device=self.like.device)
        beliefs = self.beliefs()[rows]
        for variable, number in self._order():
            if number is None:
                values[:, variable] = choose(beliefs[:, variable, : self.graph.n_values[variable]])
                continue
            scope = self.graph.factors[number].scope
            free = [s for s, v in enumerate(scope) if int(values[0, v]) < 0]
            if not free:
                continue
            known = [s for s in range(len(scope)) if s not in free]
            joint = self.joint(number).permute(0, *(1 + s for s in known), *(1 + s for s in free))
            given = joint[(rows, *(values[:, scope[s]] for s in known))]
            chosen = choose(given.flatten(1))
            for s in reversed(free):
                k = self.graph.n_values[scope[s]]
                values[:, scope[s]], chosen = chosen % k, chosen // k
        return values.reshape(n, self.rows, -1)

    def _order(self) -> Iterator[tuple[int, int | None]]:
        """Roots (a variable, no factor), and after each the factors that can be reached from it."""
        of_variable: list[list[int]] = [[] for _ in self.graph.n_values]
        for number, factor in enumerate(self.graph.factors):
            for v in factor.scope:
                of_variable[v].append(number)
        seen, sent = set(), set()
        for root in range(len(self.graph.n_values)):
            if root in seen:
                continue
            yield root, None
            seen.add(root)
            waiting = [root]
            while waiting:
                v = waiting.pop(0)
                for number in of_variable[v]:
                    if number not in sent:
                        sent.add(number)
                        yield v, number
                        new = [w for w in self.graph.factors[number].scope if w not in seen]
                        seen.update(new)
                        waiting.extend(new)


def _log_sum(scores: Tensor, dims: list[int]) -> Tensor:
    return torch.logsumexp(scores, dims)


def _maximum(scores: Tensor, dims: list[int]) -> Tensor:
    return scores.amax(dims)


def _centred(messages: Tensor) -> Tensor:
    """Messages less their largest entry."""
    largest = messages.amax(-1, keepdim=True)
    return messages - largest.masked_fill(largest.isinf(), 0.0)


def _normalised(scores: Tensor) -> Tensor:
    return torch.softmax(scores.flatten(1), -1).reshape(scores.shape)
