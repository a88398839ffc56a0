"""Have the chains arrived, how many independent draws are theirs worth, and can weights be averaged? By ArviZ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

# The mean of importance weights whose Pareto k is larger cannot be trusted [Vehtari 2024, sec. 3].
LARGEST_PARETO_K = 0.7


class Diagnostics(NamedTuple):
    """One figure for each coordinate, ``[D]``.

    Attributes:
        r_hat: rank-normalised split R-hat; above 1.01 the chains disagree.
        bulk_ess: effective sample size for the middle of the distribution, over all chains.
        tail_ess: the same for its 5 % and 95 % quantiles.
    """

    r_hat: np.ndarray
    bulk_ess: np.ndarray
    tail_ess: np.ndarray

    def __str__(self) -> str:
        return (
            f"R-hat at most {self.r_hat.max():.3f}, effective sample size at least {self.bulk_ess.min():.0f} "
            f"(bulk), {self.tail_ess.min():.0f} (tail)"
        )


def diagnose(position: Tensor | np.ndarray) -> Diagnostics:
    """Diagnostics of draws ``[n_draws, n_chains, *event]``, as :func:`sample_chain` returns them.

    Raises:
        ValueError: for fewer than 4 draws, or draws that are not finite.

    Source: [Vehtari 2021].
    """
    from arviz_stats.base import array_stats

    array = np.asarray(position.cpu() if isinstance(position, Tensor) else position, np.float64)
    if array.ndim < 2 or len(array) < 4:
        raise ValueError(f"draws must be [n_draws, n_chains, ...] with at least 4 draws, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("some draws are not finite: look at the chains' starts and the step size")
    array = array.reshape(*array.shape[:2], -1)
    axes = {"chain_axis": 1, "draw_axis": 0}
    return Diagnostics(
        np.atleast_1d(array_stats.rhat(array, method="rank", **axes)),
        np.atleast_1d(array_stats.ess(array, method="bulk", **axes)),
        np.atleast_1d(array_stats.ess(array, method="tail", prob=(0.05, 0.95), **axes)),
    )


def pareto_k(log_weights: Tensor | np.ndarray) -> np.ndarray:
    """Shape k of a generalised Pareto distribution fitted to the largest of each row of importance weights.

    The weights have 1 / k finite moments. With k above 0.7 their mean settles so slowly that neither it nor its
    standard error can be trusted, however many draws were taken. A small k is no proof: draws that never came to a
    region have no weights from there.

    Args:
        log_weights: ``[*batch, n]``, up to a constant of each row.

    Returns:
        ``[*batch]``; NaN for fewer than 25 weights, minus infinity where the largest are all equal, infinity where
        all but a few are zero.

    Source: [Vehtari 2024, sec. 2 and 3].
    """
    from arviz_stats.base import array_stats

    logs = np.asarray(log_weights.cpu() if isinstance(log_weights, Tensor) else log_weights, np.float64)
    rows, n = logs.reshape(-1, logs.shape[-1]), logs.shape[-1]
    if n < 25:
        return np.full(logs.shape[:-1], np.nan)
    tail, found = min(n // 5, int(3 * n**0.5)), np.full(len(rows), -np.inf)
    for i, row in enumerate(rows):
        weights = np.sort(np.exp(row - row.max()))
        if weights[n - tail + round(tail / 4)] == weights[n - tail - 1] < 0.5:
            found[i] = np.inf
        elif weights[-1] - weights[-tail] > 1e-9:
            found[i] = float(array_stats.pareto_khat(weights[None], r_eff=1, tail="right"))
    return found.reshape(logs.shape[:-1])
