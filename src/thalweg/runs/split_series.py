"""Series that a forecaster learns from, and what of them is held out to measure it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.data.cycles import cycles_of
from thalweg.data.timegrid import TimeGrid
from thalweg.data.windows import whole_moments
from thalweg.evaluation.forecast_baselines import NaiveForecast
from thalweg.runs.folder import listed
from thalweg.runs.series import LongTable, OneSeries, Roles, on_grid, read_long
from thalweg.runs.settings.forecast import ForecastSettings
from thalweg.runs.tables import far_values

# Draws of each held-out forecast.
N_DRAWS = 200
_FEWEST_SERIES = 10
_FEWEST_SEASONS = 3
_DEFAULT_HORIZON = 20
_MOST_FORECASTS, _MOST_NUMBERS = 200, 20_000_000


@dataclass
class HeldOut:
    """A series of which a part is forecast.

    Attributes:
        series: the whole of it.
        moments: the places of the last known states from which forecasts start.
        begins: the place from which on it was not learned from.
    """

    series: OneSeries
    moments: np.ndarray
    begins: int


@dataclass
class SplitSeries:
    """Series that a forecaster is fitted to, and those that it is measured on.

    Attributes:
        training: series, or parts of them.
        test: see :class:`HeldOut`.
        whole_series: whether whole series are held out.
        doubts: what may be wrong with the targets, in sentences.
    """

    training: list[OneSeries]
    test: list[HeldOut]
    whole_series: bool
    roles: Roles
    grid: TimeGrid
    cycles: list[str]
    horizon: int
    season: int
    long: LongTable
    n_series: int
    remarks: list[str]
    doubts: list[str]

    @property
    def fingerprint(self) -> str:
        return self.long.fingerprint

    def given(self, series: Sequence[OneSeries]) -> dict[str, Any]:
        """Inputs and times of series, as an :class:`EnergyForecaster` takes them."""
        return given(series, self.grid)

    @property
    def blocks(self) -> np.ndarray:
        """Numbers of the forecasts, one series after the other: those of one number overlap."""
        found = [1_000_000 * i + (own.moments - own.moments[0]) // self.horizon for i, own in enumerate(self.test)]
        return np.concatenate(found)


def read_split(settings: ForecastSettings) -> SplitSeries:
    path = Path(settings.data)
    roles = Roles(
        settings.time[0], settings.target, settings.series[0] if settings.series else None, settings.known
    )
    long = read_long(path, roles, settings.missing)
    for d, target in enumerate(roles.targets):
        values = long.values[:, d][~np.isnan(long.values[:, d])]
        if not len(values):
            raise ValueError(f"the target {target!r} of {path.name} has no value at all")
        if (values == values[0]).all():
            raise ValueError(f"the target {target!r} of {path.name} never changes: leave it out")
    each = [long.times[rows] for rows in long.series.values()]
    grid = TimeGrid.of(each)
    season, of_season = _season(settings, grid, max(int(grid.places(times)[-1]) + 1 for times in each))
    cycles = cycles_of(grid, each, season) if settings.calendar else []
    series, of_grid = on_grid(long, roles, grid, cycles)
    series = [one.cut(len(one.values)) for one in series]
    longest = max(len(one.values) for one in series)
    horizon = settings.horizon or max(1, min(season or _DEFAULT_HORIZON, longest // 4))
    usable, of_length = _long_enough(series, horizon, path.name)
    remarks = [*long.remarks, *_of_times(grid, cycles, settings), *of_grid, *of_season, *of_length]
    training, test, whole = _split(usable, horizon, settings, path.name)
    data = SplitSeries(
        training,
        test,
        whole,
        roles,
        grid,
        cycles,
        horizon,
        season,
        long,
        len(usable),
        remarks,
        _doubts(long, roles),
    )
    _refuse_few(data, settings)
    return data


def _of_times(grid: TimeGrid, cycles: Sequence[str], settings: ForecastSettings) -> list[str]:
    if grid.kind == "uneven":
        found = [
            "The times are uneven: how long each step is, is an input, and a forecast goes on with the usual step."
        ]
    else:
        found = [f"The times of {settings.time[0]!r} are even: {grid.in_words()}."]
    if cycles:
        found.append(f"Inputs from the calendar: {', '.join(cycles)} (--no-calendar leaves them out).")
    return found


def _season(settings: ForecastSettings, grid: TimeGrid, longest: int) -> tuple[int, list[str]]:
    """Steps of a season, 0 for none."""
    if settings.season is not None:
        if settings.season >= longest:
            raise ValueError(f"--season {settings.season} is too long: the longest series has {longest} steps")
        return settings.season, []
    if grid.season and longest >= _FEWEST_SEASONS * grid.season:
        return grid.season, [f"A season is taken to have {grid.season} steps (--season)."]
    return 0, []


def _long_enough(series: list[OneSeries], horizon: int, file: str) -> tuple[list[OneSeries], list[str]]:
    """The series that have a state and a horizon after it, and which ones have not."""
    usable = [one for one in series if len(one.values) > horizon]
    if not usable:
        longest = max(len(one.values) for one in series)
        what = "the longest series" if len(series) > 1 else "the series"
        raise ValueError(
            f"{what} of {file} has {longest} step{'s' * (longest != 1)}, and a forecast of {horizon} needs at "
            f"least {horizon + 1} to learn from: take a shorter --horizon, or longer series"
        )
    short = [one.name for one in series if len(one.values) <= horizon]
    if not short:
        return usable, []
    return usable, [f"Series of at most {horizon} steps, the horizon, were left out: {listed(short)}."]


def _split(
    series: list[OneSeries], horizon: int, settings: ForecastSettings, file: str
) -> tuple[list[OneSeries], list[HeldOut], bool]:
    """What is learned from and what is held out: whole series where there are enough, else the end of each."""
    if len(series) >= _FEWEST_SERIES:
        n_test = int(np.clip(round(settings.test_fraction * len(series)), 1, len(series) - 1))
        chosen = np.random.RandomState(settings.seed).permutation(len(series))[:n_test]
        test = [_held_out(series[i], 0, horizon, settings) for i in np.sort(chosen)]
        training = [one for i, one in enumerate(series) if i not in chosen]
        whole = True
    else:
        test, training, whole = [], [], False
        for one in series:
            n = len(one.values)
            begins = n - max(horizon, round(settings.test_fraction * n))
            if begins <= horizon:
                training.append(one)
                continue
            training.append(one.cut(begins))
            test.append(_held_out(one, begins, horizon, settings))
    test = _thinned([own for own in test if len(own.moments)], horizon * len(settings.target))
    if not test:
        longest = max(len(one.values) for one in series)
        raise ValueError(
            f"nothing of {file} can be held out: it takes {2 * horizon + 1} steps of a series, the last {horizon} "
            f"without a gap, and the longest has {longest}; take a shorter --horizon, or a smaller --test-fraction"
        )
    return training, test, whole


def _held_out(one: OneSeries, begins: int, horizon: int, settings: ForecastSettings) -> HeldOut:
    """The moments from which all that is forecast is held out, and before which there is a past to see."""
    moments = whole_moments(one.values, horizon)
    seen = min(settings.window or 4 * horizon, len(one.values) // 2)
    first = begins - 1 if begins else min(seen, len(one.values) - horizon) - 1
    later = moments[moments >= max(first, 0)]
    return HeldOut(one, later if len(later) else moments[-1:] if not begins else later, begins)


def _thinned(test: list[HeldOut], numbers: int) -> list[HeldOut]:
    """The same with fewer moments, evenly, where there are very many."""
    most = max(20, min(_MOST_FORECASTS, _MOST_NUMBERS // (N_DRAWS * numbers)))
    total = sum(len(own.moments) for own in test)
    if total <= most:
        return test
    kept = np.unique(np.linspace(0, total - 1, most).round().astype(int))
    ends = np.cumsum([len(own.moments) for own in test])
    parts = np.split(kept, np.searchsorted(kept, ends[:-1]))
    found = [
        HeldOut(own.series, own.moments[part - (end - len(own.moments))], own.begins)
        for own, part, end in zip(test, parts, ends, strict=True)
    ]
    return [own for own in found if len(own.moments)]


def _refuse_few(data: SplitSeries, settings: ForecastSettings) -> None:
    """Refuse series that have too few moments to learn from, or a target that does not change in them."""
    increments = NaiveForecast(data.horizon).fit([one.values for one in data.training]).errors_
    if len(increments) < 2 * settings.members:
        raise ValueError(
            f"only {len(increments)} moments of what is learned from are followed by {data.horizon} steps without "
            f"a gap, and at least {2 * settings.members} are needed: take a shorter --horizon, longer series, or "
            "a smaller --test-fraction"
        )
    for d, target in enumerate(data.roles.targets):
        if (np.ptp(increments[:, :, d], axis=0) == 0).all():
            raise ValueError(
                f"the target {target!r} never changes in what is learned from, or always by the same amount: "
                "leave it out"
            )


def _doubts(long: LongTable, roles: Roles) -> list[str]:
    found = []
    for d, name in enumerate(roles.targets):
        values = long.values[:, d]
        if far := far_values(values[~np.isnan(values)]):
            found.append(
                f"Column {name!r} has values far from all others ({far}): remove them if they are mistakes."
            )
    return found


def given(series: Sequence[OneSeries], grid: TimeGrid) -> dict[str, Any]:
    """Inputs and times of series, as an :class:`EnergyForecaster` takes them."""
    known = None if series[0].known is None else [one.known for one in series]
    return {"known": known, "times": [one.times for one in series] if grid.kind == "uneven" else None}
