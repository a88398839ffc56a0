"""Where batches come from: rows in memory, in one stage or in stages that follow one another."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from thalweg.objectives.base import Batch
from thalweg.training.plan import Plan

# Up to here a shuffled copy of the rows at the start of an epoch costs less than picking rows at every update.
_MOST_BYTES_SHUFFLED = 64 << 20


class Stages(tuple[Batch, ...]):
    """Training sets that follow one another, such as the tasks of continual learning.

    Each is trained on as if it were the only one: for ``max_epochs`` or ``max_steps`` of the plan. The optimiser,
    the schedule and everything that the objective owns go on from stage to stage.
    """


class Feed:
    """The order of the rows, and how far a run is in it.

    Args:
        data: the whole training set, or :class:`Stages` of it.
        plan: batch size, and how many epochs or updates.
        fabric: the device, and which part of a batch is this process's.

    Attributes:
        n_epochs: over all stages.
        n_steps: updates over all stages.
        position: updates of this epoch that are done.

    Raises:
        ValueError: if there are no rows, or fewer in a batch than processes.
    """

    def __init__(self, data: Batch | Stages, plan: Plan, fabric: Fabric):
        self.fabric = fabric
        self.stages = [stage.to(fabric.device) for stage in (data if isinstance(data, Stages) else (data,))]
        if not self.stages or any(not len(stage.y) for stage in self.stages):
            raise ValueError("there are no rows to learn from: give at least one row")
        self.batch_sizes = [min(plan.batch_size, len(stage.y)) for stage in self.stages]
        if min(self.batch_sizes) < fabric.world_size:
            raise ValueError(
                f"a batch of {min(self.batch_sizes)} rows does not go round {fabric.world_size} processes: each "
                "needs at least one row of every batch"
            )
        # Of each stage: updates in an epoch, and epochs.
        self.lengths: list[tuple[int, int]] = []
        for stage, batch_size in zip(self.stages, self.batch_sizes, strict=True):
            n_updates, n_epochs = len(stage.y) // batch_size, plan.max_epochs
            if plan.max_steps is not None:
                n_updates = min(n_updates, plan.max_steps)
                n_epochs = min(n_epochs, plan.max_steps // n_updates)
            self.lengths.append((n_updates, n_epochs))
        self.n_epochs = sum(n_epochs for _, n_epochs in self.lengths)
        self.n_steps = sum(n_updates * n_epochs for n_updates, n_epochs in self.lengths)
        self.order = torch.empty(0, dtype=torch.long)
        self.position = 0
        self.generator = torch.Generator()
        # The batches of this epoch, where a shuffled copy of the rows was made.
        self._batches: list[Batch] = []

    def stage_of(self, epoch: int) -> int:
        """The number of the stage to which an epoch belongs."""
        for number, (_, n_epochs) in enumerate(self.lengths):
            if epoch < n_epochs:
                return number
            epoch -= n_epochs
        return len(self.lengths) - 1

    def ends_stage(self, epoch: int) -> bool:
        """Whether this epoch is the last one of its stage."""
        return epoch + 1 >= self.n_epochs or self.stage_of(epoch + 1) != self.stage_of(epoch)

    def steps_before(self, epoch: int) -> int:
        """Updates in all epochs before this one."""
        total = 0
        for n_updates, n_epochs in self.lengths:
            total += n_updates * min(epoch, n_epochs)
            epoch = max(0, epoch - n_epochs)
        return total

    def begin_epoch(self, epoch: int) -> int:
        """Put the rows into a new order, unless an epoch is under way; the number of updates in the epoch."""
        self.stage = self.stage_of(epoch)
        data = self.stages[self.stage]
        if not len(self.order):
            self.order = torch.randperm(len(data.y), generator=self.generator)
            self.position = 0
            self._batches = []
        n_bytes = sum(t.numel() * t.element_size() for t in data if t is not None)
        if not self._batches and self.fabric.world_size == 1 and n_bytes <= _MOST_BYTES_SHUFFLED:
            self._batches = _split(data.rows(self.order.to(data.y.device)), self.batch_sizes[self.stage])
        return self.lengths[self.stage][0]

    def end_epoch(self) -> None:
        self.order, self._batches = torch.empty(0, dtype=torch.long), []

    def batch(self, position: int) -> tuple[Batch, float]:
        """This process's rows of an update, and how much they count beside those of the other processes.

        Processes may hold unequal parts of a batch; each row counts the same in the mean over processes.
        """
        if self._batches:
            return self._batches[position], 1.0
        data, size, n_processes = self.stages[self.stage], self.batch_sizes[self.stage], self.fabric.world_size
        rows = self.order[position * size : (position + 1) * size]
        index = rows[self.fabric.global_rank :: n_processes]
        return data.rows(index.to(data.y.device)), len(index) * n_processes / size

    def state(self) -> dict[str, Any]:
        return {"order": self.order, "position": self.position, "generator": self.generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.order, self.position = state["order"], state["position"]
        self.generator.set_state(state["generator"])
        self._batches = []

    def fingerprint(self) -> str:
        """A sum by which two data sets differ, from their shapes and some of their rows."""
        digest = hashlib.sha256()
        for tensor in _tensors(self.stages):
            some = tensor[:: max(1, len(tensor) // 64)].contiguous().cpu()
            digest.update(repr((tuple(tensor.shape), some.dtype)).encode())
            digest.update(some.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _split(data: Batch, size: int) -> list[Batch]:
    parts = [itertools.repeat(None) if t is None else t.split(size) for t in data]
    return [Batch(x, y, weight) for x, y, weight in zip(*parts, strict=False)]


def _tensors(stages: Sequence[Batch]) -> list[Tensor]:
    return [tensor for stage in stages for tensor in stage if tensor is not None]
