"""Of a regression run: the rows that its page shows, and the grids that it draws densities on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.encoding import is_number
from thalweg.estimators.distribution import PredictiveDistribution
from thalweg.runs.regression import RegressionRun
from thalweg.runs.tables import split_rows

MAX_BARS = 25
MAX_POINTS = 1200


def shown_rows(run: RegressionRun) -> tuple[pd.DataFrame, str]:
    """The rows to show predictions of, and what they are."""
    if run.test_rows is not None:
        return run.test_rows.iloc[:2000], "test"
    return run.training_rows.iloc[:2000], "training"


def row_names(run: RegressionRun) -> list[str]:
    """Names of the rows that :func:`shown_rows` returns; test rows are counted from 1 at the top of the table."""
    if run.test_rows is None:
        return [f"training row {i + 1}" for i in range(len(run.training_rows))]
    # The file of the test rows has no row numbers; the split is the one that the run made.
    _, places = split_rows(run.figures["rows"], run.settings.test_fraction, run.settings.seed)
    return [f"row {place + 1}" for place in places]


def target_grid(run: RegressionRun, low: float, high: float, n: int = 500) -> tuple[np.ndarray, bool]:
    """Values of the target over a range; the rounded values themselves, if they are few."""
    if not has_bars(run, low, high):
        return np.linspace(low, high, n), False
    resolution = run.model.resolution_
    # The grid's origin is that of the data: half-integers are a grid of spacing 1 as well.
    origin = float(np.asarray(run.truth(run.training_rows)).flat[0])
    first, last = np.floor((low - origin) / resolution + 0.5), np.ceil((high - origin) / resolution - 0.5)
    return origin + resolution * np.arange(first, max(last, first + 1) + 1), True


def has_bars(run: RegressionRun, low: float, high: float) -> bool:
    return bool(run.model.resolution_) and (high - low) / run.model.resolution_ < MAX_BARS


def on_grid(run: RegressionRun, distribution: PredictiveDistribution, y: np.ndarray, bars: bool) -> np.ndarray:
    """Densities ``[rows, m]`` on a grid, or probabilities of its cells. Spikes of single values are left out."""
    asked = np.broadcast_to(y, (len(distribution), len(y)))
    if bars:
        return np.exp(distribution.log_mass(asked))
    density = np.exp(distribution.log_prob(asked))
    # At an atom log_prob is a log mass: the density beside it is shown, and the mass as a pin.
    for place in np.flatnonzero(np.isin(y, distribution.atoms)):
        density[:, place] = density[:, place - 1 if place else 1]
    return density


def plain_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as numbers, and categories as texts, whatever type the file gave them."""
    table = table.copy()
    for name in table.columns:
        column = table[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            table[name] = column.astype(object)
        elif is_number(column) and not pd.api.types.is_datetime64_any_dtype(column):
            table[name] = pd.to_numeric(column).astype("float64")
    return table


def input_rows(table: pd.DataFrame, kinds: Mapping[str, str]) -> list[list[str]]:
    """Name, kind, gaps and range of each input that has a kind, as the rows of a table."""
    table, rows = plain_columns(table[list(kinds)]), []
    for name, kind in kinds.items():
        column = table[name]
        gaps = f"{100 * column.isna().mean():.1f} %" if column.isna().any() else "none"
        numbers = pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column)
        span = f"{in_words(column.min())} to {in_words(column.max())}" if numbers else f"{column.nunique()} values"
        rows.append([name, kind, gaps, span])
    return rows


def typical(column: pd.Series) -> Any:
    """The median; of categories, and of columns with two values, the most frequent one."""
    if is_number(column) and column.nunique() > 2:
        return column.median()
    counts = column.value_counts()
    return counts.index[0] if len(counts) else None


def in_words(value: Any) -> str:
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d}"
    return f"{value:.5g}" if isinstance(value, int | float | np.number) else str(value)
