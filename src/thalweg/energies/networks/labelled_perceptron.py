"""A perceptron of images with an output for each label, its gradient written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.energies.networks.perceptron import Activation, FixedPerceptron, activation_of


class LabelledPerceptron(LabelledEnergy):
    """E(image, label) = -f(image)[label], f a perceptron of the pixels with one output for each label.

    Args:
        image_shape: (C, H, W).
        n_labels: outputs of f.
        hidden: widths of the layers.
        activation: "relu", "silu", "softplus" or "tanh".
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        n_labels: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
    ):
        super().__init__(input_ndim=3, input_support=UNIT_IMAGES)
        self.activation = activation_of(activation)
        sizes = [math.prod(image_shape), *hidden]
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(sizes[-1], n_labels)

    def energies(self, x: Tensor) -> Tensor:
        h = 2 * x.flatten(-3) - 1
        for layer in self.layers:
            h = self.activation.value(layer(h))
        return -self.out(h)

    def fixed_inputs(self, labels: Tensor) -> FixedPerceptron:
        label, out = labels.long().reshape(-1), self.out
        weight, bias = -out.weight[label], -out.bias[label]
        return FixedPerceptron(self.activation, self._fixed_layers(), weight, bias, self.input_ndim)

    def fixed_marginal(self, temperature: float) -> FixedMarginal:
        layers = [*self._fixed_layers(), (self.out.weight.detach(), self.out.bias.detach())]
        return FixedMarginal(self.activation, layers, temperature, self.input_ndim)

    def _fixed_layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every hidden layer, for pixels in [0, 1]."""
        layers = [(layer.weight.detach(), layer.bias.detach()) for layer in self.layers]
        # The first layer takes 2 x - 1.
        layers[0] = 2 * layers[0][0], layers[0][1] - layers[0][0].sum(1)
        return layers


class FixedMarginal(FixedPerceptron):
    """-T log sum_k exp(f(x)[k] / T) of a perceptron f, laid out for the many gradients of a chain.

    Args:
        activation: activation function of the hidden layers.
        layers: (weight, bias) of each, the last with an output for each label.
        temperature: T.
        event_ndim: of x, which is flattened.
    """

    def __init__(
        self, activation: Activation, layers: Sequence[tuple[Tensor, Tensor]], temperature: float, event_ndim: int
    ):
        weight = layers[-1][0]
        super().__init__(activation, layers, weight.new_ones(1, len(weight)), weight.new_zeros(1), event_ndim)
        self.temperature = temperature

    def _value(self, inputs: list[Tensor]) -> Tensor:
        return -self.temperature * torch.logsumexp(inputs[-1] / self.temperature, -1)

    def _backward(self, inputs: list[Tensor]) -> Tensor:
        last, *downs = self.downs
        grad = last(-torch.softmax(inputs.pop() / self.temperature, -1))
        for down in downs:
            grad = down(self.backward(grad, inputs.pop()))
        return grad
