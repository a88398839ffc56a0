"""Maximum likelihood where the normaliser is exact: in closed form, or summed over a grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.energies.base import Features
from thalweg.energies.densities.stretch import StretchDensity
from thalweg.energies.densities.tilted import MixtureDensity, TiltedMixtureEnsemble, TiltedMixtures
from thalweg.objectives.base import AnyEnergy, Batch, Objective, as_conditional


class MaximumLikelihood(Objective):
    """-log p(y_i|x_i), exact, for a mixture density network, tilted mixtures, or stretches of a series.

    Args:
        resolution: if the targets are rounded to a grid of this spacing, uniform noise of that width is
            added afresh to every target at every step (uniform dequantisation), since the likelihood of
            a density on rounded values has no bound. 0 leaves the targets alone.
        roughness: weight of the penalty on the tilt of an ensemble's members.
        curved: whether y is the asinh of what is rounded.

    Source: dequantisation: [Theis 2016, sec. 3.1].
    """

    def __init__(self, resolution: float = 0.0, roughness: float = 5e-3, curved: bool = False):
        super().__init__()
        self.resolution = resolution
        self.roughness = roughness
        self.curved = curved

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        features = as_conditional(self, energy).features(batch.x)
        if isinstance(energy, StretchDensity):
            assert isinstance(features, Tensor)
            inputs, values = energy.link_inputs(features, energy.errors(features, batch.y))
            return self._of_ensemble(energy.links, inputs, values, generator)
        if isinstance(energy, TiltedMixtureEnsemble):
            return self._of_ensemble(energy, features, batch.y.expand(-1, energy.n_members), generator)
        if isinstance(energy, MixtureDensity):
            y = dequantise(batch.y, self.resolution, generator, self.curved)
            return -energy.log_prob(features, y)
        raise TypeError(
            f"{type(energy).__name__} is not normalised in closed form: train it by RankingNCE, for instance"
        )

    def _of_ensemble(
        self, energy: TiltedMixtureEnsemble, features: Features, y: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        loss = -rounded_log_prob(energy, features, y, self.resolution, generator, self.curved)
        if self.roughness and energy.n_tilts and energy.training:
            loss = loss + self.roughness * energy.roughness(features)
        return loss


class GridLikelihood(Objective):
    """-log p(y), log Z by a sum over a grid: exact but for the grid, in one to three dimensions.

    It is the yardstick that the other objectives are held to.

    Args:
        low, high: bounds of the box that is summed over, the same in every dimension.
        n_points: points of the grid along each dimension.
        n_dims: K.
    """

    grid: Tensor

    def __init__(self, low: float, high: float, n_points: int = 64, n_dims: int = 2):
        super().__init__()
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        width = (high - low) / n_points
        axis = low + width * (torch.arange(n_points) + 0.5)
        self.log_volume = n_dims * math.log(width)
        self.register_buffer("grid", torch.cartesian_prod(*[axis] * n_dims).reshape(-1, n_dims))

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given = batch.given(energy)
        grid = self.grid.to(batch.y.dtype)
        if batch.x is not None:
            grid = grid.expand(len(batch.y), -1, -1)
        return given(batch.y) + torch.logsumexp(-given(grid), -1) + self.log_volume


def rounded_log_prob(
    energy: TiltedMixtures,
    features: Features,
    y: Tensor,
    resolution: float,
    generator: torch.Generator | None,
    curved: bool = False,
) -> Tensor:
    """log p_k(y|x) of every member ``[B, n_members]``, where y may be rounded, for y of that shape.

    A rounded value's probability is that of its cell, here per unit of its width: the density at a random place of
    the cell, and what an atom that y is adds to it.
    """
    if not resolution:
        return energy.member_log_prob(features, y)
    if energy.limits == (None, None):
        log_prob = energy.member_log_density(features, dequantise(y, resolution, generator, curved))
    else:
        moved, share = _within_limits(y, resolution, energy.limits, generator, curved)
        log_prob = energy.member_log_density(features, moved) + share.log()
    if not len(energy.atoms):
        return log_prob
    width = math.log(resolution) - (torch.cosh(y).log() if curved else torch.zeros_like(y))
    log_mass = energy.member_log_mass(features, y, energy.at_atoms(y))
    return torch.logaddexp(log_prob, log_mass - width)


def _within_limits(
    y: Tensor,
    resolution: float,
    limits: tuple[float | None, float | None],
    generator: torch.Generator | None,
    curved: bool,
) -> tuple[Tensor, Tensor]:
    """A random place of each value's rounding cell within the limits, and the share of the cell that lies there.

    Beyond a limit there is no density: a cell that reaches over it has all of its mass on this side.
    """
    centre = torch.sinh(y) if curved else y
    low, high = centre - 0.5 * resolution, centre + 0.5 * resolution
    least, most = (end if end is None or not curved else math.sinh(end) for end in limits)
    # The limit itself is rounded to single precision: a hair inside of it.
    hair = 1e-6 * max(1.0, *(abs(end) for end in (least, most) if end is not None))
    low = low if least is None else low.clamp(min=least + hair)
    high = high if most is None else high.clamp(max=most - hair)
    share = ((high - low) / resolution).clamp(1e-6, 1.0)
    place = low + (high - low) * torch.rand(y.shape, generator=generator, device=y.device)
    return torch.asinh(place) if curved else place, share


def dequantise(y: Tensor, resolution: float, generator: torch.Generator | None, curved: bool = False) -> Tensor:
    """y plus uniform noise of width ``resolution``, centred; of sinh y, if y is the asinh of what is rounded."""
    if not resolution:
        return y
    noise = resolution * (torch.rand(y.shape, generator=generator, device=y.device) - 0.5)
    return torch.asinh(torch.sinh(y) + noise) if curved else y + noise
