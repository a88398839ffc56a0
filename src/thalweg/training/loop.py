"""The one training loop: batches, steps, validation, early stopping, checkpoints, divergence guard."""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from thalweg.objectives.base import Batch
from thalweg.training.checkpoint import read_checkpoint, write_checkpoint
from thalweg.training.history import History
from thalweg.training.progress import Progress, SilentProgress

Validate = Callable[[nn.Module], Tensor]


class DivergenceError(RuntimeError):
    """Training diverged again and again; no model is handed over."""


@dataclass(frozen=True)
class Plan:
    """How to train. A run with the same plan, data and seed ends with the same weights.

    Attributes:
        max_epochs: passes over the data, at most.
        max_steps: updates, at most (None: no limit of its own).
        batch_size: rows in a step, over all processes.
        learning_rate: the highest one; AdamW.
        objective_learning_rate: the highest one of the weights that the objective owns, such as a critic or
            a proposal (None: the same).
        weight_decay: of AdamW.
        schedule: "cosine" (to 5 % over the planned steps), "constant" or "exponential" (x ``decay`` an epoch).
        warmup_steps: steps over which the rate rises linearly from 0.
        patience: epochs without a better validation figure before training stops (None: never).
        min_delta: what counts as better.
        clip_norm: the gradient's norm is clipped here (None: not).
        ema_decay: validate and keep an exponential moving average of the weights (None: not).
        n_snapshots: how often the energy's weights are kept along the way: evenly over the last eighth of the
            planned steps, the last time at their end (0: never).
        max_rollbacks: how often a diverged run goes back to its last good state, at half the rate,
            before it gives up.
        checkpoint_seconds: least time between two checkpoints.
        seed: of the order of the rows, of the objective's noise and of dropout.
    """

    max_epochs: int = 100
    max_steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    objective_learning_rate: float | None = None
    weight_decay: float = 0.0
    schedule: str = "cosine"
    decay: float = 0.99
    warmup_steps: int = 0
    patience: int | None = None
    min_delta: float = 1e-4
    clip_norm: float | None = None
    ema_decay: float | None = None
    n_snapshots: int = 0
    max_rollbacks: int = 5
    checkpoint_seconds: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant", "exponential"):
            raise ValueError(f"schedule must be cosine, constant or exponential, got {self.schedule!r}")
        for name in ("max_epochs", "max_steps", "batch_size", "learning_rate", "objective_learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")


class _Step(nn.Module):
    """Energy and objective as one module, so that distributed wrappers see one forward."""

    def __init__(self, energy: nn.Module, objective: nn.Module, distributed: bool):
        super().__init__()
        self.energy = energy
        self.objective = objective
        self.distributed = distributed
        self.metrics: dict[str, float] = {}

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        value, self.metrics = self.objective(self.energy, batch, generator)
        if self.distributed:
            # Every parameter must take part: score matching, for one, does not reach the energy's constant.
            value = value + 0.0 * sum(w.reshape(-1)[:1].sum() for w in self.parameters() if w.requires_grad)
        return value


