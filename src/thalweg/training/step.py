"""What one update is: a gradient step of the energy and its objective, or steps of players in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from thalweg.objectives.base import Adversarial, AnyEnergy, Batch, Objective, turn
from thalweg.training.feed import Feed
from thalweg.training.guard import Diverged
from thalweg.training.plan import Plan


class Clock(NamedTuple):
    """How far a run is: what the learning rate depends on.

    Attributes:
        plan: how the run is trained.
        step: updates before this one.
        n_steps: planned updates.
        epoch: full epochs before this one.
        scale: 1, halved by every roll-back.
    """

    plan: Plan
    step: int
    n_steps: int
    epoch: int
    scale: float

    def rate(self, schedule: str | None = None) -> float:
        """The learning rate as a part of the highest one, by the plan's schedule or another one."""
        return self.scale * self.plan.rate(self.step, self.n_steps, self.epoch, schedule)


class Step:
    """What one update is, and everything that updates need to go on. The loop knows nothing else of learning.

    A step of one's own sets ``energy``, ``module``, ``weights``, ``buffers`` and ``n_energy_weights`` and writes
    :meth:`update`; it overrides the other methods where it has more to say or to keep.

    Attributes:
        energy: what is trained, and handed to the validation.
        module: everything that is put in training and in evaluation mode.
        weights: what training moves, the energy's weights first.
        buffers: what else changes and belongs to the model.
        n_energy_weights: how many of the weights are the energy's.
        takes_gradients: whether an update follows the gradient of a loss, which may then be taken uphill.
        settings: what a run that resumes must have in common with the one before, beside the plan.
    """

    energy: Any
    module: nn.Module
    weights: list[Tensor]
    buffers: list[Tensor]
    n_energy_weights: int
    settings: Mapping[str, Any] = {}
    takes_gradients = False

    def begin(self, plan: Plan, fabric: Fabric, feed: Feed, generator: torch.Generator) -> None:
        """Get ready for a run, before its first update or before the state of an earlier one is restored.

        Raises:
            ValueError: if the plan asks for a sharpness radius and this step does not take gradients.
        """
        if plan.sharpness_radius and not self.takes_gradients:
            raise ValueError(
                f"{type(self).__name__} takes no gradient of a loss: sharpness_radius must be 0, got "
                f"{plan.sharpness_radius}"
            )
        self.plan, self.fabric = plan, fabric

    def learning(self) -> AbstractContextManager[Any]:
        """What the updates of an epoch run within."""
        return nullcontext()

    def update(self, batch: Batch, share: float, clock: Clock, generator: torch.Generator) -> dict[str, float]:
        """Make one update.

        Args:
            batch: this process's rows.
            share: how much they count beside those of other processes; 1 for a single process.
            clock: how far the run is; it knows the learning rate.

        Returns:
            the loss of whoever was moved, by name; it may be empty.

        Raises:
            Diverged: if the update would not be sound; nothing is changed then.
        """
        raise NotImplementedError

    def end_epoch(self, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        """Figures for the record of an epoch; the batch is its last one.

        Raises:
            Diverged: if what was learned is not sound.
        """
        return {}

    def finish(self) -> None:
        """Leave the modules as a user wants them, after the last update."""

    def state(self) -> dict[str, Any]:
        """Everything but weights and buffers that updates need to go on; tensors are not copied."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""


class _Loss(nn.Module):
    """Energy and objective as one module, so that distributed wrappers see one forward."""

    def __init__(self, energy: AnyEnergy, objective: Objective):
        super().__init__()
        self.energy: Any = energy
        self.objective = objective
        self.metrics: dict[str, float] = {}

    def forward(self, batch: Batch, generator: torch.Generator, player: str | None, warming_up: bool) -> Tensor:
        if player is None:
            value, self.metrics = self.objective(self.energy, batch, generator)
        else:
            assert isinstance(self.objective, Adversarial)
            value, self.metrics = self.objective.turn_loss(player, warming_up, self.energy, batch, generator)
        return value


class GradientStep(Step):
    """One step of AdamW down the gradient of the objective, for the energy and what the objective owns at once.

    Args:
        energy: an energy, conditional or not.
        objective: its loss; what it owns trains beside the energy.
    """

    takes_gradients = True

    def __init__(self, energy: AnyEnergy, objective: Objective):
        self.energy, self.objective = energy, objective
        self.module: _Loss = _Loss(energy, objective)
        self.optimizers: list[Any] = []

    def begin(self, plan: Plan, fabric: Fabric, feed: Feed, generator: torch.Generator) -> None:
        super().begin(plan, fabric, feed, generator)
        self.module.to(fabric.device)
        self.weights = list(self.module.parameters())
        self.n_energy_weights = len(list(self.energy.parameters()))
        optimizers = self._optimizers()
        self.forward, *self.optimizers = fabric.setup(self.module, *optimizers)
        # For one process in full precision Fabric's wrappers do nothing, at a tenth of a millisecond a step.
        self.alone = fabric.world_size == 1 and fabric.strategy.precision.precision == "32-true"
        if self.alone:
            self.forward, self.optimizers = self.module, optimizers
        self.buffers = list(self.module.buffers())

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        plan, n = self.plan, self.n_energy_weights
        if plan.objective_learning_rate is None:
            groups = [_group(self.weights, plan.learning_rate)]
        else:
            groups = [_group(self.weights[:n], plan.learning_rate)]
            groups += [_group(self.weights[n:], plan.objective_learning_rate)] if self.weights[n:] else []
        return [torch.optim.AdamW(groups, weight_decay=plan.weight_decay, fused=True)]

    def update(self, batch: Batch, share: float, clock: Clock, generator: torch.Generator) -> dict[str, float]:
        value = self._differentiate(batch, share, generator, self.weights)
        self._move(self.optimizers[0], self.weights, value, clock.rate(), self.plan.clip_norm)
        return {"energy": value}

    def _differentiate(
        self,
        batch: Batch,
        share: float,
        generator: torch.Generator,
        weights: Sequence[Tensor],
        player: str | None = None,
        warming_up: bool = False,
    ) -> float:
        """The loss at the weights; afterwards these have its gradient, there or uphill from there."""
        radius = self.plan.sharpness_radius
        if not radius:
            return self._backward(self.forward(batch, generator, player, warming_up), weights, share)
        # The first pass leaves no trace but where uphill is: chains are stored once, and both passes draw the same
        # random numbers.
        numbers, buffers = generator.get_state(), [b.clone() for b in self.buffers]
        value = self._backward(self.forward(batch, generator, player, warming_up), weights, share)
        moved = [w for w in weights if w.grad is not None]
        norm = _norm(moved)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise Diverged("loss or gradient not finite")
        here = [w.detach().clone() for w in moved]
        with torch.no_grad():
            generator.set_state(numbers)
            for buffer, before in zip(self.buffers, buffers, strict=True):
                buffer.copy_(before)
            if norm:
                gradients = [w.grad for w in moved if w.grad is not None]
                torch._foreach_add_(moved, gradients, alpha=radius / norm)
        try:
            uphill = self._backward(self.forward(batch, generator, player, warming_up), weights, share)
        finally:
            with torch.no_grad():
                torch._foreach_copy_(moved, here)
        if not math.isfinite(uphill):
            raise Diverged("loss not finite a step uphill from the weights")
        return value

    def _backward(self, loss: Tensor, weights: Sequence[Tensor], share: float) -> float:
        """The value of the loss; afterwards its gradient is that of the weights, and nothing else has one."""
        for w in self.weights:
            w.grad = None
        if self.alone:
            loss.backward()
            return float(loss.detach())
        if self.fabric.world_size > 1:
            # Every parameter must take part: score matching, for one, does not reach the energy's constant.
            loss = loss * share + 0.0 * sum(w.reshape(-1)[:1].sum() for w in self.weights if w.requires_grad)
        self.fabric.backward(loss)
        kept = {id(w) for w in weights}
        for w in self.weights:
            if id(w) not in kept:
                w.grad = None
        return float(self.fabric.all_reduce(loss.detach(), reduce_op="mean"))  # type: ignore[arg-type]

    def _move(
        self, optimizer: Any, weights: Sequence[Tensor], value: float, rate: float, clip_norm: float | None
    ) -> None:
        gradients = [w.grad for w in weights if w.grad is not None]
        norm = _norm(weights)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise Diverged("loss or gradient not finite")
        if clip_norm is not None and norm > clip_norm:
            torch._foreach_mul_(gradients, clip_norm / norm)
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * rate
        optimizer.step()

    def end_epoch(self, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        return dict(self.module.metrics)

    def finish(self) -> None:
        for w in self.weights:
            w.grad = None
        self.module.eval()

    def state(self) -> dict[str, Any]:
        # A run may be resumed after the last update of an epoch, whose figures these are.
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "metrics": dict(self.module.metrics),
        }

    def restore(self, state: dict[str, Any]) -> None:
        for w in self.weights:
            w.grad = None
        self.objective.metrics = self.module.metrics = dict(state["metrics"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)


class PlayersStep(GradientStep):
    """One step of whoever's turn it is: players, each with its optimiser, schedule and gradient clipping.

    Args:
        energy: an energy, conditional or not.
        objective: names the players and gives each one's loss.
    """

    objective: Adversarial

    def __init__(self, energy: AnyEnergy, objective: Adversarial):
        super().__init__(energy, objective)
        self.n_updates = 0

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        self.n_updates = 0
        self.players = self.objective.players(self.energy)
        owned = [id(w) for player in self.players for w in player.parameters]
        if len(set(owned)) < len(owned):
            raise ValueError("two players move the same parameter: each must have its own")
        return [
            torch.optim.AdamW(
                [_group(p.parameters, self.plan.learning_rate if p.learning_rate is None else p.learning_rate)],
                betas=p.betas,
                weight_decay=self.plan.weight_decay,
                fused=True,
            )
            for p in self.players
        ]

    def update(self, batch: Batch, share: float, clock: Clock, generator: torch.Generator) -> dict[str, float]:
        place, warming_up = turn(self.players, self.n_updates)
        player = self.players[place]
        value = self._differentiate(batch, share, generator, player.parameters, player.name, warming_up)
        clip_norm = self.plan.clip_norm if player.clip_norm is None else player.clip_norm
        self._move(self.optimizers[place], player.parameters, value, clock.rate(player.schedule), clip_norm)
        self.n_updates += 1
        return {player.name: value}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "n_updates": self.n_updates}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.n_updates = state["n_updates"]


def _norm(weights: Sequence[Tensor]) -> float:
    """The Euclidean norm of the weights' gradient."""
    gradients = [w.grad for w in weights if w.grad is not None]
    return float(torch.stack(torch._foreach_norm(gradients)).norm()) if gradients else 0.0


def _group(weights: Sequence[Tensor], highest: float) -> dict[str, Any]:
    return {"params": list(weights), "lr": highest, "highest": highest}
