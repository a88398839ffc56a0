"""A product of Student-t experts: each looks along one direction and expects to see little there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.energies.base import Energy


class StudentExperts(Energy):
    """E(x) = sum_i alpha_i log(1 + (w_i'x + b_i)^2 / 2), the alpha_i positive and learned.

    With as many experts as dimensions, linearly independent, the w_i'x + b_i are independent sources, Student-t
    with 2 alpha_i - 1 degrees of freedom; with more, an overcomplete model of sparse filters. The density exists
    where the alpha_i of the experts that look along any direction add up to enough: with D independent experts,
    where each is above 1/2.

    Args:
        n_inputs: D, the dimension of x.
        n_experts: M; fewer than D leave directions along which nothing holds the density together.
        alpha: exponent of all experts at the start.

    Raises:
        ValueError: if there are fewer experts than dimensions, or alpha is not positive.

    Source: [Hinton 2002]; [Welling 2003].
    """

    def __init__(self, n_inputs: int, n_experts: int, alpha: float = 1.5):
        super().__init__()
        if not 0 < n_inputs <= n_experts:
            raise ValueError(
                f"{n_experts} experts leave directions of {n_inputs} dimensions unwatched, so that no density "
                "exists: take at least as many experts as dimensions"
            )
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.filters = nn.Linear(n_inputs, n_experts)
        self.log_alpha = nn.Parameter(torch.full((n_experts,), alpha).log())

    @property
    def alpha(self) -> Tensor:
        """``[M]``, with a graph."""
        return self.log_alpha.exp()

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * self.filters(x).square()).log1p() @ self.alpha

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            s, alpha = self.filters(x), self.alpha
            inner = 0.5 * s.square()
            return inner.log1p() @ alpha, (alpha * s / (1 + inner)) @ self.filters.weight

    def gradient(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return -self.score(x)

    def score(self, x: Tensor) -> Tensor:
        s = self.filters(x)
        return (self.alpha * s / (-1 - 0.5 * s.square())) @ self.filters.weight

    def score_and_curvature(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """v'Hv = sum_i alpha_i phi''(s_i) (w_i'v)^2 with phi'' = (1 - s^2 / 2) / (1 + s^2 / 2)^2."""
        along = (v @ self.filters.weight.t()).square()
        return self.score(x), -(self._bends(x).unsqueeze(-2) * along).sum(-1)

    def score_and_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(x), -(self._bends(x) @ self.filters.weight.square().sum(1))

    def _bends(self, x: Tensor) -> Tensor:
        """The second derivative of each expert along its own direction ``[*batch, M]``."""
        inner = 0.5 * self.filters(x).square()
        return self.alpha * (1 - inner) / (1 + inner).square()
