"""One restricted machine for each class, and the offset that stands for each one's unknown log Z."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg._torch_state import seeded
from thalweg.energies.machines.layered import RBMEnergy
from thalweg.objectives.base import Batch
from thalweg.training.loop import Trainer
from thalweg.training.moments import MomentStep
from thalweg.training.plan import Plan
from thalweg.training.progress import Progress


def machines_of_classes(
    rows: Tensor, labels: Tensor, n_hidden: int, plan: Plan, progress: Progress | None = None
) -> list[RBMEnergy]:
    """A machine for each of the labels 0, 1, ..., trained on its rows alone.

    Args:
        rows: binary ``[N, width]``.
        labels: whole numbers ``[N]``; each up to the largest must occur.

    Source: [Hinton 2002, sec. 8].
    """
    machines = []
    for k in range(int(labels.max()) + 1):
        own = rows[labels == k]
        with seeded(plan.seed):
            machine = RBMEnergy(rows.shape[1], n_hidden)
        machine.biases[0].data.copy_(machine.visible.bias_of(own))
        Trainer(plan, progress=progress).run(MomentStep(machine), Batch(None, own))
        machines.append(machine)
    return machines


def class_energies(machines: list[RBMEnergy], rows: Tensor) -> Tensor:
    """Free energies ``[N, K]`` of the rows under every machine."""
    with torch.no_grad():
        return torch.stack([machine(rows) for machine in machines], 1)


def class_offsets(energies: Tensor, labels: Tensor) -> Tensor:
    """One number for each machine, by the likelihood of the labels ``[N]`` given energies ``[N, K]``.

    Energies of machines whose log Z is not known compare only up to such a number; the class of least energy plus
    offset is the likeliest.

    Source: [Hinton 2002, sec. 8].
    """
    offset = energies.new_zeros(energies.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([offset], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(-(energies + offset), labels) + 1e-4 * offset.square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return offset.detach()
