"""How to train: how long, how fast, what is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("cosine", "linear", "constant", "exponential")


@dataclass(frozen=True)
class Plan:
    """How to train. A run with the same plan, data and seed ends with the same weights on the same machine.

    Attributes:
        max_epochs: passes over the data, at most.
        max_steps: updates, at most; None sets no limit of its own.
        batch_size: rows in an update, over all processes.
        learning_rate: the highest one.
        final_rate: the rate at the end of a cosine or of a straight line; None is 5 % of the highest for the
            cosine and 0 for the straight line.
        objective_learning_rate: the highest rate of the weights that the objective owns, such as a proposal;
            None is ``learning_rate``. The players of an adversarial objective bring their own.
        weight_decay: weight decay of AdamW, or of the weights of a Boltzmann machine.
        schedule: "cosine" or "linear" (from the highest rate to the final one over the planned updates),
            "constant" or "exponential" (times ``decay`` after every epoch).
        decay: factor of the exponential schedule.
        warmup_steps: updates over which the rate rises linearly from 0.
        patience: validations without a better figure before training stops; None never stops early.
        min_delta: by how much a validation figure must be lower to count as better.
        validate_every: epochs from one validation to the next.
        keep_best: whether the weights with the best validation figure are kept, rather than the last ones.
        clip_norm: the gradient's norm is clipped to this; None does not clip.
        sharpness_radius: length of the step up the gradient, in the weights, at whose end the gradient of the
            update is taken: sharpness-aware minimisation, at twice the time [Foret 2021]. 0 takes the gradient
            where the weights are.
        ema_decay: decay of an exponential moving average of the weights, which is validated and kept in their
            place; None keeps no average.
        n_snapshots: how many snapshots of the energy's weights are taken, evenly over the last eighth of the
            planned updates, the last one at their end.
        max_rollbacks: how often a diverged run goes back to its last good state, at half the rate, before it
            gives up.
        checkpoint_seconds: least time between two checkpoints, in seconds.
        seed: seed of the order of the rows, of the objective's noise, of chains and of dropout.

    Raises:
        ValueError: for a value that can't be followed.
    """

    max_epochs: int = 100
    max_steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    final_rate: float | None = None
    objective_learning_rate: float | None = None
    weight_decay: float = 0.0
    schedule: str = "cosine"
    decay: float = 0.99
    warmup_steps: int = 0
    patience: int | None = None
    min_delta: float = 1e-4
    validate_every: int = 1
    keep_best: bool = True
    clip_norm: float | None = None
    sharpness_radius: float = 0.0
    ema_decay: float | None = None
    n_snapshots: int = 0
    max_rollbacks: int = 5
    checkpoint_seconds: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {self.schedule!r}")
        positive = "max_epochs", "max_steps", "batch_size", "learning_rate", "objective_learning_rate"
        for name in (*positive, "validate_every", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in (
            "final_rate",
            "weight_decay",
            "warmup_steps",
            "n_snapshots",
            "max_rollbacks",
            "sharpness_radius",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")

    def rate(self, step: int, n_steps: int, epoch: int, schedule: str | None = None) -> float:
        """The learning rate of an update as a part of the highest one.

        Args:
            step: updates before this one.
            n_steps: planned updates.
            epoch: full epochs before this one.
            schedule: another schedule than the plan's.
        """
        schedule = self.schedule if schedule is None else schedule
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if schedule == "cosine":
            last = 0.05 if self.final_rate is None else self.final_rate / self.learning_rate
            return warm * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * step / n_steps)))
        if schedule == "linear":
            last = 0.0 if self.final_rate is None else self.final_rate / self.learning_rate
            return warm * (1 + (last - 1) * step / n_steps)
        if schedule == "exponential":
            return warm * self.decay**epoch
        return warm
