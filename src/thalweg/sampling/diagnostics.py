"""Have the chains arrived, and how many independent draws are theirs worth? (ArviZ computes it.)"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor


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
