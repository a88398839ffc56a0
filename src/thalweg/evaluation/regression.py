"""How good predictive distributions are: likelihood, CRPS, errors of the point, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import scoringrules

from thalweg.sampling.diagnostics import LARGEST_PARETO_K

# The CRPS is an integral over the levels of the quantiles, here by the midpoint rule: of a Gaussian's it leaves an
# error below a thousandth.
CRPS_LEVELS = (np.arange(200) + 0.5) / 200
NOMINAL = np.arange(1, 20) / 20
PIT_BINS = 20


class Predictive(Protocol):
    """What a distribution p(y|x) of B rows must be able to tell, in the units of y."""

    def cdf(self, y: np.ndarray) -> np.ndarray: ...

    def log_mass(self, y: np.ndarray, width: float | None = None) -> np.ndarray: ...

    def quantile(self, probability: Any) -> np.ndarray: ...

    def mean(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Scores:
    """The figures of one model on one set of rows. Lower is better but for the coverage.

    Attributes:
        n_rows: rows scored.
        nll: mean negative log-likelihood, nats per unit of the target.
        nll_error: its standard error.
        crps: mean continuous ranked probability score, in units of the target.
        crps_error: its standard error.
        rmse: root mean square error of the predicted mean, in units of the target.
        mae: mean absolute error of the predicted median, in units of the target.
        coverage: share of the rows inside the central 90 % interval.
        width: mean width of that interval, in units of the target.
        nominal: probabilities of central intervals, and
        covered: the share of the rows inside each of them.
        pit: the distribution function at the truth, one value a row; uniform for a calibrated model.
        log_score: log-likelihood of each row, nats per unit of the target.
    """

    n_rows: int
    nll: float
    nll_error: float
    crps: float
    crps_error: float
    rmse: float
    mae: float
    coverage: float
    width: float
    nominal: np.ndarray = field(repr=False)
    covered: np.ndarray = field(repr=False)
    pit: np.ndarray = field(repr=False)
    log_score: np.ndarray = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """All figures, fit for JSON; the rows are summed up in a histogram and a curve."""
        names = (
            "n_rows", "nll", "nll_error", "crps", "crps_error", "rmse", "mae", "coverage", "width"
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in names},
            "nominal": self.nominal.tolist(),
            "covered": self.covered.tolist(),
            "pit_histogram": np.histogram(self.pit, PIT_BINS, (0, 1))[0].tolist(),
        }


def score(y: np.ndarray, distribution: Predictive, resolution: float = 0.0, seed: int = 0) -> Scores:
    """Score predictive distributions against the truth.

    The log-likelihood is a log density where the truth is one value of a continuum, and a log mass where it is an
    atom of the distribution, a value of positive probability. Its PIT value is drawn uniformly over the jump.

    A target rounded to a grid has no density of its own. It is scored by the probability of the cell that the
    truth was rounded from, log P(cell) - log(width), which no model can inflate by putting spikes on the grid; and
    its PIT value is drawn uniformly within the cell [Czado 2009, sec. 2].

    Args:
        y: the truth ``[rows]``.
        distribution: p(y|x) of the same rows.
        resolution: spacing of the grid that y is rounded to, 0 if it isn't.
        seed: seed of the draws within the cells.

    Raises:
        ValueError: if y isn't a finite vector of at least one row.
    """
    y = _checked(y, 1)
    log_score = score_rows(y, distribution, resolution)
    pit = pit_values(y, distribution, resolution, seed)
    quantiles = np.asarray(distribution.quantile(CRPS_LEVELS))
    crps = np.asarray(scoringrules.crps_quantile(y, quantiles, CRPS_LEVELS))
    # |PIT - 1/2| <= c/2 says that the truth lies in the central interval of probability c, and counts the
    # part of a rounding cell that does.
    covered = np.array([np.mean(np.abs(pit - 0.5) <= c / 2 + 1e-12) for c in NOMINAL])
    lower, upper = np.asarray(distribution.quantile(np.array([0.05, 0.95]))).T
    return Scores(
        n_rows=len(y),
        nll=float(-log_score.mean()),
        nll_error=_standard_error(log_score),
        crps=float(crps.mean()),
        crps_error=_standard_error(crps),
        rmse=float(np.sqrt(np.mean((y - distribution.mean()) ** 2))),
        mae=float(np.mean(np.abs(y - np.asarray(distribution.quantile(0.5))))),
        coverage=float(np.mean(np.abs(pit - 0.5) <= 0.45 + 1e-12)),
        width=float(np.mean(upper - lower)),
        nominal=NOMINAL,
        covered=covered,
        pit=pit,
        log_score=log_score,
    )


def score_rows(y: np.ndarray, distribution: Predictive, resolution: float = 0.0) -> np.ndarray:
    """Log-likelihood of each row, nats per unit of the target; of the rounding cell if y is rounded."""
    log_mass = np.asarray(distribution.log_mass(y, resolution))
    return log_mass - math.log(resolution) if resolution else log_mass


def pit_values(y: np.ndarray, distribution: Predictive, resolution: float = 0.0, seed: int = 0) -> np.ndarray:
    """The distribution function at the truth ``[rows]``, uniform for a calibrated model.

    Where it jumps there, or rises over a rounding cell, the value is drawn uniformly in between.

    Source: [Czado 2009, sec. 2].
    """
    before = getattr(distribution, "cdf_before", distribution.cdf)
    lower, upper = before(y - resolution / 2), distribution.cdf(y + resolution / 2)
    return np.asarray(lower + np.random.default_rng(seed).uniform(size=len(y)) * (upper - lower))


def level_beside_atoms(
    p: np.ndarray, atoms: np.ndarray, before: np.ndarray, masses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the quantiles of a distribution with atoms lie: on one of them, or in the continuous part.

    Args:
        p: probabilities ``[B, m]``.
        atoms: values ``[A]``.
        before: P(Y < a) of each atom ``[B, A]``.
        masses: P(Y = a) ``[B, A]``.

    Returns:
        the atoms that are landed on, NaN elsewhere, and the levels of the continuous part, each ``[B, m]``.
    """
    p, before, held = p[..., None], before[:, None], masses[:, None]
    on = (p > before) & (p <= before + held)
    landed = np.where(on.any(-1), (on * atoms).sum(-1), np.nan)
    below = np.where(p > before + held, held, 0.0).sum(-1)
    rest = np.maximum(1 - masses.sum(1, keepdims=True), 1e-300)
    return landed, np.clip((p[..., 0] - below) / rest, 1e-12, 1 - 1e-12)


