"""What every objective is: a module that turns an energy and a batch into a loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy


class Batch(NamedTuple):
    """A batch of rows.

    x is ``[B, *x_event]``, y is ``[B, K]``. The weight is ``[B]`` (or ``[B, n_members]`` for an ensemble
    whose members see different rows); over the training set it averages to 1.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Batch:
        return Batch(self.x[index], self.y[index], None if self.weight is None else self.weight[index])

    def to(self, device: torch.device) -> Batch:
        return Batch(*(None if t is None else t.to(device) for t in self))  # type: ignore[arg-type]


class Loss(NamedTuple):
    """The value to minimise, and figures for the log."""

    value: Tensor
    metrics: dict[str, float]


class ConditionalObjective(nn.Module):
    """A loss for a conditional energy, as a mean over rows of ``per_row``.

    What an objective owns (a noise distribution, a proposal) is a submodule: its parameters train beside
    the energy's and are part of every checkpoint.
    """

    def per_row(self, energy: ConditionalEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        """Loss of each row ``[B]``, or ``[B, n_members]`` for an ensemble."""
        raise NotImplementedError

    def forward(self, energy: ConditionalEnergy, batch: Batch, generator: torch.Generator | None = None) -> Loss:
        loss = self.per_row(energy, batch, generator)
        if batch.weight is not None:
            weight = batch.weight
            loss = loss * weight.reshape(*weight.shape, *([1] * (loss.dim() - weight.dim())))
        # Members of an ensemble share no weights: their losses add, and none disturbs another's step.
        return Loss(loss.mean(0).sum(), {})
