"""Score matching: the gradient of the energy instead of the energy, so that Z drops out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.energies.base import event_sum, standard_normal
from thalweg.objectives.base import AnyEnergy, Batch, Objective, continuous


class ScoreMatching(Objective):
    """(1/2)|grad E|^2 - tr grad^2 E at the data, with the exact trace.

    The activations on y must be smooth: with ReLU the trace is zero everywhere and nothing is learned. The
    cost grows with the dimension of y: use :class:`SlicedScoreMatching` beyond a few dozen.

    Source: [Hyvärinen 2005, eq. 4], with f = -E.
    """

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given = continuous(self, energy, batch)
        score, divergence = given.score_and_divergence(batch.y)
        return 0.5 * event_sum(score.square(), given.event_ndim) + divergence


class SlicedScoreMatching(Objective):
    """(1/2)(v'grad E)^2 - v'(grad^2 E)v for random directions v: score matching at a cost free of dimension.

    Args:
        n_projections: directions for each row.
        variance_reduction: take (1/2)|grad E|^2, the first term's exact mean, in its place. It lowers the
            variance where the gradient is large beside the curvature; at the bottom of a valley the two terms
            rise together, and their difference varies less than the second alone.
        projection: "rademacher" or "gaussian", the distribution of v; E vv' = I either way.

    Source: [Song 2019, eq. 7 and 8], with f = -E.
    """

    def __init__(self, n_projections: int = 1, variance_reduction: bool = False, projection: str = "rademacher"):
        super().__init__()
        if projection not in ("rademacher", "gaussian"):
            raise ValueError(f"projection must be rademacher or gaussian, got {projection!r}")
        self.n_projections = n_projections
        self.variance_reduction = variance_reduction
        self.projection = projection

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given, y = continuous(self, energy, batch), batch.y
        v = standard_normal((len(y), self.n_projections, *y.shape[1:]), y, generator)
        if self.projection == "rademacher":
            v = v.sign()
        score, curvature = given.score_and_curvature(y, v)
        if self.variance_reduction:
            return 0.5 * event_sum(score.square(), given.event_ndim) + curvature.mean(1)
        first = event_sum(score.unsqueeze(1) * v, given.event_ndim)
        return (0.5 * first.square() + curvature).mean(1)


class DenoisingScoreMatching(Objective):
    """|std grad E(y~) - (y~ - y_i) / std|^2 at data moved by Gaussian noise, y~ = y_i + std * noise.

    What it learns is the density blurred by that noise. With several noise scales one energy learns a
    compromise of all the blurred densities, each weighted so that the scales count alike.

    Args:
        noise_std: standard deviation of the noise, or several, one of which each noisy copy draws.
        n_samples: noisy copies of each row.

    Source: [Vincent 2011, eq. 10], times std^2 as in [Song 2019b, eq. 5]; many scales in one energy:
    [Li 2019].
    """

    stds: Tensor

    def __init__(self, noise_std: float | Sequence[float] = 0.2, n_samples: int = 1):
        super().__init__()
        stds = torch.atleast_1d(torch.as_tensor(noise_std, dtype=torch.float32))
        if not (stds > 0).all():
            raise ValueError(f"noise_std must be positive, got {noise_std}")
        self.register_buffer("stds", stds, persistent=False)
        self.n_samples = n_samples

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given, y = continuous(self, energy, batch), batch.y
        shape = (len(y), self.n_samples, *y.shape[1:])
        noise = standard_normal(shape, y, generator)
        std = self.stds.to(y.dtype)
        if len(self.stds) > 1:
            which = torch.randint(len(self.stds), shape[:2], generator=generator, device=y.device)
            std = std[which].reshape(*shape[:2], *([1] * given.event_ndim))
        score = given.score(y.unsqueeze(1) + std * noise)
        return event_sum((std * score + noise).square(), given.event_ndim).mean(1)
