"""The one contract: an energy, an energy conditioned on an input, and the check at the door."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

Features = Tensor | tuple[Tensor, ...]


class Energy(nn.Module):
    """A function E(x) that is low where x is likely: p(x) = exp(-E(x)) / Z.

    A subclass writes ``forward``, which maps ``[*batch, *event]`` to ``[*batch]`` for any batch
    dimensions. A subclass that knows its gradient in closed form overrides ``value_and_gradient``.

    Energies combine into energies: ``a + b`` (product of experts), ``2.0 * a`` and ``a / temperature``,
    ``a - 0.5 * b`` (negation), ``a | b`` (mixture of the unnormalised densities).

    Attributes:
        support: where the density lives, a ``torch.distributions`` constraint.
        event_ndim: how many trailing dimensions make one configuration (1 a vector, 3 an image).
    """

    support: constraints.Constraint = constraints.real_vector
    event_ndim: int = 1

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energy ``[*batch]`` and its gradient with respect to x ``[*batch, *event]``, both detached.

        No gradient reaches the parameters.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            energy = self(x)
            (grad,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), grad

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient alone, detached: all that an uncorrected step needs (:meth:`score` has a graph)."""
        return self.value_and_gradient(x)[1]

    def fixed(self) -> Energy:
        """The same energy with the weights as they are now, for the many evaluations of a chain.

        Only values and detached gradients are asked of it. A subclass that can put its weights into a better
        shape for that overrides it.
        """
        return self

    def score(self, x: Tensor) -> Tensor:
        """The score, -grad E = grad log p ``[*batch, *event]``, with a graph: it can be differentiated again."""
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_(True)
            return torch.autograd.grad(-self(x).sum(), x, create_graph=True)[0]

    def score_and_curvature(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The score s ``[*batch, *event]`` and v'(grad s)v ``[*batch, P]`` for P directions at x, with a graph.

        One product with the Hessian of log p for each direction, over one graph of the score. (Batching them by
        ``torch.func`` ran slower for every network tried, and forward mode slower still.)

        Args:
            v: directions, of a shape that broadcasts to ``[*batch, P, *event]``.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            score = self.score(x)
            curvatures = []
            for direction in v.unbind(-1 - self.event_ndim):
                product = _derivative(event_sum(score * direction, self.event_ndim), x)
                curvatures.append(event_sum(product * direction, self.event_ndim))
        return score, torch.stack(curvatures, -1)

    def score_and_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The score s ``[*batch, *event]`` and its divergence tr grad s ``[*batch]``, exact, with a graph."""
        event = x.shape[x.dim() - self.event_ndim :]
        n = math.prod(event)
        axes = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, *event)
        score, curvatures = self.score_and_curvature(x, axes)
        return score, curvatures.sum(-1)

    def differences(self, x: Tensor, sites: Tensor) -> Tensor | None:
        """E(x') - E(x) for changes of single sites of a discrete x, where they are known in closed form.

        Args:
            x: ``[*batch, *event]``, of K values a site (see :class:`thalweg.energies.discrete.Sites`).
            sites: ``[n]``, or ``[*batch, n]`` where each configuration has its own.

        Returns:
            ``[*batch, n, K - 1]`` with a graph, or None where each x' must be evaluated.
        """
        return None

    def __add__(self, other: Energy) -> Energy:
        from thalweg.energies.composition import WeightedSum

        return WeightedSum([self, other], [1.0, 1.0])

    def __sub__(self, other: Energy) -> Energy:
        from thalweg.energies.composition import WeightedSum

        return WeightedSum([self, other], [1.0, -1.0])

    def __mul__(self, weight: float) -> Energy:
        from thalweg.energies.composition import WeightedSum

        return WeightedSum([self], [weight])

    __rmul__ = __mul__

    def __truediv__(self, temperature: float) -> Energy:
        check_temperature(temperature)
        return self * (1.0 / temperature)

    def __or__(self, other: Energy) -> Energy:
        from thalweg.energies.composition import Disjunction

        return Disjunction([self, other])


class ConditionalEnergy(nn.Module):
    """A function E(x, y) that is low where y is likely given x: p(y|x) = exp(-E(x, y)) / Z(x).

    A subclass writes ``features``, the part that depends on x alone, and ``head``. ``given(x)`` computes
    the features once and returns an ordinary :class:`Energy` of y, so that samplers and objectives are
    written once for both kinds.

    Shapes: x is ``[B, *x_event]``; y is ``[B, *candidates, K]``, that is, any number of candidate
    dimensions may stand between the row and the event; the energy is ``[B, *candidates]``.
    """

    support: constraints.Constraint = constraints.real_vector
    event_ndim: int = 1

    def features(self, x: Tensor) -> Features:
        """What the head needs of x: a tensor, or a tuple of tensors, each ``[B, ...]``."""
        return x

    def head(self, features: Features, y: Tensor) -> Tensor:
        """Energy ``[B, *candidates]`` of y ``[B, *candidates, K]`` given the features of x."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.features(x), y)

    def given(self, x: Tensor) -> Conditioned:
        """The energy of y for these x, with the features of x computed once."""
        return Conditioned(self, self.features(x))

    def value_and_gradient(self, features: Features, y: Tensor) -> tuple[Tensor, Tensor]:
        """Energy ``[B, *candidates]`` and its gradient with respect to y, both detached, given the features."""
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            energy = self.head(features, y)
            (grad,) = torch.autograd.grad(energy.sum(), y)
        return energy.detach(), grad

    def fixed(self, features: Features) -> Energy:
        """The energy given these features, with the weights as they are now (see :meth:`Energy.fixed`)."""
        return Conditioned(self, features)

    def landmarks(self, features: Features) -> tuple[Tensor, Tensor] | None:
        """Where y may be concentrated: locations and scales, each ``[B, n]``, or None if unknown.

        Quadrature looks more closely there. Only used for one-dimensional y.
        """
        return None


class Conditioned(Energy):
    """The energy of y at fixed inputs, made by :meth:`ConditionalEnergy.given`."""

    def __init__(self, parent: ConditionalEnergy, features: Features):
        super().__init__()
        # Not registered as a submodule: this is a view of the parent, not a second owner.
        object.__setattr__(self, "parent", parent)
        self.features = features
        self.support = parent.support
        self.event_ndim = parent.event_ndim

    parent: ConditionalEnergy

    def forward(self, y: Tensor) -> Tensor:
        return self.parent.head(self.features, y)

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.parent.value_and_gradient(self.features, y)

    def fixed(self) -> Energy:
        return self.parent.fixed(self.features)

    @property
    def n_rows(self) -> int:
        first = self.features if isinstance(self.features, Tensor) else self.features[0]
        return first.shape[0]

    def rows(self, index: Tensor | slice) -> Conditioned:
        """The same energy for a selection of the inputs, without computing features anew."""
        return type(self)(self.parent, map_features(self.features, lambda f: f[index]))

    def detach(self) -> Conditioned:
        return type(self)(self.parent, map_features(self.features, lambda f: f.detach()))

    def landmarks(self) -> tuple[Tensor, Tensor] | None:
        return self.parent.landmarks(self.features)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive."""
    if not temperature > 0:
        raise ValueError(f"a temperature must be positive, got {temperature}")


def soft_minimum(energies: Tensor, temperature: float) -> Tensor:
    """The free energy -T log sum exp(-E / T) over the last dimension; as T falls to 0, the lowest."""
    return -temperature * torch.logsumexp(energies / -temperature, -1)


def standard_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Independent N(0, 1) numbers with the type and on the device of ``like``."""
    return torch.randn(tuple(shape), generator=generator, device=like.device, dtype=like.dtype)


def event_sum(t: Tensor, event_ndim: int) -> Tensor:
    """Sum over the event dimensions: ``[*batch, *event]`` -> ``[*batch]``."""
    return t.flatten(-event_ndim).sum(-1) if event_ndim > 1 else t.sum(-1) if event_ndim else t


def _derivative(t: Tensor, x: Tensor) -> Tensor:
    """The gradient of the sum of a gradient's entries, with a graph; zero where the energy is linear in x."""
    if not t.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(t.sum(), x, create_graph=True, materialize_grads=True)[0]


def map_features(features: Features, function: Callable[[Tensor], Tensor]) -> Features:
    if isinstance(features, Tensor):
        return function(features)
    return tuple(function(f) for f in features)


def align(features: Tensor, y: Tensor, event_ndim: int = 1) -> Tensor:
    """Insert the candidate dimensions of y into features ``[B, F]`` -> ``[B, 1, ..., 1, F]``."""
    n_candidate_dims = y.dim() - event_ndim - 1
    return features.reshape(features.shape[0], *([1] * n_candidate_dims), *features.shape[1:])


def check_energy(energy: Energy, x: Tensor) -> Tensor:
    """Evaluate an energy once and refuse, in words, what does not keep the contract.

    Raises:
        ValueError: if the energy's shape is not the batch shape of x, or a value is not finite.
    """
    batch = x.shape[: x.dim() - energy.event_ndim]
    with torch.no_grad():
        value: Any = energy(x)
    name = type(energy.parent if isinstance(energy, Conditioned) else energy).__name__
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must return a tensor of energies, got {type(value).__name__}")
    if value.shape != batch:
        hint = ""
        if value.shape == (*batch, 1):
            hint = "; drop the trailing dimension of 1, for instance with .squeeze(-1)"
        raise ValueError(
            f"{name} must return one energy for each configuration: for input of shape {tuple(x.shape)} with "
            f"event_ndim={energy.event_ndim} that is shape {tuple(batch)}, got {tuple(value.shape)}{hint}"
        )
    if not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name} returned {bad} energies of {value.numel()} that are not finite")
    return value
