"""Energy discrepancy: the data against itself blurred and blurred again, with no chain and no score."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.energies.base import standard_normal
from thalweg.objectives.base import AnyEnergy, Batch, Objective, continuous


class EnergyDiscrepancy(Objective):
    """log(w/M + (1/M) sum_m exp(E(y) - E(y + std (noise + noise_m)))): noise shared by a row, noise_m its own.

    As the noise grows it tends to maximum likelihood, as it shrinks to score matching.

    Args:
        noise_std: of one blur.
        n_samples: M.
        stabiliser: w; it keeps the estimate from going to minus infinity.

    Source: [Schröder 2023, eq. 8 and alg. 1].
    """

    def __init__(self, noise_std: float = 0.2, n_samples: int = 16, stabiliser: float = 1.0):
        super().__init__()
        if noise_std <= 0:
            raise ValueError(f"noise_std must be positive, got {noise_std}")
        self.noise_std = noise_std
        self.n_samples = n_samples
        self.stabiliser = stabiliser

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given, y = continuous(self, energy, batch), batch.y.unsqueeze(1)
        shape = (len(y), 1 + self.n_samples, *y.shape[2:])
        noise = standard_normal(shape, y, generator)
        blurred = y + self.noise_std * (noise[:, :1] + noise[:, 1:])
        values = given(torch.cat([y, blurred], 1))
        gaps = values[:, :1] - values[:, 1:]
        if self.stabiliser:
            floor = torch.full_like(gaps[:, :1], math.log(self.stabiliser))
            gaps = torch.cat([gaps, floor], 1)
        return torch.logsumexp(gaps, 1) - math.log(self.n_samples)
