"""Maximum likelihood for energies that are normalised exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.base import ConditionalEnergy
from thalweg.energies.mixture import MixtureDensity, TiltedMixtureEnsemble
from thalweg.objectives.base import Batch, ConditionalObjective


class MaximumLikelihood(ConditionalObjective):
    """-log p(y_i|x_i), exact, for a mixture density network or an ensemble of tilted mixtures.

    Args:
        resolution: if the targets are rounded to a grid of this spacing, uniform noise of that width is
            added afresh to every target at every step (uniform dequantisation), since the likelihood of
            a density on rounded values has no bound. 0 leaves the targets alone.
        roughness: weight of the penalty on the tilt of an ensemble's members.

    Source: dequantisation: [Theis 2016, sec. 3.1].
    """

    def __init__(self, resolution: float = 0.0, roughness: float = 5e-3):
        super().__init__()
        self.resolution = resolution
        self.roughness = roughness

    def per_row(self, energy: ConditionalEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        features = energy.features(batch.x)
        if isinstance(energy, TiltedMixtureEnsemble):
            y = batch.y.expand(-1, energy.n_members)
            y = dequantise(y, self.resolution, generator)
            loss = -energy.member_log_prob(features, y)
            if self.roughness and energy.n_tilts and energy.training:
                loss = loss + self.roughness * energy.roughness(features)
            return loss
        if isinstance(energy, MixtureDensity):
            return -energy.log_prob(features, dequantise(batch.y, self.resolution, generator))
        raise TypeError(
            f"{type(energy).__name__} is not normalised in closed form: train it by RankingNCE, for instance"
        )


def dequantise(y: Tensor, resolution: float, generator: torch.Generator | None) -> Tensor:
    """y plus uniform noise of width ``resolution``, centred."""
    if not resolution:
        return y
    return y + resolution * (torch.rand(y.shape, generator=generator, device=y.device) - 0.5)
