"""How the times of series follow one another: a constant step, months, working days, or unevenly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

# Of a grid so large a share may lack; with more the times count as uneven.
_MOST_MISSING = 0.2
# How far a time may lie beside its place, in steps: times are rounded.
_TOLERANCE = 0.05
_DAY, _HOUR, _MINUTE = 86_400.0, 3_600.0, 60.0
_MOST_STEPS_A_DAY = 96
_MICROSECONDS = 1e6


@dataclass(frozen=True)
class TimeGrid:
    """The places in time at which states are known.

    Attributes:
        kind: "step" (a constant difference), "months" (so many months apart), "workdays" (Monday to Friday), or
            "uneven".
        step: the difference of neighbours: of numbers in their own unit, of dates in seconds, of "months" in
            months; where they are uneven the median.
        dates: whether times are dates (``datetime64``) rather than numbers.
        day: of "months" the day of the month; a shorter month has its last day.
    """

    kind: str
    step: float
    dates: bool
    day: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, series: Sequence[np.ndarray]) -> TimeGrid:
        """The grid that these times are on, each ``[T_i]`` rising; "uneven" where there is none.

        Stamps may be missing, up to a fifth of them.
        """
        dates = series[0].dtype.kind == "M"
        steps = np.concatenate([np.diff(_as_numbers(times)) for times in series])
        if not len(steps):
            return cls("step", 1.0, dates)
        found = [*(_calendar_grids(series, steps) if dates else ()), cls("step", _constant_step(steps), dates)]
        for grid in found:
            if grid._fits(series):
                return grid
        return cls("uneven", float(np.median(steps)), dates)

    def _fits(self, series: Sequence[np.ndarray]) -> bool:
        places = [self.places(times) for times in series if len(times)]
        if not all((own >= 0).all() and (np.diff(own) >= 1).all() for own in places):
            return False
        needed = sum(int(own[-1]) + 1 for own in places)
        return sum(map(len, places)) >= (1 - _MOST_MISSING) * needed

    def places(self, times: np.ndarray) -> np.ndarray:
        """The place of each time counted from the first one ``[T]``; -1 beside the grid.

        Uneven times are counted one by one.
        """
        if self.kind == "uneven":
            return np.arange(len(times))
        if self.kind == "months":
            count = _months(times) - _months(times[:1])
            on = (count % self.step == 0) & (_days(times) == np.minimum(self.day, _days_in_month(times)))
            on &= _time_of_day(times) == _time_of_day(times[:1])
            return np.where(on, count // self.step, -1).astype(int)
        if self.kind == "workdays":
            days = times.astype("datetime64[D]")
            on = np.is_busday(days) & (_time_of_day(times) == _time_of_day(times[:1]))
            return np.where(on, np.busday_count(days[0], days), -1).astype(int)
        numbers = _as_numbers(times)
        place = (numbers - numbers[0]) / self.step
        return np.where(np.abs(place - np.round(place)) <= _TOLERANCE, np.round(place), -1).astype(int)

    def times(self, first: Any, places: np.ndarray) -> np.ndarray:
        """The times at these places, counted from the first one ``[T]``."""
        if self.kind == "months":
            month = np.datetime64(first, "M") + (int(self.step) * places).astype("timedelta64[M]")
            start = month.astype("datetime64[D]").astype("datetime64[us]")
            day = np.minimum(self.day, _days_in_month(start)) - 1
            return start + day.astype("timedelta64[D]") + _time_of_day(np.array([first]))
        if self.kind == "workdays":
            days = np.busday_offset(np.datetime64(first, "D"), places)
            return days.astype("datetime64[us]") + _time_of_day(np.array([first]))
        if self.dates:
            return first + np.round(self.step * places * _MICROSECONDS).astype("timedelta64[us]")
        found = first + self.step * places
        # 0.1 + 0.2 is written as 0.3.
        return np.array([float(f"{value:.12g}") for value in np.asarray(found, float)])

    @property
    def seconds(self) -> float:
        """About how long a step is; 0 where times are numbers."""
        if not self.dates:
            return 0.0
        if self.kind == "months":
            return self.step * 365.25 / 12 * _DAY
        return 1.4 * _DAY if self.kind == "workdays" else self.step

    @property
    def season(self) -> int:
        """How many steps the usual season has: a day of hours, a week of days, a year of months; 0 for none."""
        if not self.dates or self.kind == "uneven":
            return 0
        if self.kind == "months":
            return {1: 12, 2: 6, 3: 4}.get(int(self.step), 0)
        if self.kind == "workdays":
            return 5
        if self.step == _DAY:
            return 7
        steps = _DAY / self.step
        return int(steps) if steps.is_integer() and 2 <= steps <= _MOST_STEPS_A_DAY else 0

    def in_words(self) -> str:
        """Such as "every month", "every 2 hours", "a step of 0.5"."""
        if self.kind == "uneven":
            return "at uneven times"
        if self.kind == "workdays":
            return "every working day"
        if self.kind == "months":
            months = int(self.step)
            names = {3: (1, "quarter"), 12: (1, "year")}
            count, unit = names.get(months, (months // 12, "year") if months % 12 == 0 else (months, "month"))
        elif not self.dates:
            return f"a step of {self.step:g}"
        else:
            units = ((7 * _DAY, "week"), (_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute"), (1.0, "second"))
            size, unit = next((pair for pair in units if self.step % pair[0] == 0), units[-1])
            if self.step % size:
                return f"every {self.step:g} seconds"
            count = int(self.step // size)
        return f"every {unit}" if count == 1 else f"every {count} {unit}s"


def _as_numbers(times: np.ndarray) -> np.ndarray:
    """Times as numbers; dates in seconds."""
    if times.dtype.kind != "M":
        return times.astype(np.float64)
    return times.astype("datetime64[us]").astype(np.int64) / _MICROSECONDS


def _constant_step(steps: np.ndarray) -> float:
    """The step of which all steps are multiples, if there is one: a step may span missing stamps."""
    least = float(steps.min())
    if least <= 0:
        return float(np.median(steps))
    found = float(steps.sum() / np.maximum(np.round(steps / least), 1).sum())
    # What rounding has blurred is made plain again.
    whole = float(f"{found:.3g}")
    return whole if abs(found - whole) < 1e-6 * found else float(f"{found:.12g}")


def _calendar_grids(series: Sequence[np.ndarray], steps: np.ndarray) -> list[TimeGrid]:
    """Months and working days, where these dates may be on them."""
    found = []
    months = [int(step) for times in series for step in np.diff(_months(times))]
    if min(months) >= 1:
        day = max(int(_days(times).max()) for times in series if len(times))
        found.append(TimeGrid("months", float(math.gcd(*months)), True, day))
    # Without a weekend in between they are plain days.
    if steps.min() == _DAY and steps.max() > 2 * _DAY:
        found.append(TimeGrid("workdays", 1.0, True))
    return found


def _months(times: np.ndarray) -> np.ndarray:
    return times.astype("datetime64[M]").astype(np.int64)


def _days(times: np.ndarray) -> np.ndarray:
    """Of the month, from 1."""
    return (times.astype("datetime64[D]") - times.astype("datetime64[M]")).astype(np.int64) + 1


def _days_in_month(times: np.ndarray) -> np.ndarray:
    return pd.DatetimeIndex(times).days_in_month.to_numpy()


def _time_of_day(times: np.ndarray) -> np.ndarray:
    return times.astype("datetime64[us]") - times.astype("datetime64[D]")
