"""Exact inference on chains of labels: Viterbi, forward-backward, the k best, draws; batched, in log space.

All sweeps run over the elements of a whole batch at once. The sum over the labels of one neighbour is a product of
matrices after the largest terms are taken out, and is done again term by term where that product underflows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from thalweg.energies.factors.chain import UNKNOWN, LabelChain

Combine = Callable[[Tensor, "_Table"], Tensor]


class Best(NamedTuple):
    """Labels ``[B, T]`` of lowest energy, -1 at elements that are left out, and their energies ``[B]``."""

    labels: Tensor
    energy: Tensor


def viterbi(chain: LabelChain) -> Best:
    """The labels of lowest energy; of several, one.

    Raises:
        ValueError: if a row has no labels that are allowed.

    Source: [Viterbi 1967]; [LeCun 2006, sec. 7.1].
    """
    with torch.no_grad():
        steps = _Steps(chain)
        states = steps.forward(_max_product)
        value = steps.last(states).amax(steps.inner)
        _refuse_impossible(value, steps)
        labels = steps.trace(states, 1, lambda scores: scores.argmax(-1))[0]
        return Best(chain.put_back(labels, UNKNOWN), -steps.unsorted(value))


def k_best(chain: LabelChain, k: int) -> Best:
    """The k sequences of lowest energy: labels ``[B, k, T]`` and energies ``[B, k]``, lowest first.

    Where there are fewer than k, the energies of the others are infinite and their labels -1.

    Raises:
        ValueError: if k is not positive, or a row has no labels that are allowed.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    with torch.no_grad():
        steps = _Steps(chain)
        labels, value = steps.best(k)
        _refuse_impossible(value[:, 0], steps)
        labels = torch.where(value[..., None].isinf(), UNKNOWN, labels)
        labels, value = steps.unsorted(labels), steps.unsorted(value)
        put_back = [chain.put_back(labels[:, i], UNKNOWN) for i in range(labels.shape[1])]
        return Best(torch.stack(put_back, 1), -value)


def free_energy(chain: LabelChain) -> Tensor:
    """-log sum over all labels of exp(-E) ``[B]``, with a graph: its gradient is the marginals.

    It is infinite where no labels are allowed.
    """
    steps = _Steps(chain)
    value: Tensor = _LogSum.apply(steps.unary, steps.first.raw, steps.rest.raw, steps)
    return -steps.unsorted(value)


def marginals(chain: LabelChain) -> Tensor:
    """p(label of an element) ``[B, T, K]``, 0 at elements that are left out.

    Raises:
        ValueError: if a row has no labels that are allowed.
    """
    with torch.no_grad():
        steps = _Steps(chain)
        states = steps.forward(_log_product)
        value = torch.logsumexp(steps.last(states), steps.inner)
        _refuse_impossible(value, steps)
        of_places = steps.of_places(states, steps.backward(states, _log_product), torch.logsumexp)
        log_p = steps.padded([p - value[: len(p), None] for p in of_places], -torch.inf)
        # Errors of rounding grow with the length: what is left of them is taken out.
        p = torch.softmax(log_p, -1).nan_to_num_(0.0)
        return chain.put_back(steps.unsorted(p), 0.0)


def lowest_given_each(chain: LabelChain) -> Tensor:
    """The lowest energy that any labels have with label k at element t ``[B, T, K]``; infinite where left out."""
    with torch.no_grad():
        steps = _Steps(chain)
        states = steps.forward(_max_product)
        of_places = steps.of_places(states, steps.backward(states, _max_product), torch.amax)
        return chain.put_back(-steps.unsorted(steps.padded(of_places, -torch.inf)), torch.inf)


def lowest_other(chain: LabelChain, labels: Tensor) -> Best:
    """The labels of lowest energy that differ from these ``[B, T]`` in some element.

    The energy is infinite where there are none. An element whose label is -1 counts as different for no label.

    Source: the most offending incorrect answer of [LeCun 2006, sec. 2.2].
    """
    with torch.no_grad():
        forced, found = lowest_change(lowest_given_each(chain), labels.long()[:, : chain.mask.shape[1]])
        best = viterbi(chain.restricted(forced))
        return Best(best.labels, torch.where(found, best.energy, torch.inf))


