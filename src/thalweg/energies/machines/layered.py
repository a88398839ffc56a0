"""Boltzmann machines in layers, each coupled to its neighbours alone: the restricted one and deep ones.

Given every other layer, the layers between are independent, unit by unit. So layers of even and of odd number are
drawn in turn, whole (block Gibbs); and either kind can be summed out in closed form. All gradients are differences
of means of products, so training needs no autograd (:mod:`thalweg.training.moments`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.energies.base import Energy
from thalweg.energies.discrete import binary_states
from thalweg.energies.machines.units import Binary, Units
from thalweg.energies.products import multiply, product

_MOST_UNITS = 25


class LayeredMachine(Energy):
    """E(x_0, ..., x_L) = sum_l base_l(x_l) - b_l'x_l - x_l'W_l x_(l+1): layer 0 is visible, the others are binary.

    (Of Gaussian units their feature stands for x_l in the products.) States of layers are lists of tensors
    ``[*batch, width]``, layer 0 first; a layer that is not needed may be None.

    Args:
        visible: the units of layer 0.
        hidden: numbers of hidden units, from below.
    """

    def __init__(self, visible: Units, hidden: Sequence[int]):
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(
                f"a layered machine needs at least one hidden layer, each of a unit, got {list(hidden)}"
            )
        self.units: Any = nn.ModuleList([visible, *(Binary(n) for n in hidden)])
        widths = [visible.width, *hidden]
        self.weights: Any = nn.ParameterList(0.01 * torch.randn(a, b) for a, b in itertools.pairwise(widths))
        self.biases: Any = nn.ParameterList(torch.zeros(n) for n in widths)

    @property
    def visible(self) -> Units:
        return self.units[0]

    @property
    def n_layers(self) -> int:
        """The visible one included."""
        return len(self.units)

    def joint(self, layers: Sequence[Tensor]) -> Tensor:
        """The energy of all layers' states, ``[*batch]``."""
        features = [unit.feature(x) for unit, x in zip(self.units, layers, strict=True)]
        energy = -self._biased(layers, range(self.n_layers))
        for below, weight, above in zip(features, self.weights, features[1:], strict=False):
            energy = energy - ((below @ weight) * above).sum(-1)
        return energy

    def input(self, layers: Sequence[Tensor | None], number: int) -> Tensor:
        """What a layer gets from its neighbours, without its bias, ``[*batch, width]``."""
        total: Tensor | None = None
        if number > 0:
            below = layers[number - 1]
            assert below is not None
            total = multiply(self.units[number - 1].feature(below), self.weights[number - 1])
        if number + 1 < self.n_layers:
            above = layers[number + 1]
            assert above is not None
            upper = multiply(above, self.weights[number].t())
            total = upper if total is None else total + upper
        assert total is not None
        return total

    def field(self, layers: Sequence[Tensor | None], number: int) -> Tensor:
        """Total input: the neighbours' contributions plus the bias."""
        return self.input(layers, number) + self.biases[number]

    def parity(self, odd: int) -> range:
        """The numbers of the odd (1) or even (0) layers."""
        return range(odd, self.n_layers, 2)

    @torch.no_grad()
    def resample(
        self, layers: Sequence[Tensor | None], odd: int, generator: torch.Generator | None = None
    ) -> list[Tensor | None]:
        """The states with the odd (1) or even (0) layers drawn anew, given the others."""
        drawn = list(layers)
        for number in self.parity(odd):
            drawn[number] = self.units[number].sample(self.field(layers, number), generator)
        return drawn

    def summed_out(self, layers: Sequence[Tensor | None], odd: int) -> Tensor:
        """-log of the sum over all states of the odd (1) or even (0) layers of exp(-E), ``[*batch]``."""
        energy = -self._biased(layers, self.parity(1 - odd))
        for number in self.parity(odd):
            energy = energy - self.units[number].log_partition(self.field(layers, number))
        return energy

    def _biased(self, layers: Sequence[Tensor | None], numbers: range) -> Tensor:
        """Sum over these layers of b'feature - base."""
        total: Any = 0.0
        for number in numbers:
            x, unit = layers[number], self.units[number]
            assert x is not None
            total = total + unit.feature(x) @ self.biases[number] - unit.base(x)
        return total

    def _check_width(self, x: Tensor, width: int) -> None:
        if x.shape[-1:] != (width,):
            raise ValueError(f"{type(self).__name__} takes [*batch, {width}], got {tuple(x.shape)}")

    @property
    def n_enumerated(self) -> float:
        """Binary units of that kind of layers which has fewer: exact log Z sums over 2^that states."""
        return min(self._n_enumerated(odd) for odd in (0, 1))

    def log_normaliser(self) -> Tensor:
        """log Z, exact: one kind of layers is enumerated and the other summed out.

        Raises:
            ValueError: if both kinds have too many units.
        """
        odd = min((0, 1), key=self._n_enumerated)
        n = self._n_enumerated(odd)
        if n > _MOST_UNITS:
            raise ValueError(
                f"log Z by enumeration takes at most {_MOST_UNITS} binary units on one side, this machine has "
                f"{n:g}: estimate it by annealing"
            )
        with torch.no_grad():
            parts = [
                torch.logsumexp(-self.summed_out(self.placed(states, odd), 1 - odd), 0)
                for states in binary_states(int(n), self.biases[0])
            ]
        return torch.logsumexp(torch.stack(parts), 0)

    def _n_enumerated(self, odd: int) -> float:
        units = [self.units[number] for number in self.parity(odd)]
        return sum(unit.width if isinstance(unit, Binary) else float("inf") for unit in units)

    def placed(self, states: Tensor, odd: int) -> list[Tensor | None]:
        """The layers of one parity, cut from ``[*batch, n]``."""
        layers: list[Tensor | None] = [None] * self.n_layers
        numbers = self.parity(odd)
        parts = states.split([self.units[number].width for number in numbers], -1)
        for number, part in zip(numbers, parts, strict=True):
            layers[number] = part
        return layers


