"""Likelihood of images under an energy over the unit box, with log Z bracketed by annealing."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.energies.base import Energy
from thalweg.energies.densities import Density, GaussianMixtureEnergy
from thalweg.energies.unbounded import LogisticEnergy, LogitEnergy
from thalweg.evaluation.generation import bits_per_dimension
from thalweg.sampling.annealing import Bracket, bracket_log_normaliser

# Numbers in [0, 1) that are 0 have no logit.
_EDGE = 1e-7


class AnnealedLikelihood(NamedTuple):
    """How likely images are under p(x) = exp(-E(x) / T) / Z over [0, 1]^D.

    Attributes:
        log_prob: log p of each dequantised image ``[n]``, in nats, with log Z in the middle of its bracket.
        log_normaliser: the bracket of log Z, in nats. All log_prob are off by as much as it is (its ``error``).
        base_log_prob: log p of the same ``[n]`` under the density that annealing started from: what the energy
            must beat.
        n_dimensions: D.
        n_levels: grey levels.
    """

    log_prob: np.ndarray
    log_normaliser: Bracket
    base_log_prob: np.ndarray
    n_dimensions: int
    n_levels: int

    @property
    def mean(self) -> float:
        """Mean log-likelihood of an image, in nats."""
        return float(self.log_prob.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over the images; the error of log Z is not in it."""
        return float(self.log_prob.std(ddof=1) / math.sqrt(len(self.log_prob)))

    @property
    def bits(self) -> float:
        """Mean bits per dimension (see :func:`~thalweg.evaluation.generation.bits_per_dimension`)."""
        return float(bits_per_dimension(self.mean, self.n_dimensions, self.n_levels))

    @property
    def base_bits(self) -> float:
        """Mean bits per dimension of the density that annealing started from."""
        return float(bits_per_dimension(self.base_log_prob.mean(), self.n_dimensions, self.n_levels))

    @property
    def warning(self) -> str | None:
        """Why log Z, and with it every likelihood, may be further off than its error, or None."""
        return self.log_normaliser.warning

    @property
    def bits_width(self) -> float:
        """The width of the bracket of log Z, in bits per dimension."""
        return abs(self.log_normaliser.width) / (self.n_dimensions * math.log(2))


def annealed_likelihood(
    energy: Energy,
    images: np.ndarray,
    temperature: float = 1.0,
    n_levels: int = 256,
    start: np.ndarray | None = None,
    n_chains: int = 64,
    n_steps: int = 500,
    generator: torch.Generator | None = None,
) -> AnnealedLikelihood:
    """The likelihood of images under exp(-E / T) / Z, normalised over the unit box.

    Energies of images that learn from cold chains are no densities at T = 1. The temperature at which the noise
    of :class:`~thalweg.sampling.langevin.ColdLangevin` suits its step is noise_scale^2 / (2 step_size), but
    clipped gradients and short chains leave it uncertain: choose T by the likelihood of images held out from
    the training, and measure with others.

    Chains run by HMC over the logits of x, where the box has no faces. The way back starts at images, run on by as
    many steps: its bound holds as far as these chains have become draws of the density (see
    :class:`~thalweg.sampling.annealing.Bracket`). A wide bracket says that they have not, and so does ``warning``.

    Args:
        energy: E over x ``[*batch, *event]`` in [0, 1], event_ndim dimensions; of labelled images
            :class:`~thalweg.energies.labelled.MarginalOverLabels` at the same temperature.
        images: ``[n, *event]``, whole numbers 0, ..., n_levels - 1 divided by n_levels - 1. They are dequantised:
            x = (level + u) / n_levels with u uniform, once for each image.
        temperature: T.
        n_levels: grey levels.
        start: images as above, of the training, say: annealing starts from the Gaussian with the moments of their
            logits, and gets to lower temperatures, and the way back starts from them. None: from the uniform
            density, and the way back from ``images``.
        n_chains, n_steps: chains and steps of annealing, each way; besides those that find the step sizes.

    Raises:
        ValueError: if images are not on the grid of levels, or a setting is out of range, or as
            :func:`~thalweg.sampling.annealing.annealed_importance_sampling`.

    Source: [Du 2019] and its code, from the uniform density; both ways [Grosse 2015]; dequantised images
    [Theis 2016, sec. 3.1].
    """
    device = next(iter([*energy.parameters(), *energy.buffers()]), torch.zeros(())).device
    x = _dequantised(images, n_levels, energy.event_ndim, generator, device)
    z = x.flatten(1).logit(_EDGE)
    base: Density = LogisticEnergy(z.shape[1]).to(device)
    near = z
    if start is not None:
        near = _dequantised(start, n_levels, energy.event_ndim, generator, device).flatten(1).logit(_EDGE)
        base = GaussianMixtureEnergy.from_moments(near)
    mapped = LogitEnergy(energy / temperature, x.shape[1:])
    with torch.no_grad():
        # The change of coordinates adds the same to both.
        slope = LogisticEnergy(z.shape[1]).to(device).log_prob(z)
        log_prob = -torch.cat([mapped(part) for part in z.split(1000)]) - slope
        base_log_prob = base.log_prob(z) - slope
    # Images that come in order of their labels lend chains to all of them.
    starts = near[torch.linspace(0, len(near) - 1, n_chains, device=device).round().long()]
    found = bracket_log_normaliser(mapped, base, starts, n_chains, n_steps, n_steps, generator)
    return AnnealedLikelihood(
        log_prob.double().cpu().numpy() - found.estimate,
        found,
        base_log_prob.double().cpu().numpy(),
        z.shape[1],
        n_levels,
    )


def _dequantised(
    images: np.ndarray, n_levels: int, event_ndim: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    if n_levels < 2:
        raise ValueError(f"n_levels must be at least 2, got {n_levels}")
    found = np.asarray(images, np.float64) * (n_levels - 1)
    if found.ndim != 1 + event_ndim or len(found) < 2:
        raise ValueError(f"images must be at least two of {event_ndim} dimensions each, got shape {found.shape}")
    levels = np.rint(found)
    if not (np.abs(found - levels) < 1e-3).all() or levels.min() < 0 or levels.max() > n_levels - 1:
        raise ValueError(f"images must be whole numbers of 0 to {n_levels - 1}, divided by {n_levels - 1}")
    x = torch.as_tensor(levels, dtype=torch.float32, device=device)
    return (x + torch.rand(x.shape, generator=generator, device=device)) / n_levels
