"""Maximum likelihood and KL divergence with the normaliser estimated by importance sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.energies.densities import Density
from thalweg.objectives.base import AnyEnergy, Batch, Objective
from thalweg.objectives.noise import FixedNoise, TargetNoise, as_noise


class ImportanceSampling(Objective):
    """Maximum likelihood, log Z by importance sampling: log (1/M) sum_m e^{-E(y_m)} / q(y_m) + E(y_i).

    Args:
        noise: standard deviations of the proposal's components, centred on the true target; or a density, the
            same for all rows (which then share their samples, if nothing is given).
        n_samples: M.

    Source: [Gustafsson 2020a, eq. 6].
    """

    def __init__(self, noise: Density | Sequence[float] = (0.2, 1.6), n_samples: int = 1024):
        super().__init__()
        self.noise = as_noise(noise)
        self.n_samples = n_samples

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given = batch.given(energy)
        if isinstance(self.noise, FixedNoise) and batch.x is None:
            shared = self.noise.density.sample(self.n_samples, generator)
            values = given(torch.cat([batch.y, shared]))
            log_weights = -values[len(batch.y) :] - self.noise.density.log_prob(shared)
            return torch.logsumexp(log_weights, 0) - math.log(self.n_samples) + values[: len(batch.y)]
        samples = self.noise.sample(batch.y, self.n_samples, generator)
        values = given(torch.cat([batch.y.unsqueeze(1), samples], 1))
        log_weights = -values[:, 1:] - self.noise.log_prob(samples, batch.y)
        return torch.logsumexp(log_weights, 1) - math.log(self.n_samples) + values[:, 0]


class KLDivergenceImportanceSampling(Objective):
    """KL(N(y_i, label_std^2) || p(y|x_i)), both expectations over the same importance samples.

    Args:
        label_std: standard deviation of the label's own noise.
        noise: standard deviations of the proposal's components, centred on the true target.
        n_samples: M.

    Source: [Gustafsson 2020b, sec. 3.2].
    """

    def __init__(
        self,
        label_std: float | Sequence[float] = 0.025,
        noise: Sequence[float] = (0.2, 1.6),
        n_samples: int = 1024,
    ):
        super().__init__()
        self.label = TargetNoise([label_std])
        self.noise = TargetNoise(noise)
        self.n_samples = n_samples

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        samples = self.noise.sample(batch.y, self.n_samples, generator)
        values = batch.given(energy)(samples)
        log_noise = self.noise.log_prob(samples, batch.y)
        log_normaliser = torch.logsumexp(-values - log_noise, 1) - math.log(self.n_samples)
        label_weights = torch.exp(self.label.log_prob(samples, batch.y) - log_noise)
        return log_normaliser + (label_weights * values).mean(1)
