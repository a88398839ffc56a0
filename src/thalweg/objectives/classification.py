"""Learning to classify: the likelihood of labels given inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.energies.base import standard_normal
from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks.labelled_members import LabelledMembers
from thalweg.objectives.base import AnyEnergy, Batch, Objective, check_rows, evaluating


class CrossEntropy(Objective):
    """-log p(y|x), with p(k|x) the softmax over labels of a network's scores, or of minus a labelled energy's.

    A batch's x are inputs, its y are labels from 0. Each member of an ensemble
    (:class:`~thalweg.energies.LabelledMembers`) learns by a loss of its own.

    Args:
        input_noise: standard deviation of normal noise that is added to the inputs in training.

    Source: [LeCun 2006, sec. 2.2.4], where it is the negative log-likelihood loss.
    """

    def __init__(self, input_noise: float = 0.0):
        super().__init__()
        self.input_noise = input_noise

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """Refuse labels that are no whole numbers from 0, or that the network has no output for."""
        check_rows(batch)
        labels = batch.y
        if labels.dim() != 1 or bool((labels != labels.long()).any()) or int(labels.min()) < 0:
            raise ValueError("labels must be whole numbers from 0, one for each row")
        with torch.no_grad(), evaluating(energy):
            shape = list(self._scores(energy, batch.rows(slice(0, 2))).shape)
        if len(shape) != 2 or shape[0] != len(labels[:2]) or shape[1] <= int(labels.max()):
            raise ValueError(
                f"{type(energy).__name__} must give [rows, labels] scores, more than {int(labels.max())} for each "
                f"row, got {shape} for {len(labels[:2])} rows"
            )

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        if self.input_noise and self.training:
            noise = standard_normal(batch.x.shape, batch.x, generator)
            batch = batch._replace(x=batch.x + self.input_noise * noise)
        if isinstance(energy, LabelledMembers):
            scores = energy.member_scores(batch.x)
            labels = batch.y.long().expand(scores.shape[:2])
            return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).T
        return F.cross_entropy(self._scores(energy, batch), batch.y.long(), reduction="none")

    @staticmethod
    def _scores(energy: AnyEnergy, batch: Batch) -> Tensor:
        return -energy.energies(batch.x) if isinstance(energy, LabelledEnergy) else energy(batch.x)
