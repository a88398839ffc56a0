"""The one training loop: epochs, validation, checkpoints and roll-back. It knows nothing of gradients."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from thalweg.energies.networks.dropout import Dropout
from thalweg.objectives.base import Adversarial, AnyEnergy, Batch, Objective
from thalweg.training.averaging import Kept
from thalweg.training.checkpoint import read_checkpoint, write_checkpoint
from thalweg.training.feed import Feed, Stages
from thalweg.training.guard import Diverged, DivergenceError, Guard
from thalweg.training.history import History
from thalweg.training.plan import Plan
from thalweg.training.progress import Progress, SilentProgress
from thalweg.training.step import Clock, GradientStep, PlayersStep, Step

__all__ = ["DivergenceError", "History", "Plan", "Trainer"]

Validate = Callable[[Any], Tensor]
Measure = Callable[[Any], dict[str, float]]


@runtime_checkable
class Judging(Protocol):
    """A validation that keeps figures of its own, which are then part of every checkpoint."""

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor]) -> None: ...


@functools.cache
def one_cpu_process() -> Fabric:
    """A Fabric of one CPU process in full precision; making one takes ten milliseconds, it looks for plug-ins."""
    return Fabric(accelerator="cpu", devices=1)


class Trainer:
    """Fits an energy, by an objective or by a step of one's own.

    Args:
        plan: how to train.
        fabric: device, precision and processes; one CPU process in full precision by default.
        run_dir: where checkpoints go; None keeps none.
        progress: shows how far the run is.

    Attributes:
        snapshots: after a fit, the states of the energy that ``plan.n_snapshots`` asks for, oldest first.
    """

    def __init__(
        self,
        plan: Plan,
        fabric: Fabric | None = None,
        run_dir: Path | None = None,
        progress: Progress | None = None,
    ):
        self.plan = plan
        self.fabric = fabric or one_cpu_process()
        self.run_dir = run_dir
        self.progress = progress or SilentProgress()
        self.snapshots: list[dict[str, Tensor]] = []

    def fit(
        self,
        energy: AnyEnergy,
        objective: Objective,
        data: Batch | Stages,
        validate: Validate | None = None,
        resume: bool = False,
        after_stage: Measure | None = None,
    ) -> History:
        """Train in place; afterwards the energy and the objective hold the best weights found.

        A run that is interrupted or killed goes on from its last checkpoint, which is at most
        ``plan.checkpoint_seconds`` (and one validation) old.

        Args:
            energy: the energy that learns.
            objective: the loss; the players of an adversarial one take turns.
            data: the whole training set, on the CPU or the device, or stages of it.
            validate: maps the energy to its validation figure, lower is better: a scalar, or one figure for each
                member of an ensemble (whose parameters have the member as first dimension). Each member then
                keeps its own best weights.
            resume: go on from the checkpoint in ``run_dir``, if there is one.
            after_stage: maps the energy to figures for the record of the last epoch of each stage.

        Returns:
            the history. It is the same for a run that was interrupted and resumed, but for the seconds.

        Raises:
            DivergenceError: after ``max_rollbacks`` returns to the last good state, which the energy and the
                objective then hold.
            ValueError: if the energy and the rows do not fit, there are fewer rows than processes, more snapshots
                than an eighth of the steps, or the checkpoint in ``run_dir`` is damaged or belongs to another run.
        """
        for stage in data if isinstance(data, Stages) else (data,):
            objective.check(energy, stage)
        step = (PlayersStep if isinstance(objective, Adversarial) else GradientStep)(energy, objective)  # type: ignore[arg-type]
        return self.run(step, data, validate, resume, after_stage)

    def run(
        self,
        step: Step,
        data: Batch | Stages,
        validate: Validate | None = None,
        resume: bool = False,
        after_stage: Measure | None = None,
    ) -> History:
        """Train in place by a step; all else is as in :meth:`fit`."""
        run = _Run(self, step, data, validate, after_stage)
        own = [part for part in step.module.modules() if isinstance(part, Dropout)]
        try:
            for part in own:
                part.generator = run.noise_generator
            with self._global_numbers(step.module):
                run.begin(resume)
                run.loop()
        finally:
            for part in own:
                part.generator = None
        self.snapshots = run.kept.snapshots
        return run.history

    def _global_numbers(self, module: nn.Module) -> AbstractContextManager[None]:
        """PyTorch's global random numbers, given back as they were, if a part of the module may draw some."""
        device = self.fabric.device
        if not any(_may_draw(part) for part in module.modules()):
            return nullcontext()
        return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _may_draw(part: nn.Module) -> bool:
    """Whether a module may draw from the global generator: dropout of PyTorch, and what nobody here wrote."""
    written_here = type(part).__module__.startswith(("thalweg.", "torch.nn.", "zuko."))
    return isinstance(part, _DropoutNd) or not written_here


