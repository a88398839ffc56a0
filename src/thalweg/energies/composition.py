"""Energies made of energies: sums (products of experts) and disjunctions (mixtures)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from thalweg.energies.base import Energy


class WeightedSum(Energy):
    """E(x) = sum_i w_i E_i(x): a product of experts, each to the power w_i.

    A negative weight is a negation; keep it below 1 in size, or the density need not exist.

    Source: [Hinton 2002]; [Du 2020, sec. 3].
    """

    def __init__(self, energies: Sequence[Energy], weights: Sequence[float]):
        super().__init__()
        _same_space(energies)
        self.energies = nn.ModuleList(energies)
        self.weights = [float(w) for w in weights]
        # Where one lives on discrete values, so does the product of all.
        self.support = next((e.support for e in energies if e.support.is_discrete), energies[0].support)
        self.event_ndim = energies[0].event_ndim

    def forward(self, x: Tensor) -> Tensor:
        return self._sum(e(x) for e in self.energies)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [e.value_and_gradient(x) for e in self.energies]  # type: ignore[operator]
        return self._sum(value for value, _ in parts), self._sum(grad for _, grad in parts)

    def gradient(self, x: Tensor) -> Tensor:
        return self._sum(e.gradient(x) for e in self.energies)  # type: ignore[operator]

    def fixed(self) -> WeightedSum:
        return WeightedSum([e.fixed() for e in self.energies], self.weights)  # type: ignore[operator]

    def score(self, x: Tensor) -> Tensor:
        return self._sum(e.score(x) for e in self.energies)  # type: ignore[operator]

    def score_and_curvature(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        parts = [e.score_and_curvature(x, v) for e in self.energies]  # type: ignore[operator]
        return self._sum(score for score, _ in parts), self._sum(curvature for _, curvature in parts)

    def differences(self, x: Tensor, sites: Tensor) -> Tensor | None:
        parts = [e.differences(x, sites) for e in self.energies]  # type: ignore[operator]
        return None if any(part is None for part in parts) else self._sum(parts)

    def _sum(self, terms: Iterable[Tensor]) -> Tensor:
        total: Tensor | None = None
        for weight, term in zip(self.weights, terms, strict=True):
            term = term if weight == 1 else weight * term
            total = term if total is None else total + term
        assert total is not None
        return total


class Disjunction(Energy):
    """E(x) = -log sum_i exp(-E_i(x)): the mixture of the unnormalised densities.

    Each part counts in proportion to its own Z; add a constant to an energy to change its share.

    Source: [Du 2020, sec. 3].
    """

    def __init__(self, energies: Sequence[Energy]):
        super().__init__()
        _same_space(energies)
        self.energies = nn.ModuleList(energies)
        self.support = energies[0].support
        self.event_ndim = energies[0].event_ndim

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(torch.stack([-e(x) for e in self.energies]), 0)


def _same_space(energies: Sequence[Energy]) -> None:
    for e in energies:
        if not isinstance(e, Energy):
            raise TypeError(f"only energies combine with energies, got {type(e).__name__}")
        if e.event_ndim != energies[0].event_ndim:
            raise ValueError(
                f"energies over different spaces do not combine: event_ndim {energies[0].event_ndim} "
                f"and {e.event_ndim}"
            )
