"""Two-dimensional densities that are known: targets to fit and to draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlanarProblem:
    """A density on the plane.

    Attributes:
        name: short.
        sample: (n, rng) -> points ``[n, 2]``.
        log_density: points ``[n, 2]`` -> log p ``[n]``, normalised.
        bounds: (low, high) of a square that holds all but 1e-6 of the mass.
        modes: places of the modes ``[m, 2]``, of equal mass, or None.
    """

    name: str
    sample: Callable[[int, np.random.RandomState], np.ndarray]
    log_density: Callable[[np.ndarray], np.ndarray]
    bounds: tuple[float, float]
    modes: np.ndarray | None = None


def _mixture(name: str, means: np.ndarray, std: float, bound: float, modes: np.ndarray | None) -> PlanarProblem:
    """Equal Gaussians of one width, however many."""

    def sample(n: int, rng: np.random.RandomState) -> np.ndarray:
        return means[rng.randint(len(means), size=n)] + std * rng.standard_normal((n, 2))

    def log_density(x: np.ndarray) -> np.ndarray:
        parts = []
        for piece in np.array_split(np.asarray(x, np.float64), max(1, len(x) * len(means) // 4_000_000)):
            squares = (piece**2).sum(1)[:, None] - 2 * piece @ means.T + (means**2).sum(1)
            logits = -0.5 * squares / std**2
            top = logits.max(1, keepdims=True)
            parts.append(np.log(np.exp(logits - top).mean(1)) + top[:, 0])
        return np.concatenate(parts) - np.log(2 * np.pi * std**2)

    return PlanarProblem(name, sample, log_density, (-bound, bound), modes)


def _ring(n: int, radius: float) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _arcs(n: int) -> np.ndarray:
    """Points on the two half circles of the moons, evenly spaced, centred and scaled."""
    angle = np.pi * (np.arange(n) + 0.5) / n
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    return 2.0 * (np.concatenate([upper, lower]) - [0.5, 0.25])


EIGHT_GAUSSIANS = _mixture("eight Gaussians", _ring(8, 4 / 1.414), 0.5 / 1.414, 5.0, modes=_ring(8, 4 / 1.414))
"""Eight Gaussians of standard deviation 0.354 on a ring of radius 2.83."""

TWO_MOONS = _mixture("two moons", _arcs(200), 0.2, 5.0, modes=None)
"""Two interleaved half circles of radius 2 with Gaussian noise of 0.2, as 400 Gaussians along them."""
