"""A labelled energy that grows: one normalised energy a label, added when the label arrives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.energies.densities.running import RunningGaussian
from thalweg.energies.labelled import LabelledEnergy


class GrowingEnergy(LabelledEnergy):
    """E(x, k) = -log p(x|k) - log p(k): a mixture of Gaussians for each label, and how often it came.

    Every p(x|k) is normalised by itself, so that energies which were learned apart can be compared, and p(k|x)
    needs no training of its own. ``marginal()`` is the energy of x alone, -log p(x).

    Args:
        components: for each label the Gaussians of its rows, weighted by how many rows each has seen.
    """

    def __init__(self, components: Sequence[Sequence[RunningGaussian]]):
        super().__init__()
        self.components: Any = nn.ModuleList([nn.ModuleList(own) for own in components])

    @property
    def counts(self) -> Tensor:
        """Rows seen of each label ``[C]``."""
        return torch.stack([sum(part.count for part in own) for own in self.components])

    def energies(self, x: Tensor) -> Tensor:
        """E of every label ``[*batch, C]`` for rows ``[*batch, D]``: -log p(x, k)."""
        return self.energies_given_labels(x) - _log_shares(self.counts, like=self.components[0][0].mean)

    def energies_given_labels(self, x: Tensor) -> Tensor:
        """-log p(x|k) ``[*batch, C]`` for rows ``[*batch, D]``."""
        return torch.stack([self._energy_of(own, x) for own in self.components], -1)

    @staticmethod
    def _energy_of(components: Any, x: Tensor) -> Tensor:
        log_probs = torch.stack([part.log_prob(x) for part in components], -1)
        counts = torch.stack([part.count for part in components])
        return -torch.logsumexp(log_probs + _log_shares(counts, like=log_probs), -1)

    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One row for each label ``[n]``, drawn from p(x|label) ``[n, D]``, with no graph."""
        first = self.components[0][0].mean
        found = first.new_empty(len(labels), len(first))
        with torch.no_grad():
            for k in labels.unique().tolist():
                own, components = torch.nonzero(labels == k)[:, 0], self.components[k]
                counts = torch.stack([part.count for part in components]).to(first)
                which = torch.multinomial(counts, len(own), replacement=True, generator=generator)
                for c in which.unique().tolist():
                    rows = own[which == c]
                    found[rows] = components[c].draw(len(rows), generator)
        return found


def _log_shares(counts: Tensor, like: Tensor) -> Tensor:
    shares = counts.to(like) / counts.sum()
    return shares.log()
