"""Which weights a training keeps: a moving average, the best by validation, snapshots along the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from thalweg.training.plan import Plan
from thalweg.training.step import Step


class Kept:
    """The weights that are kept beside those that train.

    Args:
        step: whose weights they are.
        plan: what to keep.
        n_steps: planned updates.
        validated: whether there is a validation figure to choose by.

    Attributes:
        follows_steps: whether every update must be taken into account.
        best_figure: the lowest validation figure so far, or one for each member of an ensemble; None before the
            first validation.
        snapshots: states of the energy, oldest first.

    Raises:
        ValueError: for more snapshots than an eighth of the updates.
    """

    def __init__(self, step: Step, plan: Plan, n_steps: int, validated: bool):
        if plan.n_snapshots > n_steps / 8:
            raise ValueError(
                f"{plan.n_snapshots} snapshots do not go into the last eighth of {n_steps} steps: take fewer, or "
                "more steps"
            )
        self.step, self.plan = step, plan
        self.by_figure = validated and plan.keep_best
        apart = n_steps / 8 / max(1, plan.n_snapshots)
        self.snapshot_steps = {n_steps - round(k * apart) for k in range(plan.n_snapshots)}
        self.snapshots: list[dict[str, Tensor]] = []
        self.average = _copies(step.weights) if plan.ema_decay else []
        self.follows_steps = bool(plan.ema_decay or self.snapshot_steps)
        # Without a figure to choose by the last weights are kept, and these need no copy.
        self.best = _copies([*step.weights, *step.buffers]) if self.by_figure else []
        self.best_figure: Tensor | None = None
        self.epochs_without_gain: Tensor | None = None

    def after_step(self, n_done: int) -> None:
        """Take the weights after an update into account."""
        if self.average:
            assert self.plan.ema_decay is not None
            torch._foreach_lerp_(self.average, [w.detach() for w in self.step.weights], 1 - self.plan.ema_decay)
        if n_done in self.snapshot_steps:
            self.snapshots = [*self.snapshots, self._snapshot(self.step.energy)]

    def swap_average(self) -> None:
        """Put the average in the place of the weights, or these back in their own."""
        with torch.no_grad():
            for weight, average in zip(self.step.weights, self.average, strict=False):
                kept = weight.detach().clone()
                weight.copy_(average)
                average.copy_(kept)

    def _snapshot(self, energy: nn.Module) -> dict[str, Tensor]:
        self.swap_average()
        state = {name: t.detach().clone() for name, t in energy.state_dict().items()}
        self.swap_average()
        return state

    def judge(self, figure: Tensor) -> bool:
        """Keep the weights where the figure is better than all before; whether training should stop.

        A figure for each member of an ensemble, whose parameters have the member as first dimension, keeps each
        member's own best weights.
        """
        if self.best_figure is None:
            self.best_figure = torch.full_like(figure, torch.inf)
            self.epochs_without_gain = torch.zeros_like(figure)
        assert self.epochs_without_gain is not None
        better = figure < self.best_figure - self.plan.min_delta
        self.best_figure = torch.where(better, figure, self.best_figure)
        self.epochs_without_gain = torch.where(better, 0.0, self.epochs_without_gain + 1)
        if self.by_figure:
            self._keep(better)
        patience = self.plan.patience
        return patience is not None and bool((self.epochs_without_gain > patience).all())

    def _keep(self, better: Tensor) -> None:
        source = [*(self.average or self.step.weights), *self.step.buffers]
        with torch.no_grad():
            for i, (best, weight) in enumerate(zip(self.best, source, strict=True)):
                if len(better) > 1 and i < self.step.n_energy_weights:
                    best[better] = weight[better]
                elif better.any():
                    best.copy_(weight)

    def put_back(self) -> None:
        """Give the step's modules the weights that are kept."""
        source = self.best or self.average
        with torch.no_grad():
            for weight, best in zip([*self.step.weights, *self.step.buffers], source, strict=False):
                weight.copy_(best)

    def state(self) -> dict[str, Any]:
        return {
            "average": [t.detach() for t in self.average],
            "best": [t.detach() for t in self.best],
            "best_figure": self.best_figure,
            "epochs_without_gain": self.epochs_without_gain,
            "snapshots": self.snapshots,
        }

    def restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name in ("average", "best"):
                for own, kept in zip(getattr(self, name), state[name], strict=True):
                    own.copy_(kept)
        self.snapshots = state["snapshots"]
        for name in ("best_figure", "epochs_without_gain"):
            setattr(self, name, None if state[name] is None else state[name].clone())


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]
