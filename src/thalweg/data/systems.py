"""Simulated dynamic systems: y_t given the past, with the noise's density known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

LogDensity = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Series:
    """Regressors and targets made from one simulated series.

    Attributes:
        X: lagged outputs and inputs ``[n, lags]``.
        y: outputs ``[n]``.
        log_density: log p(y_t | X_t) of the truth ``[n]``.
        mean: the one-step prediction of a model that knows the system ``[n]``.
    """

    X: np.ndarray
    y: np.ndarray
    log_density: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class _Noise:
    draw: Callable[[int, np.random.RandomState], np.ndarray]
    log_pdf: LogDensity


def gaussian_noise(std: float) -> _Noise:
    return _Noise(lambda n, rng: std * rng.standard_normal(n), lambda e: stats.norm.logpdf(e, 0, std))


def bimodal_noise(centre: float, std: float) -> _Noise:
    """Half of it round +centre, half round -centre."""

    def draw(n: int, rng: np.random.RandomState) -> np.ndarray:
        return centre * np.where(rng.uniform(size=n) < 0.5, 1.0, -1.0) + std * rng.standard_normal(n)

    def log_pdf(e: np.ndarray) -> np.ndarray:
        both = np.logaddexp(stats.norm.logpdf(e, centre, std), stats.norm.logpdf(e, -centre, std))
        return both - np.log(2)

    return _Noise(draw, log_pdf)


def ar1(n: int, noise: _Noise, rng: np.random.RandomState) -> Series:
    """y_t = 0.95 y_{t-1} + e_t."""
    e = noise.draw(n + 1, rng)
    y = np.zeros(n + 1)
    for t in range(1, n + 1):
        y[t] = 0.95 * y[t - 1] + e[t]
    predicted = 0.95 * y[:-1]
    return Series(y[:-1, None], y[1:], noise.log_pdf(y[1:] - predicted), predicted)


def chen(n: int, std: float, rng: np.random.RandomState) -> Series:
    """The nonlinear system of Chen et al., with Gaussian process noise.

    y_t = (0.8 - 0.5 e^{-y1^2}) y1 - (0.3 + 0.9 e^{-y1^2}) y2 + u1 + 0.2 u2 + 0.1 u1 u2 + v_t; the input is
    Gaussian, held for five samples.

    Source: [Chen 1990, sec. 4], as in [Hendriks 2021, sec. 5.3], without the noise of the measurement, so that
    p(y_t | X_t) is known.
    """
    m = n + 2
    noise = gaussian_noise(std)
    u = np.repeat(rng.standard_normal(m // 5 + 1), 5)[:m]
    v = noise.draw(m, rng)
    y, predicted = np.zeros(m), np.zeros(m)
    for t in range(2, m):
        y1, y2, u1, u2 = y[t - 1], y[t - 2], u[t - 1], u[t - 2]
        bell = np.exp(-(y1**2))
        predicted[t] = (0.8 - 0.5 * bell) * y1 - (0.3 + 0.9 * bell) * y2 + u1 + 0.2 * u2 + 0.1 * u1 * u2
        y[t] = predicted[t] + v[t]
    X = np.stack([y[1:-1], y[:-2], u[1:-1], u[:-2]], 1)
    return Series(X, y[2:], noise.log_pdf(v[2:]), predicted[2:])


def pendulum(n: int, n_steps: int, rng: np.random.RandomState) -> np.ndarray:
    """Damped pendulums that stand upright, are pushed to the left or to the right, and fall: two futures.

    Angle from upright and its speed, from the same first state (0, 0); then a coin gives the speed of the push,
    +-0.6 with a spread of 0.03, and theta'' = sin(theta) - 0.4 theta' with noise, by Euler's steps of 0.15. Either
    side comes to rest hanging, at +-pi.

    Returns:
        ``[n, n_steps, 2]``.
    """
    paths = np.zeros((n, n_steps, 2))
    speed = rng.choice([-0.6, 0.6], size=n) + 0.03 * rng.standard_normal(n)
    angle = np.zeros(n)
    for t in range(1, n_steps):
        angle = angle + 0.15 * speed
        speed = speed + 0.15 * (np.sin(angle) - 0.4 * speed) + 0.01 * rng.standard_normal(n)
        paths[:, t] = np.stack([angle, speed], 1)
    return paths
