"""Multilayer perceptrons as energies of vectors and small images, with the derivatives in x written out.

Autograd pays for each of a chain's steps with a graph that is thrown away, and for score matching with
graphs of graphs. The derivatives of a perceptron are a few products, so they are written here as such:
sampling needs no graph at all, and score matching only an ordinary one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import ConditionalEnergy, Energy, Features


class Activation(NamedTuple):
    """A smooth function, its first and second derivatives, and how a gradient passes it without a graph."""

    value: Callable[[Tensor], Tensor]
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]  # (gradient, input, value)


def _silu(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sigmoid(h)
    value = h * s
    slope = s + value * (1 - s)
    return value, slope, s * (1 - s) * (2 + h - 2 * value)


def _softplus(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sigmoid(h)
    return F.softplus(h), s, s * (1 - s)


def _tanh(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.tanh(h)
    slope = 1 - t * t
    return t, slope, -2 * t * slope


def _relu(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    raise ValueError("relu has no second derivative to speak of: train by score matching with silu instead")


# Named, so that an energy can be pickled.
def _silu_backward(grad: Tensor, h: Tensor, value: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(grad, h)


def _softplus_backward(grad: Tensor, h: Tensor, value: Tensor) -> Tensor:
    return grad * torch.sigmoid(h)


def _relu_backward(grad: Tensor, h: Tensor, value: Tensor) -> Tensor:
    return grad * (h > 0)


def _tanh_backward(grad: Tensor, h: Tensor, value: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward(grad, value)


ACTIVATIONS = {
    "silu": Activation(F.silu, _silu, _silu_backward),
    "softplus": Activation(F.softplus, _softplus, _softplus_backward),
    "relu": Activation(F.relu, _relu, _relu_backward),
    "tanh": Activation(torch.tanh, _tanh, _tanh_backward),
}


class PerceptronEnergy(Energy):
    """E(x) = w'a_L + c with a_l = activation(W_l a_{l-1} + b_l), a_0 = x: a network of vectors.

    Args:
        n_inputs: D, the dimension of x.
        hidden: widths of the layers.
        activation: "silu", "softplus" or "tanh", which are smooth, as score matching needs; or "relu".
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int] = (128, 128), activation: str = "silu"):
        super().__init__()
        if not hidden:
            raise ValueError("a perceptron needs at least one hidden layer, got none")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = ACTIVATIONS[activation]
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise([n_inputs, *hidden]))
        self.out = nn.Linear(hidden[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation.value(layer(x))
        return self.out(x).squeeze(-1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            shape = x.shape
            inputs, values = _forward(self.layers, self.activation, x.reshape(-1, shape[-1]))
            energy = torch.addmv(self.out.bias, values[-1], self.out.weight[0])
            grad = _backward(self.layers, self.activation, inputs, values, self.out.weight)
            return energy.reshape(shape[:-1]), grad.reshape(shape)

    def grad(self, x: Tensor) -> Tensor:
        slopes = []
        for layer in self.layers:
            x, slope, _ = self.activation.derivatives(layer(x))
            slopes.append(slope)
        return self._backward(slopes)

    def _backward(self, slopes: list[Tensor]) -> Tensor:
        grad = self.out.weight[0]
        for layer, slope in zip(reversed(self.layers), reversed(slopes), strict=True):
            grad = (grad * slope) @ layer.weight
        return grad

    def directional(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """By carrying value, first and second derivative forward through the layers; nothing goes back.

        Source: second-order Taylor-mode differentiation [Griewank 2008, ch. 13].
        """
        first: Tensor = v.expand_as(x)
        second: Tensor | None = None
        for layer in self.layers:
            weight = layer.weight
            x, slope, curvature = self.activation.derivatives(layer(x))
            first = first @ weight.t()
            bend = curvature * first.square()
            second = bend if second is None else bend + slope * (second @ weight.t())
            first = slope * first
        w = self.out.weight[0]
        assert second is not None
        return first @ w, second @ w

    def grad_and_laplacian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """By carrying value, all partial derivatives and the Laplacian forward together.

        Source: [Li 2024, eq. 5], the forward Laplacian.
        """
        slopes = []
        partials: Tensor | None = None
        laplacian: Tensor | None = None
        for layer in self.layers:
            weight = layer.weight
            x, slope, curvature = self.activation.derivatives(layer(x))
            slopes.append(slope)
            if partials is None:
                # In the first layer the partial derivatives are the weights, the same for every row.
                laplacian = curvature * weight.square().sum(1)
                partials = weight.t() * slope.unsqueeze(-2)
            else:
                assert laplacian is not None
                partials = partials @ weight.t()
                bend = curvature * partials.square().sum(-2)
                laplacian = bend + slope * (laplacian @ weight.t())
                partials = partials * slope.unsqueeze(-2)
        assert laplacian is not None
        return self._backward(slopes), laplacian @ self.out.weight[0]


class LabelledPerceptron(ConditionalEnergy):
    """E(label, image) = -f(image)[label], f a perceptron with one output for each label; its gradient by hand.

    What it is given are labels ``[B]``; images are ``[B, *candidates, C, H, W]``.

    Args:
        image_shape: (C, H, W).
        n_labels: outputs of f.
        hidden: widths of the layers.
        activation: "relu", "silu", "softplus" or "tanh".
    """

    event_ndim = 3
    support = constraints.independent(constraints.unit_interval, 3)

    def __init__(
        self,
        image_shape: Sequence[int],
        n_labels: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = ACTIVATIONS[activation]
        sizes = [math.prod(image_shape), *hidden]
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(sizes[-1], n_labels)

    def energies(self, images: Tensor) -> Tensor:
        """E of every label ``[*batch, n_labels]`` for images ``[*batch, C, H, W]``."""
        h = 2 * images.flatten(-3) - 1
        for layer in self.layers:
            h = self.activation.value(layer(h))
        return -self.out(h)

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        energies = self.energies(y)
        label = features.long().reshape(-1, *([1] * (energies.dim() - 1)))
        return energies.gather(-1, label.expand(*energies.shape[:-1], 1)).squeeze(-1)

    def value_and_grad(self, features: Features, y: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(features, Tensor)
        with torch.no_grad():
            batch = y.shape[:-3]
            flat = 2 * y.reshape(-1, math.prod(y.shape[-3:])) - 1
            label = features.long().reshape(-1, *([1] * (len(batch) - 1))).expand(batch).reshape(-1)
            inputs, values = _forward(self.layers, self.activation, flat)
            weight = self.out.weight[label]
            energy = -(values[-1] * weight).sum(-1) - self.out.bias[label]
            grad = _backward(self.layers, self.activation, inputs, values, weight)
            return energy.reshape(batch), grad.mul_(-2).reshape(y.shape)


def _forward(layers: Any, activation: Activation, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into each layer's activation, and what comes out, without a graph; x is ``[N, D]``."""
    inputs, values = [], []
    for layer in layers:
        inputs.append(torch.addmm(layer.bias, x, layer.weight.t()))
        x = activation.value(inputs[-1])
        values.append(x)
    return inputs, values


def _backward(
    layers: Any, activation: Activation, inputs: list[Tensor], values: list[Tensor], grad: Tensor
) -> Tensor:
    """The gradient with respect to x from that with respect to the last layer's values."""
    grad = grad.expand_as(values[-1])
    for layer, h, value in zip(reversed(layers), reversed(inputs), reversed(values), strict=True):
        grad = activation.backward(grad, h, value) @ layer.weight
    return grad
