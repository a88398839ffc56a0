"""The bound on the evidence by which a variational autoencoder learns."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.networks.variational import VariationalAutoencoder
from thalweg.objectives.base import AnyEnergy, Batch, Objective
from thalweg.objectives.likelihood import dequantise


class EvidenceBound(Objective):
    """-log p(x|z) + KL(q(z|x) || N(0, I)) with one draw of z from q: the negative bound on log p(x).

    Args:
        resolution: spacing of the grid that the data are rounded to: uniform noise of that width is added to them
            afresh at every step.

    Raises:
        TypeError: for an energy that is no variational autoencoder.

    Source: [Kingma 2014, eq. 7].
    """

    def __init__(self, resolution: float = 0.0):
        super().__init__()
        self.resolution = resolution

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        self._autoencoder(energy)
        super().check(energy, batch)

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        y = dequantise(batch.y, self.resolution, generator) if self.resolution else batch.y
        autoencoder = self._autoencoder(energy)
        self.metrics = {
            "standard deviation of the decoder": float(autoencoder.decoder.log_std.detach().exp().mean())
        }
        return autoencoder.negative_bound(y, generator)

    @staticmethod
    def _autoencoder(energy: AnyEnergy) -> VariationalAutoencoder:
        if not isinstance(energy, VariationalAutoencoder):
            raise TypeError(f"EvidenceBound trains a VariationalAutoencoder, got {type(energy).__name__}")
        return energy
