"""Losses that only order answers: the right one must be lower than the most offending wrong one; no normaliser.

They are the ten of the tutorial [LeCun 2006, table 1] together with :class:`~thalweg.objectives.EnergyLoss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.energies.base import Conditioned, check_temperature
from thalweg.energies.factors.chain import LabelChain
from thalweg.inference.answers import (
    OutsideBall,
    energy_of,
    free_energy,
    free_energy_of,
    lowest_other,
    lowest_outside,
)
from thalweg.objectives.base import AnyEnergy, Batch, Objective

# Of the energy of the right answer, and of the lowest wrong one.
Shape = Callable[[Tensor, Tensor], Tensor]


def perceptron(correct: Tensor, incorrect: Tensor) -> Tensor:
    """E_c - min over all answers of E: 0 as soon as the right answer is lowest, with no margin.

    Source: [LeCun 1998; Collins 2002]; [LeCun 2006, sec. 2.2.2].
    """
    return F.relu(correct - incorrect)


@dataclass(frozen=True)
class Hinge:
    """[m + E_c - E_i]+, m the margin. Source: [LeCun 2006, sec. 2.2.3]; [Taskar 2003]."""

    margin: float = 1.0

    def __call__(self, correct: Tensor, incorrect: Tensor) -> Tensor:
        return F.relu(self.margin + correct - incorrect)


def logarithmic(correct: Tensor, incorrect: Tensor) -> Tensor:
    """log(1 + exp(E_c - E_i)): a soft hinge. Source: [LeCun 2006, sec. 2.2.3]."""
    return F.softplus(correct - incorrect)


@dataclass(frozen=True)
class LVQ2:
    """min(1, [E_c - E_i]+ / (delta E_i)), for energies above 0.

    It is flat where the right answer is far from lowest, and so it refines what another loss has begun.

    Source: [Kohonen 1990; LeCun 2006, sec. 2.2.3].
    """

    delta: float = 1.0

    def __call__(self, correct: Tensor, incorrect: Tensor) -> Tensor:
        return (F.relu(correct - incorrect) / (self.delta * incorrect.clamp_min(1e-6))).clamp(max=1.0)


def minimum_classification_error(correct: Tensor, incorrect: Tensor) -> Tensor:
    """sigmoid(E_c - E_i): a smooth count of errors. Source: [Juang 1997]; [LeCun 2006, sec. 2.2.3]."""
    return torch.sigmoid(correct - incorrect)


@dataclass(frozen=True)
class SquareSquare:
    """E_c^2 + ([m - E_i]+)^2, for energies from 0. Source: [LeCun 2006, sec. 2.2.3]."""

    margin: float = 1.0

    def __call__(self, correct: Tensor, incorrect: Tensor) -> Tensor:
        return correct.square() + F.relu(self.margin - incorrect).square()


@dataclass(frozen=True)
class SquareExponential:
    """E_c^2 + gamma exp(-E_i). Source: [LeCun 2006, sec. 2.2.3]."""

    gamma: float = 1.0

    def __call__(self, correct: Tensor, incorrect: Tensor) -> Tensor:
        return correct.square() + self.gamma * torch.exp(-incorrect)


class MarginLoss(Objective):
    """A loss of two energies for each row: of the right answer, and of the lowest wrong one.

    The wrong one is found exactly for labels, chains of labels and factor graphs (see
    :func:`thalweg.inference.answers.lowest_other`), and by a search for answers that are vectors of numbers. Of
    answers that are known in part the lowest that agrees is the right one.

    Args:
        shape: maps both energies ``[B]`` to the loss ``[B]``; the ones here, or any that rises with the first and
            falls with the second.
        search: for answers that are vectors of numbers.
        cost: of chains of labels: how much less energy a wrong answer has for each wrong label as the search sees
            it, so that worse answers must be further off; 1 with :class:`Hinge` of margin 0 is the structured
            support vector machine of Hamming loss [Tsochantaridis 2005].

    Raises:
        TypeError: in the training of an energy whose wrong answers can't be gone through, without a search.
    """

    def __init__(self, shape: Shape, search: OutsideBall | None = None, cost: float = 0.0):
        super().__init__()
        self.shape, self.search, self.cost = shape, search, cost

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given = batch.given(energy)
        if self.search is not None:
            if not isinstance(given, Conditioned) or given.support.is_discrete:
                raise TypeError(
                    f"{type(energy).__name__} has no answers to search outside a ball: leave search out"
                )
            wrong = lowest_outside(given, batch.y, self.search, generator)
        elif self.cost:
            if not isinstance(given, LabelChain):
                raise TypeError(
                    f"a cost for each wrong label is for chains of labels, not {type(energy).__name__}"
                )
            wrong = lowest_other(given.augmented(batch.y, self.cost), batch.y)
        else:
            wrong = lowest_other(given, batch.y)
        correct, incorrect = energy_of(given, batch.y), energy_of(given, wrong.y)
        if self.cost and isinstance(given, LabelChain):
            different = (wrong.y != batch.y[:, : wrong.y.shape[1]]) & (batch.y[:, : wrong.y.shape[1]] >= 0)
            incorrect = incorrect - self.cost * (different & given.mask).sum(-1)
        incorrect = torch.where(wrong.found, incorrect, torch.inf)
        gap = (incorrect - correct).detach()[wrong.found]
        self.metrics = {"energy gap": float(gap.mean())} if len(gap) else {}
        return self.shape(correct, incorrect)


class AnswerLikelihood(Objective):
    """-log p(y|x) over all answers, summed exactly: E_c + T log sum exp(-E / T), T the temperature.

    Of answers that are known in part, the sum over all that agree is likely. As T falls to 0 it becomes the
    perceptron's loss.

    Source: the negative log-likelihood of [LeCun 2006, sec. 2.2.4]; for chains [Lafferty 2001].
    """

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given, t = batch.given(energy), self.temperature
        return free_energy_of(given, batch.y, t) - free_energy(given, t)


class MinimumEmpiricalError(AnswerLikelihood):
    """1 - p(y|x): the expected error of an answer that is drawn; rows far off hardly count.

    Source: [LeCun 2006, sec. 2.2.4]; [Ljolje 1990].
    """

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        return -torch.expm1(-super().per_row(energy, batch, generator) / self.temperature)
