"""One predictor for each value of a latent variable: several right answers, normalised."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import Features, align, event_sum, standard_normal
from thalweg.energies.densities.basic import ConditionalDensity
from thalweg.energies.latent import LatentEnergy


class MixtureOfExperts(LatentEnergy, ConditionalDensity):
    """E(x, y, z) = |y - g_z(x)|^2 / (2 s^2) + D log(s sqrt(2 pi)) - log pi_z(x), of y of any shape.

    Every value of z has an answer of its own, g_z(x), and pi_z(x) says how often it is the right one. This energy
    is the sum over z at temperature 1, a density p(y|x); a draw of y is a draw of z and then of y. With
    :class:`~thalweg.objectives.EnergyLoss` it learns by maximum likelihood. :meth:`lowest` is its limit of hard
    choices, in which each row teaches one expert only.

    The standard deviation s is one learned number. It starts wide, so that at first every expert learns from every
    row, and narrows as the answers get better.

    Args:
        network: maps x to ``[B, n_features]``.
        n_features: its output width.
        event: the shape of y: ``(K,)`` a vector, ``(C, H, W)`` an image.
        n_latent: C, the number of values of z; more than there are answers does no harm.
        hidden: width of a layer between the features and the experts; 0 for none.
        std: s at the start.
        least_std: s gets no narrower.
        gate: maps x to log pi_z(x), unnormalised, ``[B, C]``; None takes a linear layer on the features. A network
            of its own pays where y has many dimensions, whose squares drown what the choice of z teaches.

    Source: [Jacobs 1991]; for images [Guzman-Rivera 2012].
    """

    def __init__(
        self,
        network: nn.Module,
        n_features: int,
        event: tuple[int, ...],
        n_latent: int,
        hidden: int = 0,
        std: float = 1.0,
        least_std: float = 1e-3,
        gate: nn.Module | None = None,
    ):
        super().__init__()
        self.network, self.event, self.n_latent = network, tuple(event), n_latent
        self.event_ndim = len(self.event)
        self.support = constraints.independent(constraints.real, self.event_ndim)
        self.least_std = least_std
        layers: list[nn.Module] = [nn.Linear(n_features, hidden), nn.SiLU()] if hidden else []
        self.answers = nn.Sequential(*layers, nn.Linear(hidden or n_features, n_latent * math.prod(self.event)))
        self.gate = gate
        if gate is None:
            self.logits = nn.Linear(n_features, n_latent)
        self.log_std = nn.Parameter(torch.tensor(math.log(std)))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log pi_z(x) ``[B, C]`` and g_z(x) ``[B, C, *event]``."""
        h = self.network(x)
        logits = self.logits(h) if self.gate is None else self.gate(x)
        return F.log_softmax(logits, -1), self.answers(h).reshape(len(h), self.n_latent, *self.event)

    @property
    def std(self) -> Tensor:
        """s, a scalar."""
        return self.least_std + self.log_std.exp()

    def energies(self, features: Features, y: Tensor) -> Tensor:
        log_weights, answers = (align(f, y, self.event_ndim) for f in features)
        off = (y.unsqueeze(-1 - self.event_ndim) - answers) / self.std
        constant = math.prod(self.event) * (self.std.log() + 0.5 * math.log(2 * math.pi))
        return 0.5 * event_sum(off.square(), self.event_ndim) + constant - log_weights

    def head(self, features: Features, y: Tensor) -> Tensor:
        return -torch.logsumexp(-self.energies(features, y), -1)

    def draws(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        chosen = self.draw_answers(features, n, generator)
        return chosen + self.std.detach() * standard_normal(chosen.shape, chosen, generator)

    def draw_answers(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        """g_z(x) of n draws of z for each row ``[B, n, *event]``, with no graph: draws of y without noise."""
        log_weights, answers = (f.detach() for f in features)
        z = torch.multinomial(log_weights.exp(), n, replacement=True, generator=generator)
        return answers[torch.arange(len(z), device=z.device).unsqueeze(-1), z]

    def landmarks(self, features: Features) -> tuple[Tensor, Tensor] | None:
        _, answers = features
        answers = answers.flatten(1)
        return answers, self.std.expand_as(answers)
