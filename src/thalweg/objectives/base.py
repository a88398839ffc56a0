"""What every objective is: a module that turns an energy and a batch into a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy, Energy


class AnyEnergy(Protocol):
    """What objectives train: an :class:`Energy`, a :class:`ConditionalEnergy`, or a classifier's network.

    An objective that suits only one of them refuses the others by name.
    """

    def __call__(self, *arguments: Tensor) -> Any: ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


def as_conditional(objective: nn.Module, energy: AnyEnergy) -> ConditionalEnergy:
    """The energy, if it is conditional.

    Raises:
        TypeError: naming the objective, if it is not.
    """
    if not isinstance(energy, ConditionalEnergy):
        raise TypeError(f"{type(objective).__name__} trains a conditional energy, got {type(energy).__name__}")
    return energy


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
        """The energy of y: a conditional energy given these x, any other energy as it is."""
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

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """Refuse, in words, an energy and rows that do not fit each other; asked once, before a training.

        Raises:
            ValueError: as :func:`check_batch`.
            TypeError: if the energy is conditional and there is no x, or the other way round.
        """
        check_batch(energy, batch)

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        """Loss of each row ``[B]``, or ``[B, n_members]`` for an ensemble."""
        raise NotImplementedError

    def forward(
        self,
        energy: AnyEnergy,
        batch: Batch,
        generator: torch.Generator | None = None,
    ) -> Loss:
        return Loss(mean_loss(self.per_row(energy, batch, generator), batch), self.metrics)


def mean_loss(per_row: Tensor, batch: Batch) -> Tensor:
    """The mean over rows, by their weights, of losses ``[B]``, or ``[B, n_members]`` of an ensemble.

    Members of an ensemble share no weights: their losses are added, and none disturbs another's step.
    """
    if batch.weight is not None:
        weight = batch.weight
        per_row = per_row * weight.reshape(*weight.shape, *([1] * (per_row.dim() - weight.dim())))
    return per_row.mean(0).sum()


class Player(NamedTuple):
    """One of those that an adversarial objective trains in turn.

    Attributes:
        name: by which :meth:`Adversarial.player_loss` knows it, and the history of a training.
        parameters: what it moves; no other player does.
        n_steps: updates in a row, in every round.
        warm_up: updates before the first round, by :meth:`Adversarial.warm_up_loss`.
        learning_rate: the highest one; None is that of the plan.
        betas: the two decay rates of its Adam.
        schedule: schedule of its learning rate; None takes the plan's.
        clip_norm: where its gradient's norm is clipped; None is as the plan says.
    """

    name: str
    parameters: list[nn.Parameter]
    n_steps: int = 1
    warm_up: int = 0
    learning_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str | None = None
    clip_norm: float | None = None


class Adversarial(Objective):
    """An objective with players who move in turn: the energy and at least one adversary.

    Each player has parameters, an optimiser, a schedule and gradient clipping of its own, and its loss reaches no
    other player's parameters. Called as any objective is, it gives the energy's loss.
    """

    def players(self, energy: AnyEnergy) -> list[Player]:
        """The players of a round, in the order in which they move."""
        raise NotImplementedError

    def player_loss(
        self, player: str, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        """The loss ``[B]`` of the player of this name; no gradient may reach another player's parameters."""
        raise NotImplementedError

    def warm_up_loss(
        self, player: str, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        """The loss ``[B]`` of the player of this name before the first round."""
        return self.player_loss(player, energy, batch, generator)

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        return self.player_loss("energy", energy, batch, generator)

    def turn_loss(
        self,
        player: str,
        warming_up: bool,
        energy: AnyEnergy,
        batch: Batch,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """What the player of this name minimises in its turn (see :func:`turn`), as a mean over rows."""
        of_rows = self.warm_up_loss if warming_up else self.player_loss
        return Loss(mean_loss(of_rows(player, energy, batch, generator), batch), self.metrics)


def turn(players: Sequence[Player], n_updates: int) -> tuple[int, bool]:
    """Whose turn it is after so many updates: the player's place, and whether it is still warming up."""
    for place, player in enumerate(players):
        if n_updates < player.warm_up:
            return place, True
        n_updates -= player.warm_up
    n_updates %= sum(player.n_steps for player in players)
    for place, player in enumerate(players):
        if n_updates < player.n_steps:
            return place, False
        n_updates -= player.n_steps
    raise AssertionError("a round has as many updates as its players have steps")


def condition(energy: AnyEnergy, x: Tensor | None) -> Energy:
    """``energy.given(x)`` for a conditional energy; an energy of y alone is returned as it is.

    Raises:
        TypeError: if there is an x and an energy that takes none, or the other way round.
    """
    if not isinstance(energy, Energy | ConditionalEnergy):
        raise TypeError(f"{type(energy).__name__} is no energy: wrap a module in ModuleEnergy")
    if isinstance(energy, ConditionalEnergy):
        if x is None:
            raise TypeError(f"{type(energy).__name__} is conditional: the batch needs an x")
        return energy.given(x)
    if x is not None:
        raise TypeError(f"{type(energy).__name__} is not conditional: the batch must have no x (None)")
    return energy


def check_batch(energy: AnyEnergy, batch: Batch) -> None:
    """Refuse, in words, an energy and rows that do not fit each other, by asking the energy of two rows.

    Raises:
        ValueError: if x, y and the weights are not one for each row, or the energy does not return one number for
            each y.
        TypeError: if the energy is conditional and there is no x, or the other way round.
    """
    check_rows(batch)
    rows = batch.rows(slice(0, 2)).to(_device_of(energy))
    name = type(energy).__name__
    with torch.no_grad(), evaluating(energy):
        given = condition(energy, rows.x)
        if rows.y.dim() != 1 + given.event_ndim:
            raise ValueError(
                f"y must be [rows, *event] with an event of {given.event_ndim} dimensions for {name}, got a y of "
                f"shape {list(batch.y.shape)}: flatten what stands between the rows and the event into rows"
            )
        value: Any = given(rows.y)
    shape = list(rows.y.shape[:1])
    if not isinstance(value, Tensor) or list(value.shape) != shape:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        hint = "; drop the trailing dimension of 1, for instance with .squeeze(-1)" if found == [*shape, 1] else ""
        of_x = "" if rows.x is None else f" given x of shape {list(rows.x.shape)}"
        raise ValueError(
            f"{name} must return one energy for each y: for y of shape {list(rows.y.shape)}{of_x} that is shape "
            f"{shape}, got {found}{hint}"
        )


def check_rows(batch: Batch) -> None:
    """Refuse a batch whose x, y and weights are not one for each row."""
    for what, tensor in (("x", batch.x), ("the weights", batch.weight)):
        if tensor is not None and len(tensor) != len(batch.y):
            raise ValueError(
                f"there are {len(batch.y)} rows of y and {len(tensor)} of {what}: give one for each row"
            )


def check_draws(made: Tensor, batch: Batch) -> None:
    """Refuse a generator whose draws ``[n, *event]`` have another shape than the rows of the data."""
    if made.shape[1:] != batch.y.shape[1:]:
        raise ValueError(
            f"the generator makes rows of shape {list(made.shape[1:])}, and those of the data have shape "
            f"{list(batch.y.shape[1:])}"
        )


def _device_of(module: Any) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


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
def evaluating(module: AnyEnergy) -> Iterator[None]:
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
def frozen(module: AnyEnergy) -> Iterator[None]:
    """No gradient reaches the module's parameters from what is computed here, but it flows through it."""
    weights = [w for w in module.parameters() if w.requires_grad]
    for w in weights:
        w.requires_grad_(False)
    try:
        yield
    finally:
        for w in weights:
            w.requires_grad_(True)
