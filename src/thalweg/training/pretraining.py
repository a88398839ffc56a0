"""Deep networks, layer by layer: the start of a deep Boltzmann machine; belief networks and their fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from thalweg.energies.machines.belief import DeepBeliefNetwork
from thalweg.energies.machines.layered import DBMEnergy, RBMEnergy
from thalweg.energies.machines.units import Units
from thalweg.training.loop import History
from thalweg.training.moments import BoltzmannTrainer, Learning, LearningPlan
from thalweg.training.progress import Progress


def pretrain(
    machine: DBMEnergy,
    data: Tensor,
    plan: LearningPlan,
    run_dir: Path | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> list[History]:
    """Set the weights of a deep machine, in place, by one restricted machine for each pair of layers.

    In the deep machine a layer hears from both sides, in its own part only from one. So what it hears counts
    twice there: from below in the first part, from above in the last; a part between is trained as it is and its
    weights are halved, which is the same for both directions at once. Every part learns from draws of the part
    below. A hidden layer's bias is the mean of those that it had in its two parts: the law of the deep machine's
    layer is then the geometric mean of the parts' laws.

    Args:
        data: visible states ``[N, width]``.
        plan: of each part.
        run_dir: keep the checkpoints of the parts here.

    Returns:
        the history of each part.

    Raises:
        ValueError: for data that are no states of the visible units.
        DivergenceError: as :meth:`~thalweg.training.moments.BoltzmannTrainer.fit`.

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
        folder = None if run_dir is None else run_dir / f"layer-{k + 1}"
        trainer = BoltzmannTrainer(plan, folder, progress, up, down)
        histories.append(trainer.fit(part, data, resume=resume, encode=encode if k else None))
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
    plan: LearningPlan,
    run_dir: Path | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> tuple[DeepBeliefNetwork, list[History]]:
    """A deep belief network, layer upon layer: each new machine on top learns from draws of the layers below.

    A layer that starts with the turned weights of the one below (see :meth:`DeepBeliefNetwork.grow`) can only
    raise the bound of log p(v) that holds with the way up as it is.

    Args:
        visible: the visible units, or how many binary ones.
        hidden: numbers of hidden units, from below.
        data: visible states ``[N, width]``.
        plan: of each machine.
        run_dir: keep the checkpoints of the machines here.

    Returns:
        the network, and the history of each machine.

    Raises:
        ValueError: for data that are no states of the visible units.
        DivergenceError: as :meth:`~thalweg.training.moments.BoltzmannTrainer.fit`.

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
        folder = None if run_dir is None else run_dir / f"layer-{k + 1}"
        trainer = BoltzmannTrainer(plan, folder, progress)
        histories.append(trainer.fit(network.top, data, resume=resume, encode=encode if k else None))
    return network, histories


def up_down(
    network: DeepBeliefNetwork,
    data: Tensor,
    plan: LearningPlan,
    run_dir: Path | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> History:
    """Fine-tune all layers of a deep belief network together, in place: contrastive wake-sleep.

    Awake, draws of the way up teach the layers on the way down, and the machine on top as ever; asleep, what its
    chains make of the network below teaches the way up, which gets weights of its own.

    Args:
        data: visible states ``[N, width]``.
        plan: of everything; its rate is best a small one.

    Raises:
        ValueError: for data that are no states of the visible units.
        DivergenceError: as :meth:`~thalweg.training.moments.BoltzmannTrainer.fit`.

    Source: [Hinton 2006, sec. 6 and app. B].
    """
    network.visible.check(data)
    network.untie()
    trainer = BoltzmannTrainer(plan, run_dir, progress)
    return trainer.run(_UpDown(trainer, network, data), resume)


class _UpDown(Learning):
    """The machine on top learns as ever; the layers below beside it."""

    def __init__(self, trainer: BoltzmannTrainer, network: DeepBeliefNetwork, data: Tensor):
        self.network = network
        self.awake: list[Tensor] = []
        self.asleep: list[Tensor] = []
        super().__init__(trainer, network.top, data, encode=self.wake)

    def wake(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        self.awake, _ = self.network.draw_up(rows, generator)
        return self.awake[-1]

    def phases(self, rows: Tensor) -> list[Tensor]:
        layers = super().phases(rows)
        self.asleep = self.network.draw_down(self.chains[0], self.generator)
        return layers

    def update(self, rows: Tensor, epoch: float) -> None:
        super().update(rows, epoch)
        rate = self.rate(epoch)
        for layer, below, above in zip(self.network.lower, self.awake, self.awake[1:], strict=False):
            error = layer.unit.feature(below - layer.unit.mean(layer.field(above)))
            layer.weight.addmm_(error.t(), above, alpha=rate / len(above))
            layer.bias.add_(error.mean(0), alpha=rate)
        for layer, below, above in zip(self.network.lower, self.asleep, self.asleep[1:], strict=False):
            error = above - torch.sigmoid(layer.up(below))
            layer.up_weight.addmm_(layer.unit.feature(below).t(), error, alpha=rate / len(above))
            layer.up_bias.add_(error.mean(0), alpha=rate)

    def _tensors(self) -> list[Tensor]:
        return [*super()._tensors(), *(p.detach() for p in self.network.lower.parameters())]
