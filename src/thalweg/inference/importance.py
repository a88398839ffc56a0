"""Expectations under p(y|x) for y in R^K: self-normalised importance sampling."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.energies.base import Conditioned, Energy
from thalweg.energies.densities import Density
from thalweg.sampling.annealing import LogNormaliser, summarised
from thalweg.sampling.diagnostics import pareto_k


class WeightedSamples(NamedTuple):
    """Draws from a proposal with weights that make them draws from p(y|x).

    Attributes:
        y: ``[B, M, K]``.
        weights: ``[B, M]``, each row sums to 1.
        log_normaliser: estimate of log Z(x) ``[B]``.
        effective_sample_size: 1 / sum of squared weights ``[B]``, between 1 and M.
    """

    y: Tensor
    weights: Tensor
    log_normaliser: Tensor
    effective_sample_size: Tensor

    @property
    def pareto_k(self) -> np.ndarray:
        """Shape of the tail of each row's weights ``[B]``; with k above 0.7 no estimate from them can be trusted.

        See :func:`~thalweg.sampling.diagnostics.pareto_k`.
        """
        return pareto_k(self.weights.double().log())

    def mean(self) -> Tensor:
        """``[B, K]``."""
        return (self.weights.unsqueeze(-1) * self.y).sum(1)

    def quantile(self, probability: Tensor) -> Tensor:
        """Marginal quantiles ``[B, m, K]`` at probabilities ``[m]``."""
        y, order = self.y.sort(1)
        cumulative = self.weights.unsqueeze(-1).expand_as(y).gather(1, order).cumsum(1)
        index = torch.searchsorted(
            cumulative.transpose(1, 2).contiguous(),
            probability.to(y).expand(*y.shape[::2], -1).contiguous(),
        ).clamp(max=y.shape[1] - 1)
        return y.gather(1, index.transpose(1, 2))

    def resample(self, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """``[B, n_samples, K]`` draws from the weighted sample, with replacement."""
        index = torch.multinomial(self.weights, n_samples, replacement=True, generator=generator)
        return self.y.gather(1, index.unsqueeze(-1).expand(-1, -1, self.y.shape[-1]))


def log_normaliser(
    energy: Energy, proposal: Density, n_samples: int = 100_000, generator: torch.Generator | None = None
) -> LogNormaliser:
    """log Z of an energy by importance sampling from a density that covers it, with its standard error.

    Both can be trusted only if ``pareto_k`` of the result is at most 0.7 [Vehtari 2024].

    Raises:
        ValueError: if a weight is NaN or infinite.
    """
    positions, log_weights = [], []
    with torch.no_grad():
        for n in [8192] * (n_samples // 8192) + [n_samples % 8192]:
            if n:
                positions.append(proposal.sample(n, generator))
                log_weights.append(-energy(positions[-1]) - proposal.log_prob(positions[-1]))
    weights = torch.cat(log_weights)
    if torch.isnan(weights).any() or (weights == torch.inf).any():
        raise ValueError("log Z can't be estimated: the energy is NaN or minus infinity at some of the samples")
    return summarised(weights, torch.cat(positions))


def importance_sample(energy: Conditioned, samples: Tensor, log_proposal: Tensor) -> WeightedSamples:
    """Weigh draws from a proposal by exp(-E) / q.

    Args:
        energy: of B rows.
        samples: ``[B, M, K]`` from q(.|x).
        log_proposal: log q of them ``[B, M]``.

    Raises:
        ValueError: if a weight is NaN or infinite, or all weights of a row are zero.

    Source: [Gustafsson 2022, sec. 3.2].
    """
    with torch.no_grad():
        log_weights = -energy(samples).double() - log_proposal.double()
    log_total = torch.logsumexp(log_weights, 1)
    if not torch.isfinite(log_total).all():
        raise ValueError(
            "the energy is NaN or -infinity for some draws, or +infinity for all draws of a row: the model is "
            "damaged or has diverged, or the proposal misses its support"
        )
    weights = (log_weights - log_total.unsqueeze(1)).exp()
    return WeightedSamples(
        samples, weights.to(samples), log_total - math.log(samples.shape[1]), 1 / weights.square().sum(1)
    )
