"""Learning of machines in layers: the means of products under the data less those under the machine.

The gradient of such a machine is that difference, in closed form, so a step needs no autograd: it is a handful of
products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from thalweg.energies.machines import DBMEnergy, Gaussian, LayeredMachine
from thalweg.energies.products import product
from thalweg.objectives.base import Batch
from thalweg.sampling.layered_tempering import TemperedChains
from thalweg.training.feed import Feed
from thalweg.training.guard import Diverged
from thalweg.training.plan import Plan
from thalweg.training.step import Clock, Step

Encode = Callable[[Tensor, torch.Generator], Tensor]

# Of free energies, in nats for each visible number.
_WIDEST_GAP = 10.0


@dataclass(frozen=True)
class Moments:
    """How the means under a machine in layers are found, and what is added to its gradient.

    Attributes:
        momentum: part of the last update that is added to the next.
        n_gibbs: sweeps of the chains before an update.
        persistent: whether chains go on from update to update (persistent CD), or start at the data (CD).
        n_particles: number of persistent chains; None is as many as there are rows in a batch.
        n_temperatures: levels of persistent chains, evenly from the machine itself to one without weights, which
            swap places: they find modes that chains of the machine alone seldom leave for. Each level costs as
            much as the chains without them; 1 is the machine's own level alone.
        fast_rate: rate of a second set of weights that only the chains see, which decays by a twentieth at every
            update and drives them out of where they have been; 0 is none.
        centred: whether gradients are taken about the running means of the units.
        sparsity_target: the wanted mean of the hidden units; None leaves it free.
        sparsity_cost: rate with which the biases of the hidden units are moved towards it.

    Raises:
        ValueError: for settings that exclude each other or lie out of range.

    Source: CD [Hinton 2002]; persistent [Tieleman 2008]; tempered [Desjardins 2010]; fast weights [Tieleman 2009];
    centred [Melchior 2016, alg. 1]; sparsity and the rest [Hinton 2012].
    """

    momentum: float = 0.0
    n_gibbs: int = 1
    persistent: bool = True
    n_particles: int | None = None
    n_temperatures: int = 1
    fast_rate: float = 0.0
    centred: bool = False
    sparsity_target: float | None = None
    sparsity_cost: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_gibbs", "n_temperatures"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("fast_rate", "sparsity_cost"):
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


def machine_plan(**settings: Any) -> Plan:
    """A :class:`Plan` with the defaults of machines in layers.

    Batches of 64 rows, a learning rate of 0.3 that falls to 0 on a straight line, and the last weights kept.
    """
    defaults = {"batch_size": 64, "learning_rate": 0.3, "schedule": "linear", "keep_best": False}
    return Plan(**{**defaults, **settings})


class MomentStep(Step):
    """One update of a machine in layers, by contrastive divergence or persistent chains.

    The data's means of products come from the conditional distribution of the hidden units given the rows, which
    is exact for a restricted machine and the mean field for a deep one.

    For Gaussian units the gradient is taken with respect to weights and biases in units of their variances: a step
    is as large for units of a small variance as for those of a large one.

    The records of the history hold "loss" and "reconstruction", the mean squared error of the visible units' means
    after one step up and down; "free-energy gap" per row, of the data less the chains'; and "swaps", the share
    accepted between the two levels of tempered chains that swap least.

    Args:
        machine: what learns, in place.
        moments: the settings.
        chains: where persistent chains start, for every layer as in :attr:`chains`; None draws each unit by its
            bias.
        encode: maps rows of data to visible states, anew at every update: then the data may be anything, such as
            probabilities for :func:`binary_draws`.
        base_bias: visible bias where tempered chains have no weights; None is that of the data's means.
        up, down: factors of what hidden units get from below and visible ones from above, for a restricted machine
            that is to be a part of a deep one (:mod:`thalweg.training.pretraining`).

    Attributes:
        chains: all layers of the machine's own chains after the last update ``[n, width]``.
        levels: with several temperatures the chains of all of them ``[n_temperatures, n, width]``, the machine's
            own first; else empty.

    Raises:
        ValueError: if inputs are scaled for a machine that is not restricted.

    Source: deep machines [Salakhutdinov 2009, alg. 1].
    """

    def __init__(
        self,
        machine: LayeredMachine,
        moments: Moments = Moments(),
        *,
        chains: list[Tensor] | None = None,
        encode: Encode | None = None,
        base_bias: Tensor | None = None,
        up: float = 1.0,
        down: float = 1.0,
    ):
        if (up, down) != (1, 1) and (machine.n_layers > 2 or moments.n_temperatures > 1):
            raise ValueError("inputs are scaled for restricted machines only, and without tempered chains")
        self.energy = self.module = self.machine = machine
        self.moments, self.settings = moments, asdict(moments)
        self.first_chains, self.encode, self.base_bias = chains, encode, base_bias
        self.up, self.down = up, down

    @torch.no_grad()
    def begin(self, plan: Plan, fabric: Fabric, feed: Feed, generator: torch.Generator) -> None:
        """Lay out the machine's tensors and start the chains.

        Raises:
            ValueError: for rows that are no states of the visible units, or more than one process.
        """
        super().begin(plan, fabric, feed, generator)
        if fabric.world_size > 1:
            raise ValueError("machines in layers are trained by one process: take devices=1")
        machine, moments = self.machine.to(fabric.device), self.moments
        # An index into the machine's list of layers costs as much as a small product.
        self.visible = machine.visible
        if self.encode is None:
            for stage in feed.stages:
                self.visible.check(stage.y)
        dtype = machine.biases[0].dtype
        feed.stages = [stage._replace(y=stage.y.to(dtype)) for stage in feed.stages]
        data, self.batch_size, self.generator = feed.stages[0].y, feed.batch_sizes[0], generator
        self.matrices = [w.detach() for w in machine.weights]
        self.biases = [b.detach() for b in machine.biases]
        self.log_std: Tensor | None = None
        self.real = slice(0)
        for unit, place in self.visible.parts:
            if isinstance(unit, Gaussian):
                self.log_std, self.real = unit.log_std.detach(), place
        self.spread = self.log_std is not None
        self.velocity = [torch.zeros_like(w) for w in self.matrices]
        self.fast = [torch.zeros_like(w) for w in self.matrices] if moments.fast_rate else []
        self.means = [torch.zeros_like(b) for b in self.biases]
        self.activity = [torch.full_like(b, 0.5) for b in self.biases]
        self.neighbours, self.fast_neighbours = _neighbours(self.matrices), _neighbours(self.fast)
        self.plain = not (moments.momentum or plan.weight_decay or moments.centred or moments.fast_rate)
        self.ladder: TemperedChains | None = None
        if moments.n_temperatures > 1:
            base = self.visible.bias_of(self.states(data)) if self.base_bias is None else self.base_bias
            self.ladder = TemperedChains(machine, moments.n_temperatures, base.to(data))
        first = self._drawn_chains() if self.first_chains is None else [x.to(data) for x in self.first_chains]
        self._set_chains(first)
        n_chains = len(self.chains[0]) if moments.persistent else self.batch_size
        # Means over rows less means over chains are products with this.
        self.sign = torch.cat(
            [data.new_full((n,), sign / n) for n, sign in ((self.batch_size, 1), (n_chains, -1))]
        )
        self.merged = machine.n_layers == 2 and moments.persistent and not (moments.fast_rate or self.ladder)
        if moments.centred:
            self.means = [x.mean(0) for x in self.positive(self.states(data[: 10 * self.batch_size]))]
        self.weights = [*self.matrices, *self.biases, *([] if self.log_std is None else [self.log_std])]
        self.buffers, self.n_energy_weights = [], len(self.weights)

    def _drawn_chains(self) -> list[Tensor]:
        """Every layer of the persistent chains, each unit by its bias alone."""
        shape = [self.moments.n_particles or self.batch_size]
        if self.ladder is not None:
            shape = [self.moments.n_temperatures, *shape]
        return [
            unit.sample(bias.expand(*shape, -1).clone(), self.generator)
            for unit, bias in zip(self.machine.units, self.biases, strict=True)
        ]

    def _set_chains(self, chains: list[Tensor]) -> None:
        self.levels = [] if self.ladder is None else list(chains)
        self.chains = list(chains) if self.ladder is None else [x[0] for x in chains]

    @property
    def all_chains(self) -> list[Tensor]:
        """The chains of all temperatures: what another run can start from."""
        return self.levels or self.chains

    # -- an update -----------------------------------------------------------------------------------

    def learning(self) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def update(self, batch: Batch, share: float, clock: Clock, generator: torch.Generator) -> dict[str, float]:
        self.learn(batch.y, clock.rate() * self.plan.learning_rate)
        return {}

    def learn(self, rows: Tensor, rate: float) -> None:
        """One step of the weights at this rate."""
        plan, moments = self.plan, self.moments
        layers = self.phases(self.states(rows))
        sign, n_rows = self.sign, rows.shape[0]
        if self.log_std is not None:
            # Their own rate is a tenth: a wrong spread makes all weights wrong.
            x, field = layers[0][:, self.real], self.field(layers, 0)[:, self.real]
            slope = x * (x - 2 * field)
            shift = (slope.t() @ sign) * (-2 * self.log_std).exp()
            self.log_std.add_(shift, alpha=0.1 * rate).clamp_(-3.0, 3.0)
        shifts = [x.t() @ sign for x in layers] if moments.centred else []
        for k, (weight, velocity) in enumerate(zip(self.matrices, self.velocity, strict=True)):
            signed = layers[k + 1] * sign.unsqueeze(1)
            if self.plain:
                _add_product(weight, layers[k], signed, rate)
                continue
            velocity.mul_(moments.momentum)
            if plan.weight_decay:
                velocity.add_(weight, alpha=-rate * plan.weight_decay)
            _add_product(velocity, layers[k], signed, rate)
            if moments.centred:
                velocity.sub_(rate * torch.outer(self.means[k], shifts[k + 1]))
                velocity.sub_(rate * torch.outer(shifts[k], self.means[k + 1]))
            weight.add_(velocity)
            if self.fast:
                self.fast[k].mul_(0.95).add_(velocity, alpha=moments.fast_rate / max(rate, 1e-12))
        for k, bias in enumerate(self.biases):
            bias.addmv_(layers[k].t(), sign, alpha=rate)
            if moments.centred:
                if k + 1 < len(self.biases):
                    bias.sub_(self.velocity[k] @ self.means[k + 1])
                if k:
                    below = self.means[k - 1]
                    if k == 1 and self.spread:
                        below = self.visible.feature(below)
                    bias.sub_(below @ self.velocity[k - 1])
        if moments.centred:
            for mean, x in zip(self.means, layers, strict=True):
                mean.lerp_(x[:n_rows].mean(0), 0.01)
        if moments.sparsity_target is not None:
            for k in range(1, len(self.biases)):
                self.activity[k].lerp_(layers[k][:n_rows].mean(0), 0.1)
                self.biases[k].add_(moments.sparsity_target - self.activity[k], alpha=rate * moments.sparsity_cost)

    def states(self, rows: Tensor) -> Tensor:
        """Visible states of rows of data."""
        return rows if self.encode is None else self.encode(rows, self.generator)

    def phases(self, rows: Tensor) -> list[Tensor]:
        """Every layer under the data, and below it under the machine: ``[n_rows + n_chains, width]``."""
        if self.merged:
            # The hidden units of rows and chains come from one product.
            self.sweep(self.moments.n_gibbs - 1)
            chains = self.visible.sample(self.field(self.chains, 0), self.generator)
            both = torch.cat([rows, chains])
            hidden = self.field([both, both], 1).sigmoid_()
            self.chains = [chains, binary_draws(hidden[rows.shape[0] :], self.generator)]
            return [both, hidden]
        positive = self.positive(rows)
        if not self.moments.persistent:
            odd = self.machine.parity(1)
            self.chains = [binary_draws(x, self.generator) if k in odd else x for k, x in enumerate(positive)]
        negative = self.sweep(self.moments.n_gibbs)
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
            self._set_chains(self.levels)
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
        """Total input of a layer, by the faster product; the chains add their fast weights."""
        neighbours = self.neighbours[number]
        if chains and self.fast:
            neighbours = neighbours + self.fast_neighbours[number]
        total: Tensor | None = None
        for k, matrix in neighbours:
            given = layers[k]
            if k == 0 and self.spread:
                given = self.visible.feature(given)
            scale = self.up if k < number else self.down
            if scale != 1:
                given = scale * given
            if total is None:
                total = product(given, matrix, self.biases[number])
            else:
                total = total.add_(product(given, matrix))
        assert total is not None
        return total

    # -- what is reported -------------------------------------------------------------------------------

    @torch.no_grad()
    def end_epoch(self, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        machine = self.machine
        positive = self.positive(self.states(batch.y))
        back = self.visible.mean(self.field(positive, 0))
        loss = float((back - positive[0]).square().mean())
        record = {"loss": loss, "reconstruction": loss}
        if machine.n_layers == 2 and self.up == self.down == 1:
            layers: list[Tensor | None] = [positive[0], None]
            chains: list[Tensor | None] = [self.chains[0], None]
            gap = machine.summed_out(layers, 1).mean() - machine.summed_out(chains, 1).mean()
            record["free-energy gap"] = float(gap)
        if self.ladder is not None:
            record["swaps"] = float(self.ladder.swapped.min())
        self._check(record)
        return record

    def _check(self, record: dict[str, float]) -> None:
        """Refuse figures that are not finite, and data that are absurdly far from the chains.

        The gap is the cross-entropy of the data less the entropy of the machine: with binary units it is at most
        log 2 for each, unless fair coins would do better.
        """
        tensors = [*self.weights, *self._moving()]
        finite = all(bool(torch.isfinite(t).all()) for t in tensors) and all(map(math.isfinite, record.values()))
        if not finite:
            raise Diverged("figures are not finite")
        if abs(record.get("free-energy gap", 0.0)) > _WIDEST_GAP * self.machine.visible.width:
            raise Diverged("the data are far from the chains")

    # -- what a run needs to go on ------------------------------------------------------------------------

    def _moving(self) -> list[Tensor]:
        swapped = [] if self.ladder is None else [self.ladder.swapped]
        return [*self.velocity, *self.fast, *self.means, *self.activity, *swapped]

    def state(self) -> dict[str, Any]:
        return {"moving": self._moving(), "chains": self.all_chains}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        for own, kept in zip(self._moving(), state["moving"], strict=True):
            own.copy_(kept)
        self._set_chains(state["chains"])


def _neighbours(weights: list[Tensor]) -> list[list[tuple[int, Tensor]]]:
    """For every layer the number of each neighbour, and the matrix by which it reaches the layer."""
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
    if total.numel() * below.shape[0] < 1 << 22:
        total.addmm_(below.t(), above, alpha=scale)
    else:
        total.add_(product(below.t(), above), alpha=scale)
