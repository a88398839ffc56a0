"""How machines in layers learn: the means of products under the data less those under the machine.

The gradient of a machine in layers is that difference, in closed form, so there is a loop of its own here, without
autograd: a step is a handful of products. It keeps what the other loop keeps: checkpoints from which a run goes on
as if it had never stopped, and a guard against divergence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.energies.machines.layered import DBMEnergy, LayeredMachine
from thalweg.energies.machines.units import Gaussian
from thalweg.energies.products import product
from thalweg.objectives.base import Batch
from thalweg.sampling.layered_tempering import TemperedChains
from thalweg.training.checkpoint import read_checkpoint, write_checkpoint
from thalweg.training.loop import DivergenceError, History, fingerprint
from thalweg.training.progress import Progress, SilentProgress

Validate = Callable[[LayeredMachine], float]
Encode = Callable[[Tensor, torch.Generator], Tensor]

# Of free energies, in nats for each visible number.
_WIDEST_GAP = 10.0


@dataclass(frozen=True)
class LearningPlan:
    """How a machine in layers is trained.

    Attributes:
        n_epochs: passes over the data.
        batch_size: rows of an update.
        learning_rate: of the first epoch.
        final_rate: of the last one, on a straight line between.
        momentum: part of the last update that is added to the next.
        weight_decay: of the weights, not of biases.
        n_gibbs: sweeps of the chains before an update.
        persistent: chains go on from update to update (persistent CD); else they start at the data (CD).
        n_particles: persistent chains; None is as many as rows in a batch.
        n_temperatures: levels of persistent chains, evenly from the machine itself to one without weights, which
            swap places: they find modes that chains of the machine alone seldom leave for. Each level costs as
            much as the chains without them (1: none but the machine's own).
        fast_rate: rate of a second set of weights that only the chains see, which decays by a twentieth at every
            update and drives them out of where they have been (0: none).
        centred: gradients about the running means of the units.
        sparsity_target: wanted mean of the hidden units (None: whatever comes).
        sparsity_cost: rate with which their biases are moved towards it.
        validate_every: epochs from one figure of ``validate`` to the next.
        max_rollbacks: how often a diverged run goes back an epoch, at half the rate, before it gives up.
        checkpoint_seconds: least time between two checkpoints.
        seed: of the order of the rows and of the chains.

    Source: CD [Hinton 2002]; persistent [Tieleman 2008]; tempered [Desjardins 2010]; fast weights [Tieleman 2009];
    centred [Melchior 2016, alg. 1]; sparsity and the rest [Hinton 2012].
    """

    n_epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 0.3
    final_rate: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    n_gibbs: int = 1
    persistent: bool = True
    n_particles: int | None = None
    n_temperatures: int = 1
    fast_rate: float = 0.0
    centred: bool = False
    sparsity_target: float | None = None
    sparsity_cost: float = 0.0
    validate_every: int = 1
    max_rollbacks: int = 5
    checkpoint_seconds: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_epochs", "batch_size", "learning_rate", "n_gibbs", "n_temperatures", "validate_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("final_rate", "weight_decay", "fast_rate", "sparsity_cost"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.n_particles is not None and self.n_particles < 1:
            raise ValueError(f"n_particles must be positive, got {self.n_particles}")
        if self.n_temperatures > 1 and (self.fast_rate or not self.persistent):
            raise ValueError("n_temperatures above 1 is for persistent chains without fast weights")
        if self.sparsity_target is not None and not 0 < self.sparsity_target < 1:
            raise ValueError(f"sparsity_target must be in (0, 1), got {self.sparsity_target}")


class BoltzmannTrainer:
    """Fits a machine in layers by contrastive divergence or persistent chains.

    The data's means of products come from the law of the hidden units given the rows, which is exact for a
    restricted machine and the mean field for a deep one.

    Of Gaussian units the gradient is taken with respect to weights and biases in units of their variances: a step
    is as large for units of a small variance as for those of a large one.

    Args:
        plan: the settings.
        run_dir: where checkpoints go; None keeps none.
        progress: shows how far the run is.
        up, down: factors of what hidden units get from below and visible ones from above, for a restricted
            machine that is to be a part of a deep one (:mod:`thalweg.training.pretraining`).

    Attributes:
        chains: all layers of the chains after the last update, once fitted: ``[n, width]``, or of several levels
            ``[n_temperatures, n, width]``, the machine's own first.

    Source: deep machines [Salakhutdinov 2009, alg. 1].
    """

    def __init__(
        self,
        plan: LearningPlan,
        run_dir: Path | None = None,
        progress: Progress | None = None,
        up: float = 1.0,
        down: float = 1.0,
    ):
        self.plan = plan
        self.run_dir = run_dir
        self.progress = progress or SilentProgress()
        self.chains: list[Tensor] = []
        self.up, self.down = up, down

    def fit(
        self,
        machine: LayeredMachine,
        data: Tensor,
        validate: Validate | None = None,
        resume: bool = False,
        chains: list[Tensor] | None = None,
        encode: Encode | None = None,
        base_bias: Tensor | None = None,
    ) -> History:
        """Train in place.

        Args:
            data: visible states ``[N, width]``.
            validate: maps the machine to a figure for the log; more is better.
            resume: go on from the checkpoint in ``run_dir``, if there is one.
            chains: where persistent chains start, for every layer as in :attr:`chains`; None draws each unit by
                its bias.
            encode: maps rows of data to visible states, anew at every update: then the data may be anything, such
                as probabilities for :func:`binary_draws`.
            base_bias: visible bias where tempered chains have no weights; None is that of the data's means.

        Returns:
            the history; its epochs hold "reconstruction", the mean squared error of the visible units' means
            after one step up and down, "free-energy gap" per row, of the data less the chains', and "swaps", the
            share accepted between the two levels of tempered chains that swap least.

        Raises:
            DivergenceError: after ``max_rollbacks`` returns to the last sound epoch, which the machine then holds.
            ValueError: for data that are no states of the visible units, or a checkpoint of another run.
        """
        if not len(data):
            raise ValueError("there are no rows to learn from")
        if encode is None:
            machine.visible.check(data)
        if (self.up, self.down) != (1, 1) and (machine.n_layers > 2 or self.plan.n_temperatures > 1):
            raise ValueError("inputs are scaled for restricted machines only, and without tempered chains")
        return self.run(Learning(self, machine, data, validate, chains, encode, base_bias), resume)

    def run(self, learning: Learning, resume: bool) -> History:
        with torch.no_grad():
            if resume and self.run_dir is not None:
                learning.load(self.run_dir)
            learning.run()
        self.chains = learning.levels or learning.chains
        return learning.history


class Learning:
    """One run in progress."""

    def __init__(
        self,
        trainer: BoltzmannTrainer,
        machine: LayeredMachine,
        data: Tensor,
        validate: Validate | None = None,
        chains: list[Tensor] | None = None,
        encode: Encode | None = None,
        base_bias: Tensor | None = None,
    ):
        self.trainer, self.plan, self.machine, self.validate = trainer, trainer.plan, machine, validate
        self.encode = encode
        self.data = data.to(machine.biases[0].dtype)
        self.batch_size = min(self.plan.batch_size, len(data))
        self.n_batches = len(data) // self.batch_size
        self.generator = torch.Generator(data.device).manual_seed(self.plan.seed)
        self.weights = [w.detach() for w in machine.weights]
        self.biases = [b.detach() for b in machine.biases]
        visible = machine.visible
        self.log_std: Tensor | None = None
        self.real = slice(0)
        for unit, place in visible.parts:
            if isinstance(unit, Gaussian):
                self.log_std, self.real = unit.log_std.detach(), place
        self.spread = self.log_std is not None
        self.velocity = [torch.zeros_like(w) for w in self.weights]
        self.fast = [torch.zeros_like(w) for w in self.weights] if self.plan.fast_rate else []
        self.means = [torch.zeros_like(b) for b in self.biases]
        self.activity = [torch.full_like(b, 0.5) for b in self.biases]
        self.neighbours, self.fast_neighbours = _neighbours(self.weights), _neighbours(self.fast)
        self.plain = not (self.plan.momentum or self.plan.weight_decay or self.plan.centred or self.plan.fast_rate)
        self.ladder: TemperedChains | None = None
        if self.plan.n_temperatures > 1:
            base = visible.bias_of(self.states(self.data)) if base_bias is None else base_bias
            self.ladder = TemperedChains(machine, self.plan.n_temperatures, base.to(self.data))
        self.chains = self._first_chains() if chains is None else list(chains)
        self.levels: list[Tensor] = []
        if self.ladder is not None:
            self.levels, self.chains = self.chains, [x[0] for x in self.chains]
        n_chains = len(self.chains[0]) if self.plan.persistent else self.batch_size
        # Means over rows less means over chains are products with this.
        self.sign = torch.cat(
            [self.data.new_full((n,), sign / n) for n, sign in ((self.batch_size, 1), (n_chains, -1))]
        )
        self.merged = machine.n_layers == 2 and self.plan.persistent and not (self.plan.fast_rate or self.ladder)
        if self.plan.centred:
            first = self.positive(self.states(self.data[: 10 * self.batch_size]))
            self.means = [x.mean(0) for x in first]
        self.epoch, self.rollbacks, self.rate_scale = 0, 0, 1.0
        self.history = History()
        self.good: dict[str, Any] = {}
        self.seconds_before, self.started, self.last_checkpoint = 0.0, time.monotonic(), time.monotonic()

    def _first_chains(self) -> list[Tensor]:
        """Every layer of the persistent chains, each unit by its bias alone."""
        shape = [self.plan.n_particles or self.batch_size]
        if self.ladder is not None:
            shape = [self.plan.n_temperatures, *shape]
        return [
            unit.sample(bias.expand(*shape, -1).clone(), self.generator)
            for unit, bias in zip(self.machine.units, self.biases, strict=True)
        ]

    # -- an epoch ------------------------------------------------------------------------------------

    def run(self) -> None:
        plan, progress = self.plan, self.trainer.progress
        progress.start(plan.n_epochs, self.epoch)
        self.started = time.monotonic()
        if not self.good:
            self.good = self.state()
        self.save()
        try:
            while self.epoch < plan.n_epochs:
                order = torch.randperm(len(self.data), generator=self.generator, device=self.data.device)
                data = self.data[order]
                for k in range(self.n_batches):
                    self.update(
                        data[k * self.batch_size : (k + 1) * self.batch_size], self.epoch + k / self.n_batches
                    )
                record = self.record(data[: self.batch_size])
                if not self.sound(record):
                    self.roll_back(record)
                    continue
                self.epoch += 1
                self.history.epochs.append(record)
                progress.update(record)
                self.good = self.state()
                if time.monotonic() - self.last_checkpoint >= plan.checkpoint_seconds:
                    self.save()
        finally:
            progress.stop()
        self.history.stopped = "all epochs done"
        self.history.seconds = self.elapsed()
        self.save()

    def update(self, rows: Tensor, epoch: float) -> None:
        """One step of the weights, at a rate that falls along a straight line."""
        plan, rate = self.plan, self.rate(epoch)
        layers = self.phases(self.states(rows))
        sign, n_rows = self.sign, len(rows)
        if self.log_std is not None:
            # Their own rate is a tenth: a wrong spread makes all weights wrong.
            x, field = layers[0][:, self.real], self.field(layers, 0)[:, self.real]
            slope = x * (x - 2 * field)
            shift = (slope.t() @ sign) * (-2 * self.log_std).exp()
            self.log_std.add_(shift, alpha=0.1 * rate).clamp_(-3.0, 3.0)
        shifts = [x.t() @ sign for x in layers] if plan.centred else []
        for k, (weight, velocity) in enumerate(zip(self.weights, self.velocity, strict=True)):
            signed = layers[k + 1] * sign.unsqueeze(1)
            if self.plain:
                _add_product(weight, layers[k], signed, rate)
                continue
            velocity.mul_(plan.momentum)
            if plan.weight_decay:
                velocity.add_(weight, alpha=-rate * plan.weight_decay)
            _add_product(velocity, layers[k], signed, rate)
            if plan.centred:
                velocity.sub_(rate * torch.outer(self.means[k], shifts[k + 1]))
                velocity.sub_(rate * torch.outer(shifts[k], self.means[k + 1]))
            weight.add_(velocity)
            if self.fast:
                self.fast[k].mul_(0.95).add_(velocity, alpha=plan.fast_rate / max(rate, 1e-12))
        for k, bias in enumerate(self.biases):
            bias.addmv_(layers[k].t(), sign, alpha=rate)
            if plan.centred:
                if k + 1 < len(self.biases):
                    bias.sub_(self.velocity[k] @ self.means[k + 1])
                if k:
                    below = self.means[k - 1]
                    if k == 1 and self.spread:
                        below = self.machine.visible.feature(below)
                    bias.sub_(below @ self.velocity[k - 1])
        if plan.centred:
            for mean, x in zip(self.means, layers, strict=True):
                mean.lerp_(x[:n_rows].mean(0), 0.01)
        if plan.sparsity_target is not None:
            for k in range(1, len(self.biases)):
                self.activity[k].lerp_(layers[k][:n_rows].mean(0), 0.1)
                self.biases[k].add_(plan.sparsity_target - self.activity[k], alpha=rate * plan.sparsity_cost)

    def states(self, rows: Tensor) -> Tensor:
        """Visible states of rows of data."""
        return rows if self.encode is None else self.encode(rows, self.generator)

    def rate(self, epoch: float) -> float:
        part = epoch / self.plan.n_epochs
        return self.rate_scale * ((1 - part) * self.plan.learning_rate + part * self.plan.final_rate)

    def phases(self, rows: Tensor) -> list[Tensor]:
        """Every layer under the data, and below it under the machine: ``[n_rows + n_chains, width]``."""
        if self.merged:
            # The hidden units of rows and chains come from one product.
            self.sweep(self.plan.n_gibbs - 1)
            chains = self.machine.visible.sample(self.field(self.chains, 0), self.generator)
            both = torch.cat([rows, chains])
            hidden = self.field([both, both], 1).sigmoid_()
            self.chains = [chains, binary_draws(hidden[len(rows) :], self.generator)]
            return [both, hidden]
        positive = self.positive(rows)
        if not self.plan.persistent:
            odd = self.machine.parity(1)
            self.chains = [binary_draws(x, self.generator) if k in odd else x for k, x in enumerate(positive)]
        negative = self.sweep(self.plan.n_gibbs)
        return [torch.cat(pair) for pair in zip(positive, negative, strict=True)]

    def positive(self, rows: Tensor) -> list[Tensor]:
        """Visible states, and means of the hidden layers given them."""
        machine = self.machine
        if isinstance(machine, DBMEnergy):
            return machine.mean_field(rows)
        return [rows, self.field([rows, rows], 1).sigmoid_()]

    def sweep(self, n: int) -> list[Tensor]:
        """Move the chains n times; returns their layers, the odd ones as means given the even ones."""
        machine, means = self.machine, self.chains
        if self.ladder is not None:
            for _ in range(n):
                self.levels, means = self.ladder.sweep(self.levels, self.generator)
            self.chains = [x[0] for x in self.levels]
            return means
        for _ in range(n):
            layers = list(self.chains)
            for k in machine.parity(0):
                layers[k] = machine.units[k].sample(self.field(layers, k, chains=True), self.generator)
            means = list(layers)
            for k in machine.parity(1):
                means[k] = self.field(layers, k, chains=True).sigmoid_()
                layers[k] = binary_draws(means[k], self.generator)
            self.chains = layers
        return means

    def field(self, layers: list[Tensor], number: int, chains: bool = False) -> Tensor:
        """As the machine's, by the faster product; for the chains with their own weights on top."""
        neighbours = self.neighbours[number]
        if chains and self.fast:
            neighbours = neighbours + self.fast_neighbours[number]
        total: Tensor | None = None
        for k, matrix in neighbours:
            given = layers[k]
            if k == 0 and self.spread:
                given = self.machine.visible.feature(given)
            scale = self.trainer.up if k < number else self.trainer.down
            if scale != 1:
                given = scale * given
            if total is None:
                total = product(given, matrix, self.biases[number])
            else:
                total = total.add_(product(given, matrix))
        assert total is not None
        return total

    # -- what is told ---------------------------------------------------------------------------------

    def record(self, rows: Tensor) -> dict[str, float]:
        machine = self.machine
        positive = self.positive(self.states(rows))
        back = machine.visible.mean(self.field(positive, 0))
        loss = float((back - positive[0]).square().mean())
        record = {"epoch": self.epoch + 1.0, "loss": loss, "reconstruction": loss}
        if machine.n_layers == 2 and self.trainer.up == self.trainer.down == 1:
            layers: list[Tensor | None] = [positive[0], None]
            chains: list[Tensor | None] = [self.chains[0], None]
            gap = machine.summed_out(layers, 1).mean() - machine.summed_out(chains, 1).mean()
            record["free-energy gap"] = float(gap)
        if self.ladder is not None:
            record["swaps"] = float(self.ladder.swapped.min())
        if self.validate is not None and (self.epoch + 1) % self.plan.validate_every == 0:
            record["validation"] = self.validate(machine)
            before = [e["validation"] for e in self.history.epochs if "validation" in e]
            record["best"] = max([record["validation"], *before])
        return record

    def sound(self, record: dict[str, float]) -> bool:
        """Whether all is finite, and the data not absurdly far from the chains.

        The gap is the cross-entropy of the data less the entropy of the machine: with binary units it is at most
        log 2 for each, unless fair coins would do better.
        """
        finite = all(bool(torch.isfinite(t).all()) for t in self._tensors())
        near = abs(record.get("free-energy gap", 0.0)) <= _WIDEST_GAP * self.machine.visible.width
        return finite and near and all(math.isfinite(v) for v in record.values())

    def roll_back(self, record: dict[str, float]) -> None:
        rollbacks, scale, events = self.rollbacks + 1, self.rate_scale / 2, self.history.events
        where = f"epoch {self.epoch + 1}: figures are not finite, or the data are far from the chains"
        self.restore(self.good)
        if rollbacks > self.plan.max_rollbacks:
            raise DivergenceError(
                f"training diverged {rollbacks} times and was stopped; last: {where}. Lower the learning rate."
            )
        message = f"{where}; back to the last sound epoch, learning rate halved (roll-back {rollbacks})"
        self.rollbacks, self.rate_scale, self.history.events = rollbacks, scale, [*events, message]
        self.generator.manual_seed(self.plan.seed + 15485863 * rollbacks)
        self.trainer.progress.message(message)
        self.good = self.state()

    # -- checkpoints ----------------------------------------------------------------------------------

    def _tensors(self) -> list[Tensor]:
        spread = [] if self.log_std is None else [self.log_std]
        swapped = [] if self.ladder is None else [self.ladder.swapped]
        moving = [*self.velocity, *self.fast, *self.means, *self.activity, *swapped]
        return [*self.weights, *self.biases, *spread, *moving]

    def state(self) -> dict[str, Any]:
        return {
            "tensors": [t.clone() for t in self._tensors()],
            "chains": [t.clone() for t in self.levels or self.chains],
            "epoch": self.epoch,
            "rollbacks": self.rollbacks,
            "rate_scale": self.rate_scale,
            "generator": self.generator.get_state(),
            # Records are never changed: lists of them are all that need be copied.
            "epochs": list(self.history.epochs),
            "events": list(self.history.events),
            "seconds": self.elapsed(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        for own, kept in zip(self._tensors(), state["tensors"], strict=True):
            own.copy_(kept)
        self.chains = [t.clone() for t in state["chains"]]
        if self.ladder is not None:
            self.levels, self.chains = self.chains, [x[0] for x in self.chains]
        for name in ("epoch", "rollbacks", "rate_scale"):
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"])
        self.history = History(list(state["epochs"]), list(state["events"]))

    def elapsed(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def save(self) -> None:
        if self.trainer.run_dir is not None:
            about = {"plan": asdict(self.plan), "data": fingerprint(Batch(None, self.data))}
            write_checkpoint(self.trainer.run_dir, {**self.state(), **about})
        self.last_checkpoint = time.monotonic()

    def load(self, run_dir: Path) -> None:
        state = read_checkpoint(run_dir)
        if state is None:
            return
        if state.get("plan") != asdict(self.plan):
            raise ValueError(f"the run in {run_dir} was started with other settings: resume it with the same ones")
        if state["data"] != fingerprint(Batch(None, self.data)):
            raise ValueError(f"the run in {run_dir} was started with other data: start a new run")
        if [t.shape for t in state["tensors"]] != [t.shape for t in self._tensors()]:
            raise ValueError(f"the checkpoint in {run_dir} belongs to another machine: start a new run")
        self.restore(state)
        self.seconds_before = state["seconds"]
        self.good = self.state()


def _neighbours(weights: list[Tensor]) -> list[list[tuple[int, Tensor]]]:
    """Of every layer: the number of each neighbour, and the matrix by which it reaches the layer."""
    neighbours: list[list[tuple[int, Tensor]]] = [[] for _ in range(len(weights) + 1)]
    for k, weight in enumerate(weights):
        neighbours[k].append((k + 1, weight.t()))
        neighbours[k + 1].append((k, weight))
    return neighbours


def binary_draws(mean: Tensor, generator: torch.Generator) -> Tensor:
    """Binary states with these means."""
    uniform = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return torch.lt(uniform, mean, out=uniform)


def _add_product(total: Tensor, below: Tensor, above: Tensor, scale: float) -> None:
    """total += scale * below' above."""
    if total.numel() * len(below) < 1 << 22:
        total.addmm_(below.t(), above, alpha=scale)
    else:
        total.add_(product(below.t(), above), alpha=scale)
