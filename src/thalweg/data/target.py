"""What the estimator must know of a target: that it is sound, its scale, and how it is rounded."""

from __future__ import annotations

import math

import numpy as np


def check_target(y: np.ndarray) -> None:
    """Refuse, in words, a target that nothing can be learned from.

    Args:
        y: ``[rows, K]``.

    Raises:
        ValueError: for NaN, infinities, a constant column, or one too large or too fine for double precision.
    """
    for name, bad in (("NaN", np.isnan(y)), ("infinity", np.isinf(y))):
        if bad.any():
            row = int(np.flatnonzero(bad.any(1))[0])
            raise ValueError(
                f"the target contains {name}: {int(bad.sum())} values (first in row {row}); remove those rows"
            )
    if len(y) > 1:
        constant = np.ptp(y, axis=0) == 0
        if constant.any():
            k = int(np.flatnonzero(constant)[0])
            which = f"target {k}" if y.shape[1] > 1 else "the target"
            raise ValueError(f"{which} is constant ({y[0, k]:g} in all {len(y)} rows): there is nothing to learn")
        with np.errstate(over="ignore", under="ignore"):
            variance = y.var(0)
        if not (np.isfinite(variance) & (variance > 0)).all():
            raise ValueError("the target is too large or too fine for double precision: rescale it")


def location_and_scale(y: np.ndarray, heavy: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """What a target is standardised by: mean and standard deviation; median and quartiles for heavy tails.

    Where the standard deviation is more than ``heavy`` times what the quartiles say, a few far values make it, and
    all others would shrink to a point.

    Args:
        y: ``[rows, K]``.

    Returns:
        location ``[K]`` and scale ``[K]``, positive for a target that isn't constant.
    """
    low, median, high = np.quantile(y, [0.25, 0.5, 0.75], axis=0)
    robust, std = (high - low) / 1.349, y.std(0)
    far = (robust > 0) & (std > heavy * robust)
    return np.where(far, median, y.mean(0)), np.where(far, robust, std)


def find_resolution(y: np.ndarray, max_decimals: int = 6) -> float:
    """The spacing of the grid that a target is rounded to, or 0 if there is none.

    The grid is decimal (1, 0.1, 0.01, ...), read from the digits of the values, or, where all values are
    multiples of some larger step (5, 0.25), that step. A target counts as rounded only if values recur.

    Args:
        y: ``[rows]``, possibly float32 numbers stored as float64.
    """
    y = np.asarray(y, np.float64)
    values = np.unique(y)
    if len(values) < 2 or len(values) > 0.98 * len(y):
        return 0.0
    slack = 4 * np.finfo(np.float32).eps * np.abs(values).max()
    for decimals in range(max_decimals + 1):
        spacing = 10.0**-decimals
        if spacing / 4 < slack:
            return 0.0
        steps = np.round(values / spacing)
        on_grid = np.abs(values - steps * spacing) <= slack
        # A few values off the grid (a censoring limit written as 5.00001) don't hide it.
        if on_grid.mean() >= 0.95:
            gaps = np.diff(np.unique(steps[on_grid].astype(np.int64)))
            return float(np.gcd.reduce(gaps) * spacing) if len(gaps) else 0.0
    return 0.0


def most_frequent(values: np.ndarray) -> float:
    """A value that lies on the grid of a rounded column, whichever that is."""
    unique, counts = np.unique(values, return_counts=True)
    return float(unique[counts.argmax()])


def whole_numbers(x: np.ndarray) -> np.ndarray:
    """Which numbers are whole ones that an integer holds exactly: beyond 2^53 every float is whole."""
    return (x == np.round(x)) & (np.abs(x) < 2.0**53)


def rounded(x: np.ndarray, origin: float, resolution: float) -> np.ndarray:
    """x on the grid with this spacing through ``origin``; as it is where the spacing is 0."""
    if not resolution:
        return x
    decimals = max(0, 2 - math.floor(math.log10(resolution)))
    return np.round(origin + np.round((x - origin) / resolution) * resolution, decimals)


def find_atoms(
    y: np.ndarray, min_share: float = 0.01, min_excess: float = 10.0, max_atoms: int = 4
) -> list[float]:
    """Values that a target takes with positive probability beside a continuous part, most frequent first.

    A value counts as one if it holds at least ``min_share`` of the rows and recurs ``min_excess`` times as
    often as the median value, as the limit of a censored target does.

    Args:
        y: ``[rows]``.
    """
    values, counts = np.unique(y, return_counts=True)
    if len(values) < 20:
        return []  # few values: all of them are atoms, and the density is dequantised instead
    often = (counts >= max(5, min_share * len(y))) & (counts >= min_excess * np.median(counts))
    ranked = np.argsort(-counts[often], kind="stable")[:max_atoms]
    return [float(v) for v in values[often][ranked]]
