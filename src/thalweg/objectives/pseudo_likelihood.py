"""Learning discrete energies from what single changes of the data would cost, so that Z drops out."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.discrete import Sites
from thalweg.objectives.base import AnyEnergy, Batch, Objective


class _SingleChanges(Objective):
    """A sum over sites of a function of E(y') - E(y), y' being y with that site changed."""

    def __init__(self, n_sites: int | None = None):
        super().__init__()
        if n_sites is not None and n_sites < 1:
            raise ValueError(f"n_sites must be at least 1, got {n_sites}")
        self.n_sites = n_sites

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given, y = batch.given(energy), batch.y
        made_of = Sites(given)
        made_of.check(y)
        n = made_of.count(y)
        if self.n_sites is None or self.n_sites >= n:
            return self._by_site(made_of.differences(given, y, torch.arange(n, device=y.device))).sum(-1)
        keys = torch.rand(len(y), n, generator=generator, device=y.device)
        sites = keys.topk(self.n_sites, -1).indices
        return self._by_site(made_of.differences(given, y, sites)).sum(-1) * (n / self.n_sites)

    def _by_site(self, differences: Tensor) -> Tensor:
        """``[*batch, n, K - 1]`` -> ``[*batch, n]``."""
        raise NotImplementedError


class PseudoLikelihood(_SingleChanges):
    """-sum_d log p(y_d | the other sites): each site's likelihood given the others.

    Args:
        n_sites: sites of each row that are looked at, picked at random and counted for all; None for all. A
            difference costs an evaluation of the energy, but for energies that know them in closed form.

    Raises:
        ValueError: if the energy is not of bits or one-hot groups, or the data are not.

    Source: [Besag 1975].
    """

    def _by_site(self, differences: Tensor) -> Tensor:
        staying = torch.zeros_like(differences[..., :1])
        return torch.logsumexp(torch.cat([staying, -differences], -1), -1)


class RatioMatching(_SingleChanges):
    """sum over single changes of g(p(y) / p(y'))^2 with g(u) = 1 / (1 + u): score matching for discrete values.

    For bits it is the sum of the squares of what a logistic regression of each site given the others gets wrong.

    Args:
        n_sites: sites of each row that are looked at, picked at random and counted for all; None for all. A
            difference costs an evaluation of the energy, but for energies that know them in closed form.

    Raises:
        ValueError: if the energy is not of bits or one-hot groups, or the data are not.

    Source: [Hyvärinen 2007]; of more than two values, over all pairs of a site's values.
    """

    def _by_site(self, differences: Tensor) -> Tensor:
        return torch.sigmoid(-differences).square().sum(-1)
