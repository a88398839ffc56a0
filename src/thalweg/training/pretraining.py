"""Deep networks, layer by layer: the start of a deep Boltzmann machine; belief networks and their fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from thalweg.energies.machines import DBMEnergy, DeepBeliefNetwork, RBMEnergy, Units
from thalweg.objectives.base import Batch
from thalweg.training.feed import Feed
from thalweg.training.history import History
from thalweg.training.loop import Trainer
from thalweg.training.moments import Moments, MomentStep
from thalweg.training.plan import Plan
from thalweg.training.progress import Progress


def pretrain(
    machine: DBMEnergy,
    data: Tensor,
    plan: Plan,
    moments: Moments = Moments(),
    run_dir: Path | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
) -> list[History]:
    """Set the weights of a deep machine, in place, by one restricted machine for each pair of layers.

    In the deep machine a layer gets input from both sides, in its own part only from one. So this input counts
    twice there: from below in the first part, from above in the last; a part between is trained as it is and its
    weights are halved, which is the same for both directions at once. Every part learns from draws of the part
    below. A hidden layer's bias is the mean of those that it had in its two parts: the conditional distribution of
    the deep machine's layer is then the geometric mean of those in the parts.

    Args:
        data: visible states ``[N, width]``.
        plan: how each part is trained.
        moments: how the chains of each part run.
        run_dir: keep the checkpoints of the parts here.
        progress, resume, fabric: see :class:`~thalweg.training.loop.Trainer`.

    Returns:
        the history of each part.

    Raises:
        ValueError: for data that are no states of the visible units.
        DivergenceError: as :meth:`~thalweg.training.loop.Trainer.run`.

    Source: [Salakhutdinov 2009, sec. 3.2].
    """
    machine.visible.check(data)
    data = data.to(machine.biases[0].dtype)
    parts: list[RBMEnergy] = []
    histories = []
    last = machine.n_layers - 2

    def encode(rows: Tensor, generator: torch.Generator) -> Tensor:
        for k, part in enumerate(parts):
            rows = torch.bernoulli(torch.sigmoid(_input(part, rows, _factors(k, last)[0])), generator=generator)
        return rows

    for k in range(last + 1):
        part = RBMEnergy(copy.deepcopy(machine.units[k]), machine.units[k + 1].width).to(data)
        with torch.no_grad():
            part.weights[0].copy_(machine.weights[k])
            states = encode(data, torch.Generator(data.device).manual_seed(plan.seed))
            part.biases[0].copy_(part.visible.bias_of(states))
        up, down = _factors(k, last)
        step = MomentStep(part, moments, encode=encode if k else None, up=up, down=down)
        histories.append(_fit_layer(k, step, data, plan, run_dir, progress, resume, fabric))
        parts.append(part)
    with torch.no_grad():
        machine.visible.load_state_dict(parts[0].visible.state_dict())
        for k, part in enumerate(parts):
            machine.weights[k].copy_(part.weights[0] * (0.5 if 0 < k < last else 1.0))
            below = parts[k - 1].biases[1] if k else part.biases[0]
            machine.biases[k].copy_(0.5 * (below + part.biases[0]))
        machine.biases[last + 1].copy_(parts[last].biases[1])
    return histories


def _factors(k: int, last: int) -> tuple[float, float]:
    """What a part's input counts on its way up and down."""
    return 2.0 if k == 0 else 1.0, 2.0 if k == last else 1.0


def _input(part: RBMEnergy, rows: Tensor, factor: float) -> Tensor:
    with torch.no_grad():
        return factor * part.input([rows, None], 1) + part.biases[1]


