"""A Gaussian that learns from rows in any order, in any number of parts, and keeps none of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thalweg.energies.base import standard_normal
from thalweg.energies.densities.basic import Density


class RunningGaussian(Density):
    """E(x) = -log N(x; mean, scatter / count + diag(noise_std^2)), of the count, mean and scatter of rows seen.

    Those three are all that a Gaussian can learn from rows, so that rows which come in parts give the same
    Gaussian as all of them together, up to rounding. The noise is what makes it a density where rows are few or a
    column is constant: one row alone gives N(x; row, noise). It is known beforehand, so that no later row changes
    it.

    Args:
        noise_std: standard deviation of the noise of each column ``[D]``, positive.
        count: number of rows seen.
        mean: of these rows ``[D]``; None is 0.
        scatter: sum over these rows of (x - mean)(x - mean)' ``[D, D]``; None is 0.

    Source: updates [Chan 1983, eq. 2.1].
    """

    noise_std: Tensor
    count: Tensor
    mean: Tensor
    scatter: Tensor
    factor: Tensor

    def __init__(
        self, noise_std: Tensor, count: int = 0, mean: Tensor | None = None, scatter: Tensor | None = None
    ):
        super().__init__()
        n_columns = len(noise_std)
        # Its own, as every tensor of a saved model.
        self.register_buffer("noise_std", noise_std.clone())
        self.register_buffer("count", torch.tensor(count))
        self.register_buffer("mean", torch.zeros_like(noise_std) if mean is None else mean)
        self.register_buffer("scatter", noise_std.new_zeros(n_columns, n_columns) if scatter is None else scatter)
        self._prepare()

    def _prepare(self) -> None:
        covariance = self.scatter / self.count.clamp_min(1) + self.noise_std.square().diag()
        self.register_buffer("factor", torch.linalg.cholesky(covariance), persistent=False)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._prepare()

    def updated(self, rows: Tensor) -> RunningGaussian:
        """The Gaussian that has seen these rows ``[n, D]`` as well; this one stays as it is."""
        rows = rows.to(self.mean)
        n, before = len(rows), int(self.count)
        mean = rows.mean(0)
        moved, centred = mean - self.mean, rows - mean
        scatter = self.scatter + centred.mT @ centred + (before * n / (before + n)) * torch.outer(moved, moved)
        return RunningGaussian(self.noise_std, before + n, self.mean + moved * (n / (before + n)), scatter)

    def log_prob(self, x: Tensor) -> Tensor:
        centred = (x - self.mean).reshape(-1, len(self.mean))
        z = torch.linalg.solve_triangular(self.factor, centred.mT, upper=False)
        constant = self.factor.diagonal().log().sum() + 0.5 * len(self.mean) * math.log(2 * math.pi)
        return (-0.5 * z.square().sum(0) - constant).reshape(x.shape[:-1])

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.mean + standard_normal((n, len(self.mean)), self.mean, generator) @ self.factor.mT
