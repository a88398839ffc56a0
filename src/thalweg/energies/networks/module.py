"""Any module as an energy, conditional or not."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import ConditionalEnergy, Energy, Features


class ModuleEnergy(Energy):
    """Any module as an energy.

    Args:
        module: called as ``module(x)`` with x ``[N, *event]``; returns ``[N]``.
        sign: 1 if the module returns an energy, -1 if it returns an unnormalised log-density.
        event_ndim: how many trailing dimensions make one configuration.
        support: where x lives.
    """

    def __init__(
        self,
        module: nn.Module,
        sign: float = 1.0,
        *,
        event_ndim: int = 1,
        support: constraints.Constraint = constraints.real_vector,
    ):
        super().__init__()
        self.module, self.sign = module, sign
        self.event_ndim, self.support = event_ndim, support

    def forward(self, x: Tensor) -> Tensor:
        batch, event = x.shape[: x.dim() - self.event_ndim], x.shape[x.dim() - self.event_ndim :]
        value = self.module(x.reshape(-1, *event))
        return self.sign * value.reshape((*batch, *value.shape[1:]))


class ConditionalModuleEnergy(ConditionalEnergy):
    """Any module as a conditional energy.

    Args:
        module: called as ``module(x, y)`` with x ``[N, *x_event]`` and y ``[N, K]``; returns ``[N]``.
        sign: 1 if the module returns an energy, -1 if it returns an unnormalised log-density.
    """

    def __init__(self, module: nn.Module, sign: float = 1.0):
        super().__init__()
        self.module = module
        self.sign = sign

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        batch = y.shape[:-1]
        x = features.reshape(features.shape[0], *([1] * (len(batch) - 1)), *features.shape[1:])
        x = x.expand(*batch, *features.shape[1:])
        value = self.module(x.reshape(-1, *features.shape[1:]), y.reshape(-1, y.shape[-1]))
        return self.sign * value.reshape((*batch, *value.shape[1:]))
