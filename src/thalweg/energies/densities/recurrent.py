"""A recurrent network whose next state is Gaussian: the usual model of series, and a rival of energies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from thalweg.energies.base import Features
from thalweg.energies.densities.basic import ConditionalDensity

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class RecurrentGaussian(ConditionalDensity):
    """p(x_2..x_T | x_1) = prod_t N(x_t; x_{t-1} + m_t, diag s_t^2), where a GRU gives m_t and s_t from the past.

    As an energy, x is the first state ``[B, D]`` and y the states after it ``[B, T - 1, D]``.

    Args:
        series: ``[n, T, D]``, whose moments standardise what goes in and comes out.
        width: of the GRU's state.
        log_std_floor: of a standardised increment.

    Source: [Salinas 2020], with a GRU.
    """

    event_ndim = 2
    location: Tensor
    scale: Tensor
    step: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, series: Tensor, width: int = 64, log_std_floor: float = -6.0):
        super().__init__()
        n_columns = series.shape[-1]
        self.register_buffer("location", series.mean((0, 1)))
        self.register_buffer("scale", series.std((0, 1)))
        self.register_buffer("step", series.diff(dim=1).std((0, 1)))
        low, high = series.amin((0, 1)), series.amax((0, 1))
        self.register_buffer("low", low - (high - low))
        self.register_buffer("high", high + (high - low))
        self.network = nn.GRU(2 * n_columns, width, batch_first=True)
        self.out = nn.Linear(width, 2 * n_columns)
        self.log_std_floor = log_std_floor

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        states = torch.cat([features.unsqueeze(1), y], 1)
        mean, log_std, _ = self._next(states[:, :-1], states[:, :-1].diff(dim=1, prepend=states[:, :1]))
        z = (states.diff(dim=1) / self.step - mean) * torch.exp(-log_std)
        return (0.5 * z.square() + log_std + self.step.log() + _HALF_LOG_2PI).sum((-1, -2))

    def _next(
        self, states: Tensor, last_steps: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log std of the standardised increments after each state ``[B, t, D]``, and the GRU's memory."""
        inputs = torch.cat([(states - self.location) / self.scale, last_steps / self.step], -1)
        hidden, memory = self.network(inputs, memory)
        mean, log_std = self.out(hidden).chunk(2, -1)
        return mean, log_std.clamp(self.log_std_floor, 6.0), memory

    def draws_after(self, past: Tensor, horizon: int, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n paths that go on from each past ``[B, t, D]``, ``[B, n, horizon, D]``.

        Paths of a network that learned single steps may run away: no state gets farther from those of the training
        than these are apart.
        """
        with torch.no_grad():
            last_steps = past.diff(dim=1, prepend=past[:, :1])
            mean, log_std, memory = self._next(past, last_steps)
            mean, log_std, state = (part[:, -1:].repeat_interleave(n, 0) for part in (mean, log_std, past))
            memory, path = memory.repeat_interleave(n, 1), []
            for _ in range(horizon):
                noise = torch.randn(mean.shape, generator=generator, device=mean.device)
                step = (mean + log_std.exp() * noise) * self.step
                state = torch.maximum(torch.minimum(state + step, self.high), self.low)
                path.append(state)
                mean, log_std, memory = self._next(state, step, memory)
            return torch.cat(path, 1).reshape(len(past), n, horizon, -1)

    def draws(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        raise TypeError("how long a path is to be must be said: ask draws_after")
