"""The chain of conditionals of a density of tables: each link, a mixture's share in it, and its shape."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
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
from thalweg.evaluation.verdict import Check
from thalweg.training.progress import BarProgress, Progress


class Conditional(EnergyRegressor):
    """One link of the chain; its bar says which."""

    label = "fit"
    shift = 0.0
    fold_seed = 0
    fabric: Fabric | None = None

    def _make_fabric(self) -> Fabric:
        return super()._make_fabric() if self.fabric is None else self.fabric

    def _progress(self, offset: float, n_members: int) -> Progress:
        return BarProgress(offset=offset + self.shift, n_members=n_members, label=self.label)

    def _hold_out(self, n_rows: int, rng: np.random.RandomState) -> np.ndarray:
        # By all links the same rows: the log p of a row, the sum over the links, is then held out as a whole.
        return super()._hold_out(n_rows, np.random.RandomState(self.fold_seed))

    def _conclude(self, checks: Iterable[Check]) -> None:
        """A link is no model by itself: the chain is judged as a whole."""

    @property
    def held_out_log_prob(self) -> np.ndarray:
        """log p(y|x) of the training rows ``[rows]``, as :attr:`validation_nll_` judges them.

        NaN of a row that all networks have learned from, as happens with one member.
        """
        return self._held_out_log_prob


def conditionals_of_mixture(z: Tensor, seed: int) -> tuple[GaussianMixtureEnergy, np.ndarray]:
    """A Gaussian mixture of rows z ``[n, D]``, and what mixtures say of each row that have not learned from it.

    Returns the mixture and log p(x_d | x_1..x_{d-1}) ``[n, D]``, or minus infinity if there are too few rows to
    tell. Rounded columns must be spread over their cells: a narrow component is highest in the middle of a cell.
    """
    z = z.double()
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
                held_out[left, d] = part.conditional_log_prob(z[left], d)
    return mixture, held_out.numpy()


def stacked(own: np.ndarray, other: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two densities of each link mixed in the shares that held-out rows like best.

    Args:
        own, other: log densities of rows by each link ``[n, D]``; NaN in ``own`` of rows that were learned from.

    Returns:
        The share of the other density in each link ``[D]``, and the log densities of the mixtures ``[n, D]``: of
        each fifth of the rows in the share that the rest likes best, so that no row chose what judges it.
    """
    judge = np.flatnonzero(~np.isnan(own).any(1))
    shares = np.array([best_share(own[judge, d], other[judge, d]) for d in range(own.shape[1])])
    mixed = np.full(own.shape, np.nan)
    n_parts = min(5, len(judge))
    part = np.random.RandomState(seed).permutation(len(judge)) % n_parts
    for k in range(n_parts):
        # A single row has no others to choose for it.
        kept, left = judge[(part != k) | (n_parts == 1)], judge[part == k]
        for d in range(own.shape[1]):
            share = best_share(own[kept, d], other[kept, d])
            mixed[left, d] = np.logaddexp(np.log1p(-share) + own[left, d], np.log(share) + other[left, d])
    return shares, mixed


def best_share(own: np.ndarray, other: np.ndarray, n_steps: int = 100) -> float:
    """The share of the other density in a mixture of the two that rows like best, by EM.

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