class RBMEnergy(LayeredMachine):
    """A restricted Boltzmann machine, its hidden units summed out: F(v) = base(v) - b'v - sum softplus(c + v'W).

    Args:
        visible: the visible units, or how many binary ones.
        n_hidden: binary hidden units.

    Source: [Smolensky 1986]; [Hinton 2002].
    """

    def __init__(self, visible: Units | int, n_hidden: int):
        super().__init__(Binary(visible) if isinstance(visible, int) else visible, [n_hidden])
        self.support = self.visible.support

    def forward(self, v: Tensor) -> Tensor:
        self._check_width(v, self.visible.width)
        return self.summed_out([v, None], 1)

    def value_and_gradient(self, v: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            hidden = self.field([v, None], 1)
            back = torch.sigmoid(hidden) @ self.weights[0].t() + self.biases[0]
            energy = -self._biased([v], range(1)) - self.units[1].log_partition(hidden)
            return energy, self.visible.slope(v, back)

    def sweep(self, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """All hidden units given v, then all visible ones given these."""
        with torch.no_grad():
            return self.resample(self.resample([v, None], 1, generator), 0, generator)[0]  # type: ignore[return-value]


class DBMEnergy(LayeredMachine):
    """A deep Boltzmann machine: the energy of all its layers, joined in one vector.

    Args:
        visible: the visible units, or how many binary ones.
        hidden: numbers of hidden units, from below; two layers at least.

    Source: [Salakhutdinov 2009, eq. 8].
    """

    def __init__(self, visible: Units | int, hidden: Sequence[int]):
        super().__init__(Binary(visible) if isinstance(visible, int) else visible, hidden)
        self.support = self.visible.support

    def split(self, x: Tensor) -> list[Tensor]:
        """``[*batch, sum of widths]`` -> the layers."""
        widths = [unit.width for unit in self.units]
        self._check_width(x, sum(widths))
        return list(x.split(widths, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.joint(self.split(x))

    def sweep(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The odd layers given the even ones, then the other way round."""
        with torch.no_grad():
            layers = self.resample(self.resample(self.split(x), 1, generator), 0, generator)
            return torch.cat(layers, -1)  # type: ignore[arg-type]

    def mean_field(self, v: Tensor, n_steps: int = 30, tolerance: float = 1e-4) -> list[Tensor]:
        """The means of the factorised distribution of the hidden layers nearest to p(h|v), v first.

        It starts by a pass upward with doubled weights, for what will come from above is not there yet.

        Args:
            v: ``[*batch, width]``.
            tolerance: stop when no mean moves further.

        Source: [Salakhutdinov 2009, sec. 3.1].
        """
        with torch.no_grad():
            last = self.n_layers - 1
            layers: list[Any] = [v]
            # What the visible layer sends up stays as it is.
            up = sent = product(self.visible.feature(v), self.weights[0])
            for number in range(1, self.n_layers):
                if number > 1:
                    up = product(layers[-1], self.weights[number - 1])
                layers.append(torch.sigmoid((up if number == last else 2 * up) + self.biases[number]))
            for _ in range(n_steps):
                moved = 0.0
                for odd in (1, 0):
                    for number in self.parity(odd):
                        if number:
                            if number == 1:
                                field = sent + product(layers[2], self.weights[1].t()) + self.biases[1]
                            else:
                                field = self.field(layers, number)
                            mean = torch.sigmoid(field)
                            moved = max(moved, float((mean - layers[number]).abs().max()))
                            layers[number] = mean
                if moved < tolerance:
                    break
        return layers

    def evidence_bound(self, v: Tensor, n_steps: int = 30, tolerance: float = 1e-4) -> Tensor:
        """A lower bound of log p(v) + log Z, ``[*batch]``: mean energy and entropy under the mean field.

        Source: [Salakhutdinov 2009, eq. 13].
        """
        with torch.no_grad():
            layers = self.mean_field(v, n_steps, tolerance)
            entropy: Any = 0.0
            for mean in layers[1:]:
                entropy = entropy - (torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean)).sum(-1)
            return entropy - self.joint(layers)

    def importance_bound(
        self, v: Tensor, n_samples: int = 100, generator: torch.Generator | None = None
    ) -> Tensor:
        """A tighter one, low in expectation: the log of the mean of importance weights, ``[*batch]``.

        The smaller kind of hidden layers is drawn from the mean field, the other is summed out.

        Source: [Burda 2016, eq. 8].
        """
        kept, numbers = self._smaller_kind()
        means = self.mean_field(v)
        layers: list[Tensor | None] = [v, *[None] * (self.n_layers - 1)]
        log_weights = []
        with torch.no_grad():
            for _ in range(n_samples):
                log_q: Any = 0.0
                for number in numbers:
                    mean = means[number]
                    uniform = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
                    drawn = uniform < mean
                    layers[number] = drawn.to(mean.dtype)
                    log_q = log_q + torch.where(drawn, mean, 1 - mean).log().sum(-1)
                log_weights.append(-self._given_visible(layers, kept) - log_q)
        return torch.logsumexp(torch.stack(log_weights), 0) - math.log(n_samples)

    def log_marginal(self, v: Tensor) -> Tensor:
        """log p(v) + log Z, exact, ``[N]`` for v ``[N, width]``: the smaller kind of hidden layers is enumerated.

        Raises:
            ValueError: if there are too many hidden units of both kinds.
        """
        kept, numbers = self._smaller_kind()
        n = sum(self.units[number].width for number in numbers)
        if n > _MOST_UNITS:
            raise ValueError(f"enumeration takes at most {_MOST_UNITS} hidden units, got {n}")
        with torch.no_grad():
            total: Tensor | None = None
            for states in binary_states(n, v, max(1, (1 << 14) // max(1, len(v)))):
                layers: list[Tensor | None] = [None] * self.n_layers
                layers[0] = v.unsqueeze(1)
                parts = states.split([self.units[number].width for number in numbers], -1)
                for number, part in zip(numbers, parts, strict=True):
                    layers[number] = part
                energy = self._given_visible(layers, kept)
                part_total = torch.logsumexp(-energy, 1)
                total = part_total if total is None else torch.logaddexp(total, part_total)
        assert total is not None
        return total

    def _smaller_kind(self) -> tuple[int, list[int]]:
        """Whether the odd (1) or the even (0) hidden layers have fewer units, and their numbers."""
        kinds = [[number for number in self.parity(odd) if number] for odd in (0, 1)]
        sizes = [sum(self.units[number].width for number in numbers) for numbers in kinds]
        kept = 0 if sizes[0] <= sizes[1] else 1
        return kept, kinds[kept]

    def _given_visible(self, layers: list[Tensor | None], kept: int) -> Tensor:
        """The energy of v and the kept hidden layers, the other hidden layers summed out."""
        energy = -self._biased(layers, range(1))
        for number in range(1, self.n_layers):
            if number % 2 == kept:
                energy = energy - self._biased(layers, range(number, number + 1))
        if kept:
            # The kept layers are neighbours of the visible one, which is known: their coupling counts as it is.
            assert layers[0] is not None
            assert layers[1] is not None
            energy = energy - ((self.visible.feature(layers[0]) @ self.weights[0]) * layers[1]).sum(-1)
        for number in range(1, self.n_layers):
            if number % 2 != kept:
                energy = energy - self.units[number].log_partition(self.field(layers, number))
        return energy