def grow_belief_network(
    visible: Units | int,
    hidden: Sequence[int],
    data: Tensor,
    plan: Plan,
    moments: Moments = Moments(),
    run_dir: Path | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
) -> tuple[DeepBeliefNetwork, list[History]]:
    """A deep belief network, layer upon layer: each new machine on top learns from draws of the layers below.

    A layer that starts with the turned weights of the one below (see :meth:`DeepBeliefNetwork.grow`) can only
    raise the bound of log p(v) that holds with the way up as it is.

    Args:
        visible: the visible units, or how many binary ones.
        hidden: numbers of hidden units, from below.
        data: visible states ``[N, width]``.
        plan: how each machine is trained.
        moments: how the chains of each machine run.
        run_dir: keep the checkpoints of the machines here.
        progress, resume, fabric: see :class:`~thalweg.training.loop.Trainer`.

    Returns:
        the network, and the history of each machine.

    Raises:
        ValueError: for data that are no states of the visible units.
        DivergenceError: as :meth:`~thalweg.training.loop.Trainer.run`.

    Source: [Hinton 2006, sec. 5].
    """
    network = DeepBeliefNetwork(visible, hidden[:1])
    network.visible.check(data)
    data = data.float()
    with torch.no_grad():
        network.top.biases[0].copy_(network.visible.bias_of(data))
    histories = []

    def encode(rows: Tensor, generator: torch.Generator) -> Tensor:
        return network.draw_up(rows, generator)[0][-1]

    for k, n in enumerate(hidden):
        if k:
            network.grow(n)
        step = MomentStep(network.top, moments, encode=encode if k else None)
        histories.append(_fit_layer(k, step, data, plan, run_dir, progress, resume, fabric))
    return network, histories


def up_down(
    network: DeepBeliefNetwork,
    data: Tensor,
    plan: Plan,
    moments: Moments = Moments(),
    run_dir: Path | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
) -> History:
    """Fine-tune all layers of a deep belief network together, in place: contrastive wake-sleep.

    Awake, draws of the way up teach the layers on the way down, and the machine on top as ever; asleep, what its
    chains make of the network below teaches the way up, which gets weights of its own.

    Args:
        data: visible states ``[N, width]``.
        plan: how everything is trained; its rate is best a small one.
        moments: how the chains of the machine on top run.

    Raises:
        ValueError: for data that are no states of the visible units.
        DivergenceError: as :meth:`~thalweg.training.loop.Trainer.run`.

    Source: [Hinton 2006, sec. 6 and app. B].
    """
    network.visible.check(data)
    network.untie()
    trainer = Trainer(plan, fabric, run_dir, progress)
    return trainer.run(_UpDown(network, moments), Batch(None, data.float()), resume=resume)


def _fit_layer(
    number: int,
    step: MomentStep,
    data: Tensor,
    plan: Plan,
    run_dir: Path | None,
    progress: Progress | None,
    resume: bool,
    fabric: Fabric | None,
) -> History:
    folder = None if run_dir is None else run_dir / f"layer-{number + 1}"
    return Trainer(plan, fabric, folder, progress).run(step, Batch(None, data), resume=resume)


class _UpDown(MomentStep):
    """The machine on top learns as any machine does, and the layers below beside it."""

    def __init__(self, network: DeepBeliefNetwork, moments: Moments):
        super().__init__(network.top, moments, encode=self.wake)
        self.network = self.module = network
        self.awake: list[Tensor] = []
        self.asleep: list[Tensor] = []

    @torch.no_grad()
    def begin(self, plan: Plan, fabric: Fabric, feed: Feed, generator: torch.Generator) -> None:
        self.network.to(fabric.device)
        super().begin(plan, fabric, feed, generator)
        lower = [p.detach() for p in self.network.lower.parameters()]
        self.weights, self.n_energy_weights = [*self.weights, *lower], len(self.weights) + len(lower)

    def wake(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        self.awake, _ = self.network.draw_up(rows, generator)
        return self.awake[-1]

    def phases(self, rows: Tensor) -> list[Tensor]:
        layers = super().phases(rows)
        self.asleep = self.network.draw_down(self.chains[0], self.generator)
        return layers

    def learn(self, rows: Tensor, rate: float) -> None:
        super().learn(rows, rate)
        for layer, below, above in zip(self.network.lower, self.awake, self.awake[1:], strict=False):
            error = layer.unit.feature(below - layer.unit.mean(layer.field(above)))
            layer.weight.addmm_(error.t(), above, alpha=rate / len(above))
            layer.bias.add_(error.mean(0), alpha=rate)
        for layer, below, above in zip(self.network.lower, self.asleep, self.asleep[1:], strict=False):
            error = above - torch.sigmoid(layer.up(below))
            layer.up_weight.addmm_(layer.unit.feature(below).t(), error, alpha=rate / len(above))
            layer.up_bias.add_(error.mean(0), alpha=rate)