def lowest_change(lowest_given: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The one value that the lowest configuration other than this one has elsewhere than here.

    Args:
        lowest_given: the lowest energy with each value of each variable ``[B, V, K]``.
        values: of the variables ``[B, V]``; one of -1 differs from none.

    Returns:
        that value at its variable, and -1 at all others ``[B, V]``; and whether there is one ``[B]``.
    """
    k = lowest_given.shape[-1]
    same = torch.arange(k, device=values.device) == values.unsqueeze(-1)
    least, place = lowest_given.masked_fill(same | (values == UNKNOWN).unsqueeze(-1), torch.inf).flatten(1).min(1)
    found = least.isfinite()
    forced = torch.full_like(values, UNKNOWN)
    rows = torch.arange(len(values), device=values.device)
    forced[rows, place // k] = torch.where(found, place % k, UNKNOWN)
    return forced, found


def draw(chain: LabelChain, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Independent draws of the labels ``[n, B, T]``, -1 at elements that are left out.

    Raises:
        ValueError: if a row has no labels that are allowed.
    """

    def chosen(scores: Tensor) -> Tensor:
        p = torch.softmax(scores, -1)
        return torch.multinomial(p.flatten(0, -2), 1, generator=generator).reshape(p.shape[:-1])

    with torch.no_grad():
        steps = _Steps(chain)
        states = steps.forward(_log_product)
        _refuse_impossible(torch.logsumexp(steps.last(states), steps.inner), steps)
        drawn = steps.trace(states, n, chosen)
        return torch.stack([chain.put_back(labels, UNKNOWN) for labels in drawn])


# -- sweeps ------------------------------------------------------------------------------------------------


class _Table:
    """A table of transitions ``[G, K, K]`` as the sweeps need it: largest entries taken out, exponentials."""

    def __init__(self, raw: Tensor):
        self.raw = raw
        self.largest = raw.detach().amax(-2, keepdim=True).clamp_min(torch.finfo(raw.dtype).min)
        self.exponentials = (raw.detach() - self.largest).exp()

    def transposed(self) -> _Table:
        return _Table(self.raw.transpose(-1, -2))


class _Steps:
    """A chain laid out for sweeps: scores (minus energies), longest rows first.

    A state of element t holds a score for each label, and in chains of order two for each pair of labels:
    ``[G, n, K]`` for the n rows that have a t-th element. G is 1 and K the label; in order two G is the label and
    K the one before it; where each row has transitions of its own, G is the row and n is 1.
    """

    def __init__(self, chain: LabelChain):
        lengths, order = chain.lengths.sort(descending=True, stable=True)
        self.order, self.lengths = order, lengths
        self.back = order.argsort()
        self.n_elements = int(lengths[0])
        place = torch.arange(self.n_elements, device=lengths.device)
        # How many rows have a t-th element.
        self.counts: list[int] = (lengths[:, None] > place).sum(0).tolist()
        self.width = chain.unary.shape[1]
        self.by_row = chain.transitions.dim() == 4
        self.is_second = chain.second is not None
        self.unary = -chain.terms[order, : self.n_elements].transpose(0, 1).contiguous()
        self.first, self.rest = self._tables(chain)
        self.inner = (0, 2) if self.is_second else (1, 2) if self.by_row else (0, 2)

    def _tables(self, chain: LabelChain) -> tuple[_Table, _Table]:
        scores = -chain.transitions
        if self.by_row:
            of_rows = scores[self.order, : self.n_elements - 1].transpose(0, 1)
            return _Table(scores.new_zeros(1, 1, 1)), _Table(of_rows)
        if chain.second is None:
            table = _Table(scores.unsqueeze(0))
            return table, table
        # [label, the one before it, the one after it]; before the first label there is none.
        k = chain.n_labels
        return _Table(scores.unsqueeze(1).expand(k, k, k)), _Table(
            (scores.unsqueeze(0) - chain.second).transpose(0, 1)
        )

    def table(self, t: int) -> _Table:
        """The transitions into element t."""
        if not self.by_row:
            return self.first if t == 1 else self.rest
        n = self.counts[t]
        part = _Table.__new__(_Table)
        part.raw = self.rest.raw[t - 1, :n]
        part.largest, part.exponentials = self.rest.largest[t - 1, :n], self.rest.exponentials[t - 1, :n]
        return part

    def _rows(self, state: Tensor, start: int, stop: int) -> Tensor:
        return state[start:stop] if self.by_row else state[:, start:stop]

    def _unary(self, t: int) -> Tensor:
        unary = self.unary[t, : self.counts[t]]
        return unary.unsqueeze(1) if self.by_row else unary.unsqueeze(0)

    def _turn(self, state: Tensor) -> Tensor:
        """[before, row, label] as [label, row, before], and back."""
        return state.permute(2, 1, 0) if self.is_second else state

    def forward(self, combine: Combine) -> list[Tensor]:
        """The states of all elements: over all that comes before, and the element's own term."""
        state = self._unary(0)
        if self.is_second:
            # There is no label before the first: one of the places stands for none.
            none = torch.full((self.unary.shape[-1] - 1, *state.shape[1:]), -torch.inf, dtype=state.dtype)
            state = self._turn(torch.cat([state, none.to(state.device)]))
        states = [state]
        for t in range(1, self.n_elements):
            before = self._rows(states[-1], 0, self.counts[t])
            states.append(self._turn(combine(before, self.table(t)) + self._unary(t)))
        return states

    def backward(self, states: Sequence[Tensor], combine: Combine) -> list[Tensor]:
        """For each state, over all that comes after."""
        found = [torch.zeros_like(states[-1])]
        turned = {id(table): table.transposed() for table in (self.first, self.rest)} if not self.by_row else {}
        for t in range(self.n_elements - 1, 0, -1):
            table = self.table(t)
            back = table.transposed() if self.by_row else turned[id(table)]
            own = combine(self._turn(found[-1]) + self._unary(t), back)
            ended = self._rows(states[t - 1], self.counts[t], self.counts[t - 1])
            found.append(torch.cat([own, torch.zeros_like(ended)], 0 if self.by_row else 1))
        return found[::-1]

    def last(self, states: Sequence[Tensor]) -> Tensor:
        """The state of each row's last element, longest rows first."""
        ends = [*self.counts[1:], 0]
        parts = [self._rows(states[t], ends[t], self.counts[t]) for t in range(self.n_elements - 1, -1, -1)]
        return torch.cat(parts, 0 if self.by_row else 1)

    def of_places(
        self, states: Sequence[Tensor], after: Sequence[Tensor], reduce: Callable[..., Tensor]
    ) -> list[Tensor]:
        """Each element's score of each label ``[n, K]``, over all others."""
        found = []
        for state, rest in zip(states, after, strict=True):
            both = state + rest
            if self.is_second:
                found.append(reduce(both, -1).T)
            else:
                found.append(both.squeeze(1) if self.by_row else both.squeeze(0))
        return found

    def trace(self, states: Sequence[Tensor], n: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Labels from the last element to the first, n sequences of each row ``[n, B, T]`` in the chain's order.

        Args:
            choose: one of the last dimension of scores ``[n, rows, K]``.
        """
        rows = torch.arange(len(self.order), device=self.order.device).expand(n, -1)
        labels = torch.full((n, len(self.order), self.width), UNKNOWN, device=self.order.device)
        ends = [*self.counts[1:], 0]
        label = before = rows[:, :0]
        for t in range(self.n_elements - 1, -1, -1):
            state, old, count = states[t], ends[t], self.counts[t]
            if old and self.is_second:
                # The label before is known already; that before it is chosen.
                scores = state[before, rows[:, :old]] + self.table(t + 1).raw[before, :, label]
                label, before = before, choose(scores)
            elif old:
                raw, seen = self.table(t + 1).raw, self._rows(state, 0, old)
                into = raw[rows[:, :old], :, label] if self.by_row else raw[0].T[label]
                label = choose(seen.squeeze(1 if self.by_row else 0) + into)
            if count > old:
                # Rows that end here begin with their own best, or drawn, last labels.
                new = self._rows(state, old, count)
                if self.is_second:
                    pair = choose(new.transpose(0, 1).flatten(1).expand(n, -1, -1))
                    label = torch.cat([label, pair // new.shape[-1]], 1)
                    before = torch.cat([before, pair % new.shape[-1]], 1)
                else:
                    of_row = new.squeeze(1 if self.by_row else 0)
                    label = torch.cat([label, choose(of_row.expand(n, -1, -1))], 1)
            labels[:, :count, t] = label
        return labels[:, self.back]

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        """The k best of each row, longest rows first: labels ``[B, k, T]`` and scores ``[B, k]``.

        As Viterbi, but that each state keeps its k best ways, the best first, in a dimension of its own.
        """
        state = self.forward(_max_product)[0].unsqueeze(-1)
        states, ways = [state], [torch.empty(0, dtype=torch.long)]
        for t in range(1, self.n_elements):
            before = self._rows(states[-1], 0, self.counts[t])
            scores = (before.unsqueeze(-1) + self.table(t).raw[:, None, :, None]).flatten(2, 3)
            value, way = scores.topk(min(k, scores.shape[2]), dim=2)
            value = value + self._unary(t).unsqueeze(-2)
            states.append(value.permute(3, 1, 0, 2) if self.is_second else value.transpose(-1, -2))
            ways.append(way)
        rows = torch.arange(len(self.order), device=self.order.device)[:, None].expand(-1, k)
        labels = torch.full((len(self.order), k, self.width), UNKNOWN, device=self.order.device)
        ends, found = [*self.counts[1:], 0], []
        label = before = rank = rows[:0]
        for t in range(self.n_elements - 1, -1, -1):
            old, count, n_ranks = ends[t], self.counts[t], states[t].shape[-1]
            if old:
                on, way = rows[:old], ways[t + 1]
                group = before if self.is_second else on if self.by_row else torch.zeros_like(on)
                chosen = way[group, torch.zeros_like(on) if self.by_row else on, rank, label]
                rank = chosen % n_ranks
                label, before = (before, chosen // n_ranks) if self.is_second else (chosen // n_ranks, before)
            new = self._rows(states[t], old, count)
            of_row = (new if self.by_row else new.transpose(0, 1)).flatten(1)
            value, place = _padded_topk(of_row, k)
            found.append(value)
            n_labels = new.shape[2]
            rank = torch.cat([rank, place % n_ranks])
            state_of = place // n_ranks
            label = torch.cat([label, state_of // n_labels if self.is_second else state_of])
            before = torch.cat([before, state_of % n_labels]) if self.is_second else before
            labels[:count, :, t] = label
        return labels, torch.cat(found)

    def padded(self, of_places: Sequence[Tensor], fill: float) -> Tensor:
        """``[n, K]`` of each element as ``[B, T, K]``, longest rows first."""
        n_rows, k = of_places[0].shape
        found = of_places[0].new_full((n_rows, self.width, k), fill)
        for t, values in enumerate(of_places):
            found[: len(values), t] = values
        return found

    def unsorted(self, values: Tensor) -> Tensor:
        """Rows in the chain's own order."""
        return values[self.back]


class _LogSum(torch.autograd.Function):
    """log sum of exp of the scores of all labels ``[B]``; backwards the marginals, by one more sweep."""

    @staticmethod
    def forward(ctx: Any, unary: Tensor, first: Tensor, rest: Tensor, steps: _Steps) -> Tensor:
        ctx.steps, ctx.states = steps, steps.forward(_log_product)
        ctx.value = torch.logsumexp(steps.last(ctx.states), steps.inner)
        return ctx.value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        steps, states, value = ctx.steps, ctx.states, ctx.value
        after = steps.backward(states, _log_product)
        log_p = [p - value[: len(p), None] for p in steps.of_places(states, after, torch.logsumexp)]
        of_unary = torch.zeros_like(steps.unary)
        for t, p in enumerate(log_p):
            of_unary[t, : len(p)] = p.exp() * gradient[: len(p), None]
        first, rest = _pairs(steps, states, after, value, gradient, ctx.needs_input_grad[1:3])
        return of_unary, first, rest, None


def _pairs(
    steps: _Steps,
    states: Sequence[Tensor],
    after: Sequence[Tensor],
    value: Tensor,
    gradient: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The expected number of each transition, weighted by the gradient of each row, by table."""
    if not any(needed):
        return None, None
    first, rest = torch.zeros_like(steps.first.raw), torch.zeros_like(steps.rest.raw)
    for t in range(1, steps.n_elements):
        n = steps.counts[t]
        before = steps._rows(states[t - 1], 0, n)
        inner = steps._turn(after[t]) + steps._unary(t)
        weight = gradient[:n]
        table = steps.table(t)
        if steps.by_row:
            log_p = before.transpose(1, 2) + table.raw + inner - value[:n, None, None]
            rest[t - 1, :n] = log_p.exp() * weight[:, None, None]
            continue
        into = first if t == 1 and steps.first is not steps.rest else rest
        into += _counted(before, table, inner - value[:n, None], weight)
    return (first if steps.first is not steps.rest else None), rest


def _counted(before: Tensor, table: _Table, inner: Tensor, weight: Tensor) -> Tensor:
    """sum over rows of weight exp(before_i + table_ij + inner_j) ``[G, K, K]``, as a product of matrices."""
    shift = before.amax(-1, keepdim=True).clamp_min(torch.finfo(before.dtype).min)
    left = (before - shift).exp() * weight[:, None]
    right = (inner + shift + table.largest).exp()
    if bool(right.isfinite().all()):
        return (left.transpose(-1, -2) @ right) * table.exponentials
    p = (before.unsqueeze(-1) + table.raw.unsqueeze(1) + inner.unsqueeze(-2)).exp()
    return (p * weight[:, None, None]).sum(1)


def _log_product(scores: Tensor, table: _Table) -> Tensor:
    """log sum over i of exp(scores_i + table_ij): ``[G, n, K]``."""
    shift = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
    total = (scores - shift).exp_() @ table.exponentials
    if total.numel() and float(total.min()) < 1e3 * torch.finfo(scores.dtype).tiny:
        # What is lost to underflow could count: all terms, one by one.
        return torch.logsumexp(scores.unsqueeze(-1) + table.raw.detach().unsqueeze(1), -2)
    return total.log_().add_(shift).add_(table.largest)


def _max_product(scores: Tensor, table: _Table) -> Tensor:
    """max over i of scores_i + table_ij: ``[G, n, K]``."""
    # Over the first dimension PyTorch takes the maximum ten times as fast as over another.
    return (scores.permute(2, 0, 1).unsqueeze(-1) + table.raw.transpose(0, 1).unsqueeze(2)).amax(0)


def _padded_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their places; where there are fewer, minus infinity."""
    least = min(k, values.shape[1])
    value, place = values.topk(least, dim=1)
    return F.pad(value, (0, k - least), value=-torch.inf), F.pad(place, (0, k - least))


def _refuse_impossible(value: Tensor, steps: _Steps) -> None:
    impossible = steps.unsorted(value) == -torch.inf
    if bool(impossible.any()):
        row = int(impossible.nonzero()[0])
        raise ValueError(f"row {row} has no labels that are allowed: all have infinite energy")
