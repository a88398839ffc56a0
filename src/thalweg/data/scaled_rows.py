"""Rows of a table as points: numbers in units of their usual spread, categories as whole numbers, gaps as NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from thalweg.data.columns import decide, read_as
from thalweg.data.encoding import as_numbers

# What a category that training did not show is, and any number but the one that a constant column had.
_UNSEEN = -1.0
# However rarely two rows differ in a category, they are taken to differ so often at least.
_RAREST = 0.05
# Points of a column's curve.
_KNOTS = 65


class RowScaler:
    """How the columns of a table become coordinates between which distances mean something.

    Numbers, dates (as days) and spans of time (as days) are centred at their median and divided by their standard
    deviation, so that two rows differ by 2 in the square on average. Two categories or truth values differ or do
    not, and ``costs`` says by how much in the square: such that two rows differ by 2 on average there too. Columns
    with one value in all rows are categories as well.

    Of a column of numbers there are two other scales. ``weights`` turn squared differences in standard deviations
    into those in units of the interquartile range (as of a normal distribution, and a quarter of the standard
    deviation at the least): few values far off take little part in that. ``curves`` lead halfway to what a normal
    distribution has at the same rank.

    Attributes:
        columns: what was learned of each column, fit for JSON.
    """

    def __init__(self) -> None:
        self.columns: list[dict[str, Any]] = []

    def fit(self, table: pd.DataFrame) -> RowScaler:
        """Learn what the columns are.

        Raises:
            ValueError: for a column without any value, or with one that is infinite or can't be used; in words.
        """
        self.columns = [self._fit_column(str(name), table.iloc[:, i]) for i, name in enumerate(table.columns)]
        return self

    def _fit_column(self, name: str, cells: pd.Series) -> dict[str, Any]:
        if cells.isna().all():
            raise ValueError(f"column {name!r} has no value at all: drop it")
        found = decide(cells.rename(name))
        column: dict[str, Any] = {"name": name, "kind": found.kind, "levels": None}
        if found.kind in ("text", "truth"):
            counts = found.values.dropna().astype(object).value_counts()
            counts = counts[counts > 0]
            levels = [str(v) if found.kind == "text" else bool(v) for v in counts.index]
            return column | {"levels": levels, "cost": _cost(counts.to_numpy(float))}
        numbers = as_numbers(name, found.values)
        known = numbers[~np.isnan(numbers)]
        if not len(known):
            raise ValueError(f"column {name!r} has no value at all: drop it")
        if (known == known[0]).all():
            return column | {"levels": [float(known[0])], "cost": _cost(np.ones(1))}
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            scale = float(known.std())
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"column {name!r} is too large or too fine for double precision: rescale it")
        center = float(np.median(known))
        z = (known - center) / scale
        middle = float(np.subtract(*np.quantile(z, [0.75, 0.25]))) / 1.349
        places, values = _curve(z)
        return column | {
            "center": center,
            "scale": scale,
            "weight": max(middle, 0.25) ** -2,
            "places": places.tolist(),
            "values": values.tolist(),
        }

    def codes(self, table: pd.DataFrame) -> np.ndarray:
        """``[rows, columns]`` in double precision, NaN where a gap is.

        Raises:
            ValueError: if the columns are not those of the training table, or a value is infinite.
        """
        if table.shape[1] != len(self.columns):
            raise ValueError(f"expected {len(self.columns)} columns, got {table.shape[1]}")
        found = [self._code(c, table.iloc[:, i].rename(c["name"])) for i, c in enumerate(self.columns)]
        return np.column_stack(found)

    @staticmethod
    def _code(column: dict[str, Any], cells: pd.Series) -> np.ndarray:
        levels, kind = column["levels"], column["kind"]
        values = read_as(cells, kind, known=levels if kind == "text" else ())
        if kind in ("text", "truth"):
            places = {v: float(k) for k, v in enumerate(levels)}
            codes = values.astype(object).map(places, na_action="ignore").to_numpy(np.float64, na_value=_UNSEEN)
            return np.where(values.isna(), np.nan, codes)
        numbers = as_numbers(column["name"], values)
        if levels is not None:
            codes = np.where(np.isclose(numbers, levels[0], rtol=1e-9, atol=0.0), 0.0, _UNSEEN)
            return np.where(np.isnan(numbers), np.nan, codes)
        with np.errstate(over="ignore"):
            z = (numbers - column["center"]) / column["scale"]
        # Their squares are taken later on.
        return np.clip(z, -1e15, 1e15) + 0.0

    @property
    def costs(self) -> np.ndarray:
        """The squared distance of two categories ``[columns]``; 0 of numbers."""
        return np.array([float(c.get("cost", 0.0)) for c in self.columns])

    @property
    def weights(self) -> np.ndarray:
        """What squared differences are multiplied by to be those in units of the middle half ``[columns]``."""
        return np.array([float(c.get("weight", 1.0)) for c in self.columns])

    @property
    def curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Places and values of the curve of each column, ``[columns, knots]`` each."""
        straight = [-1.0] + [1.0] * (_KNOTS - 1)
        found = [(c.get("places", straight), c.get("values", straight)) for c in self.columns]
        return np.array([p for p, _ in found]), np.array([v for _, v in found])

    def state(self) -> dict[str, Any]:
        """All that was learned, fit for JSON."""
        return {"columns": self.columns}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RowScaler:
        """The scaler again.

        Raises:
            KeyError: if something is lacking.
        """
        for column in state["columns"]:
            needed = {"center", "scale", "weight", "places", "values"} if column["levels"] is None else {"cost"}
            for key in {"name", "kind", *needed} - set(column):
                raise KeyError(f"column without {key!r}")
        scaler = cls()
        scaler.columns = state["columns"]
        return scaler


def _cost(counts: np.ndarray) -> float:
    """The squared distance of two categories that occur so often."""
    differ = 1.0 - float(np.square(counts / counts.sum()).sum())
    return 2.0 / max(differ, _RAREST)


def _curve(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of the curve that leads halfway to a normal distribution: of each place and its rank's."""
    seen, counts = np.unique(z, return_counts=True)
    ranks = (np.cumsum(counts) - 0.5 * counts + 0.5) / (len(z) + 1)
    if len(seen) > _KNOTS:
        # Evenly in the ranks, which is where the curve is bent.
        wanted = np.linspace(ranks[0], ranks[-1], _KNOTS)
        chosen = np.unique(np.rint(np.interp(wanted, ranks, np.arange(len(ranks)))).astype(int))
        seen, ranks = seen[chosen], ranks[chosen]
    lacking = _KNOTS - len(seen)
    values = 0.5 * (seen + ndtri(ranks))
    return np.pad(seen, (0, lacking), mode="edge"), np.pad(values, (0, lacking), mode="edge")
