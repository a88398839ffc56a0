"""Learning to classify: the likelihood of labels given inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.energies.labelled import LabelledEnergy
from thalweg.objectives.base import AnyEnergy, Batch, Objective


class CrossEntropy(Objective):
    """-log p(y|x), with p(k|x) the softmax over labels of a network's scores, or of minus a labelled energy's.

    A batch's x are inputs, its y are labels from 0.

    Source: [LeCun 2006, sec. 2.2.4], where it is the negative log-likelihood loss.
    """

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        scores = -energy.energies(batch.x) if isinstance(energy, LabelledEnergy) else energy(batch.x)
        return F.cross_entropy(scores, batch.y.long(), reduction="none")
