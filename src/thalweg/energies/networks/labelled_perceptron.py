"""A perceptron of images with an output for each label, its gradient written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.energies.networks.perceptron import FixedPerceptron, activation_of


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
        label = labels.long().reshape(-1)
        layers = [(layer.weight.detach(), layer.bias.detach()) for layer in self.layers]
        # The first layer takes 2 x - 1.
        layers[0] = 2 * layers[0][0], layers[0][1] - layers[0][0].sum(1)
        out = self.out
        return FixedPerceptron(self.activation, layers, -out.weight[label], -out.bias[label], self.input_ndim)