class _Run:
    """One run in progress: everything that a checkpoint must hold."""

    def __init__(
        self,
        trainer: Trainer,
        step: Step,
        data: Batch | Stages,
        validate: Validate | None,
        after_stage: Measure | None = None,
    ):
        self.trainer, self.plan, self.fabric = trainer, trainer.plan, trainer.fabric
        self.step, self.validate, self.after_stage = step, validate, after_stage
        self.feed = Feed(data, self.plan, self.fabric)
        self.noise_generator = torch.Generator(self.fabric.device)
        self.draws_globally = any(_may_draw(part) for part in step.module.modules())
        self.guard = Guard(self.plan)
        self.history = History()
        self.epoch = 0
        # Of this epoch, by the name of whoever was moved.
        self.losses: dict[str, list[float]] = {}
        self.last_checkpoint = self.start = time.monotonic()
        self.seconds_before = 0.0

    def begin(self, resume: bool) -> None:
        self.seed_generators(self.plan.seed)
        self.step.begin(self.plan, self.fabric, self.feed, self.noise_generator)
        self.step.module.train()
        self.kept = Kept(self.step, self.plan, self.feed.n_steps, self.validate is not None)
        if resume and self.trainer.run_dir is not None:
            self.load(self.trainer.run_dir)

    def seed_generators(self, seed: int) -> None:
        """The order of the rows is the same in all processes; noise and dropout are each process's own."""
        rank = self.fabric.global_rank
        self.feed.generator.manual_seed(seed)
        self.noise_generator.manual_seed(seed + 1 + 104729 * rank)
        if self.draws_globally:
            torch.manual_seed(seed + 7919 * rank)

    # -- the loop ------------------------------------------------------------------------------------

    def loop(self) -> None:
        progress = self.trainer.progress
        progress.start(self.feed.n_epochs, self.epoch)
        self.start = time.monotonic()
        if not self.guard.good:
            self.guard.good = self.state(copy=True)
        # From here on a resumed run finds this one, and never one that was in the folder before it.
        self.save()
        try:
            while self.epoch < self.feed.n_epochs and not self.history.stopped:
                try:
                    record = self.run_epoch()
                except Diverged as why:
                    self.roll_back(str(why))
                    continue
                self.history.epochs.append(record)
                progress.update(record)
                self.guard.good = self.state(copy=True)
                self.maybe_save()
        finally:
            progress.stop()
        self.history.stopped = self.history.stopped or "all epochs done"
        collapse = self.guard.collapse(self.history.epochs[-1] if self.history.epochs else {})
        # A finished run that is resumed has said so already.
        if collapse and collapse not in self.history.events:
            self.history.events = [*self.history.events, collapse]
            progress.message(collapse)
        self.history.seconds = self.elapsed()
        self.kept.put_back()
        self.step.finish()
        self.save()

    def run_epoch(self) -> dict[str, float]:
        feed, step, plan, generator = self.feed, self.step, self.plan, self.noise_generator
        n_updates, n_steps = feed.begin_epoch(self.epoch), feed.n_steps
        if not feed.position:
            self.losses = {}
        before, scale = feed.steps_before(self.epoch), self.guard.rate_scale
        # A step of a small machine takes a tenth of a millisecond: nothing is called here in vain.
        follows, saves = self.kept.follows_steps, self.trainer.run_dir is not None
        if not step.module.training:
            step.module.train()
        with step.learning():
            while feed.position < n_updates:
                batch, share = feed.batch(feed.position)
                n_done = before + feed.position
                clock = Clock(plan, n_done, n_steps, self.epoch, scale)
                losses = step.update(batch, share, clock, generator)
                for player, loss in losses.items():
                    self.losses.setdefault(player, []).append(loss)
                    self.guard.first(player, loss)
                feed.position += 1
                if follows:
                    self.kept.after_step(n_done + 1)
                if saves:
                    self.maybe_save()
        self.guard.check(self.losses)
        record = {"epoch": self.epoch + 1.0}
        for player, values in self.losses.items():
            record["loss" if player == "energy" else f"{player} loss"] = math.fsum(values) / len(values)
        batch, _ = feed.batch(n_updates - 1)
        record.update(step.end_epoch(batch, generator))
        self.report_dropped_chains(record)
        if self.validate is not None and (self.epoch + 1) % plan.validate_every == 0:
            figure = self.validated()
            if not torch.isfinite(figure).all():
                raise Diverged("the validation figure is not finite")
            if self.kept.judge(figure):
                self.history.stopped = f"no better figure for {plan.patience} epochs"
            record["validation"] = float(figure.mean())
            assert self.kept.best_figure is not None
            record["best"] = float(self.kept.best_figure.mean())
        if self.after_stage is not None and feed.ends_stage(self.epoch):
            with torch.no_grad():
                step.module.eval()
                record.update(self.after_stage(step.energy))
        feed.end_epoch()
        self.epoch += 1
        return record

    def report_dropped_chains(self, record: dict[str, float]) -> None:
        before = self.history.epochs[-1].get("chains dropped", 0.0) if self.history.epochs else 0.0
        n = int(record.get("chains dropped", 0.0) - before)
        if n > 0:
            message = f"epoch {self.epoch + 1}: {n} chains left the sound range and were started afresh"
            self.history.events = [*self.history.events, message]
            self.trainer.progress.message(message)

    def validated(self) -> Tensor:
        assert self.validate is not None
        self.step.module.eval()
        with torch.no_grad():
            self.kept.swap_average()
            figure = torch.as_tensor(self.validate(self.step.energy)).detach().double().cpu().reshape(-1)
            self.kept.swap_average()
        # One figure for all processes, or they could part ways over when to stop.
        return self.fabric.broadcast(figure) if self.fabric.world_size > 1 else figure

    def roll_back(self, why: str) -> None:
        step = min(self.feed.position + 1, self.feed.lengths[self.feed.stage][0])
        where = f"epoch {self.epoch + 1}, step {step}: {why}"
        events, largest = self.history.events, self.guard.largest
        self.restore(self.guard.good)
        self.history.events = events
        # In the first epoch the untrained energy's loss stays the measure.
        self.guard.largest = {**largest, **self.guard.good["guard"]["largest"]}
        message = self.guard.roll_back(where)
        self.history.events = [*events, message]
        # Another order and other noise, or the same accident would happen again.
        self.seed_generators(self.plan.seed + 15485863 * self.guard.rollbacks)
        self.trainer.progress.message(message)
        self.guard.good = self.state(copy=True)

    # -- checkpoints ---------------------------------------------------------------------------------

    def state(self, copy: bool = False) -> dict[str, Any]:
        """Everything the run needs to go on as if it had never stopped, but for each process's noise."""
        state = {
            "weights": [w.detach() for w in self.step.weights],
            "buffers": [b.detach() for b in self.step.buffers],
            "step": self.step.state(),
            "kept": self.kept.state(),
            "feed": self.feed.state(),
            "guard": self.guard.state(),
            "validation": self.validate.state() if isinstance(self.validate, Judging) else {},
            "epoch": self.epoch,
            "losses": {player: list(values) for player, values in self.losses.items()},
            # Records are never changed: lists of them are all that need be copied.
            "history": {
                "epochs": list(self.history.epochs),
                "events": list(self.history.events),
                "seconds": self.elapsed(),
                "stopped": self.history.stopped,
            },
        }
        return _copied(state) if copy else state

    def restore(self, state: dict[str, Any]) -> None:
        """Take a state back; what the guard counts stays as it is."""
        with torch.no_grad():
            for own, kept in zip(self.step.weights, state["weights"], strict=True):
                own.copy_(kept)
            for own, kept in zip(self.step.buffers, state["buffers"], strict=True):
                own.copy_(kept)
        self.step.restore(_copied(state["step"]))
        self.kept.restore(state["kept"])
        self.feed.restore(state["feed"])
        if isinstance(self.validate, Judging):
            self.validate.restore(_copied(state["validation"]))
        self.epoch = state["epoch"]
        self.losses = {player: list(values) for player, values in state["losses"].items()}
        history = state["history"]
        self.history = History(list(history["epochs"]), list(history["events"]), 0.0, history["stopped"])

    def noise_state(self) -> dict[str, Tensor]:
        """Where this process's random numbers stand."""
        device = self.fabric.device
        state = {"noise": self.noise_generator.get_state()}
        if self.draws_globally:
            state["global"] = torch.get_rng_state()
        if self.draws_globally and device.type == "cuda":
            state["device"] = torch.cuda.get_rng_state(device)
        return state

    def restore_noise(self, state: dict[str, Tensor]) -> None:
        self.noise_generator.set_state(state["noise"])
        if "global" in state:
            torch.set_rng_state(state["global"])
        if "device" in state:
            torch.cuda.set_rng_state(state["device"], self.fabric.device)

    def gathered(self, state: Tensor) -> Tensor:
        """The tensors of all processes, stacked."""
        if self.fabric.world_size == 1:
            return state.unsqueeze(0)
        parts = [torch.empty_like(state) for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather(parts, state)
        return torch.stack(parts)

    def elapsed(self) -> float:
        return self.seconds_before + time.monotonic() - self.start

    def maybe_save(self) -> None:
        if self.trainer.run_dir is None:
            return
        due = time.monotonic() - self.last_checkpoint >= self.plan.checkpoint_seconds
        if self.fabric.world_size > 1:
            # Clocks differ, and a save is something that all processes do together.
            due = self.fabric.broadcast(due)
        if due:
            self.save()

    def save(self) -> None:
        run_dir, fabric = self.trainer.run_dir, self.fabric
        if run_dir is None:
            return
        noise = {name: self.gathered(state.to(fabric.device)).cpu() for name, state in self.noise_state().items()}
        if fabric.is_global_zero:
            about = {"settings": self.settings(), "data": self.feed.fingerprint()}
            write_checkpoint(run_dir, {**self.state(), "noise": noise, "good": self.guard.good, **about})
        self.last_checkpoint = time.monotonic()

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.plan), **self.step.settings}

    def shapes(self, state: dict[str, Any]) -> list[tuple[int, ...]]:
        return [tuple(t.shape) for t in [*state["weights"], *state["buffers"]]]

    def load(self, run_dir: Path) -> None:
        state = read_checkpoint(run_dir)
        if state is None:
            return
        settings = self.settings()
        if state["settings"] != settings:
            changed = [k for k, v in settings.items() if state["settings"].get(k) != v]
            raise ValueError(
                f"the run in {run_dir} was started with other settings ({', '.join(changed)}): resume it with "
                "the same ones, or start a new run"
            )
        if state["data"] != self.feed.fingerprint():
            raise ValueError(f"the run in {run_dir} was started with other data: start a new run")
        world_size = len(state["noise"]["noise"])
        if world_size != self.fabric.world_size:
            raise ValueError(
                f"the run in {run_dir} was started with {world_size} processes, not {self.fabric.world_size}: "
                "resume it with as many"
            )
        if self.shapes(state) != self.shapes(self.state()):
            raise ValueError(f"the checkpoint in {run_dir} belongs to another network: start a new run")
        self.seconds_before = state["history"]["seconds"]
        self.restore(state)
        self.guard.restore(state["guard"])
        # A clone: torch's generators crash on a state that is a view into a larger tensor.
        self.restore_noise({name: s[self.fabric.global_rank].clone() for name, s in state["noise"].items()})
        self.guard.good = state["good"]


def _copied(state: Any) -> Any:
    """A state of its own; records and snapshots are shared, since they never change."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        shared = ("history", "snapshots")
        return {key: value if key in shared else _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state
