"""A chain of labels: a term for each label and one for each pair, or triple, of neighbours."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import ConditionalEnergy, Energy, Features

UNKNOWN = -1


class LabelChain(Energy):
    """E(y) = start[y_1] + sum_t u_t[y_t] + sum_t A[y_{t-1}, y_t] + end[y_T], one chain for each row of a batch.

    A configuration is the labels ``[B, *candidates, T]`` of all rows, whole numbers from 0. Rows may have unequal
    lengths, and elements may be left out anywhere: a chain joins the elements that its mask keeps, and the labels
    of others don't matter, nor do those after the T-th. A label or a transition of infinite energy is forbidden.

    Everything that is asked of a chain has an exact answer: see :mod:`thalweg.inference.chains`.

    Args:
        unary: u, the energy of each label of each element ``[B, T, K]``.
        transitions: A, of each pair of labels ``[K, K]``, from row to column; or ``[B, T - 1, K, K]`` where the
            input decides.
        start, end: of the first and of the last label ``[K]``; None for 0.
        second: of each triple of labels in a row ``[K, K, K]``, for chains of order two; None for none.
        mask: which elements count ``[B, T]``; None for all.

    Raises:
        ValueError: for shapes that do not fit, a row without an element, or elements left out within a chain
            whose transitions are given for each place.

    Source: [Lafferty 2001]; [LeCun 2006, sec. 7].
    """

    event_ndim = 1
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        unary: Tensor,
        transitions: Tensor,
        start: Tensor | None = None,
        end: Tensor | None = None,
        second: Tensor | None = None,
        mask: Tensor | None = None,
    ):
        super().__init__()
        _check_shapes(unary, transitions, start, end, second, mask)
        n_rows, n_elements, _ = unary.shape
        if mask is None:
            mask = torch.ones(n_rows, n_elements, dtype=torch.bool, device=unary.device)
        self.mask = mask
        self.lengths = mask.sum(1)
        # Kept elements move to the front: within, only lengths matter.
        self.places: Tensor | None = None
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            if transitions.dim() == 4:
                raise ValueError(
                    "transitions for each place [B, T - 1, K, K] need the elements of a row at its front: the "
                    "mask leaves out elements before others"
                )
            self.places = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
            unary = unary.gather(1, self.places.unsqueeze(-1).expand_as(unary))
        self.unary, self.transitions, self.second = unary, transitions, second
        self.start, self.end = start, end

    @property
    def n_rows(self) -> int:
        return len(self.unary)

    @property
    def n_labels(self) -> int:
        return self.unary.shape[-1]

    @cached_property
    def terms(self) -> Tensor:
        """The terms of single labels ``[B, T, K]``, start and end among them, kept elements first."""
        place = torch.arange(self.unary.shape[1], device=self.unary.device)[:, None]
        zero, terms = self.unary.new_zeros(()), self.unary
        if self.start is not None:
            terms = terms + torch.where(place == 0, self.start, zero)
        if self.end is not None:
            terms = terms + torch.where(place == self.lengths[:, None, None] - 1, self.end, zero)
        return terms

    def forward(self, y: Tensor) -> Tensor:
        y = self.aligned(y.long().clamp_min(0))
        shape, flat = y.shape[:-1], y.reshape(self.n_rows, -1, y.shape[-1])
        counted = (torch.arange(y.shape[-1], device=y.device) < self.lengths[:, None])[:, None]
        zero = self.unary.new_zeros(())
        n_candidates = flat.shape[1]
        terms = self.terms.unsqueeze(1).expand(-1, n_candidates, -1, -1)
        energy = torch.where(counted, terms.gather(-1, flat.unsqueeze(-1)).squeeze(-1), zero).sum(-1)
        before, after = flat[..., :-1], flat[..., 1:]
        if self.transitions.dim() == 2:
            pairs = self.transitions[before, after]
        else:
            rows = torch.arange(self.n_rows, device=y.device)[:, None, None]
            pairs = self.transitions[rows, torch.arange(y.shape[-1] - 1, device=y.device), before, after]
        energy = energy + torch.where(counted[..., 1:], pairs, zero).sum(-1)
        if self.second is not None:
            triples = self.second[flat[..., :-2], flat[..., 1:-1], flat[..., 2:]]
            energy = energy + torch.where(counted[..., 2:], triples, zero).sum(-1)
        return energy.reshape(shape)

    def aligned(self, values: Tensor) -> Tensor:
        """Values of the elements ``[B, *, T]`` with those of kept elements first; padding after T is cut off."""
        values = values[..., : self.unary.shape[1]]
        if self.places is None:
            return values
        places = self.places.reshape(self.n_rows, *([1] * (values.dim() - 2)), -1)
        return values.gather(-1, places.expand_as(values))

    def put_back(self, values: Tensor, fill: float) -> Tensor:
        """Values of the kept elements ``[B, T, *]`` at their places, and ``fill`` where an element is left out."""
        kept = (torch.arange(values.shape[1], device=values.device) < self.lengths[:, None]).reshape(
            *values.shape[:2], *([1] * (values.dim() - 2))
        )
        values = torch.where(kept, values, torch.full((), fill, dtype=values.dtype, device=values.device))
        if self.places is None:
            return values
        places = self.places.reshape(*self.places.shape, *([1] * (values.dim() - 2))).expand_as(values)
        return torch.empty_like(values).scatter(1, places, values)

    def rows(self, index: Tensor | slice) -> LabelChain:
        """The chains of a selection of the rows."""
        made = self._with(self.unary[index])
        made.mask, made.lengths = self.mask[index], self.lengths[index]
        made.places = None if self.places is None else self.places[index]
        made.transitions = self.transitions if self.transitions.dim() == 2 else self.transitions[index]
        return made

    def restricted(self, labels: Tensor) -> LabelChain:
        """The same chain with these labels ``[B, T]`` forced on it; elements with -1 stay free."""
        known = self.aligned(labels.long()).unsqueeze(-1)
        others = (known != UNKNOWN) & (known != torch.arange(self.n_labels, device=labels.device))
        return self._with(self.unary.masked_fill(others, torch.inf))

    def augmented(self, labels: Tensor, cost: float) -> LabelChain:
        """The same chain with ``cost`` less energy for each element whose label is not this one ``[B, T]``."""
        known = self.aligned(labels.long()).unsqueeze(-1)
        wrong = (known != UNKNOWN) & (known != torch.arange(self.n_labels, device=labels.device))
        return self._with(self.unary - cost * wrong.to(self.unary.dtype))

    def tempered(self, temperature: float) -> LabelChain:
        """The chain with all energies divided by a temperature."""
        parts = [
            None if t is None else t / temperature for t in (self.transitions, self.start, self.end, self.second)
        ]
        assert parts[0] is not None
        return self._with(self.unary / temperature, parts[0], *parts[1:])

    def detach(self) -> LabelChain:
        parts = [None if t is None else t.detach() for t in (self.transitions, self.start, self.end, self.second)]
        assert parts[0] is not None
        return self._with(self.unary.detach(), parts[0], *parts[1:])

    def _with(
        self,
        unary: Tensor,
        transitions: Tensor | None = None,
        start: Tensor | None = None,
        end: Tensor | None = None,
        second: Tensor | None = None,
    ) -> LabelChain:
        """Another chain of the same elements, already aligned."""
        made = LabelChain.__new__(LabelChain)
        nn.Module.__init__(made)
        made.mask, made.lengths, made.places, made.unary = self.mask, self.lengths, self.places, unary
        if transitions is None:
            made.transitions, made.start, made.end, made.second = (
                self.transitions,
                self.start,
                self.end,
                self.second,
            )
        else:
            made.transitions, made.start, made.end, made.second = transitions, start, end, second
        return made


class ChainEnergy(ConditionalEnergy):
    """E(x, y) of label sequences y given sequences x: unary terms from a network, learned transitions.

    Args:
        network: maps inputs ``[B, T, *]`` and which elements count ``[B, T]`` to unary energies ``[B, T, K]``.
        n_labels: K.
        order: 1, or 2 for terms of triples as well.
        allowed: which transitions may occur ``[K, K]``; None for all.
        allowed_start, allowed_end: which labels may be first, and last ``[K]``; None for all.

    Source: [Lafferty 2001]; with a network, [Peng 2009].
    """

    event_ndim = 1
    support = LabelChain.support
    forbidden: Tensor
    forbidden_start: Tensor
    forbidden_end: Tensor

    def __init__(
        self,
        network: nn.Module,
        n_labels: int,
        order: int = 1,
        allowed: Tensor | None = None,
        allowed_start: Tensor | None = None,
        allowed_end: Tensor | None = None,
    ):
        super().__init__()
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order!r}")
        self.network = network
        self.transitions = nn.Parameter(torch.zeros(n_labels, n_labels))
        self.start = nn.Parameter(torch.zeros(n_labels))
        self.end = nn.Parameter(torch.zeros(n_labels))
        self.second = nn.Parameter(torch.zeros(n_labels, n_labels, n_labels)) if order == 2 else None
        for name, kept in (("", allowed), ("_start", allowed_start), ("_end", allowed_end)):
            shape = (n_labels,) if name else (n_labels, n_labels)
            forbidden = torch.zeros(shape, dtype=torch.bool) if kept is None else ~kept
            self.register_buffer(f"forbidden{name}", forbidden)

    def features(self, x: Tensor) -> Features:
        """Unary energies ``[B, T, K]`` and which elements count ``[B, T]``."""
        mask = elements_of(x)
        # A batch of short sequences is cut to the longest of them.
        longest = int(mask.any(0).nonzero().max()) + 1
        unary = self.network(x[:, :longest], mask[:, :longest])
        return unary, mask

    def head(self, features: Features, y: Tensor) -> Tensor:
        return self._chain(features)(y)

    def given(self, x: Tensor) -> LabelChain:  # type: ignore[override]
        """The chain of labels of each of these sequences."""
        return self._chain(self.features(x))

    def _chain(self, features: Features) -> LabelChain:
        unary, mask = features
        return LabelChain(
            unary,
            self.transitions.masked_fill(self.forbidden, torch.inf),
            self.start.masked_fill(self.forbidden_start, torch.inf),
            self.end.masked_fill(self.forbidden_end, torch.inf),
            self.second,
            mask[:, : unary.shape[1]],
        )


def elements_of(x: Tensor) -> Tensor:
    """Which elements of padded sequences ``[B, T, D]`` count: padding is NaN, or -1 among whole numbers."""
    first = x[..., 0]
    return ~first.isnan() if x.is_floating_point() else first >= 0


def _check_shapes(
    unary: Tensor,
    transitions: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    second: Tensor | None,
    mask: Tensor | None,
) -> None:
    if unary.dim() != 3 or 0 in unary.shape:
        raise ValueError(
            f"unary energies must be [rows, elements, labels], none of them 0, got {list(unary.shape)}"
        )
    n_rows, n_elements, k = unary.shape
    if list(transitions.shape) not in ([k, k], [n_rows, n_elements - 1, k, k]):
        raise ValueError(
            f"transitions must be [{k}, {k}], or [{n_rows}, {n_elements - 1}, {k}, {k}] for each place, got "
            f"{list(transitions.shape)}"
        )
    for name, table, shape in (("start", start, [k]), ("end", end, [k]), ("second", second, [k, k, k])):
        if table is not None and list(table.shape) != shape:
            raise ValueError(f"{name} must be {shape} for {k} labels, got {list(table.shape)}")
    if second is not None and transitions.dim() == 4:
        raise ValueError("a chain of order two has the same transitions [K, K] at all places")
    if mask is not None and list(mask.shape) != [n_rows, n_elements]:
        raise ValueError(f"the mask must be [{n_rows}, {n_elements}], got {list(mask.shape)}")
    if mask is not None and not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0])
        raise ValueError(f"row {row} has no element: leave empty sequences out")
