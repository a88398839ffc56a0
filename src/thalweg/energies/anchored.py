"""A labelled energy anchored at Gaussians of its labels: sound far from the data, where a network is not."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.base import ConditionalEnergy, Energy, Features
from thalweg.energies.densities.class_gaussians import ClassGaussians
from thalweg.energies.labelled import InputsGivenLabels, LabelledEnergy


class AnchoredEnergy(LabelledEnergy):
    """E(x, k) = E_net(x, k) - weight * log N(x; mean_k, covariance_k).

    The Gaussians say how far an input is from anything known, where nothing has taught the network. A loss of
    gradients alone leaves the energies of two labels apart by any constant, which :meth:`level` decides.

    Args:
        learned: the labelled energy of a network.
        gaussians: of the same labels.
        weight: of the Gaussians.

    Attributes:
        levels: what is added to the energy of each label ``[C]``; zeros, until they are decided.
    """

    levels: Tensor

    def __init__(self, learned: LabelledEnergy, gaussians: ClassGaussians, weight: float):
        super().__init__(input_ndim=learned.input_ndim, input_support=gaussians.support)
        self.learned, self.gaussians, self.weight = learned, gaussians, weight
        self.register_buffer("levels", torch.zeros(len(gaussians.means)))

    @torch.no_grad()
    def level(self, x: Tensor, labels: Tensor) -> None:
        """Make zero the mean energy under a label of inputs ``[n, *event]`` that have it ``[n]``."""
        own = self.of_inputs().given(labels)(x)
        counts = torch.bincount(labels.long(), minlength=len(self.levels)).clamp_min(1)
        sums = torch.zeros_like(self.levels).index_add_(0, labels.long(), own)
        self.levels -= sums / counts

    def energies(self, x: Tensor) -> Tensor:
        found = self.learned.energies(x)
        anchors = [self.gaussians.of_label(k, x) for k in range(found.shape[-1])]
        return found + self.weight * torch.stack(anchors, -1) + self.levels

    def of_inputs(self) -> InputsGivenLabels:
        return _AnchoredInputs(self)


class _AnchoredInputs(InputsGivenLabels):
    """The same given labels: of one label's Gaussian for each row, not of all."""

    labelled: AnchoredEnergy

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        anchored = self.labelled
        learned = anchored.learned.of_inputs().head(features, y)
        level = anchored.levels[features.long()].reshape(-1, *([1] * (learned.dim() - 1)))
        return learned + anchored.weight * anchored.gaussians.head(features.long(), y) + level

    def value_and_gradient(self, features: Features, y: Tensor) -> tuple[Tensor, Tensor]:
        return ConditionalEnergy.value_and_gradient(self, features, y)

    def fixed(self, features: Features) -> Energy:
        return ConditionalEnergy.fixed(self, features)
