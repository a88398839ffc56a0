"""The energy loss: push the energy of the right answer down, and nothing up."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.inference.answers import energy_of, spread
from thalweg.objectives.base import AnyEnergy, Batch, Objective, as_conditional


class EnergyLoss(Objective):
    """E(x_i, y_i) alone; it suits only energies that can't be low everywhere, such as a squared error.

    Others collapse: all answers get the same energy, which the history of the training then says.

    Source: [LeCun 2006, sec. 2.2.1].
    """

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given = as_conditional(self, energy).given(batch.x)
        apart = spread(given)
        self.metrics = {} if apart is None else {"energy spread": float(apart.mean())}
        return energy_of(given, batch.y)
