"""Score matching: the gradient of the energy instead of the energy, so that Z drops out."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.base import ConditionalEnergy
from thalweg.objectives.base import Batch, ConditionalObjective


class ScoreMatching(ConditionalObjective):
    """(1/2)|grad_y E|^2 - tr grad_y^2 E at the true target, with the exact trace.

    The activations on y must be smooth: with ReLU the trace is zero everywhere and nothing is learned.

    Source: [Hyvärinen 2005, eq. 4], with f = -E.
    """

    def per_row(self, energy: ConditionalEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given = energy.given(batch.x)
        y = batch.y.detach().requires_grad_(True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(given(y).sum(), y, create_graph=True)
            trace = torch.zeros_like(grad[..., 0])
            for k in range(y.shape[-1]):
                (row,) = torch.autograd.grad(grad[..., k].sum(), y, create_graph=True)
                trace = trace + row[..., k]
        return 0.5 * grad.square().sum(-1) - trace


class DenoisingScoreMatching(ConditionalObjective):
    """|grad_y E(y~) - (y~ - y_i) / std^2|^2 at targets moved by Gaussian noise, y~ = y_i + std * noise.

    What it learns is the density blurred by that noise.

    Args:
        noise_std: standard deviation of the noise.
        n_samples: noisy copies of each target.

    Source: [Vincent 2011, eq. 10].
    """

    def __init__(self, noise_std: float = 0.2, n_samples: int = 1024):
        super().__init__()
        if noise_std <= 0:
            raise ValueError(f"noise_std must be positive, got {noise_std}")
        self.noise_std = noise_std
        self.n_samples = n_samples

    def per_row(self, energy: ConditionalEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        shape = (len(batch.y), self.n_samples, batch.y.shape[-1])
        noise = torch.randn(shape, generator=generator, device=batch.y.device, dtype=batch.y.dtype)
        y = (batch.y.unsqueeze(1) + self.noise_std * noise).requires_grad_(True)
        with torch.enable_grad():
            given = energy.given(batch.x)
            (grad,) = torch.autograd.grad(given(y).sum(), y, create_graph=True)
        return (grad - noise / self.noise_std).square().sum(-1).mean(1)
