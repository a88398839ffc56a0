"""Cycles of the calendar as known inputs: the hour of the day, the day of the week, the day of the year."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thalweg.data.timegrid import TimeGrid

_DAY = 86_400.0
# How many seconds each cycle has, how many of its cycles the series must span, and the longest step that shows it.
_CYCLES = {
    "hour of the day": (_DAY, 2, 0.26 * _DAY),
    "day of the week": (7 * _DAY, 2, 1.5 * _DAY),
    "day of the year": (365.2425 * _DAY, 2, 100 * _DAY),
}
# The first day of a week, and of a year, from which a cycle is counted; only differences matter.
_ORIGIN = np.datetime64("2001-01-01", "us")


def cycles_of(grid: TimeGrid, series: Sequence[np.ndarray], season: int = 0) -> list[str]:
    """The cycles that series with these times can show, by name; none where times are numbers.

    Args:
        season: steps of a season; a cycle that is as long is left out, since the season shows it.
    """
    if not grid.dates:
        return []
    longest = max((times[-1] - times[0]) / np.timedelta64(1, "s") for times in series if len(times))
    return [
        name
        for name, (length, n, largest) in _CYCLES.items()
        if grid.seconds <= largest
        and longest >= n * length
        and abs(season * grid.seconds - length) > 0.01 * length
    ]


def cycle_inputs(times: np.ndarray, cycles: Sequence[str]) -> np.ndarray:
    """Sine and cosine of each cycle at each of the times ``[T, 2 * cycles]``."""
    seconds = (times - _ORIGIN) / np.timedelta64(1, "s")
    phases = [2 * np.pi * seconds / _CYCLES[name][0] for name in cycles]
    return np.stack([wave(phase) for phase in phases for wave in (np.sin, np.cos)], 1)
