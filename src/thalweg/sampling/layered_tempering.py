"""Machines in layers at inverse temperatures between 0 and 1, and chains at all of them that swap places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.energies.machines.layered import LayeredMachine
from thalweg.sampling.tempering import exchanged


class TemperedMachine:
    """The machines between one without weights (b = 0) and a machine itself (b = 1).

    At b the weights and hidden biases count b-fold and the visible bias is (1 - b) base_bias + b bias. An inverse
    temperature ``beta`` is a tensor that broadcasts to the rows' ``[*batch, 1]``. The layers of odd number are
    kept, those of even number summed out or drawn in between.

    Args:
        base_bias: visible bias at b = 0, best that of the data's means; None is the machine's own.
    """

    def __init__(self, machine: LayeredMachine, base_bias: Tensor | None = None):
        self.machine = machine
        self.base_bias = machine.biases[0] if base_bias is None else base_bias

    def bias(self, number: int, beta: Tensor) -> Tensor:
        bias = beta * self.machine.biases[number]
        return bias + (1 - beta) * self.base_bias if number == 0 else bias

    def base_log_normaliser(self) -> Tensor:
        beta = self.base_bias.new_zeros(())
        parts = [unit.log_partition(self.bias(number, beta)) for number, unit in enumerate(self.machine.units)]
        return torch.stack(parts).sum()

    def start(self, n: int, generator: torch.Generator | None) -> list[Tensor | None]:
        """Odd layers ``[n, width]`` drawn at b = 0."""
        layers: list[Tensor | None] = [None] * self.machine.n_layers
        for number in self.machine.parity(1):
            field = self.bias(number, self.base_bias.new_zeros(())).expand(n, -1)
            layers[number] = self.machine.units[number].sample(field, generator)
        return layers

    def inputs(self, kept: Sequence[Tensor | None]) -> list[Tensor]:
        """What the even layers get from the odd ones."""
        return [self.machine.input(kept, number) for number in self.machine.parity(0)]

    def energy(self, kept: Sequence[Tensor | None], inputs: list[Tensor], beta: Tensor) -> Tensor:
        """log p of the odd layers, the even ones summed out, ``[*batch]``."""
        machine = self.machine
        energy = torch.zeros_like(inputs[0][..., 0])
        for number in machine.parity(1):
            x = kept[number]
            assert x is not None
            energy = energy - (x @ machine.biases[number]) * beta.squeeze(-1)
        for number, given in zip(machine.parity(0), inputs, strict=True):
            energy = energy - machine.units[number].log_partition(self._field(number, given, beta))
        return energy

    def even_given(
        self, inputs: list[Tensor], beta: Tensor, generator: torch.Generator | None
    ) -> list[Tensor | None]:
        """The even layers, drawn given what they get from the odd ones."""
        layers: list[Tensor | None] = [None] * self.machine.n_layers
        for number, given in zip(self.machine.parity(0), inputs, strict=True):
            layers[number] = self.machine.units[number].sample(self._field(number, given, beta), generator)
        return layers

    def odd_given(
        self, even: Sequence[Tensor | None], beta: Tensor, generator: torch.Generator | None
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """The odd layers drawn given the even ones, and their total inputs."""
        layers: list[Tensor | None] = [None] * self.machine.n_layers
        fields = list(layers)
        for number in self.machine.parity(1):
            field = self._field(number, self.machine.input(even, number), beta)
            layers[number], fields[number] = self.machine.units[number].sample(field, generator), field
        return layers, fields

    def _field(self, number: int, given: Tensor, beta: Tensor) -> Tensor:
        return torch.addcmul(self.bias(number, beta), given, beta)


class TemperedChains:
    """Chains of a machine in layers at evenly spaced inverse temperatures from 1 to 0, which swap places.

    Each level is a chain of its own :class:`TemperedMachine`; at 0 all units are independent and every sweep is a
    fresh draw. A swap hands a place from level to level, so that chains at 1 leave for modes that they would not
    reach alone. All levels move in one product.

    Args:
        n_levels: two at least.
        base_bias: visible bias at 0.

    Attributes:
        swapped: share of the swaps accepted between neighbours, a running mean ``[n_levels - 1]``, 1 first.

    Source: [Desjardins 2010]; [Cho 2010].
    """

    def __init__(self, machine: LayeredMachine, n_levels: int, base_bias: Tensor | None = None):
        self.tempered = TemperedMachine(machine, base_bias)
        like = machine.biases[0]
        self.beta = torch.linspace(1, 0, n_levels, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)
        self.swapped = self.beta.new_full((n_levels - 1,), 0.5)

    @torch.no_grad()
    def sweep(
        self, layers: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Swaps, then the even layers given the odd ones, then these: exp(-E_b) is stationary at every level.

        Args:
            layers: states of all layers ``[n_levels, n, width]``, level 1 first.

        Returns:
            the new states, and of the machine itself the even layers' states and the odd layers' means
            ``[n, width]``.
        """
        path, machine = self.tempered, self.tempered.machine
        kept: list[Tensor | None] = list(layers)
        inputs = path.inputs(kept)
        for first in (0, 1):
            kept, inputs = self._swap(kept, inputs, first, generator)
        even = path.even_given(inputs, self.beta, generator)
        odd, fields = path.odd_given(even, self.beta, generator)
        states, means = [], []
        for unit, x, y, field in zip(machine.units, even, odd, fields, strict=True):
            state = y if x is None else x
            assert state is not None
            states.append(state)
            means.append(state[0] if field is None else unit.mean(field[0]))
        return states, means

    def _swap(
        self, kept: list[Tensor | None], inputs: list[Tensor], first: int, generator: torch.Generator | None
    ) -> tuple[list[Tensor | None], list[Tensor]]:
        """Offer a swap to the pairs of levels (first, first + 1), (first + 2, first + 3), ..."""
        lower = torch.arange(first, len(self.beta) - 1, 2, device=self.beta.device)
        if not len(lower):
            return kept, inputs
        other = torch.arange(len(self.beta), device=self.beta.device)
        other[lower], other[lower + 1] = lower + 1, lower
        gain = self.tempered.energy(kept, inputs, self.beta)
        gain = gain - self.tempered.energy(kept, inputs, self.beta[other])
        log_ratio = gain[lower] + gain[lower + 1]
        uniform = torch.rand(log_ratio.shape, generator=generator, device=gain.device, dtype=gain.dtype)
        swap = uniform.log() < log_ratio
        self.swapped[lower] = self.swapped[lower].lerp(swap.to(gain.dtype).mean(1), 0.01)
        moved = [None if x is None else exchanged(x, lower, swap) for x in kept]
        return moved, [exchanged(x, lower, swap) for x in inputs]
