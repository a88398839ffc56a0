"""Expectations under p(y|x) for y in R^K: self-normalised importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
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


def adaptive_importance_sample(
    energy: Conditioned,
    draw: Callable[[int], Tensor],
    log_density: Callable[[Tensor], Tensor],
    n_samples: int,
    generator: torch.Generator | None = None,
    n_rounds: int = 3,
) -> WeightedSamples:
    """Importance sampling half from a proposal and half from kernels around the places that have weight.

    The kernels are fitted to each row in rounds of a quarter of the samples each, the first from the proposal
    alone. The samples of the last round, which are returned, had no part in that: the mean of their weights is
    unbiased for Z.

    Args:
        energy: of B rows.
        draw: gives n draws of the proposal q(.|x) for each row ``[B, n, K]``.
        log_density: log q of places ``[B, m, K]`` as ``[B, m]``.
        n_samples: M.

    Raises:
        ValueError: as :func:`importance_sample`.

    Source: population Monte Carlo [Cappé 2004], with a part of the samples from the first proposal in every round
    [Hesterberg 1995].
    """
    first = draw(max(4, n_samples // 4) if n_rounds else n_samples)
    found = importance_sample(energy, first, log_density(first))
    for left in reversed(range(n_rounds)):
        kernels, n = _Kernels(found, generator), max(4, n_samples // 4) if left else n_samples
        y = torch.cat([draw(n // 2), kernels.sample(n - n // 2, generator)], 1)
        # Of an odd number the kernels have one more, which their share has to say.
        shares = torch.tensor([n // 2, n - n // 2], dtype=torch.float64, device=y.device).div(n).log()
        log_mixture = torch.logaddexp(shares[0] + log_density(y), shares[1] + kernels.log_prob(y))
        found = importance_sample(energy, y, log_mixture)
    return found


class _Kernels:
    """Student t kernels around weighted samples of each row, in the shape of the samples' covariance.

    Where few samples have nearly all the weight, a power of the weights that gives more of them a say.
    """

    n_centres = 16
    freedom = 5.0

    def __init__(self, found: WeightedSamples, generator: torch.Generator | None):
        y, k = found.y, found.y.shape[-1]
        weights = _evened(found.weights.double(), 4.0 * k)
        effective = 1 / weights.square().sum(1).to(y)[:, None, None]
        weights = weights.to(y)
        self.centres = found._replace(weights=weights).resample(self.n_centres, generator)
        centred = y - (weights[..., None] * y).sum(1, keepdim=True)
        covariance = (weights[..., None] * centred).mT @ centred
        size = (4 / (effective * (k + 2))).pow(2 / (k + 4)).clamp(max=1.0)
        slack = 1e-6 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] + 1e-12
        self.factor = torch.linalg.cholesky(size * covariance + slack * torch.eye(k, device=y.device))

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """``[B, n, K]``."""
        rows, _, k = self.centres.shape
        shape, device = (rows, n), self.centres.device
        index = torch.randint(self.n_centres, shape, generator=generator, device=device)
        centres = self.centres.gather(1, index[..., None].expand(-1, -1, k))
        normal = torch.randn(*shape, k, generator=generator, device=device)
        # A chi-squared number of whole degrees of freedom is a sum of squares.
        squares = torch.randn(*shape, int(self.freedom), generator=generator, device=device).square().sum(-1)
        return centres + (normal @ self.factor.mT) * (self.freedom / squares).sqrt()[..., None]

    def log_prob(self, y: Tensor) -> Tensor:
        """``[B, m]`` of y ``[B, m, K]``."""
        k, v = y.shape[-1], self.freedom
        white = torch.linalg.solve_triangular(self.factor, y.mT, upper=False)
        centres = torch.linalg.solve_triangular(self.factor, self.centres.mT, upper=False)
        squares = torch.cdist(white.mT, centres.mT, compute_mode="donot_use_mm_for_euclid_dist").square()
        constant = math.lgamma((v + k) / 2) - math.lgamma(v / 2) - 0.5 * k * math.log(v * math.pi)
        log_volume = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)[:, None]
        each = -0.5 * (v + k) * torch.log1p(squares / v)
        return torch.logsumexp(each, -1) - math.log(self.n_centres) + constant - log_volume


def _evened(weights: Tensor, effective: float) -> Tensor:
    """Weights of each row ``[B, M]`` to the power of at most 1 at which so many of them are effective."""
    log_weights, high = weights.log(), torch.ones_like(weights[:, :1])
    low = torch.zeros_like(high)
    for step in range(20):
        power = high if step == 0 else 0.5 * (low + high)
        tried = torch.softmax(torch.where(weights > 0, power * log_weights, -torch.inf), 1)
        enough = 1 / tried.square().sum(1, keepdim=True) >= effective
        low = torch.where(enough, power, low)
        high = torch.where(enough, high, power)
    return torch.softmax(torch.where(weights > 0, low * log_weights, -torch.inf), 1)
