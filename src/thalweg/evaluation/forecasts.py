"""How good forecasts by draws of paths are: CRPS, energy score, coverage by horizon, and checks of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from thalweg.evaluation.verdict import Check


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


def check_forecasts(figures: Mapping[str, float], n_series: int) -> list[Check]:
    """Whether forecasts of held-out moments beat the naive one, and cover as they say.

    Args:
        figures: "CRPS", "CRPS, naive" and "coverage" (of 90 % intervals).
        n_series: how many series they are of: moments of one series are much alike.
    """
    ratio = figures["CRPS"] / max(figures["CRPS, naive"], 1e-12)
    found = (
        f"The CRPS of held-out moments is {ratio:.2f} of that of a naive forecast, the last value and the "
        "increments that followed others"
    )
    if ratio > 1.02:
        skill = Check("baseline", "failed", f"{found}: it is worse. Take the naive forecast.")
    elif ratio > 0.98:
        skill = Check("baseline", "doubtful", f"{found}: no better. The series may be random walks.")
    else:
        skill = Check("baseline", "passed", f"{found}.")
    covered = figures["coverage"]
    shown = f"The 90 % intervals cover {100 * covered:.0f} % of held-out states, of {n_series} series"
    error = np.sqrt(0.09 / max(n_series, 1))
    if abs(covered - 0.9) > 0.1 + 2 * error:
        return [skill, Check("coverage", "failed", f"{shown}: the stated uncertainty is wrong. Do not use it.")]
    if abs(covered - 0.9) > 0.05 + error:
        return [skill, Check("coverage", "doubtful", f"{shown}: the stated uncertainty is rough.")]
    return [skill, Check("coverage", "passed", f"{shown}.")]
