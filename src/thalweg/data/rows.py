"""Rows of a table as codes: numbers as they are, levels of categories counted from 0, gaps as NaN; and back."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.columns import decide, read_as, row_of
from thalweg.data.encoding import as_numbers
from thalweg.data.target import (
    FINEST_GRID,
    TargetScale,
    find_atoms,
    find_resolution,
    most_frequent,
    rounded,
    whole_numbers,
)

# A number with no more values than this, each in five rows or more on average, is a level of a few.
_FEW, _ROWS_PER_LEVEL = 10, 5
# Texts with a level of their own; all others share one.
_MOST_LEVELS = 100
# An unseen level or a rare text.
_UNSEEN = -1


class RowCoder:
    """How the columns of a table become the codes that a density of rows is over.

    Numbers, dates (as days since 1970) and spans of time (as days) stay numbers; texts, truth values and numbers
    that take a few values only become levels. A gap is NaN. The texts of a category beyond its hundred most
    frequent share the last level, within which each has the probability that it had in training.

    Args:
        resolution: spacing of the grid that numbers are rounded to; "auto" finds it for each column, 0 is none.

    Attributes:
        columns: what was learned of each column, fit for JSON.
    """

    def __init__(self, resolution: float | str = "auto"):
        self.resolution = resolution
        self.columns: list[dict[str, Any]] = []

    def fit(self, table: pd.DataFrame) -> RowCoder:
        """Learn what the columns are.

        Raises:
            ValueError: for a column without any value, or with one that is infinite or can't be used; in words.
        """
        self.columns = [self._fit_column(str(name), table.iloc[:, i]) for i, name in enumerate(table.columns)]
        return self

    def _fit_column(self, name: str, values: pd.Series) -> dict[str, Any]:
        if values.isna().all():
            raise ValueError(f"column {name!r} has no value at all: drop it")
        found = decide(values.rename(name))
        column: dict[str, Any] = {"name": name, "kind": found.kind, "levels": None}
        if found.kind == "text":
            counts = found.values.value_counts()
            counts = counts[counts > 0]
            n_own = _MOST_LEVELS if len(counts) > _MOST_LEVELS + 1 else len(counts)
            rare = counts.iloc[n_own:]
            column["levels"] = sorted(str(v) for v in counts.index[:n_own])
            column["rare"] = {str(v): int(n) for v, n in rare.items()}
            return column | {"n_known": int(counts.sum()), "resolution": 0.0}
        if found.kind == "truth":
            n_known = int(found.values.notna().sum())
            return column | {"levels": [False, True], "rare": {}, "n_known": n_known, "resolution": 0.0}
        numbers = as_numbers(name, found.values)
        known = numbers[~np.isnan(numbers)]
        if not len(known):
            raise ValueError(f"column {name!r} has no value at all: drop it")
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            variance = known.var()
        if len(np.unique(known)) > 1 and not (np.isfinite(variance) and variance > 0):
            raise ValueError(f"column {name!r} is too large or too fine for double precision: rescale it")
        resolution = find_resolution(known) if self.resolution == "auto" else float(self.resolution)
        column |= {"resolution": resolution, "n_known": len(known)}
        column["whole"] = bool(found.kind == "number" and whole_numbers(known).all())
        values_seen = np.unique(known)
        if len(values_seen) <= min(_FEW, max(1, len(known) // _ROWS_PER_LEVEL)):
            return column | {"levels": values_seen.tolist(), "rare": {}}
        atoms = find_atoms(known)
        scale = TargetScale.of(known, atoms)
        return column | {
            "location": scale.location,
            "scale": scale.scale,
            "curved": scale.curved,
            "atoms": atoms,
            "origin": most_frequent(known),
            "range": [float(known.min()), float(known.max())],
        }

    # -- there and back ------------------------------------------------------------------------------

    def codes(self, table: pd.DataFrame) -> np.ndarray:
        """``[rows, columns]`` in double precision, NaN where a gap is; -1 is a level that training did not show.

        Raises:
            ValueError: if the columns are not those of the training table, or a value is infinite.

        Warns:
            UserWarning: of levels that training did not show.
        """
        if table.shape[1] != len(self.columns):
            raise ValueError(f"expected {len(self.columns)} columns, got {table.shape[1]}")
        found = [self._code(c, table.iloc[:, i].rename(c["name"])) for i, c in enumerate(self.columns)]
        return np.column_stack(found)

    def _code(self, column: dict[str, Any], cells: pd.Series) -> np.ndarray:
        levels, kind = column["levels"], column["kind"]
        values = read_as(cells, kind, known=levels if kind == "text" else ())
        if kind in ("text", "truth"):
            seen = {v: float(k) for k, v in enumerate(levels)} | dict.fromkeys(column["rare"], float(len(levels)))
            codes = values.map(seen, na_action="ignore").astype(object)
            codes = np.where(values.isna(), np.nan, codes.where(codes.notna(), float(_UNSEEN)))
            codes = codes.astype(np.float64)
        else:
            numbers = as_numbers(column["name"], values)
            if levels is None:
                return numbers
            places = np.asarray(levels)
            nearest = np.abs(numbers[:, None] - places).argmin(1) if len(places) else np.zeros(len(numbers), int)
            off = np.abs(numbers - places[nearest])
            codes = np.where(off <= _slack(column, numbers), nearest, _UNSEEN)
            codes = np.where(np.isnan(numbers), np.nan, codes)
        new = cells[codes == _UNSEEN]
        if len(new):
            warnings.warn(
                f"column {column['name']!r} has {new.iloc[0]!r} in row {row_of(new)}, which no training row had: "
                f"the model knows nothing of such values, which {len(new)} of {len(cells)} rows have",
                stacklevel=2,
            )
        return codes

    def log_shares(self, table: pd.DataFrame) -> np.ndarray:
        """log of the share that a cell has of what its code stands for ``[rows, columns]``; 0 where that is all.

        Rare texts share a level by their counts. Numbers that training did not show, where it showed a few only,
        share the probability of these as a Cauchy distribution about the median has it: the less the farther off.
        """
        found = np.zeros(table.shape)
        for d, column in enumerate(self.columns):
            if column["levels"] is not None and column["kind"] not in ("text", "truth"):
                levels = np.asarray(column["levels"])
                numbers = as_numbers(column["name"], read_as(table.iloc[:, d], column["kind"]))
                width = float(column["resolution"] or (np.diff(levels).min() if len(levels) > 1 else 1.0))
                scale = max(float(np.ptp(levels)), width)
                share = width / scale / (np.pi * (1 + np.square((numbers - np.median(levels)) / scale)))
                unseen = np.abs(numbers[:, None] - levels).min(1) > _slack(column, numbers)
                found[:, d] = np.where(unseen, np.log(share), 0.0)
            elif column.get("rare"):
                total = sum(column["rare"].values())
                logs = {text: math.log(n / total) for text, n in column["rare"].items()}
                values = read_as(table.iloc[:, d].rename(column["name"]), "text", known=column["levels"])
                found[:, d] = values.map(logs, na_action="ignore").astype(float).fillna(0.0)
        return found

    def values(self, codes: np.ndarray, rng: np.random.RandomState, *, round_numbers: bool = True) -> pd.DataFrame:
        """The table that codes ``[rows, columns]`` stand for; NaN is a gap.

        Args:
            rng: draws one of the texts where many share a level.
            round_numbers: whether numbers are put on the grid that they were rounded to in training.
        """
        found = {c["name"]: self._values(c, codes[:, d], rng, round_numbers) for d, c in enumerate(self.columns)}
        return pd.DataFrame(found, columns=[c["name"] for c in self.columns])

    def _values(self, column: dict[str, Any], codes: np.ndarray, rng: np.random.RandomState, on_grid: bool) -> Any:
        levels, kind, gaps = column["levels"], column["kind"], np.isnan(codes)
        if levels is not None:
            rare = list(column["rare"])
            index = np.where(gaps, 0, codes).astype(int)
            values = np.array([*levels, *([None] if rare else [])], dtype=object)[index]
            at_rare = np.flatnonzero((index == len(levels)) & bool(rare))
            if len(at_rare):
                counts = np.array(list(column["rare"].values()), float)
                values[at_rare] = np.array(rare, object)[
                    rng.choice(len(rare), len(at_rare), p=counts / counts.sum())
                ]
            if kind in ("text", "truth"):
                values[gaps] = None
                whole = kind == "truth" and not gaps.any()
                return values.astype(bool) if whole else values
            numbers = np.where(gaps, np.nan, values.astype(np.float64))
        else:
            numbers = self._on_grid(column, codes) if on_grid else codes
        if kind == "date":
            seconds = np.clip(np.where(gaps, 0.0, numbers) * 86400.0, -6.2e10, 2.5e11)
            dates = np.round(seconds * 1e6).astype("int64").astype("datetime64[us]")
            return np.where(gaps, np.datetime64("NaT"), dates)
        if column.get("whole") and on_grid and not gaps.any() and whole_numbers(numbers).all():
            return numbers.astype(np.int64)
        return numbers

    @staticmethod
    def _on_grid(column: dict[str, Any], numbers: np.ndarray) -> np.ndarray:
        """Numbers on the grid of the training values, and atoms exactly as they were."""
        out = rounded(numbers, column["origin"], column["resolution"])
        # On the way through standardised single precision an atom may have moved by a rounding error.
        slack = 1e-6 * (column["scale"] + abs(column["location"]))
        for atom in column["atoms"]:
            out = np.where(np.abs(out - atom) <= slack + 1e-6 * abs(atom), atom, out)
        return out

    # -- what the density is told --------------------------------------------------------------------

    @property
    def locations(self) -> np.ndarray:
        """Of numbers ``[columns]``; 0 for levels."""
        return np.array([c.get("location", 0.0) for c in self.columns])

    @property
    def scales(self) -> np.ndarray:
        """Of numbers ``[columns]``; 1 for levels."""
        return np.array([c.get("scale", 1.0) for c in self.columns])

    def n_levels(self, d: int) -> int:
        """How many levels a column has, that of rare texts included; 0 is a column of numbers."""
        column = self.columns[d]
        return 0 if column["levels"] is None else len(column["levels"]) + bool(column["rare"])

    def cell(self, d: int) -> float:
        """What a column's mass is spread over: of levels in their units, of numbers in units of the scale.

        It is 0 for a grid finer than single precision tells apart, which is none to a network.
        """
        column = self.columns[d]
        resolution, scale = column["resolution"], column.get("scale", 1.0)
        if column["levels"] is not None:
            return float(resolution)
        return 0.0 if resolution < FINEST_GRID * scale else resolution / scale

    def state(self) -> dict[str, Any]:
        """All that was learned, fit for JSON."""
        return {"resolution": self.resolution, "columns": self.columns}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RowCoder:
        """The coder again.

        Raises:
            KeyError: if something is lacking.
        """
        for column in state["columns"]:
            numbers = (
                {"location", "scale", "curved", "atoms", "origin", "range"}
                if column["levels"] is None
                else {"rare"}
            )
            for key in {"name", "kind", "resolution", "n_known", *numbers} - set(column):
                raise KeyError(f"column without {key!r}")
        coder = cls(state["resolution"])
        coder.columns = state["columns"]
        return coder


def _slack(column: dict[str, Any], numbers: np.ndarray) -> np.ndarray:
    """How far from a level a number may be to be of it: half a cell."""
    return 0.5 * column["resolution"] + 1e-9 * np.maximum(1.0, np.abs(numbers))


def edges_of(numbers: np.ndarray, n_pieces: int) -> list[float]:
    """Where the pieces of a piecewise linear encoding of numbers ``[rows]`` meet; none if there are few values."""
    known = numbers[~np.isnan(numbers)]
    if n_pieces < 2 or not len(known):
        return []
    edges = np.unique(np.quantile(known, np.linspace(0, 1, n_pieces + 1)))
    # A piece narrower than single precision tells apart has no slope.
    kept = edges[np.diff(edges, prepend=-np.inf) > 1e-6 * max(float(known.std()), 1e-30)]
    return kept.tolist() if len(kept) > 2 else []
