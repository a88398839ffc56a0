"""Classifiers that are energies of their inputs as well: p(k|x) and p(x) learned from one network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.energies.base import standard_normal
from thalweg.energies.densities import Density
from thalweg.energies.labelled import LabelledEnergy
from thalweg.objectives.base import (
    Adversarial,
    AnyEnergy,
    Batch,
    Objective,
    Player,
    check_rows,
    evaluating,
)
from thalweg.objectives.contrastive_divergence import ContrastiveDivergence
from thalweg.sampling.buffer import ReplayBuffer
from thalweg.sampling.chain import Kernel
from thalweg.sampling.langevin import ColdLangevin, Langevin

Augment = Callable[[Tensor, torch.Generator | None], Tensor]


class JointLikelihood(Objective):
    """-log p(k|x) of the rows that have a label, plus a weight times an objective for p(x) of all rows.

    The energy is a :class:`~thalweg.energies.LabelledEnergy`, and p(x) is that of its marginal over labels,
    E(x) = -log sum_k exp(-E(x, k)). A batch's x are inputs and its y are labels, -1 where a row has none. The
    first term is a mean over the labelled rows; in a step without any it is 0.

    Args:
        generative: any objective for densities of x, such as :class:`ContrastiveDivergence` with chains from a
            replay buffer (see :func:`jem`), :class:`DenoisingScoreMatching` or an estimate against noise.
        weight: the weight of the generative term.
        input_noise: standard deviation of the normal noise that is added to the inputs of both terms in training.
        augment: maps inputs ``[B, *event]`` and a generator to changed ones (flips and shifts of images, say),
            for the classification term alone: p(x) is that of the data as they are.

    Raises:
        TypeError: if the generative objective is adversarial; :class:`JointGame` takes those.

    Source: [Grathwohl 2020, alg. 1]; no augmentation for p(x) [Yang 2023].
    """

    def __init__(
        self,
        generative: Objective,
        weight: float = 1.0,
        input_noise: float = 0.0,
        augment: Augment | None = None,
    ):
        super().__init__()
        if isinstance(generative, Adversarial):
            raise TypeError(
                f"the generative term can't have players of its own, as {type(generative).__name__} has: give it "
                "to JointGame"
            )
        self.generative = generative
        self.weight = weight
        self.input_noise = input_noise
        self.augment = augment

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """Refuse rows of which none has a label, labels that do not fit, and what the generative term refuses."""
        labelled = check_labelled(self, energy, batch)
        self.generative.check(labelled.marginal(), Batch(None, batch.x))

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        labelled = as_labelled(self, energy)
        inputs = self._noisy(batch.x, generator)
        shown = inputs
        if self.augment is not None and self.training:
            shown = self._noisy(self.augment(batch.x, generator), generator)
        loss, metrics = classification_loss(labelled.energies(shown), batch.y)
        density = self.generative.per_row(labelled.marginal(), Batch(None, inputs), generator)
        self.metrics = {**metrics, **self.generative.metrics}
        return loss + self.weight * density

    def _noisy(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if not (self.input_noise and self.training):
            return x
        return x + self.input_noise * standard_normal(x.shape, x, generator)


def jem(
    start: Density,
    scale: float = 1.0,
    *,
    weight: float = 1.0,
    n_steps: int = 20,
    n_chains: int = 64,
    buffer_size: int = 10_000,
    restart: float = 0.05,
    input_noise: float = 0.03,
    bounds: tuple[float, float] | None = None,
    augment: Augment | None = None,
) -> JointLikelihood:
    """The joint energy model: 20 Langevin steps of size 1 with noise of 0.01, from a buffer of 10,000 chains.

    The published inputs are in [-1, 1]. For others ``scale`` is half of their range, so that the chains are the
    same: 0.5 for [0, 1]; for standardised inputs 1 will do.

    Args:
        start: where chains start: the uniform density on the box of the inputs, as published, or one that was
            fitted to the data, such as :func:`~thalweg.energies.gaussian_of_classes`.
        scale: half of the range of the inputs.
        weight: weight of the generative term.
        n_steps: steps of the chains for each update.
        n_chains: chains for each update.
        buffer_size: chains kept.
        restart: probability with which a chain starts afresh.
        input_noise: noise added to the inputs in training, for inputs in [-1, 1]; it is scaled as the chains are.
        bounds: chains are kept within these; None, as published, keeps them nowhere.
        augment: as in :class:`JointLikelihood`.

    Source: [Grathwohl 2020] and its code; starts from a fitted mixture [Yang 2021].
    """
    kernel: Kernel = Langevin(scale**2, 0.01 * scale)
    if bounds is not None:
        kernel = ColdLangevin(scale**2, 0.01 * scale, low=bounds[0], high=bounds[1])
    buffer = ReplayBuffer(start, buffer_size, n_chains, restart)
    generative = ContrastiveDivergence(kernel, n_steps, buffer)
    return JointLikelihood(generative, weight, input_noise * scale, augment)


class JointGame(Adversarial):
    """-log p(k|x) of the rows that have a label, plus a weight times the game that the energy of x plays.

    The game is any adversarial objective for densities of x, and the energy in it is the marginal over labels:
    with :class:`VERA` draws of a generator take the place of a joint energy model's chains, with
    :class:`FlowContrastiveEstimation` a flow is the noise. The energy moves by both terms, in its warm-up too; the
    other players move by the game alone. Since the classes must add up to the density of all rows, few labels go
    far: a class fills the cluster that its labels lie in.

    Args:
        game: an adversarial objective for densities of x.
        weight: weight of the game in the energy's loss.
        augment: as in :class:`JointLikelihood`, for the classification term alone.

    Raises:
        TypeError: if the objective has no players; :class:`JointLikelihood` takes it.

    Source: [Gao 2020] with a flow, for few labels; [Grathwohl 2021b] with a generator, whose code has the
    classification term at 100 times the game, a weight of 0.01 here.
    """

    def __init__(self, game: Adversarial, weight: float = 1.0, augment: Augment | None = None):
        super().__init__()
        if not isinstance(game, Adversarial):
            raise TypeError(
                f"the game needs players who move in turn, and {type(game).__name__} has none: give it to "
                "JointLikelihood"
            )
        self.game = game
        self.weight = weight
        self.augment = augment

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """Refuse rows of which none has a label, labels that do not fit, and what the game refuses."""
        labelled = check_labelled(self, energy, batch)
        self.game.check(labelled.marginal(), _inputs_of(batch))

    def players(self, energy: AnyEnergy) -> list[Player]:
        return self.game.players(as_labelled(self, energy).marginal())

    def player_loss(
        self, player: str, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        labelled = as_labelled(self, energy)
        game = self.game.player_loss(player, labelled.marginal(), _inputs_of(batch), generator)
        return self._joined(player, labelled, batch, game, generator)

    def warm_up_loss(
        self, player: str, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        labelled = as_labelled(self, energy)
        game = self.game.warm_up_loss(player, labelled.marginal(), _inputs_of(batch), generator)
        return self._joined(player, labelled, batch, game, generator)

    def _joined(
        self,
        player: str,
        labelled: LabelledEnergy,
        batch: Batch,
        game: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The loss ``[B]`` of a player whose loss in the game is this."""
        if player != "energy":
            self.metrics = {**self.metrics, **self.game.metrics}
            return game
        shown = batch.x
        if self.augment is not None and self.training:
            shown = self.augment(batch.x, generator)
        loss, metrics = classification_loss(labelled.energies(shown), batch.y)
        self.metrics = {**metrics, "loss of the game": float(game.detach().mean()), **self.game.metrics}
        return loss + self.weight * game


