"""What every objective is: a module that turns an energy and a batch into a loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy, Energy

# An Energy or a ConditionalEnergy; an objective that suits only one of them says so in its own signature.
AnyEnergy = Any


class Batch(NamedTuple):
    """A batch of rows.

    y ``[B, *event]`` is what has a density; x ``[B, *x_event]`` is what it is given, or None where nothing
    is. The weight is ``[B]`` (or ``[B, n_members]`` for an ensemble whose members see different rows);
    over the training set it averages to 1.
    """

    x: Any  # Tensor or None
    y: Tensor
    weight: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Batch:
        """The rows of these numbers, or of this slice."""
        return Batch(*(None if t is None else _rows(t, index) for t in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(None if t is None else t.to(device) for t in self))  # type: ignore[arg-type]

    def given(self, energy: AnyEnergy) -> Energy:
        """The energy of y: of a conditional energy the one for these x, else the energy itself."""
        return condition(energy, self.x)


def _rows(t: Tensor, index: Tensor | slice) -> Tensor:
    # Half the time of t[index], and there is one such call in every step.
    whole = isinstance(index, Tensor) and index.dtype is torch.long
    return t.index_select(0, index) if whole else t[index]  # type: ignore[arg-type]


class Loss(NamedTuple):
    """The value to minimise, and figures for the log."""

    value: Tensor
    metrics: dict[str, float]


class Objective(nn.Module):
    """A loss for an energy, conditional or not, as a mean over rows of ``per_row``.

    What an objective owns (a noise distribution, a proposal, a replay buffer, a learned log Z) is a
    submodule, a parameter or a buffer: it trains beside the energy and is part of every checkpoint.

    Attributes:
        metrics: figures of the last batch for the log, such as an energy gap or an acceptance rate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        """Loss of each row ``[B]``, or ``[B, n_members]`` for an ensemble."""
        raise NotImplementedError

    def forward(
        self,
        energy: AnyEnergy,
        batch: Batch,
        generator: torch.Generator | None = None,
    ) -> Loss:
        loss = self.per_row(energy, batch, generator)
        if batch.weight is not None:
            weight = batch.weight
            loss = loss * weight.reshape(*weight.shape, *([1] * (loss.dim() - weight.dim())))
        # Members of an ensemble share no weights: their losses add, and none disturbs another's step.
        return Loss(loss.mean(0).sum(), self.metrics)


class TurnTaking(Objective):
    """An objective with a second player, whose parameters are the objective's own.

    In each round the adversary makes ``n_adversary_steps`` updates and the energy one; whoever does not move
    gets no gradient, and so no step. Out of training the value is the energy's loss.

    Args:
        n_adversary_steps: updates of the adversary for each of the energy.
        warm_up: updates that the adversary makes before the first round.
    """

    n_updates: Tensor

    def __init__(self, n_adversary_steps: int = 1, warm_up: int = 0):
        super().__init__()
        self.n_adversary_steps = n_adversary_steps
        self.warm_up = warm_up
        # A buffer, so that a run that resumes knows whose turn it is.
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))

    @property
    def warming_up(self) -> bool:
        return int(self.n_updates) <= self.warm_up

    def energy_loss(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        """``[B]``; no gradient may reach the adversary."""
        raise NotImplementedError

    def adversary_loss(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        """``[B]``; no gradient may reach the energy."""
        raise NotImplementedError

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        if not self.training:
            return self.energy_loss(energy, batch, generator)
        self.n_updates += 1
        turn = (int(self.n_updates) - self.warm_up - 1) % (self.n_adversary_steps + 1)
        if self.warming_up or turn < self.n_adversary_steps:
            return self.adversary_loss(energy, batch, generator)
        return self.energy_loss(energy, batch, generator)


def condition(energy: AnyEnergy, x: Tensor | None) -> Energy:
    """``energy.given(x)`` for a conditional energy; an energy of y alone is returned as it is.

    Raises:
        TypeError: if there is an x and an energy that takes none, or the other way round.
    """
    if isinstance(energy, ConditionalEnergy):
        if x is None:
            raise TypeError(f"{type(energy).__name__} is conditional: the batch needs an x")
        return energy.given(x)
    if x is not None:
        raise TypeError(f"{type(energy).__name__} is not conditional: the batch must have no x (None)")
    return energy


def continuous(objective: Objective, energy: AnyEnergy, batch: Batch) -> Energy:
    """The energy of y, refused where y is discrete: what gradients in y or noise added to it say is nothing there.

    Raises:
        ValueError: naming objectives that suit.
    """
    given = batch.given(energy)
    if given.support.is_discrete:
        raise ValueError(
            f"{type(objective).__name__} is for continuous values, and {type(energy).__name__} is of "
            "discrete ones: use RatioMatching or PseudoLikelihood"
        )
    return given


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every part back in the mode that it had.

    Chains run so: dropout does not shake them, nor do they enter the statistics of a normalisation.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient reaches the module's parameters from what is computed here, but it flows through it."""
    weights = [w for w in module.parameters() if w.requires_grad]
    for w in weights:
        w.requires_grad_(False)
    try:
        yield
    finally:
        for w in weights:
            w.requires_grad_(True)
