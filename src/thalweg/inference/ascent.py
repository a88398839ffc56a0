"""Finding the most likely y near a start: gradient ascent on -E with backtracking."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.base import Energy


def gradient_ascent(energy: Energy, start: Tensor, n_steps: int = 10, step_size: float | Tensor = 0.1) -> Tensor:
    """T steps y + lambda * grad(-E), each taken only if the energy falls, else lambda is halved.

    Args:
        energy: of y.
        start: ``[*batch, K]``.
        n_steps: T.
        step_size: lambda at the start; a number, or ``[*batch, 1]``.

    Returns:
        ``[*batch, K]``, with an energy nowhere above that of the start.

    Source: [Gustafsson 2020a, alg. 1].
    """
    y = start.detach()
    value, grad = energy.value_and_gradient(y)
    size = torch.as_tensor(step_size, dtype=y.dtype, device=y.device).expand(*y.shape[:-1], 1).clone()
    for _ in range(n_steps):
        proposal = y - size * grad
        new_value, new_grad = energy.value_and_gradient(proposal)
        better = (new_value < value).unsqueeze(-1)
        y = torch.where(better, proposal, y)
        grad = torch.where(better, new_grad, grad)
        value = torch.where(better.squeeze(-1), new_value, value)
        size = torch.where(better, size, size / 2)
    return y