def _inputs_of(batch: Batch) -> Batch:
    """The inputs of the rows, as what has a density."""
    return Batch(None, batch.x, batch.weight)


# -- what all objectives of labelled energies share -----------------------------------------------------------


def as_labelled(objective: Objective, energy: AnyEnergy) -> LabelledEnergy:
    """The energy, if it is a labelled one.

    Raises:
        TypeError: naming the objective, if it is not.
    """
    if not isinstance(energy, LabelledEnergy):
        raise TypeError(
            f"{type(objective).__name__} trains a LabelledEnergy, got {type(energy).__name__}: wrap a network "
            "with an output for each label in LabelledEnergy"
        )
    return energy


def check_labelled(objective: Objective, energy: AnyEnergy, batch: Batch) -> LabelledEnergy:
    """The energy, unless it and the rows do not fit each other.

    Raises:
        TypeError: if it is no labelled energy.
        ValueError: if inputs have the wrong dimensions, labels are not whole numbers from 0 (or -1, for none), no
            row has a label, or the energy has no output for one.
    """
    labelled = as_labelled(objective, energy)
    check_rows(batch)
    name, labels, inputs = type(energy).__name__, batch.y, batch.x
    if inputs is None or inputs.dim() != 1 + labelled.input_ndim or not inputs.is_floating_point():
        found = "none" if inputs is None else f"{inputs.dtype} {list(inputs.shape)}"
        raise ValueError(
            f"the x of a batch must be inputs [rows, *event] of floating-point numbers with an event of "
            f"{labelled.input_ndim} dimensions for {name}, got {found}"
        )
    if (
        labels.dim() != 1
        or not len(labels)
        or not bool((labels == labels.round()).all())
        or int(labels.min()) < -1
    ):
        raise ValueError("labels must be whole numbers from 0, one for each row, or -1 where a row has none")
    highest = int(labels.max())
    if highest < 0:
        raise ValueError("no row has a label (all are -1): there is nothing to learn to classify from")
    device = next((p.device for p in labelled.parameters()), torch.device("cpu"))
    with torch.no_grad(), evaluating(energy):
        found_scores: Any = labelled.energies(inputs[:2].to(device))
    shape, n_rows = list(found_scores.shape), len(labels[:2])
    if len(shape) != 2 or shape[0] != n_rows or shape[1] <= highest:
        raise ValueError(
            f"{name} must give [rows, labels] energies, more than {highest} for each row, got {shape} for "
            f"{n_rows} rows"
        )
    return labelled


def classification_loss(energies: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    """-log p(k|x) of each row ``[B]`` and figures for the log, from energies ``[B, C]`` and labels ``[B]``.

    Rows whose label is -1 have none and their loss is 0. The others are scaled so that the mean over all rows is
    that over the labelled ones.
    """
    labels = labels.long()
    n_labelled = int((labels >= 0).sum())
    loss = F.cross_entropy(-energies, labels, reduction="none", ignore_index=-1)
    if not n_labelled:
        return loss, {}
    right = int((energies.detach().argmin(1) == labels).sum())
    metrics = {"cross-entropy": float(loss.detach().sum()) / n_labelled, "accuracy": right / n_labelled}
    return loss * (len(labels) / n_labelled), metrics
