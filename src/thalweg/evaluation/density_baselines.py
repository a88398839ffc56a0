"""What a density must beat: one Gaussian, a mixture of Gaussians, a kernel density estimate."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity

from thalweg.energies.densities import choose_gaussian_mixture, fit_gaussian_mixture


class GaussianBaseline:
    """One Gaussian with the data's mean and covariance."""

    name = "one Gaussian"
    detail = ""

    def fit(self, X: np.ndarray, seed: int = 0) -> GaussianBaseline:
        """Fit rows ``[rows, columns]``, no column constant."""
        self._fit(_Scaler(X), X, seed)
        return self

    def _fit(self, scaler: _Scaler, X: np.ndarray, seed: int) -> None:
        self.scaler = scaler
        self.model: Any = GaussianMixture(1, reg_covar=1e-6).fit(scaler(X))

    def log_prob(self, X: np.ndarray) -> np.ndarray:
        """log p ``[rows]``, in nats per units of the columns."""
        return self.model.score_samples(self.scaler(X)) - self.scaler.log_volume


class MixtureBaseline(GaussianBaseline):
    """A mixture of Gaussians; how many, with what covariances, is chosen by three-fold held-out likelihood."""

    name = "Gaussian mixture"

    def _fit(self, scaler: _Scaler, X: np.ndarray, seed: int) -> None:
        self.scaler = scaler
        Z = torch.from_numpy(scaler(X))
        settings = choose_gaussian_mixture(Z, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model = fit_gaussian_mixture(Z, seed=seed, n_init=3, **settings)
        n, kind = settings["n_components"], settings["covariance_type"]
        self.detail = f"{n} component{'s' if n > 1 else ''}, {kind} covariances"

    def log_prob(self, X: np.ndarray) -> np.ndarray:
        return self.model.log_prob(torch.from_numpy(self.scaler(X))).numpy() - self.scaler.log_volume


class KernelBaseline(GaussianBaseline):
    """A Gaussian kernel on every row; the bandwidth is chosen by five-fold held-out likelihood.

    Of very many rows only some get a kernel: each is asked for each new row.
    """

    name = "kernel density estimate"
    max_rows = 10_000
    max_rows_chosen_on = 2000

    def _fit(self, scaler: _Scaler, X: np.ndarray, seed: int) -> None:
        self.scaler = scaler
        Z = scaler(X)[np.random.RandomState(seed).permutation(len(X))[: self.max_rows]]
        some = Z[: self.max_rows_chosen_on]
        # The best bandwidth falls with the number of rows; the grid is wide enough, and is refined once.
        folds = KFold(min(5, len(some)), shuffle=True, random_state=seed)
        grid = np.geomspace(0.02, 2.0, 13)
        for _ in range(2):
            search = GridSearchCV(KernelDensity(), {"bandwidth": grid}, cv=folds).fit(some)
            best = search.best_params_["bandwidth"]
            step = grid[1] / grid[0]
            grid = np.geomspace(best / step, best * step, 7)
        if len(Z) > len(some):
            best *= (len(some) / len(Z)) ** (1 / (Z.shape[1] + 4))  # as Scott's rule has it fall
        self.model = KernelDensity(bandwidth=best).fit(Z)
        self.detail = f"bandwidth {best:.2g} standard deviations"


class _Scaler:
    def __init__(self, X: np.ndarray):
        self.mean, self.std = X.mean(0), X.std(0)
        self.log_volume = float(np.log(self.std).sum())

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return (X - self.mean) / self.std


BASELINES = (GaussianBaseline, MixtureBaseline, KernelBaseline)


class BesideAtoms:
    """A baseline of rows whose columns take some values with positive probability: what scores with a model that
    has point masses there.

    Rows are of one pattern if the same columns are at the same atoms. A row has the probability of its pattern
    times the density of its other columns: of the baseline fitted to the rows of the pattern, or, where these are
    few, to all rows in which those columns are at no atom.

    Args:
        baseline: :class:`GaussianBaseline` or another of its kind.
        atoms: atoms of each column.
    """

    n_enough = 50

    def __init__(self, baseline: type[GaussianBaseline], atoms: Sequence[Sequence[float]]):
        self.baseline, self.atoms = baseline, atoms
        self.name = baseline.name

    def fit(self, X: np.ndarray, seed: int = 0) -> BesideAtoms:
        """Fit rows ``[rows, columns]``."""
        self.X, self.seed, self.patterns = X, seed, self._patterns(X)
        unique, counts = np.unique(self.patterns, axis=0, return_counts=True)
        self.counts = {tuple(p): int(n) for p, n in zip(unique, counts, strict=True)}
        self.fitted: dict[tuple[int, ...], GaussianBaseline] = {}
        self.detail = f"and {len(self.counts)} patterns of atoms"
        return self

    def _patterns(self, X: np.ndarray) -> np.ndarray:
        """The number of the atom that each entry is at, -1 for none ``[rows, columns]``."""
        found = np.full(X.shape, -1)
        for d, atoms in enumerate(self.atoms):
            for k, atom in enumerate(atoms):
                found[X[:, d] == atom, d] = k
        return found

    def log_prob(self, X: np.ndarray) -> np.ndarray:
        """Log mass of the entries at atoms, and log density of the others ``[rows]``, in nats."""
        log_prob = np.empty(len(X))
        unique, which = np.unique(self._patterns(X), axis=0, return_inverse=True)
        for k, pattern in enumerate(map(tuple, unique)):
            rows, free = which.reshape(-1) == k, np.flatnonzero(np.array(pattern) < 0)
            # Half a row more for each pattern, and for one that was never seen.
            count = self.counts.get(pattern, 0) + 0.5
            log_prob[rows] = np.log(count / (len(self.X) + 0.5 * (len(self.counts) + 1)))
            if len(free):
                log_prob[rows] += self._of(pattern, free).log_prob(X[np.ix_(rows, free)])
        return log_prob

    def _of(self, pattern: tuple[int, ...], free: np.ndarray) -> GaussianBaseline:
        if pattern not in self.fitted:
            own = self.X[(self.patterns == pattern).all(1)][:, free]
            if len(own) < self.n_enough or (np.ptp(own, 0) == 0).any():
                own = self.X[(self.patterns[:, free] < 0).all(1)][:, free]
            if len(own) < 2 or (np.ptp(own, 0) == 0).any():
                own = self.X[:, free]
            self.fitted[pattern] = self.baseline().fit(own, self.seed)
        return self.fitted[pattern]


class BernoulliMixture:
    """A mixture of products of Bernoullis, by EM: what a density of binary rows must beat.

    Args:
        n_components: 1 has the columns independent.
    """

    def __init__(self, n_components: int = 30):
        self.n_components = n_components

    def fit(self, X: np.ndarray, seed: int = 0, n_steps: int = 100) -> BernoulliMixture:
        """Fit rows of 0 and 1 ``[rows, columns]``."""
        rng = np.random.RandomState(seed)
        shares = rng.dirichlet(np.ones(self.n_components), len(X))
        for _ in range(n_steps if self.n_components > 1 else 1):
            counts = shares.sum(0)
            # One row more of each kind, so that no column is certain.
            mean = (shares.T @ X + 1) / (counts + 2)[:, None]
            self.log_weights = np.log((counts + 1e-9) / len(X))
            self.log_on, self.log_off = np.log(mean), np.log1p(-mean)
            joint = self._joint(X)
            shares = np.exp(joint - np.logaddexp.reduce(joint, 1, keepdims=True))
        return self

    def _joint(self, X: np.ndarray) -> np.ndarray:
        return X @ self.log_on.T + (1 - X) @ self.log_off.T + self.log_weights

    def log_prob(self, X: np.ndarray) -> np.ndarray:
        """log p ``[rows]``, in nats."""
        return np.logaddexp.reduce(self._joint(X), 1)
