"""What the estimator must know of a target: that it is sound, its scale, and how it is rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


# Grids finer than this, in standard deviations, are none to a network in single precision.
FINEST_GRID = 1e-6


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
    # Numbers that were once in single precision lie off their grid by its rounding errors, others by double's.
    single = bool((values == values.astype(np.float32)).all())
    slack = 4 * float(np.finfo(np.float32 if single else np.float64).eps) * float(np.abs(values).max())
    for decimals in range(max_decimals + 1):
        spacing = 10.0**-decimals
        # Whole numbers are exact in either precision, however large.
        if decimals and spacing / 4 < slack:
            return 0.0
        steps = np.round(values / spacing)
        if np.abs(steps).max() >= 2.0**53:
            # Beyond that every number is whole, which says nothing.
            return 0.0
        on_grid = np.abs(values - steps * spacing) <= min(slack, spacing / 8)
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
    y: np.ndarray, min_share: float = 0.01, min_excess: float = 10.0, max_atoms: int = 4, n_around: int = 5
) -> list[float]:
    """Values that a target takes with positive probability beside a continuous part, most frequent first.

    A value counts as one if it holds at least ``min_share`` of the rows and recurs ``min_excess`` times as often
    as the values around it: the limit of a censored target, the zero of one that is zero-inflated. The commonest
    values of a rounded target, each about as frequent as its neighbours, are none.

    Args:
        y: ``[rows]``.
        n_around: how many values to either side it is compared with.
    """
    values, counts = np.unique(y, return_counts=True)
    if len(values) < 20:
        return []  # few values: all of them are atoms, and the density is dequantised instead
    often = counts >= max(5, min_share * len(y))
    atoms: list[int] = []
    for k in sorted(np.flatnonzero(often).tolist(), key=lambda k: -int(counts[k])):
        around = [i for i in range(max(0, k - n_around), min(len(values), k + n_around + 1)) if i != k]
        around = [i for i in around if i not in atoms]
        if counts[k] >= min_excess * np.median(counts[around]):
            atoms.append(k)
    return [float(values[k]) for k in atoms[:max_atoms]]


class TargetScale:
    """How a target is standardised, and back: z = (y - location) / scale, or the asinh of that.

    The asinh is taken where a few values lie so far out that the others would shrink to a point beside them: near
    the location it changes nothing, far out it goes as the logarithm. Point masses play no part in the choice.

    Args:
        location, scale: in units of the target.
        curved: whether the asinh is taken.
    """

    def __init__(self, location: float, scale: float, curved: bool = False):
        self.location, self.scale, self.curved = float(location), float(scale), bool(curved)

    @classmethod
    def of(cls, y: np.ndarray, atoms: Sequence[float] = (), farthest: float = 50.0) -> TargetScale:
        """The scale of a target ``[rows]``; curved if a value lies ``farthest`` scales from the location or more.

        Args:
            atoms: values that do not count.
        """
        rest = y[~np.isin(y, atoms)]
        if len(rest) < 2 or np.ptp(rest) == 0:
            rest = y
        location, scale = location_and_scale(rest[:, None])
        made = cls(location[0], scale[0])
        return cls(location[0], scale[0], bool(np.abs(made.forth(rest)).max() > farthest))

    def forth(self, y: np.ndarray) -> np.ndarray:
        """Standardised values, of the same shape."""
        z = (np.asarray(y, np.float64) - self.location) / self.scale
        return np.arcsinh(z) if self.curved else z

    def back(self, z: np.ndarray) -> np.ndarray:
        """Values in the target's units, of the same shape."""
        return (np.sinh(z) if self.curved else z) * self.scale + self.location

    def log_slope(self, y: np.ndarray) -> np.ndarray:
        """log dz/dy: what a log density over z gains as one over y."""
        z = (np.asarray(y, np.float64) - self.location) / self.scale
        return -np.log(self.scale) - (0.5 * np.log1p(z * z) if self.curved else np.zeros_like(z))