def joint_log_prob(y: np.ndarray, distribution: Any, resolution: Any = 0.0, seed: int = 0) -> np.ndarray:
    """Log density of several targets ``[rows]``; of rounded ones the mean over 8 random places of the cell.

    That is at most the log of the cell's probability per unit, and spikes on the grid can't inflate it.

    Args:
        y: the truth ``[rows, K]``.
        distribution: with ``log_prob`` of places ``[rows, m, K]``.
        resolution: spacing of the grid that each target is rounded to ``[K]``, 0 where it isn't.
        seed: seed of the places.
    """
    if not np.any(resolution):
        return np.asarray(distribution.log_prob(y))
    places = np.random.default_rng(seed).uniform(-0.5, 0.5, (len(y), 8, y.shape[1]))
    return np.asarray(distribution.log_prob(y[:, None] + resolution * places)).mean(1)


def score_targets(
    y: np.ndarray, distribution: Any, names: Sequence[str], resolution: Any = 0.0, seed: int = 0
) -> dict[str, Any]:
    """The figures of a distribution over several targets: the joint likelihood, and the rest by target.

    Args:
        y: the truth ``[rows, K]``.
        distribution: with ``log_prob`` of places ``[rows, m, K]``, ``mean`` ``[rows, K]`` and ``quantile``
            ``[rows, m, K]``.
        names: names of the targets.
        resolution: spacing of the grid that each target is rounded to ``[K]``, 0 where it isn't.
        seed: seed of places within the cells.

    Returns:
        a dict fit for JSON: ``n_rows``, ``nll`` and ``nll_error`` (joint, nats), ``not_trusted``, the share of the
        rows whose likelihood comes from importance weights with a tail too heavy, and ``targets``: for each
        name its ``crps``, ``rmse``, ``mae`` and ``coverage`` of the 90 % interval.
    """
    y = _checked(y, 2)
    log_prob = joint_log_prob(y, distribution, resolution, seed)
    spread = y + resolution * np.random.default_rng(seed).uniform(-0.5, 0.5, y.shape)
    quantiles = np.asarray(distribution.quantile(CRPS_LEVELS))
    mean, median = np.asarray(distribution.mean()), np.asarray(distribution.quantile(np.array([0.5])))[:, 0]
    targets = {}
    for k, name in enumerate(names):
        truth, marginal = y[:, k], quantiles[:, :, k]
        lower, upper = np.asarray(distribution.quantile(np.array([0.05, 0.95])))[:, :, k].T
        targets[name] = {
            "crps": float(np.mean(scoringrules.crps_quantile(truth, marginal, CRPS_LEVELS))),
            "rmse": float(np.sqrt(np.mean((truth - mean[:, k]) ** 2))),
            "mae": float(np.mean(np.abs(truth - median[:, k]))),
            "coverage": float(np.mean((spread[:, k] >= lower) & (spread[:, k] <= upper))),
        }
    found = {"n_rows": len(y), "nll": float(-log_prob.mean()), "nll_error": _standard_error(log_prob)}
    if hasattr(distribution, "pareto_k"):
        found["not_trusted"] = float(np.mean(distribution.pareto_k > LARGEST_PARETO_K))
    return {**found, "targets": targets}


def _checked(y: np.ndarray, ndim: int) -> np.ndarray:
    y = np.asarray(y, np.float64)
    if y.ndim != ndim or len(y) == 0:
        raise ValueError(f"the truth must have {ndim} dimension(s) and at least one row, got shape {y.shape}")
    if not np.isfinite(y).all():
        raise ValueError("the truth contains NaN or infinity: remove those rows")
    return y


def _standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf
