"""Noise with a density: round the true target, or the same for every row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.energies.densities import Density


class TargetNoise(nn.Module):
    """q(y | y_i) = (1/K) sum_k N(y; y_i, std_k^2 I), centred on the true target of each row.

    Args:
        stds: one number for each component, or one list of K numbers for each where the coordinates of y
            have different scales.

    Source: [Gustafsson 2020a, eq. 7].
    """

    def __init__(self, stds: Sequence[float | Sequence[float]]):
        super().__init__()
        scales = torch.as_tensor(stds, dtype=torch.float32)
        if scales.dim() == 1:
            scales = scales.unsqueeze(-1)
        self.register_buffer("stds", scales, persistent=False)
        if scales.numel() == 0 or not (scales > 0).all():
            raise ValueError(f"noise standard deviations must be positive, got {stds}")

    stds: Tensor

    def sample(self, centre: Tensor, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """``[B, n_samples, K]`` draws round centres ``[B, K]``."""
        return centre.unsqueeze(1) + self.offsets(centre, n_samples, generator)

    def offsets(self, centre: Tensor, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """``[B, n_samples, K]`` draws round zero."""
        shape = (centre.shape[0], n_samples)
        which = torch.randint(len(self.stds), shape, generator=generator, device=centre.device)
        noise = torch.randn((*shape, centre.shape[-1]), generator=generator, device=centre.device)
        return noise * self.stds[which]

    def log_prob(self, y: Tensor, centre: Tensor) -> Tensor:
        """log q(y | centre) ``[B, n]`` for y ``[B, n, K]`` and centres ``[B, K]``."""
        stds = self.stds.expand(-1, y.shape[-1])
        z = (y - centre.unsqueeze(1)).unsqueeze(-2) / stds
        log_normal = (-0.5 * z.square() - stds.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        return torch.logsumexp(log_normal, -1) - math.log(len(self.stds))


class FixedNoise(nn.Module):
    """Noise that does not look at the row: draws from one density.

    Args:
        density: normalised, with draws.
    """

    def __init__(self, density: Density):
        super().__init__()
        self.density = density

    def sample(self, centre: Tensor, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """``[B, n_samples, *event]`` draws."""
        return self.density.sample((len(centre), n_samples), generator)

    def log_prob(self, y: Tensor, centre: Tensor) -> Tensor:
        """log q(y) ``[B, n]`` for y ``[B, n, *event]``."""
        return self.density.log_prob(y)


def as_noise(noise: Density | Sequence[float]) -> TargetNoise | FixedNoise:
    """A density as noise, or standard deviations as Gaussians round the true target."""
    return FixedNoise(noise) if isinstance(noise, Density) else TargetNoise(noise)
