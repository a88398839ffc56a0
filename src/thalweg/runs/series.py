"""Series out of a long table, one row a moment: read, checked, and put on the grid of their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from thalweg.data.columns import Column, row_of
from thalweg.data.cycles import cycle_inputs
from thalweg.data.tables import Cells, read_cells
from thalweg.data.timegrid import TimeGrid
from thalweg.runs.folder import listed
from thalweg.runs.tables import fingerprint_of, refuse_unknown_columns, rows_by_name

# How months and quarters are written; both are read as dates.
_STYLES = {"month": r"\d{4}-\d{2}", "quarter": r"\d{4}-?Q[1-4]"}


class Roles(NamedTuple):
    """The columns of a long table by what they are.

    Attributes:
        time: of the times.
        targets: of the numbers that are forecast.
        series: of the names of the series; None for a single series.
        known: of the inputs that are known ahead.
    """

    time: str
    targets: list[str]
    series: str | None
    known: list[str]

    @property
    def all(self) -> list[str]:
        return [*([self.series] if self.series else []), self.time, *self.targets, *self.known]


@dataclass
class LongTable:
    """The rows of a long table.

    Attributes:
        times: of each row, ``float64`` or ``datetime64[us]`` ``[rows]``.
        values: of the targets ``[rows, D]``, NaN for gaps.
        known: inputs ``[rows, U]``, NaN for gaps.
        series: the rows of each series by its name, in the order of the file.
        style: how times are written: "number", "date", "month" or "quarter".
        kinds: what each column is.
        remarks: what a user should know about how it was read.
        fingerprint: a hash of the table.
        file: its name.
    """

    times: np.ndarray
    values: np.ndarray
    known: np.ndarray
    series: dict[str, np.ndarray]
    style: str
    kinds: dict[str, str]
    remarks: list[str]
    fingerprint: str
    file: str

    def stamp(self, row: int) -> str:
        """The time of a row, as it is written."""
        return str(written(self.times[row : row + 1], self.style)[0])


@dataclass
class OneSeries:
    """One series on the grid of its times.

    Attributes:
        name: as it is written; "" where the table has a single series.
        times: of the past and, where they are known, of steps ahead ``[T or more]``.
        values: of the past, from the first to the last state of which something is known ``[T, D]``.
        known: inputs ``[T or more, U]``, of the calendar last; None where there are none.
    """

    name: str
    times: np.ndarray
    values: np.ndarray
    known: np.ndarray | None

    def cut(self, n: int, ahead: int = 0) -> OneSeries:
        """The first n steps, with inputs and times of so many more."""
        known = None if self.known is None else self.known[: n + ahead]
        return OneSeries(self.name, self.times[: n + ahead], self.values[:n], known)


def read_long(
    path: Path, roles: Roles, missing: Sequence[str], kinds: Mapping[str, str] | None = None
) -> LongTable:
    """Read the columns of a long table that have a role.

    Args:
        missing: further words that stand for a gap.
        kinds: what the columns were in training; None to find out.

    Raises:
        ValueError: for columns that there are not or that hold something else, times that are missing, not sorted
            or doubled, and rows without a series; in words.
    """
    cells, file = read_cells(path), path.name
    wanted = [
        name for name in roles.all if kinds is None or name in cells.table.columns or name not in roles.targets
    ]
    refuse_unknown_columns(wanted, list(cells.table.columns), file)
    cells, style = _with_whole_dates(cells._replace(table=cells.table[wanted]), roles.time)
    texts = [roles.series] if roles.series else []
    if kinds is None:
        found = _decided(cells, texts, missing)
    else:
        known = {name: kinds[name] for name in wanted}
        again = cells.again(known, missing)
        found = {name: Column(again[name], kind) for name, kind in known.items()}
    numbers = {name: _numbers(found[name]) for name in wanted if name in (*roles.targets, *roles.known)}
    none = np.full(len(cells.table), np.nan)
    long = LongTable(
        _times(found[roles.time], file),
        np.stack([numbers.get(name, none) for name in roles.targets], 1),
        np.stack([numbers[name] for name in roles.known], 1) if roles.known else np.zeros((len(none), 0)),
        _series_of(found[roles.series].values, file) if roles.series else {"": np.arange(len(none))},
        style or ("date" if found[roles.time].kind == "date" else "number"),
        {name: column.kind for name, column in found.items()},
        [remark for column in found.values() for remark in column.remarks],
        fingerprint_of(pd.DataFrame({name: column.values for name, column in found.items()})),
        file,
    )
    _refuse_disorder(long, roles)
    return long


def on_grid(
    long: LongTable, roles: Roles, grid: TimeGrid, cycles: Sequence[str], ahead: int = 0, beyond: int = 0
) -> tuple[list[OneSeries], list[str]]:
    """The series of a table, with gaps where stamps of the grid are missing; and what a user should know.

    Args:
        cycles: of the calendar, that are inputs too.
        ahead: so many steps the inputs must reach beyond the last known state.
        beyond: so many steps times and inputs are continued at least, inputs by the last ones that are known.

    Raises:
        ValueError: for times beside the grid, inputs with gaps or that don't reach so far; in words.
    """
    found, empty, n_missing = [], [], 0
    for name, rows in long.series.items():
        known_state = ~np.isnan(long.values[rows]).all(1)
        if not known_state.any():
            empty.append(name)
            continue
        rows = rows[np.argmax(known_state) :]
        places = grid.places(long.times[rows])
        if (places < 0).any():
            row = int(rows[np.argmax(places < 0)])
            raise ValueError(
                f"{_the_series(name)} of {long.file} has the time {long.stamp(row)} in row {row + 1}, which is "
                f"not on its grid: from {long.stamp(int(rows[0]))} on, {grid.in_words()}"
            )
        last = int(places[np.flatnonzero(~np.isnan(long.values[rows]).all(1))[-1]])
        n_missing += last + 1 - int((places <= last).sum())
        one = _filled(long, name, rows, places, last + 1, grid)
        if roles.known:
            _refuse_lacking(long, name, rows, one, roles, ahead)
        one = _reaching(one, last + 1 + max(ahead, beyond), grid)
        if cycles:
            waves = cycle_inputs(one.times, cycles)
            one.known = waves if one.known is None else np.concatenate([one.known, waves], 1)
        found.append(one)
    remarks = []
    if empty and empty != [""]:
        remarks.append(f"Series without any value were left out: {listed(empty)}.")
    if n_missing:
        total = sum(len(one.values) for one in found)
        remarks.append(f"{n_missing} of {total} stamps of the grid are missing: they are gaps.")
        if roles.known:
            remarks.append("At missing stamps, inputs that are known ahead take the value before.")
    return found, remarks


def _filled(long: LongTable, name: str, rows: np.ndarray, places: np.ndarray, n: int, grid: TimeGrid) -> OneSeries:
    """The series with a place for each stamp of the grid up to its last row; n of them are of the past."""
    length = int(places[-1]) + 1
    values = np.full((length, long.values.shape[1]), np.nan)
    values[places] = long.values[rows]
    # A missing stamp takes the inputs of the row before it.
    before = np.searchsorted(places, np.arange(length), side="right") - 1
    known = long.known[rows][before] if long.known.shape[1] else None
    first = long.times[rows[0]]
    times = long.times[rows] if grid.kind == "uneven" else grid.times(first, np.arange(length))
    return OneSeries(name, times, values[:n], known)


def _reaching(one: OneSeries, n: int, grid: TimeGrid) -> OneSeries:
    """The series with times of at least n steps."""
    lacking = n - len(one.times)
    if lacking <= 0:
        return one
    if grid.kind == "uneven":
        further = TimeGrid("step", grid.step, grid.dates).times(one.times[-1], np.arange(1, lacking + 1))
    else:
        further = grid.times(one.times[0], np.arange(len(one.times), n))
    known = None if one.known is None else np.concatenate([one.known, np.repeat(one.known[-1:], lacking, 0)])
    return OneSeries(one.name, np.concatenate([one.times, further]), one.values, known)


def _refuse_lacking(
    long: LongTable, name: str, rows: np.ndarray, one: OneSeries, roles: Roles, ahead: int
) -> None:
    """Refuse inputs with gaps, and those that end before the horizon."""
    gaps = np.isnan(long.known[rows])
    if gaps.any():
        row, column = np.argwhere(gaps)[0]
        raise ValueError(
            f"{roles.known[column]!r} is empty in row {rows[row] + 1} of {long.file}: what is known ahead must be "
            "known at every step"
        )
    assert one.known is not None
    there = len(one.known) - len(one.values)
    if there < ahead:
        raise ValueError(
            f"{_the_series(name)} of {long.file} has {there} rows after its last known state, and {ahead} are "
            f"forecast: add rows with {listed(roles.known)} and without {listed(roles.targets)}"
        )


# -- columns ------------------------------------------------------------------------------------------


def _decided(cells: Cells, texts: Sequence[str], missing: Sequence[str]) -> dict[str, Column]:
    """What each column is. One in doubt must be corrected: texts are of no use here."""
    try:
        return cells.decided(texts, missing)
    except ValueError as error:
        found, doubt, _ = str(error).partition(": correct it")
        if not doubt:
            raise
        raise ValueError(f"{found}: correct it, or say that it means a gap (--missing)") from error


def _numbers(column: Column) -> np.ndarray:
    values, name = column.values, column.values.name
    if column.kind not in ("number", "truth"):
        known = values.dropna()
        example = f" ({known.iloc[0]!r} in row {row_of(known)})" if len(known) else ""
        kinds = {"text": "texts", "date": "dates", "span": "spans of time"}
        raise ValueError(f"column {name!r} holds {kinds[column.kind]}{example}: it must hold numbers")
    found = values.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(found).any():
        row = int(np.flatnonzero(np.isinf(found))[0]) + 1
        raise ValueError(f"column {name!r} has an infinite value (row {row}): replace or remove it")
    return found


def _with_whole_dates(cells: Cells, time: str) -> tuple[Cells, str]:
    """Times such as 2024-05 and 2024-Q2 as dates, and how they are written; "" where they are something else."""
    column = cells.table[time]
    if not pd.api.types.is_object_dtype(column) and not isinstance(column.dtype, pd.StringDtype):
        return cells, ""
    texts = column.astype(str).str.strip()
    for style, pattern in _STYLES.items():
        if texts.str.fullmatch(pattern).all():
            starts = pd.PeriodIndex(texts.str.replace("-Q", "Q"), freq="M" if style == "month" else "Q")
            table = cells.table.assign(**{time: starts.to_timestamp().strftime("%Y-%m-%d")})
            return cells._replace(table=table), style
    return cells, ""


def written(times: np.ndarray, style: str) -> np.ndarray:
    """Times as the table writes them ``[n]``: numbers, dates, months or quarters."""
    if style == "number":
        whole = (
            np.isfinite(times).all() and (times == np.round(times)).all() and np.abs(times).max(initial=0) < 2**53
        )
        return times.astype(np.int64) if whole else times
    index = pd.DatetimeIndex(times)
    if style == "month":
        return index.strftime("%Y-%m").to_numpy()
    if style == "quarter":
        return np.array([f"{t.year}-Q{t.quarter}" for t in index], dtype=object)
    whole = (index == index.normalize()).all()
    return index.strftime("%Y-%m-%d" if whole else "%Y-%m-%d %H:%M:%S").to_numpy()


def _times(column: Column, file: str) -> np.ndarray:
    """Times of all rows, ``float64`` or ``datetime64[us]``."""
    values, name = column.values, column.values.name
    if values.isna().any():
        row = int(np.flatnonzero(values.isna())[0]) + 1
        raise ValueError(f"row {row} of {file} has no time: {name!r} is empty there")
    if column.kind == "date":
        return values.to_numpy().astype("datetime64[us]")
    if column.kind in ("number", "span"):
        found = values.to_numpy(np.float64)
        if np.isinf(found).any():
            raise ValueError(f"the time {name!r} is infinite in row {int(np.flatnonzero(np.isinf(found))[0]) + 1}")
        return found
    raise ValueError(
        f"the time {name!r} holds texts ({str(values.iloc[0])!r} in row 1): write numbers, or dates such as "
        "2024-05-31, 2024-05-31 10:00, 2024-05 or 2024-Q2"
    )


def _series_of(column: pd.Series, file: str) -> dict[str, np.ndarray]:
    """The rows of each series by its name."""
    return dict(zip(*rows_by_name(column, file, "series"), strict=True))


def _refuse_disorder(long: LongTable, roles: Roles) -> None:
    """Refuse times of a series that are not sorted, or that occur twice."""
    for name, rows in long.series.items():
        times = long.times[rows]
        bad = np.flatnonzero(times[1:] <= times[:-1])
        if not len(bad):
            continue
        row, before = int(rows[bad[0] + 1]), int(rows[bad[0]])
        which, stamp = _the_series(name), long.stamp(row)
        if times[bad[0] + 1] == times[bad[0]]:
            several = "" if roles.series else "; where there are several series, name their column with --series"
            raise ValueError(f"{which} of {long.file} has the time {stamp} twice, again in row {row + 1}{several}")
        raise ValueError(
            f"{which} of {long.file} is not sorted: {stamp} in row {row + 1} comes after {long.stamp(before)}; "
            f"sort its rows by {roles.time!r}"
        )


def _the_series(name: str) -> str:
    return f"series {name!r}" if name else "the series"
