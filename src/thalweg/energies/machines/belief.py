"""Deep belief networks: a restricted Boltzmann machine on top, layers of directed units below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.energies.densities.basic import Density
from thalweg.energies.discrete import binary_states
from thalweg.energies.machines.layered import RBMEnergy
from thalweg.energies.machines.units import Binary, Units
from thalweg.energies.products import multiply

_MOST_UNITS = 18
_CHUNK = 1 << 24


class DirectedLayer(nn.Module):
    """p(x|h) of a layer of units x given binary units h above it, and a distribution q(h|x) for the way up.

    Args:
        unit: the units of x.
        weight: ``[width of x, width of h]``.
        bias: of x ``[width of x]``.
        up_bias: of h on the way up ``[width of h]``; the weights of that way are the same until :meth:`untie`.
    """

    def __init__(self, unit: Units, weight: Tensor, bias: Tensor, up_bias: Tensor):
        super().__init__()
        self.unit = unit
        self.weight, self.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        self.up_bias = nn.Parameter(up_bias.detach().clone())
        self.own_up_weight: nn.Parameter | None = None

    @property
    def up_weight(self) -> Tensor:
        return self.weight if self.own_up_weight is None else self.own_up_weight

    def untie(self) -> None:
        """Give the way up weights of its own."""
        if self.own_up_weight is None:
            self.own_up_weight = nn.Parameter(self.weight.detach().clone())

    def field(self, above: Tensor) -> Tensor:
        """Total input of each unit of x given h, ``[*batch, width of x]``."""
        return multiply(above, self.weight.t()) + self.bias

    def log_prob(self, below: Tensor, above: Tensor) -> Tensor:
        """log p(x|h) ``[*batch]``."""
        field = self.field(above)
        return (self.unit.feature(below) * field).sum(-1) - self.unit.base(below) - self.unit.log_partition(field)

    def up(self, below: Tensor) -> Tensor:
        """What q(h|x) depends on, ``[*batch, width of h]``."""
        return multiply(self.unit.feature(below), self.up_weight) + self.up_bias


class DeepBeliefNetwork(Density):
    """p(v) = sum over h of p(v|h_1) p(h_1|h_2) ... p(h_(L-1)), the last one a restricted machine's.

    Draws run the chain of the machine on top and go down once. Beside the layers there is a distribution q for the
    way up, q(h|v) = q(h_1|v) q(h_2|h_1) ..., from which come bounds of log p(v). Estimates of log p hold "plus log
    Z", log Z being that of the machine on top, unless it is said to be normalised.

    Args:
        visible: the visible units, or how many binary ones.
        hidden: numbers of hidden units, from below.

    Attributes:
        lower: the directed layers, from below.
        top: the machine on top; its visible layer is the last but one.
        n_sweeps: sweeps of the chain for each draw.

    Source: [Hinton 2006].
    """

    def __init__(self, visible: Units | int, hidden: Sequence[int], n_sweeps: int = 1000):
        super().__init__()
        if not hidden:
            raise ValueError("a deep belief network needs at least one hidden layer")
        self.lower: Any = nn.ModuleList()
        self.top = RBMEnergy(visible, hidden[0])
        self.support = self.top.support
        self.n_sweeps = n_sweeps
        for n in hidden[1:]:
            self.grow(n)

    @property
    def visible(self) -> Units:
        return self.lower[0].unit if len(self.lower) else self.top.visible

    @property
    def hidden(self) -> list[int]:
        """Numbers of hidden units, from below."""
        return [*(len(layer.up_bias) for layer in self.lower), self.top.units[1].width]

    def grow(self, n_hidden: int) -> None:
        """Turn the machine on top into a directed layer and put a new one upon it.

        Its weights are those of the old one, turned round, where the units are binary and enough: then p(v) is
        what it was if there are as many as there were visible ones.

        Source: [Hinton 2006, sec. 4].
        """
        old = self.top
        weight, (bias, up_bias) = old.weights[0].detach(), old.biases
        self.lower.append(DirectedLayer(old.visible, weight, bias, up_bias))
        new = RBMEnergy(len(up_bias), n_hidden).to(weight)
        n = len(weight)
        with torch.no_grad():
            new.biases[0].copy_(up_bias)
            if isinstance(old.visible, Binary) and n_hidden >= n:
                new.weights[0][:, :n] = weight.t()
                new.biases[1][:n] = bias
        self.top = new

    def untie(self) -> None:
        """Give the way up weights of its own in every layer, as fine-tuning needs."""
        for layer in self.lower:
            layer.untie()

    # -- up and down ---------------------------------------------------------------------------------

    def means_up(self, v: Tensor) -> list[Tensor]:
        """Means of all hidden layers, each given those of the layer below, the first of ``[*batch, width]``."""
        means = []
        with torch.no_grad():
            for layer in self.lower:
                v = torch.sigmoid(layer.up(v))
                means.append(v)
            return [*means, torch.sigmoid(self.top.field([v, None], 1))]

    def draw_up(
        self, v: Tensor, generator: torch.Generator | None = None, common: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """v and draws of q of all hidden layers but the last, and log q of these ``[*batch]``.

        Args:
            common: the same noise for all rows, so that what a row gets does not depend on those beside it.
        """
        states, log_q = [v], v.new_zeros(v.shape[:-1])
        with torch.no_grad():
            for layer in self.lower:
                field = layer.up(states[-1])
                shape = field.shape[-1:] if common else field.shape
                uniform = torch.rand(shape, generator=generator, device=field.device, dtype=field.dtype)
                drawn = (uniform < torch.sigmoid(field)).to(field.dtype)
                log_q = log_q + (drawn * field).sum(-1) - nn.functional.softplus(field).sum(-1)
                states.append(drawn)
        return states, log_q

    def draw_down(self, x: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Draws of all layers below x, a state of the top machine's visible layer; v first, x last."""
        states = [x]
        with torch.no_grad():
            for layer in reversed(self.lower):
                states.append(layer.unit.sample(layer.field(states[-1]), generator))
        return states[::-1]

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of v, each by a chain of its own of ``n_sweeps``, which starts at the biases alone."""
        with torch.no_grad():
            x = self.top.visible.sample(self.top.biases[0].expand(n, -1).clone(), generator)
            for _ in range(self.n_sweeps):
                x = self.top.sweep(x, generator)
        return self.draw_down(x, generator)[0]

    # -- log p ---------------------------------------------------------------------------------------

    def log_prob(self, v: Tensor) -> Tensor:
        """log p(v), exact and normalised, ``[*batch]``.

        Raises:
            ValueError: if there are too many units to enumerate.
        """
        return self.log_marginal(v) - self.top.log_normaliser()

    def log_marginal(self, v: Tensor) -> Tensor:
        """log p(v) + log Z, exact, ``[*batch]``.

        Raises:
            ValueError: if a hidden layer but the last has too many units to enumerate.
        """
        widest = max([0, *(len(layer.up_bias) for layer in self.lower)])
        if widest > _MOST_UNITS:
            raise ValueError(f"enumeration takes at most {_MOST_UNITS} units in a layer, got {widest}")
        with torch.no_grad():
            return self._log_marginal(v.reshape(-1, v.shape[-1]), 0).reshape(v.shape[:-1])

    def _log_marginal(self, x: Tensor, number: int) -> Tensor:
        """Of states ``[N, width]`` of layer ``number``."""
        if number == len(self.lower):
            return -self.top(x)
        layer = self.lower[number]
        (states,) = binary_states(len(layer.up_bias), x, 1 << _MOST_UNITS)
        field = layer.field(states)
        log_weight = self._log_marginal(states, number + 1) - layer.unit.log_partition(field)
        totals = [
            torch.logsumexp(layer.unit.feature(rows) @ field.t() + log_weight, 1) - layer.unit.base(rows)
            for rows in x.split(max(1, _CHUNK // len(states)))
        ]
        return torch.cat(totals)

    def log_weights(self, v: Tensor, generator: torch.Generator | None = None, common: bool = False) -> Tensor:
        """log of p(v, h) Z / q(h|v) for one draw of h from q, ``[*batch]``."""
        states, log_q = self.draw_up(v, generator, common)
        with torch.no_grad():
            total = -self.top(states[-1]) - log_q
            for layer, below, above in zip(self.lower, states, states[1:], strict=False):
                total = total + layer.log_prob(below, above)
        return total

    def evidence_bound(self, v: Tensor, n_samples: int = 100, generator: torch.Generator | None = None) -> Tensor:
        """A lower bound of log p(v) + log Z by draws of q, ``[*batch]``.

        Source: [Hinton 2006, eq. 5].
        """
        return sum(self.log_weights(v, generator) for _ in range(n_samples)) / n_samples  # type: ignore[return-value]

    def importance_bound(
        self, v: Tensor, n_samples: int = 100, generator: torch.Generator | None = None, common: bool = False
    ) -> Tensor:
        """A tighter one, low in expectation: the log of the mean of the weights, ``[*batch]``.

        Source: [Burda 2016, eq. 8].
        """
        log_weights = torch.stack([self.log_weights(v, generator, common) for _ in range(n_samples)])
        return torch.logsumexp(log_weights, 0) - math.log(n_samples)

    def classifier(self, n_classes: int) -> nn.Sequential:
        """A network of sigmoid layers with the weights of the way up, and a linear layer of 0 upon it.

        Maps features of v ``[B, width]`` to scores ``[B, n_classes]``.
        """
        fields = [(layer.up_weight, layer.up_bias) for layer in self.lower]
        fields.append((self.top.weights[0], self.top.biases[1]))
        parts: list[nn.Module] = []
        for weight, bias in fields:
            linear = nn.Linear(*weight.shape)
            with torch.no_grad():
                linear.weight.copy_(weight.t())
                linear.bias.copy_(bias)
            parts += [linear, nn.Sigmoid()]
        out = nn.Linear(self.hidden[-1], n_classes)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        return nn.Sequential(*parts, out)
