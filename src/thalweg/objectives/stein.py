"""Stein discrepancy with a learned critic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from thalweg.energies.base import Energy, event_sum, standard_normal
from thalweg.objectives.base import Adversarial, AnyEnergy, Batch, Player, continuous


class SteinDiscrepancy(Adversarial):
    """E_data[score'f + tr grad f], score = -grad E: zero for every f where model and data agree.

    The critic f looks for where they do not, held in check by l2 E|f|^2; the energy makes the best critic's
    value small. Neither draws from the model.

    Args:
        critic: maps y ``[N, *event]`` (for a conditional energy y and x side by side, ``[N, K + x_dim]``) to a
            field of y's shape; smooth.
        l2: weight of the penalty; it bounds the critic.
        n_critic_steps: updates of the critic for each of the energy.

    Source: [Grathwohl 2020b, eq. 5 and alg. 1].
    """

    def __init__(self, critic: nn.Module, l2: float = 10.0, n_critic_steps: int = 5):
        super().__init__()
        self.critic = critic
        self.l2 = l2
        self.n_critic_steps = n_critic_steps

    def field(self, batch: Batch, y: Tensor) -> Tensor:
        """f ``[B, *event]``."""
        if batch.x is None:
            return self.critic(y)
        return self.critic(torch.cat([y, batch.x.flatten(1)], 1))

    def players(self, energy: AnyEnergy) -> list[Player]:
        return [
            Player("critic", list(self.critic.parameters()), n_steps=self.n_critic_steps),
            Player("energy", list(energy.parameters())),
        ]

    def player_loss(
        self, player: str, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        given = continuous(self, energy, batch)
        if player == "energy":
            # The trace has no part in the energy's gradient, but it is part of the value.
            field, trace = self._field_and_trace(batch, given, generator)
            return trace.detach() + event_sum(given.score(batch.y) * field.detach(), given.event_ndim)
        grad = given.value_and_gradient(batch.y)[1]
        field, trace = self._field_and_trace(batch, given, generator)
        stein = trace - event_sum(grad * field, given.event_ndim)
        self.metrics = {"Stein discrepancy": float(stein.detach().mean())}
        return self.l2 * event_sum(field.square(), given.event_ndim) - stein

    def _field_and_trace(
        self, batch: Batch, given: Energy, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        return field_and_trace(lambda y: self.field(batch, y), batch.y, given.event_ndim, generator)


def field_and_trace(
    critic: Callable[[Tensor], Tensor], y: Tensor, event_ndim: int = 1, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """A field at y ``[*batch, *event]``, and the trace of its Jacobian ``[*batch]``, both with a graph.

    The trace is estimated by one random direction for each row [Hutchinson 1990].
    """
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        field = critic(y)
        v = standard_normal(y.shape, y, generator).sign()
        (product,) = torch.autograd.grad((field * v).sum(), y, create_graph=True)
    return field, event_sum(product * v, event_ndim)


def field_and_exact_trace(critic: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    """A field at vectors y ``[*batch, D]``, and the trace of its Jacobian ``[*batch]``, exact, without a graph.

    One pass backward for each coordinate.
    """
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        field = critic(y)
        trace = torch.zeros_like(y[..., 0])
        for k in range(y.shape[-1]):
            trace += torch.autograd.grad(field[..., k].sum(), y, retain_graph=True)[0][..., k]
    return field.detach(), trace
