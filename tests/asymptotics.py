"""Estimates that minimise a mean over rows, and how each row moves them: what standard errors come from."""

import torch
from torch import nn
from torch.func import functional_call, jvp


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for w in module.parameters()])


def influence(loss, energy: nn.Module) -> torch.Tensor:
    """-H^-1 times the gradient of each row of ``loss(energy)`` ``[n]``: its part in the estimate ``[n, P]``.

    The estimate's standard error is these parts' standard deviation over the root of n; that of the difference
    of two estimates from the same rows comes from the difference of the parts.
    """
    names, weights = zip(*energy.named_parameters(), strict=True)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = energy

        def forward(self):
            return loss(self.energy)

    wrapped, at = Loss(), flat(energy)

    def rows(vector):
        parts = vector.split([w.numel() for w in weights])
        shaped = (p.reshape(w.shape) for p, w in zip(parts, weights, strict=True))
        return functional_call(wrapped, {f"energy.{n}": p for n, p in zip(names, shaped, strict=True)}, ())

    grads = torch.stack([jvp(rows, (at,), (axis,))[1] for axis in torch.eye(len(at)).to(at)], 1).detach()
    vector = at.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(rows(vector).mean(), vector, create_graph=True)
    bend = torch.stack([torch.autograd.grad(g, vector, retain_graph=True)[0] for g in grad])
    return -torch.linalg.solve(bend, grads.t()).t()


def minimise(loss, energy: nn.Module) -> None:
    """The mean of the rows ``loss(energy)``, to machine precision."""
    optimiser = torch.optim.LBFGS(
        energy.parameters(), max_iter=300, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        value = loss(energy).mean()
        value.backward()
        return value

    optimiser.step(closure)