class Trainer:
    """Fits an energy by an objective.

    Args:
        plan: the settings.
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
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1)
        self.run_dir = run_dir
        self.progress = progress or SilentProgress()
        self.snapshots: list[dict[str, Tensor]] = []

    def fit(
        self,
        energy: nn.Module,
        objective: nn.Module,
        data: Batch,
        validate: Validate | None = None,
        resume: bool = False,
    ) -> History:
        """Train in place; afterwards the energy and the objective hold the best weights found.

        A run that is interrupted or killed goes on from its last checkpoint, which is at most
        ``plan.checkpoint_seconds`` (and one validation) old.

        Args:
            data: the whole training set, on the CPU or the device.
            validate: maps the energy to its validation figure, lower is better: a scalar, or one figure
                for each member of an ensemble (whose parameters have the member as first dimension). Each
                member then keeps its own best weights.
            resume: go on from the checkpoint in ``run_dir``, if there is one.

        Returns:
            the history. It is the same for a run that was interrupted and resumed, but for the seconds.

        Raises:
            DivergenceError: after ``max_rollbacks`` returns to the last good state, which the energy and the
                objective then hold.
            ValueError: if there are fewer rows than processes, more snapshots than an eighth of the steps, or the
                checkpoint in ``run_dir`` is damaged or belongs to another run.
        """
        run = _Run(self, energy, objective, data, validate)
        device = self.fabric.device
        # Dropout draws from the global generator: it is seeded here and given back as it was.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            run.seed_generators(self.plan.seed)
            if resume and self.run_dir is not None:
                run.load(self.run_dir)
            run.loop()
        self.snapshots = run.snapshots
        return run.history


class _Run:
    """One run in progress: everything that a checkpoint must hold."""

    def __init__(
        self,
        trainer: Trainer,
        energy: nn.Module,
        objective: nn.Module,
        data: Batch,
        validate: Validate | None,
    ):
        plan, fabric = trainer.plan, trainer.fabric
        self.trainer, self.plan, self.fabric = trainer, plan, fabric
        self.energy, self.objective, self.validate = energy, objective, validate
        self.data = data.to(fabric.device)
        self.n_rows = len(data.y)
        self.batch_size = min(plan.batch_size, self.n_rows)
        if self.batch_size < fabric.world_size:
            raise ValueError(
                f"a batch of {self.batch_size} rows does not go round {fabric.world_size} processes: each needs "
                "at least one row of every batch"
            )
        self.steps_per_epoch = self.n_rows // self.batch_size
        self.n_epochs = plan.max_epochs
        if plan.max_steps is not None:
            self.steps_per_epoch = min(self.steps_per_epoch, plan.max_steps)
            self.n_epochs = min(self.n_epochs, plan.max_steps // self.steps_per_epoch)
        self.n_steps = self.n_epochs * self.steps_per_epoch
        if plan.n_snapshots > self.n_steps / 8:
            raise ValueError(
                f"{plan.n_snapshots} snapshots do not go into the last eighth of {self.n_steps} steps: take "
                "fewer, or more steps"
            )
        apart = self.n_steps / 8 / max(1, plan.n_snapshots)
        self.snapshot_steps = {self.n_steps - round(k * apart) for k in range(plan.n_snapshots)}
        self.snapshots: list[dict[str, Tensor]] = []

        self.module = _Step(energy, objective, distributed=fabric.world_size > 1)
        self.weights = list(self.module.parameters())
        self.n_energy_weights = len(list(energy.parameters()))
        one_rate = plan.objective_learning_rate is None
        cut = len(self.weights) if one_rate else self.n_energy_weights
        parts = (self.weights[:cut], plan.learning_rate), (self.weights[cut:], plan.objective_learning_rate)
        groups = [{"params": weights, "lr": rate, "highest": rate} for weights, rate in parts if weights]
        optimizer = torch.optim.AdamW(groups, weight_decay=plan.weight_decay, fused=True)
        self.step_module: nn.Module
        self.optimizer: torch.optim.Optimizer
        self.step_module, self.optimizer = fabric.setup(self.module, optimizer)
        # For one process in full precision Fabric's wrappers do nothing, at a tenth of a millisecond a step.
        self.alone = fabric.world_size == 1 and fabric.strategy.precision.precision == "32-true"
        if self.alone:
            self.step_module, self.optimizer = self.module, optimizer
        self.buffers = list(self.module.buffers())

        self.order_generator = torch.Generator()
        self.noise_generator = torch.Generator(fabric.device)
        self.epoch = 0
        self.position = 0
        self.order = torch.empty(0, dtype=torch.long)
        self.rate_scale = 1.0
        self.rollbacks = 0
        self.losses: list[float] = []
        self.largest_loss: float | None = None
        self.history = History()
        self.best_figure: Tensor | None = None
        self.epochs_without_gain: Tensor | None = None
        self.best = [w.detach().clone() for w in self.weights]
        self.best_buffers = [b.detach().clone() for b in self.buffers]
        self.average = [w.detach().clone() for w in self.weights] if plan.ema_decay else []
        self.good: dict[str, Any] = {}
        self.last_checkpoint = time.monotonic()
        self.seconds_before = 0.0
        self.start = time.monotonic()

    def seed_generators(self, seed: int) -> None:
        """The order of the rows is the same in all processes; noise and dropout are each process's own."""
        rank = self.fabric.global_rank
        self.order_generator.manual_seed(seed)
        self.noise_generator.manual_seed(seed + 1 + 104729 * rank)
        torch.manual_seed(seed + 7919 * rank)

    # -- the loop ------------------------------------------------------------------------------------

    def loop(self) -> None:
        self.trainer.progress.start(self.n_epochs, self.epoch)
        self.start = time.monotonic()
        if not self.good:
            self.remember_good()
        # From here on a resumed run finds this one, and never one that was in the folder before it.
        self.save()
        try:
            while self.epoch < self.n_epochs and not self.history.stopped:
                self.run_epoch()
        finally:
            self.trainer.progress.stop()
        self.history.stopped = self.history.stopped or "all epochs done"
        self.history.seconds = self.elapsed()
        with torch.no_grad():
            for kept, best in zip(self.weights + self.buffers, self.best + self.best_buffers, strict=True):
                kept.copy_(best)
        self.optimizer.zero_grad(set_to_none=True)
        self.module.eval()
        self.save()

    def run_epoch(self) -> None:
        if not len(self.order):
            self.order = torch.randperm(self.n_rows, generator=self.order_generator)
            self.position = 0
            self.losses = []
        self.module.train()
        while self.position < self.steps_per_epoch:
            if not self.step():
                self.roll_back("loss or gradient not finite")
                return
            self.maybe_save()
        if self.ran_away():
            self.roll_back(f"the loss ran away to {self.losses[-1]:.3g}")
            return
        self.order = torch.empty(0, dtype=torch.long)
        record = {"epoch": self.epoch + 1.0, "loss": math.fsum(self.losses) / self.steps_per_epoch}
        record.update(self.module.metrics)
        self.tell_dropped(record)
        self.epoch += 1
        if self.validate is not None:
            figure = self.validated()
            if not torch.isfinite(figure).all():
                self.epoch -= 1
                self.roll_back("the validation figure is not finite")
                return
            self.keep_best(figure)
            record["validation"] = float(figure.mean())
            assert self.best_figure is not None
            record["best"] = float(self.best_figure.mean())
        else:
            self.keep_all()
        self.history.epochs.append(record)
        self.trainer.progress.update(record)
        self.remember_good()
        self.maybe_save()

    def tell_dropped(self, record: dict[str, float]) -> None:
        before = self.history.epochs[-1].get("chains dropped", 0.0) if self.history.epochs else 0.0
        n = int(record.get("chains dropped", 0.0) - before)
        if n > 0:
            message = f"epoch {self.epoch + 1}: {n} chains left the sound range and were started afresh"
            self.history.events = [*self.history.events, message]
            self.trainer.progress.message(message)

    def step(self) -> bool:
        """One update; False if it would not be sound."""
        plan = self.plan
        step = self.epoch * self.steps_per_epoch + self.position
        index = self.order[self.position * self.batch_size : (self.position + 1) * self.batch_size]
        index = index[self.fabric.global_rank :: self.fabric.world_size]
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * self.rate_scale * self.rate(step)
        loss = self.step_module(self.data.rows(index.to(self.fabric.device)), self.noise_generator)
        for w in self.weights:
            w.grad = None
        if self.alone:
            loss.backward()
            value = float(loss.detach())
        else:
            # Processes may hold unequal parts of the batch; each row counts the same in the mean over them.
            loss = loss * (len(index) * self.fabric.world_size / self.batch_size)
            self.fabric.backward(loss)
            value = float(self.fabric.all_reduce(loss.detach(), reduce_op="mean"))  # type: ignore[arg-type]
        norm = self.gradient_norm()
        if not (math.isfinite(value) and math.isfinite(norm)):
            return False
        if plan.clip_norm is not None and norm > plan.clip_norm:
            gradients = [w.grad for w in self.weights if w.grad is not None]
            torch._foreach_mul_(gradients, plan.clip_norm / norm)
        self.optimizer.step()
        if self.average:
            assert plan.ema_decay is not None
            torch._foreach_lerp_(self.average, [w.detach() for w in self.weights], 1 - plan.ema_decay)
        if self.largest_loss is None:
            self.largest_loss = abs(value)
        self.losses.append(value)
        self.position += 1
        if step + 1 in self.snapshot_steps:
            self.snapshots = [*self.snapshots, self.snapshot()]
        return True

    def gradient_norm(self) -> float:
        gradients = [w.grad for w in self.weights if w.grad is not None]
        return float(torch.stack(torch._foreach_norm(gradients)).norm())

    def rate(self, step: int) -> float:
        """The learning rate as a part of the highest."""
        plan = self.plan
        warm = min(1.0, (step + 1) / plan.warmup_steps) if plan.warmup_steps else 1.0
        if plan.schedule == "cosine":
            return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.n_steps)))
        if plan.schedule == "exponential":
            return warm * plan.decay**self.epoch
        return warm

    # -- validation ----------------------------------------------------------------------------------

    def validated(self) -> Tensor:
        assert self.validate is not None
        self.module.eval()
        with torch.no_grad():
            if self.average:
                self.swap_average()
            figure = self.validate(self.energy).detach().double().cpu().reshape(-1)
            if self.average:
                self.swap_average()
        # One figure for all processes, or they could part ways over when to stop.
        return self.fabric.broadcast(figure) if self.fabric.world_size > 1 else figure

    def swap_average(self) -> None:
        for weight, average in zip(self.weights, self.average, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)

    def keep_best(self, figure: Tensor) -> None:
        if self.best_figure is None:
            self.best_figure = torch.full_like(figure, torch.inf)
            self.epochs_without_gain = torch.zeros_like(figure)
        assert self.epochs_without_gain is not None
        better = figure < self.best_figure - self.plan.min_delta
        self.best_figure = torch.where(better, figure, self.best_figure)
        self.epochs_without_gain = torch.where(better, 0.0, self.epochs_without_gain + 1)
        source = self.average or self.weights
        with torch.no_grad():
            for i, (best, weight) in enumerate(zip(self.best, source, strict=True)):
                if len(figure) == 1 or i >= self.n_energy_weights:
                    if better.any():
                        best.copy_(weight)
                else:
                    best[better] = weight[better]
            if better.any():
                for best, buffer in zip(self.best_buffers, self.buffers, strict=True):
                    best.copy_(buffer)
        if self.plan.patience is not None and bool((self.epochs_without_gain > self.plan.patience).all()):
            self.history.stopped = f"no better figure for {self.plan.patience} epochs"

    def snapshot(self) -> dict[str, Tensor]:
        with torch.no_grad():
            if self.average:
                self.swap_average()
            state = {name: t.detach().clone() for name, t in self.energy.state_dict().items()}
            if self.average:
                self.swap_average()
        return state

    def keep_all(self) -> None:
        with torch.no_grad():
            source = [*(self.average or self.weights), *self.buffers]
            for best, kept in zip(self.best + self.best_buffers, source, strict=True):
                best.copy_(kept)

    # -- divergence ----------------------------------------------------------------------------------

    def remember_good(self) -> None:
        self.good = self.state(copy=True)

    def ran_away(self) -> bool:
        """Whether the epoch ends with a loss out of all proportion to those before it.

        The median of the last steps is compared, so one odd batch is no alarm, with the largest seen, that
        of the untrained energy included. Upwards a factor of 1000 is far. Downwards a score-matching loss
        may fall far by learning, and only an energy gap without bound falls by a million.
        """
        assert self.largest_loss is not None
        loss = statistics.median(self.losses[-15:])
        scale = max(1.0, self.largest_loss)
        if not -1e6 * scale < loss < 1e3 * scale:
            return True
        self.largest_loss = max(self.largest_loss, abs(loss))
        return False

    def roll_back(self, why: str) -> None:
        rollbacks, scale, events = self.rollbacks + 1, self.rate_scale / 2, self.history.events
        first_loss = self.largest_loss
        where = f"epoch {self.epoch + 1}, step {min(self.position + 1, self.steps_per_epoch)}: {why}"
        self.restore(self.good)
        self.optimizer.zero_grad(set_to_none=True)
        if rollbacks > self.plan.max_rollbacks:
            raise DivergenceError(
                f"training diverged {rollbacks} times and was stopped; last: {where}. "
                "Lower the learning rate, or look for extreme values in the data."
            )
        message = f"{where}; back to the last good state, learning rate halved (roll-back {rollbacks})"
        self.rollbacks, self.rate_scale, self.history.events = rollbacks, scale, [*events, message]
        if self.largest_loss is None:
            # In the first epoch: the untrained energy's loss stays the measure.
            self.largest_loss = first_loss
        # Another order and other noise, or the same accident would happen again.
        self.seed_generators(self.plan.seed + 15485863 * rollbacks)
        self.trainer.progress.message(message)
        self.remember_good()

    # -- checkpoints ---------------------------------------------------------------------------------

    def state(self, copy: bool = False) -> dict[str, Any]:
        """Everything the run needs to go on as if it had never stopped, but for each process's noise."""

        def keep(t: Tensor) -> Tensor:
            return t.detach().clone() if copy else t.detach()

        optimizer = self.optimizer.state_dict()
        if copy:
            optimizer = {
                "state": {
                    i: {k: keep(v) if isinstance(v, Tensor) else v for k, v in entry.items()}
                    for i, entry in optimizer["state"].items()
                },
                "param_groups": [dict(g) for g in optimizer["param_groups"]],
            }
        return {
            "weights": [keep(w) for w in self.weights],
            "buffers": [keep(b) for b in self.buffers],
            "optimizer": optimizer,
            "best": [keep(w) for w in self.best],
            "best_buffers": [keep(b) for b in self.best_buffers],
            "average": [keep(w) for w in self.average],
            "snapshots": self.snapshots,
            "best_figure": None if self.best_figure is None else keep(self.best_figure),
            "epochs_without_gain": None if self.epochs_without_gain is None else keep(self.epochs_without_gain),
            "epoch": self.epoch,
            "position": self.position,
            "order": self.order,
            "losses": list(self.losses),
            "largest_loss": self.largest_loss,
            "rate_scale": self.rate_scale,
            "rollbacks": self.rollbacks,
            "order_generator": self.order_generator.get_state(),
            "history": {**asdict(self.history), "seconds": self.elapsed()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name in ("weights", "buffers", "best", "best_buffers", "average"):
                for own, kept in zip(getattr(self, name), state[name], strict=True):
                    own.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("epoch", "position", "order", "largest_loss", "rate_scale", "rollbacks"):
            setattr(self, name, state[name])
        self.losses = list(state["losses"])
        self.snapshots = state["snapshots"]
        for name in ("best_figure", "epochs_without_gain"):
            setattr(self, name, None if state[name] is None else state[name].clone())
        self.order_generator.set_state(state["order_generator"])
        history = state["history"]
        self.history = History(
            [dict(e) for e in history["epochs"]], list(history["events"]), 0.0, history["stopped"]
        )

    def noise_state(self) -> dict[str, Tensor]:
        """Where this process's random numbers stand."""
        device = self.fabric.device
        state = {"noise": self.noise_generator.get_state(), "global": torch.get_rng_state()}
        if device.type == "cuda":
            state["device"] = torch.cuda.get_rng_state(device)
        return state

    def restore_noise(self, state: dict[str, Tensor]) -> None:
        self.noise_generator.set_state(state["noise"])
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
            plan, data = asdict(self.plan), fingerprint(self.data)
            write_checkpoint(
                run_dir, {**self.state(), "noise": noise, "good": self.good, "plan": plan, "data": data}
            )
        self.last_checkpoint = time.monotonic()

    def load(self, run_dir: Path) -> None:
        state = read_checkpoint(run_dir)
        if state is None:
            return
        if state["plan"] != asdict(self.plan):
            changed = [k for k, v in asdict(self.plan).items() if state["plan"].get(k) != v]
            raise ValueError(
                f"the run in {run_dir} was started with other settings ({', '.join(changed)}): resume it with "
                "the same ones, or start a new run"
            )
        shapes = [tuple(t.shape) for t in self.weights + self.buffers]
        if [tuple(t.shape) for t in state["weights"] + state["buffers"]] != shapes:
            raise ValueError(f"the checkpoint in {run_dir} belongs to another network: start a new run")
        if state["data"] != fingerprint(self.data):
            raise ValueError(f"the run in {run_dir} was started with other data: start a new run")
        world_size = len(state["noise"]["noise"])
        if world_size != self.fabric.world_size:
            raise ValueError(
                f"the run in {run_dir} was started with {world_size} processes, not {self.fabric.world_size}: "
                "resume it with as many"
            )
        self.seconds_before = state["history"]["seconds"]
        self.restore(state)
        # A clone: torch's generators crash on a state that is a view into a larger tensor.
        self.restore_noise({name: s[self.fabric.global_rank].clone() for name, s in state["noise"].items()})
        self.good = state["good"]


def fingerprint(data: Batch) -> str:
    """Tells one data set from another by its shapes and some of its rows."""
    digest = hashlib.sha256()
    for tensor in data:
        if tensor is not None:
            some = tensor[:: max(1, len(tensor) // 64)].contiguous().cpu()
            digest.update(repr((tuple(tensor.shape), some.dtype)).encode())
            digest.update(some.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
