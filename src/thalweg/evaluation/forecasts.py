"""How good forecasts by draws of paths are: CRPS, energy score, coverage by horizon, and checks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from thalweg.evaluation.verdict import Check

_FEW_FORECASTS = 5


def crps_of_draws(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The continuous ranked probability score of each number ``[n, *shape]``, lower is better.

    Args:
        draws: ``[n, m, *shape]``, m draws for each truth; at least 2. The estimate is unbiased.
        truth: ``[n, *shape]``.

    Source: [Gneiting 2007, eq. 20]; unbiased for few draws, [Zamo 2018].
    """
    m = draws.shape[1]
    ordered = np.sort(draws, 1)
    weight = (2 * np.arange(1, m + 1) - m - 1).reshape(-1, *[1] * (draws.ndim - 2))
    return np.abs(draws - truth[:, None]).mean(1) - (ordered * weight).sum(1) / (m * (m - 1))


def energy_score(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The energy score of whole paths ``[n]``: E |X - y| - E |X - X'| / 2, with lengths over all of their numbers.

    Args:
        draws: ``[n, m, *shape]``.
        truth: ``[n, *shape]``.

    Source: [Gneiting 2007, eq. 22].
    """
    n, m = draws.shape[:2]
    flat, y = draws.reshape(n, m, -1), truth.reshape(n, 1, -1)
    away = np.linalg.norm(flat - y, axis=-1).mean(1)
    apart = np.array([np.linalg.norm(one[:, None] - one[None], axis=-1).sum() / (m * (m - 1)) for one in flat])
    return away - 0.5 * apart


def coverage_by_horizon(draws: np.ndarray, truth: np.ndarray, level: float = 0.9) -> np.ndarray:
    """The share of truths within central intervals of their draws, at each step ``[horizon]``.

    Args:
        draws: ``[n, m, horizon, D]``.
        truth: ``[n, horizon, D]``.
    """
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=1)
    return ((low <= truth) & (truth <= high)).mean((0, 2))


class ForecastScores(NamedTuple):
    """How good forecasts are.

    Attributes:
        figures: "crps", "energy_score", "mae" (of the median) and "coverage" (of 90 % intervals); "crps_by_step",
            "covered_50_by_step" and "covered_90_by_step" ``[horizon]``; "crps_of" and "mae_of" by name
            of a column.
        blocks: the mean CRPS of the forecasts of each block.
    """

    figures: dict[str, Any]
    blocks: np.ndarray


def forecast_figures(
    draws: np.ndarray, truth: np.ndarray, scale: np.ndarray, names: Sequence[str], blocks: np.ndarray
) -> ForecastScores:
    """Figures of forecasts by draws.

    Args:
        draws: ``[n, m, horizon, D]``.
        truth: ``[n, horizon, D]``.
        scale: the unit of each column in figures over all columns ``[D]``.
        names: of the columns.
        blocks: the number of the block of each forecast ``[n]``; forecasts of different blocks do not overlap.
    """
    crps = crps_of_draws(draws, truth)
    away = np.abs(np.median(draws, 1) - truth)
    per_forecast = (crps / scale).mean((1, 2))
    _, place = np.unique(blocks, return_inverse=True)
    covered = {level: coverage_by_horizon(draws, truth, level / 100) for level in (50, 90)}
    figures = {
        "n_rows": len(truth),
        "crps": float(per_forecast.mean()),
        "energy_score": float(energy_score(draws / scale, truth / scale).mean()),
        "mae": float((away / scale).mean()),
        "coverage": float(covered[90].mean()),
        "crps_by_step": (crps / scale).mean((0, 2)).tolist(),
        **{f"covered_{level}_by_step": share.tolist() for level, share in covered.items()},
        "crps_of": dict(zip(names, crps.mean((0, 1)).tolist(), strict=True)),
        "mae_of": dict(zip(names, away.mean((0, 1)).tolist(), strict=True)),
    }
    return ForecastScores(figures, np.bincount(place, per_forecast) / np.bincount(place))


def check_rivals(crps: float, gains: Mapping[str, tuple[float, float | None]], n: int) -> Check:
    """Whether held-out forecasts beat every baseline, beyond the error.

    Args:
        crps: of the model.
        gains: by name of a baseline its CRPS less the model's, and the standard error of that.
        n: number of forecasts that do not overlap.
    """
    rival = min(gains, key=lambda name: gains[name][0])
    gain, error = gains[rival][0], gains[rival][1] or 0.0
    found = f"The CRPS of held-out forecasts is {crps / max(crps + gain, 1e-12):.2f} of that of the {rival} one"
    if n < _FEW_FORECASTS:
        return Check("baseline", "doubtful", f"{found}, on {n} that do not overlap: so few say little.")
    if gain > 2 * error:
        return Check("baseline", "passed", f"{found}, the best baseline.")
    if gain < -(2 * error + 0.02 * crps):
        return Check("baseline", "failed", f"{found}: it is worse. Take that one.")
    return Check("baseline", "doubtful", f"{found}: level, within the error. The simpler one does as well here.")


def check_skill(crps: float, naive: float) -> Check:
    """Whether forecasts of held-out moments beat the naive one: both are CRPS."""
    ratio = crps / max(naive, 1e-12)
    found = (
        f"The CRPS of held-out moments is {ratio:.2f} of that of a naive forecast, the last value and the "
        "increments that followed others"
    )
    if ratio > 1.02:
        return Check("baseline", "failed", f"{found}: it is worse. Take the naive forecast.")
    if ratio > 0.98:
        return Check("baseline", "doubtful", f"{found}: no better. The series may be random walks.")
    return Check("baseline", "passed", f"{found}.")


def check_intervals(covered: float, n: int, what: str = "series") -> Check:
    """Whether 90 % intervals of forecasts cover as they say.

    Args:
        covered: the share of held-out states within them.
        n: how many series they are of, say: moments of one series are much alike.
        what: what is counted.
    """
    shown = f"The 90 % intervals cover {100 * covered:.0f} % of held-out states, of {n} {what}"
    error = np.sqrt(0.09 / max(n, 1))
    if abs(covered - 0.9) > 0.1 + 2 * error:
        return Check("coverage", "failed", f"{shown}: the stated uncertainty is wrong. Do not use it.")
    if abs(covered - 0.9) > 0.05 + error:
        return Check("coverage", "doubtful", f"{shown}: the stated uncertainty is rough.")
    return Check("coverage", "passed", f"{shown}.")
