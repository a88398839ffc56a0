"""Two tanks in cascade: water is pumped into the upper one, flows into the lower one, and out; both overflow."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Series(NamedTuple):
    """A measured input and output, one value each sampling period.

    Attributes:
        u: voltage of the pump ``[T]``.
        y: level of the lower tank, as the sensor's voltage ``[T]``.
    """

    u: np.ndarray
    y: np.ndarray


def load_tanks(folder: Path) -> tuple[Series, Series]:
    """The measured series for estimation and for testing, from ``cascaded_tanks.npz`` in a folder.

    Raises:
        ValueError: if the file is missing or lacks an array.

    Source: [Schoukens 2016].
    """
    path = folder / "cascaded_tanks.npz"
    if not path.exists():
        raise ValueError(f"there is no file {path}: leave the data folder out to run on a simulated system")
    with np.load(path) as arrays:
        missing = [k for k in ("X_train", "y_train", "X_test", "y_test") if k not in arrays]
        if missing:
            raise ValueError(f"{path} has no array {missing[0]!r}")
        u, y, u_test, y_test = (
            arrays[k].astype(np.float64).reshape(-1) for k in ("X_train", "y_train", "X_test", "y_test")
        )
    return Series(u, y), Series(u_test, y_test)


def simulate_tanks(n_steps: int = 1024, seed: int = 0, noise_std: float = 0.03) -> Series:
    """A simulated pair of tanks, after the equations that the measured pair is described by.

    The level of a tank changes by what flows in less what flows out, which goes with the square root of the
    level (Bernoulli). A tank that is full stays full; part of what the upper one spills falls into the lower.
    The pump follows a sum of slow sines of random phase.

    Args:
        n_steps: samples, one each 4 s; the tanks have settled when they begin.
        noise_std: standard deviation of the sensor's noise, in volts.

    Source: [Schoukens 2016, eq. 1 to 4].
    """
    rng = np.random.default_rng(seed)
    settling, substeps, period = 100, 20, 4.0
    t = np.arange(n_steps + settling)
    frequency = np.arange(1, 60) / 1024
    phase = rng.uniform(0, 2 * np.pi, len(frequency))
    pump = (np.sin(2 * np.pi * frequency * t[:, None] + phase) / np.sqrt(frequency)).sum(1)
    pump = 2.8 + 1.3 * pump / pump.std()
    pump = np.clip(pump, 0.3, 6.5)

    full = 10.0
    k_out_upper, k_out_lower, k_pump, k_spilled = 0.047, 0.045, 0.040, 0.5
    upper, lower = 5.0, 5.0
    levels = np.empty(len(t))
    for i in range(len(t)):
        levels[i] = lower
        for _ in range(substeps):
            step = period / substeps
            from_upper = k_out_upper * np.sqrt(upper)
            upper += step * (k_pump * pump[i] - from_upper)
            spilled = k_spilled * max(upper - full, 0.0)
            lower += step * (from_upper - k_out_lower * np.sqrt(lower)) + spilled
            upper = min(max(upper + step * 0.01 * rng.normal(), 0.0), full)
            lower = min(max(lower, 0.0), full)
    y = np.minimum(levels + noise_std * rng.normal(size=len(t)), full)
    return Series(pump[settling:], y[settling:])


def lagged(series: Series, n_lags: int) -> tuple[np.ndarray, np.ndarray]:
    """The past of every sample and the sample itself: ``[T - n_lags, 2 n_lags]`` and ``[T - n_lags]``.

    A row holds y_{t-1}, ..., y_{t-n}, u_{t-1}, ..., u_{t-n}.
    """
    y = np.lib.stride_tricks.sliding_window_view(series.y[:-1], n_lags)[:, ::-1]
    u = np.lib.stride_tricks.sliding_window_view(series.u[:-1], n_lags)[:, ::-1]
    return np.concatenate([y, u], 1), series.y[n_lags:]
