"""A labelled energy anchored at Gaussians of its labels: sound far from the data, where a network is not."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.base import ConditionalEnergy, Energy, Features
from thalweg.energies.densities.class_gaussians import ClassGaussians
from thalweg.energies.labelled import InputsGivenLabels, LabelledEnergy


class AnchoredEnergy(LabelledEnergy):
    """E(x, k) = E_net(x, k) - weight * log N(x; mean_k, covariance_k).

    The Gaussians say how far an input is from anything known, where nothing has taught the network.

    Args:
        learned: the labelled energy of a network.
        gaussians: of the same labels.
        weight: of the Gaussians.
    """

    def __init__(self, learned: LabelledEnergy, gaussians: ClassGaussians, weight: float):
        super().__init__(input_ndim=learned.input_ndim, input_support=gaussians.support)
        self.learned, self.gaussians, self.weight = learned, gaussians, weight

    def energies(self, x: Tensor) -> Tensor:
        found = self.learned.energies(x)
        anchors = [self.gaussians.of_label(k, x) for k in range(found.shape[-1])]
        return found + self.weight * torch.stack(anchors, -1)

    def of_inputs(self) -> InputsGivenLabels:
        return _AnchoredInputs(self)


class _AnchoredInputs(InputsGivenLabels):
    """The same given labels: of one label's Gaussian for each row, not of all."""

    labelled: AnchoredEnergy

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        anchored = self.labelled
        learned = anchored.learned.of_inputs().head(features, y)
        return learned + anchored.weight * anchored.gaussians.head(features.long(), y)

    def value_and_gradient(self, features: Features, y: Tensor) -> tuple[Tensor, Tensor]:
        return ConditionalEnergy.value_and_gradient(self, features, y)

    def fixed(self, features: Features) -> Energy:
        return ConditionalEnergy.fixed(self, features)
