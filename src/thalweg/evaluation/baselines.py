"""What a model must beat: a Gaussian by least squares, and gradient boosting with quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_ndtr, ndtr, ndtri
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from thalweg.data.encoding import TableEncoder
from thalweg.evaluation.regression import level_beside_atoms

# Of the quantiles between which those of a distribution with atoms are found.
_N_LEVELS = 1000


class GaussianPredictive:
    """A Gaussian for each row.

    Args:
        mean: ``[rows]``.
        std: ``[rows]`` or one number.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray | float):
        self._mean = np.asarray(mean, np.float64)
        self._std = np.broadcast_to(np.asarray(std, np.float64), self._mean.shape)

    def __len__(self) -> int:
        return len(self._mean)

    def mean(self) -> np.ndarray:
        return self._mean

    def log_prob(self, y: np.ndarray) -> np.ndarray:
        """Log density, of the shape of y: ``[rows]`` or ``[rows, m]``."""
        z, std = self._standard(y)
        return -0.5 * z**2 - np.log(std) - 0.5 * math.log(2 * math.pi)

    def cdf(self, y: np.ndarray) -> np.ndarray:
        return ndtr(self._standard(y)[0])

    def log_mass(self, y: np.ndarray, width: float | None = None) -> np.ndarray:
        """log P(y - width/2 < Y < y + width/2); the log density for a width of 0 or None."""
        if not width:
            return self.log_prob(y)
        z, std = self._standard(y)
        half = width / 2 / std
        # By symmetry both ends are put into the lower tail, where the logarithm keeps its digits.
        z = -np.abs(z)
        upper, lower = log_ndtr(z + half), log_ndtr(z - half)
        return upper + np.log1p(-np.exp(np.minimum(lower - upper, -1e-300)))

    def quantile(self, probability: float | np.ndarray) -> np.ndarray:
        """A number gives ``[rows]``, m probabilities give ``[rows, m]``."""
        z = ndtri(np.asarray(probability, np.float64))
        return self._mean + self._std * z if z.ndim == 0 else self._mean[:, None] + self._std[:, None] * z

    def _standard(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = np.asarray(y, np.float64)
        mean, std = (self._mean, self._std) if y.ndim == 1 else (self._mean[:, None], self._std[:, None])
        return (y - mean) / std, std


class QuantilePredictive:
    """A distribution for each row from some of its quantiles.

    The distribution function is linear between the quantiles. Beyond the outermost it has exponential
    tails, as wide as those of a Gaussian with the same quantiles, so that every y has a density.

    Args:
        quantiles: ``[rows, m]``; crossing ones are sorted [Chernozhukov 2010].
        levels: their probabilities ``[m]``, rising, at least 5.
        mean: ``[rows]``, if it is known better than by the quantiles.
        min_gap: least distance of two quantiles, which bounds the density.
        min_scales: least mean excess over the lowest and the highest quantile.
    """

    def __init__(
        self,
        quantiles: np.ndarray,
        levels: np.ndarray,
        mean: np.ndarray | None = None,
        min_gap: float = 1e-9,
        min_scales: tuple[float, float] = (0.0, 0.0),
    ):
        self._p = np.asarray(levels, np.float64)
        quantiles = np.sort(np.asarray(quantiles, np.float64), axis=1)
        # Pushed apart upward and downward, and the two averaged, so that a spike keeps its place.
        steps = min_gap * np.arange(len(self._p))
        upward = np.maximum.accumulate(quantiles - steps, axis=1)
        downward = np.minimum.accumulate((quantiles - steps)[:, ::-1], axis=1)[:, ::-1]
        q = (upward + downward) / 2 + steps
        self._q = q
        self._mean = mean
        z, k = ndtri(self._p), max(1, len(self._p) // 4)
        # The mean excess of a Gaussian over the outermost level, in units of the span of the outer quarter.
        excess = [np.exp(-0.5 * z[i] ** 2) / math.sqrt(2 * math.pi) / min(self._p[i], 1 - self._p[i]) - abs(z[i])
                  for i in (0, -1)]  # fmt: skip
        self._lower_scale = np.maximum(excess[0] * (q[:, k] - q[:, 0]) / (z[k] - z[0]), min_scales[0])
        self._upper_scale = np.maximum(excess[1] * (q[:, -1] - q[:, -1 - k]) / (z[-1] - z[-1 - k]), min_scales[1])

    def __len__(self) -> int:
        return len(self._q)

    def mean(self) -> np.ndarray:
        if self._mean is not None:
            return self._mean
        q, p = self._q, self._p
        inner = (np.diff(p) * (q[:, 1:] + q[:, :-1]) / 2).sum(1)
        outer = p[0] * (q[:, 0] - self._lower_scale) + (1 - p[-1]) * (q[:, -1] + self._upper_scale)
        return inner + outer

    def cdf(self, y: np.ndarray) -> np.ndarray:
        """P(Y <= y), of the shape of y: ``[rows]`` or ``[rows, m]``."""
        return self._by_value(y, lambda v, row: self._cdf_and_survival(v, row)[0])

    def log_prob(self, y: np.ndarray) -> np.ndarray:
        return self._by_value(y, self._log_prob)

    def log_mass(self, y: np.ndarray, width: float | None = None) -> np.ndarray:
        """log P(y - width/2 < Y < y + width/2); the log density for a width of 0 or None."""
        if not width:
            return self.log_prob(y)
        return self._by_value(y, lambda v, row: self._log_mass(v, row, width))

    def quantile(self, probability: float | np.ndarray) -> np.ndarray:
        """A number gives ``[rows]``, m probabilities give ``[rows, m]``."""
        p = np.asarray(probability, np.float64)
        columns = [self._quantile(v) for v in np.atleast_1d(p)]
        return columns[0] if p.ndim == 0 else np.stack(columns, 1)

    def _quantile(self, v: float) -> np.ndarray:
        p, q = self._p, self._q
        if v < p[0]:
            return q[:, 0] + self._lower_scale * math.log(v / p[0])
        if v >= p[-1]:
            return q[:, -1] - self._upper_scale * math.log((1 - v) / (1 - p[-1]))
        i = int(np.searchsorted(p, v, side="right")) - 1
        return q[:, i] + (v - p[i]) / (p[i + 1] - p[i]) * (q[:, i + 1] - q[:, i])

    def _cdf_and_survival(self, y: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, q = self._p, self._q[row]
        i, at = self._piece(y, q)
        part = np.clip((y - q[at, i]) / (q[at, i + 1] - q[at, i]), 0, 1)
        cdf = p[i] + part * (p[i + 1] - p[i])
        lower = p[0] * np.exp(np.minimum(y - q[:, 0], 0) / self._lower_scale[row])
        upper = (1 - p[-1]) * np.exp(np.minimum(q[:, -1] - y, 0) / self._upper_scale[row])
        below, above = y < q[:, 0], y > q[:, -1]
        cdf = np.where(below, lower, np.where(above, 1 - upper, cdf))
        return cdf, np.where(above, upper, 1 - cdf)

    def _log_prob(self, y: np.ndarray, row: np.ndarray) -> np.ndarray:
        p, q = self._p, self._q[row]
        i, at = self._piece(y, q)
        inner = np.log((p[i + 1] - p[i]) / (q[at, i + 1] - q[at, i]))
        lower_scale, upper_scale = self._lower_scale[row], self._upper_scale[row]
        lower = np.log(p[0] / lower_scale) + (y - q[:, 0]) / lower_scale
        upper = np.log((1 - p[-1]) / upper_scale) - (y - q[:, -1]) / upper_scale
        return np.where(y < q[:, 0], lower, np.where(y > q[:, -1], upper, inner))

    def _log_mass(self, y: np.ndarray, row: np.ndarray, width: float) -> np.ndarray:
        low, low_survival = self._cdf_and_survival(y - width / 2, row)
        high, high_survival = self._cdf_and_survival(y + width / 2, row)
        # The difference is taken on the side where the numbers are small.
        mass = np.where(low > 0.5, low_survival - high_survival, high - low)
        with np.errstate(divide="ignore"):
            logs = np.log(mass)
        return np.where(mass > 1e-290, logs, np.minimum(self._log_prob(y, row) + math.log(width), 0.0))

    @staticmethod
    def _piece(y: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Between which two quantiles each y lies, and the line it belongs to."""
        return np.clip((q <= y[:, None]).sum(1) - 1, 0, q.shape[1] - 2), np.arange(len(y))

    def _by_value(self, y: np.ndarray, function: Any) -> np.ndarray:
        """A function of flat values and the row of each, for y ``[rows]`` or ``[rows, m]``."""
        y = np.asarray(y, np.float64)
        row = np.broadcast_to(np.arange(len(y)).reshape(-1, *[1] * (y.ndim - 1)), y.shape)
        return function(y.ravel(), row.ravel()).reshape(y.shape)


class LeastSquaresGaussian:
    """Linear least squares, with a Gaussian of one spread round the line for all rows."""

    name = "Gaussian by least squares"

    def fit(self, X: pd.DataFrame, y: np.ndarray, resolution: float = 0.0) -> LeastSquaresGaussian:
        self._encoder = plain_encoder(X)
        design = self._design(X)
        self._weights, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
        residual = y - design @ self._weights
        std = math.sqrt(float(residual @ residual) / max(1, len(y) - int(rank)))
        # A line through every point still has to say something about the next one.
        self._std = max(std, 1e-3 * float(np.std(y)))
        return self

    def predict_distribution(self, X: pd.DataFrame) -> GaussianPredictive:
        return GaussianPredictive(self._design(X) @ self._weights, self._std)

    def _design(self, X: pd.DataFrame) -> np.ndarray:
        features = self._encoder.transform(X).astype(np.float64)
        return np.column_stack([np.ones(len(features)), features])


class BoostedQuantiles:
    """Gradient boosting, one model for each of 19 quantiles and one for the mean.

    Args:
        random_state: seed of the rows held out to stop early.
        max_iter: trees in a model, at most.
    """

    name = "gradient boosting, quantiles"
    levels = np.arange(1, 20) / 20

    def __init__(self, random_state: int = 0, max_iter: int = 200):
        self.random_state = random_state
        self.max_iter = max_iter

    def fit(self, X: pd.DataFrame, y: np.ndarray, resolution: float = 0.0) -> BoostedQuantiles:
        self._encoder = plain_encoder(X)
        features = self._encoder.transform(X)
        self._mean_model = self._model("squared_error", None).fit(features, y)
        # Rounded targets are spread over their cells, as for the model, or all quantiles fall on the grid.
        rng = np.random.default_rng(self.random_state)
        y = y + resolution * rng.uniform(-0.5, 0.5, len(y))
        self._models = [self._model("quantile", float(p)).fit(features, y) for p in self.levels]
        self._min_gap = 1e-3 * float(np.std(y))
        # Tails no thinner than the training rows beyond the outermost quantiles show them on average.
        below = self._models[0].predict(features) - y
        above = y - self._models[-1].predict(features)
        self._min_scales = (_mean_excess(below), _mean_excess(above))
        return self

    def _model(self, loss: str, level: float | None) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(
            loss=loss,
            quantile=level,
            learning_rate=0.06,
            max_iter=self.max_iter,
            max_leaf_nodes=15,
            early_stopping=True,
            n_iter_no_change=15,
            random_state=self.random_state,
        )

    def predict_distribution(self, X: pd.DataFrame) -> QuantilePredictive:
        features = self._encoder.transform(X)
        quantiles = np.stack([m.predict(features) for m in self._models], 1)
        mean = self._mean_model.predict(features)
        return QuantilePredictive(quantiles, self.levels, mean, self._min_gap, self._min_scales)


BASELINES = (LeastSquaresGaussian, BoostedQuantiles)


class WithAtoms:
    """A baseline for a target with atoms: a logistic regression says which, the baseline what is beside them.

    Without masses a model is out of the question at an atom, however narrow its densities there.

    Args:
        baseline: fitted to the rows whose target is no atom.
        atoms: values of positive probability.
    """

    def __init__(self, baseline: Any, atoms: Sequence[float]):
        self.baseline, self.atoms = baseline, np.sort(np.asarray(atoms, np.float64))

    def fit(self, X: pd.DataFrame, y: np.ndarray, resolution: float = 0.0) -> WithAtoms:
        label = np.where(np.isin(y, self.atoms), np.searchsorted(self.atoms, y), len(self.atoms))
        self._encoder = plain_encoder(X)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self._classifier = classifier.fit(self._encoder.transform(X), label)
        rest = label == len(self.atoms)
        self.baseline.fit(X[rest], y[rest], resolution)
        return self

    def predict_distribution(self, X: pd.DataFrame) -> PredictiveWithAtoms:
        masses = np.zeros((len(X), len(self.atoms) + 1))
        masses[:, self._classifier.classes_] = self._classifier.predict_proba(self._encoder.transform(X))
        return PredictiveWithAtoms(self.baseline.predict_distribution(X), self.atoms, masses[:, :-1])


class PredictiveWithAtoms:
    """Point masses, and what is left of the probability spread as a continuous distribution spreads it.

    Args:
        continuous: the distributions of B rows.
        atoms: values ``[A]``, rising.
        masses: their probabilities ``[B, A]``.
    """

    def __init__(self, continuous: Any, atoms: np.ndarray, masses: np.ndarray):
        self.continuous, self.atoms, self.masses = continuous, atoms, masses
        self._rest = np.maximum(1 - masses.sum(1), 1e-12)
        self._table: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.masses)

    def mean(self) -> np.ndarray:
        return self.masses @ self.atoms + self._rest * self.continuous.mean()

    def cdf(self, y: np.ndarray) -> np.ndarray:
        """P(Y <= y) ``[B]``."""
        return self._rest * self.continuous.cdf(y) + (self.masses * (self.atoms <= y[:, None])).sum(1)

    def cdf_before(self, y: np.ndarray) -> np.ndarray:
        """P(Y < y) ``[B]``."""
        return self._rest * self.continuous.cdf(y) + (self.masses * (self.atoms < y[:, None])).sum(1)

    def log_prob(self, y: np.ndarray) -> np.ndarray:
        """Log density ``[B]``, and log mass where y is an atom."""
        at = self.atoms == y[:, None]
        with np.errstate(divide="ignore"):
            mass = np.log((self.masses * at).sum(1))
        return np.where(at.any(1), mass, np.log(self._rest) + self.continuous.log_prob(y))

    def log_mass(self, y: np.ndarray, width: float | None = None) -> np.ndarray:
        """log P(y - width/2 < Y < y + width/2) ``[B]``; :meth:`log_prob` for a width of 0 or None."""
        if not width:
            return self.log_prob(y)
        inside = np.abs(self.atoms - y[:, None]) < width / 2
        with np.errstate(divide="ignore"):
            mass = np.log((self.masses * inside).sum(1))
        return np.logaddexp(np.log(self._rest) + self.continuous.log_mass(y, width), mass)

    def quantile(self, probability: float | np.ndarray) -> np.ndarray:
        """The least y with P(Y <= y) >= probability: a number gives ``[B]``, m probabilities give ``[B, m]``."""
        p = np.broadcast_to(np.atleast_1d(np.asarray(probability, np.float64)), (len(self), np.size(probability)))
        before = np.stack([self.cdf_before(np.full(len(self), atom)) for atom in self.atoms], 1)
        landed, share = level_beside_atoms(p, self.atoms, before, self.masses)
        # Each row asks its continuous part for levels of its own, which lie between those of a fine grid.
        levels = np.arange(1, _N_LEVELS) / _N_LEVELS
        if self._table is None:
            self._table = np.asarray(self.continuous.quantile(levels))
        between = np.stack([np.interp(v, levels, q) for v, q in zip(share, self._table, strict=True)])
        out = np.where(np.isnan(landed), between, landed)
        return out[:, 0] if np.ndim(probability) == 0 else out


def _mean_excess(values: np.ndarray) -> float:
    over = values[values > 0]
    return float(over.mean()) if len(over) else 0.0


def plain_encoder(X: pd.DataFrame) -> TableEncoder:
    """Numbers as they are (standardised), without the pieces that only a network makes use of."""
    encoder = TableEncoder().fit(X)
    for column in encoder.columns:
        if column["kind"] == "number":
            column["edges"] = []
    return encoder
