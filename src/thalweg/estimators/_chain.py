"""The chain of conditionals of a density of tables: each link, a mixture's share in it, and its shape."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold
from torch import Tensor

from thalweg.energies.densities import (
    AutoregressiveEnergy,
    GaussianMixtureEnergy,
    NumericEncoding,
    TiltedMixtureEnsemble,
    choose_gaussian_mixture,
    fit_gaussian_mixture,
)
from thalweg.estimators.regressor import EnergyRegressor
from thalweg.training.progress import BarProgress, Progress


class Conditional(EnergyRegressor):
    """One link of the chain; its bar says which."""

    label = "fit"
    shift = 0.0
    fabric: Fabric | None = None

    def _make_fabric(self) -> Fabric:
        return super()._make_fabric() if self.fabric is None else self.fabric

    def _progress(self, offset: float, n_members: int) -> Progress:
        return BarProgress(offset=offset + self.shift, n_members=n_members, label=self.label)

    def held_out_log_prob(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """log p(y|x) of the training rows ``[rows]``, as :attr:`validation_nll_` judges them.

        A row that all networks have learned from, as happens with one member, is predicted by that one.
        """
        held_out = self._held_out_log_prob
        if np.isnan(held_out).any():
            held_out = np.where(np.isnan(held_out), self._learned_log_prob(X, y), held_out)
        return held_out

    def _learned_log_prob(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        distribution: Any = self.predict_distribution(X)
        if self.resolution_:
            return distribution.log_mass(y) - math.log(self.resolution_)
        return distribution.log_prob(y)


def conditionals_of_mixture(z: Tensor, places: Tensor, seed: int) -> tuple[GaussianMixtureEnergy, np.ndarray]:
    """A Gaussian mixture of rows z ``[n, D]``, and what mixtures say of each row that have not learned from it.

    Returns the mixture and log p(x_d | x_1..x_{d-1}) ``[n, D]`` at the places, or minus infinity if there are too
    few rows to tell.
    """
    z, places = z.double(), places.double()
    held_out = torch.full_like(z, -torch.inf)
    if len(z) < 20:
        return GaussianMixtureEnergy.from_moments(z), held_out.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        settings = choose_gaussian_mixture(z, seed)
        mixture = fit_gaussian_mixture(z, seed=seed, n_init=3, **settings)
        for kept, left in KFold(5, shuffle=True, random_state=seed).split(z):
            part = fit_gaussian_mixture(z[kept], seed=seed, **settings)
            for d in range(z.shape[1]):
                held_out[left, d] = part.conditional_log_prob(places[left], d)
    return mixture, held_out.numpy()


def best_share(own: np.ndarray, other: np.ndarray, n_steps: int = 100) -> float:
    """The share of the other density in a mixture of the two that held-out rows like best, by EM.

    Args:
        own, other: log densities of rows ``[n]``.
    """
    share = 0.5
    for _ in range(n_steps):
        share = float(expit(np.log(share) + other - np.log1p(-share) - own).mean())
        share = min(max(share, 1e-6), 1 - 1e-6)
    return share


def empty_chain(
    conditionals: Sequence[dict[str, Any]], mixture: Sequence[int], n_members: int, hidden: Sequence[int]
) -> AutoregressiveEnergy:
    """The chain's shape, to be filled with tensors."""
    defaults = EnergyRegressor()
    members = []
    for entry in conditionals:
        a = entry["architecture"]
        members.append(
            TiltedMixtureEnsemble(
                a["n_inputs"], n_members, hidden, defaults.n_components, defaults.n_tilts,
                a["dropout"], a["log_std_floor"], a["atoms"], a.get("limits", (None, None)),
            )
        )  # fmt: skip
    encodings = [NumericEncoding(entry["encoder"]["columns"]) for entry in conditionals]
    part = empty_mixture(mixture[0], mixture[1], full=len(mixture) == 3).double()
    flat, curved = torch.zeros(len(members)), [bool(entry.get("curved")) for entry in conditionals]
    cells = [float(entry.get("cell", 0.0)) for entry in conditionals]
    return AutoregressiveEnergy(
        members, encodings, flat, torch.ones(len(members)), part, curved=curved, cells=cells
    )


def empty_mixture(n_components: int, d: int, full: bool = True) -> GaussianMixtureEnergy:
    """To be filled with tensors."""
    scales = torch.eye(d).repeat(n_components, 1, 1) if full else torch.ones(n_components, d)
    return GaussianMixtureEnergy(torch.zeros(n_components, d), scales)
