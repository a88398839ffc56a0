"""An energy with some coordinates held fixed: what is left is the energy of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.base import Energy, event_sum


class ClampedEnergy(Energy):
    """E at x with the known coordinates put back in, plus |x|^2 / 2 on these, which a kernel is free to move.

    Sampled by any kernel, the unknown coordinates follow exp(-E) given the known ones; the others follow a
    standard normal of their own and mean nothing. ``complete`` puts the known values back.

    Args:
        energy: over ``[*batch, *event]``.
        known: values ``[*batch, *event]``; those not known may be anything finite.
        mask: True where known, broadcasting against ``known``.
    """

    def __init__(self, energy: Energy, known: Tensor, mask: Tensor):
        super().__init__()
        object.__setattr__(self, "energy", energy)
        self.known, self.mask = known, mask.expand_as(known)
        self.event_ndim, self.support = energy.event_ndim, energy.support

    energy: Energy

    def fixed(self) -> ClampedEnergy:
        return ClampedEnergy(self.energy.fixed(), self.known, self.mask)

    def complete(self, x: Tensor) -> Tensor:
        """x with the known values in their places, bit for bit."""
        return torch.where(self.mask, self.known, x)

    def forward(self, x: Tensor) -> Tensor:
        free = torch.where(self.mask, x, 0.0)
        return self.energy(self.complete(x)) + 0.5 * event_sum(free.square(), self.event_ndim)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach()
        value, grad = self.energy.value_and_gradient(self.complete(x))
        free = torch.where(self.mask, x, 0.0)
        return value + 0.5 * event_sum(free.square(), self.event_ndim), torch.where(self.mask, x, grad)
