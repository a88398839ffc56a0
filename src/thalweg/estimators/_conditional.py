"""Parts of models of p(y|x): the held-out figure of a training, a broad proposal, networks with dropout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy
from thalweg.energies.densities import MixtureDensity, TiltedMixtureEnsemble
from thalweg.energies.networks.dropout import Dropout
from thalweg.estimators._held_out import NestedFigure, judging_rows
from thalweg.inference.quadrature import normalise
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.likelihood import dequantise, rounded_log_prob


class HeldOutFigure(NestedFigure):
    """The held-out figure of p(y|x).

    It is the negative log-likelihood, exact, where y is one-dimensional; else the objective's own value
    with noise that is the same every time.
    """

    max_rows = 1000

    def __init__(
        self,
        objective: Objective,
        data: Batch,
        held_out: np.ndarray,
        weight: np.ndarray | None,
        seed: int,
        bounds: tuple[float, float],
    ):
        self.objective = objective
        self.seed = seed
        self.bounds = bounds
        self.rows, self.weights = judging_rows(held_out, weight, seed)
        self.x, self.y = data.x[self.rows], data.y[self.rows]
        self.is_likelihood = data.y.shape[1] == 1

    def _of_rows(self, energy: nn.Module) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        resolution, curved = getattr(self.objective, "resolution", 0.0), getattr(self.objective, "curved", False)
        if isinstance(energy, TiltedMixtureEnsemble):
            each = len(self.x) == energy.n_members
            # Each member on the rows it does not learn from, or all on the same: [rows, members], in pieces.
            parts = [
                rounded_log_prob(
                    energy, energy.features(x if each else x[0]), y.squeeze(-1).T, resolution, generator, curved
                )
                for x, y in zip(self.x.split(4096, 1), self.y.split(4096, 1), strict=True)
            ]
            log_prob = torch.cat(parts)
            if not each:
                log_prob = torch.logsumexp(log_prob, 1, keepdim=True) - math.log(energy.n_members)
            return -log_prob, self.weights.T
        assert isinstance(energy, ConditionalEnergy)
        x, y, weights = self.x[0], dequantise(self.y, resolution, generator, curved)[0], self.weights[0]
        if not self.is_likelihood:
            pieces = zip(x.split(512), y.split(512), strict=True)
            loss = torch.cat([self.objective.per_row(energy, Batch(*piece), generator) for piece in pieces])
            return loss.reshape(-1, 1), weights[:, None]
        exact = isinstance(energy, MixtureDensity)
        if not exact:
            x, y, weights = x[: self.max_rows], y[: self.max_rows], weights[: self.max_rows]
        given = energy.given(x)
        log_prob = -given(y.unsqueeze(1)).squeeze(1)
        if not exact:
            log_prob = log_prob - normalise(given, *self.bounds, tolerance=1e-3).log_normaliser
        return -log_prob[:, None], (weights / weights.sum())[:, None]

    def gain_of_all(self, energy: nn.Module, x: Tensor, y: Tensor) -> float:
        """What the members of an ensemble together gain over one alone, in nats a row, on the rows x and y.

        Rows that they have learned from say it well enough: there they differ a little less than on new ones.
        """
        if not isinstance(energy, TiltedMixtureEnsemble) or len(self.x) == 1:
            return 0.0
        gains = []
        with torch.no_grad():
            for piece in torch.arange(len(y)).split(4096):
                log_prob = energy.member_log_prob(energy.features(x[piece]), y[piece])
                together = torch.logsumexp(log_prob, 1) - math.log(energy.n_members)
                gains.append(together - log_prob.mean(1))
        return float(torch.cat(gains).mean())


class BroadProposal(MixtureDensity):
    """Two Gaussians over all standardised targets, the same for every x."""

    scales: Tensor

    def __init__(self, n_targets: int):
        ConditionalEnergy.__init__(self)
        self.n_targets = n_targets
        self.register_buffer("scales", torch.tensor([1.0, 2.0]), persistent=False)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (len(x), 2, self.n_targets)
        log_weights = torch.full((len(x), 2), math.log(0.5), device=x.device)
        return log_weights, torch.zeros(shape, device=x.device), self.scales.log()[:, None].expand(shape)


def mlp_with_dropout(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers, each with an activation and dropout after it: a feature network."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.SiLU(), Dropout(dropout)]
    return nn.Sequential(*layers)
