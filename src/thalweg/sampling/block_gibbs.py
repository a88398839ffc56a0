"""Block Gibbs: layers that are independent within are drawn whole, one kind after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from thalweg.energies.base import Energy
from thalweg.sampling.chain import State


@dataclass(frozen=True)
class BlockGibbs:
    """One sweep over all layers of a machine in layers; exp(-E) is stationary and nothing is ever refused.

    The energy brings the sweep (:meth:`RBMEnergy.sweep`, :meth:`DBMEnergy.sweep`); positions are its own.

    Source: [Hinton 2002, sec. 6].
    """

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        sweep: Any = getattr(energy, "sweep", None)
        if sweep is None:
            raise TypeError(
                f"{type(energy).__name__} is no machine in layers: draw its units one by one with SingleSiteGibbs"
            )
        return State(sweep(state.position, generator), state.acceptance)
