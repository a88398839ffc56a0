"""From a table with numbers, categories and gaps to the numbers that a network learns well from."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

_MISSING = "(missing)"


class TableEncoder:
    """Encodes the columns of a table.

    A number is standardised and, beside that, encoded piecewise linearly on its quantiles, which lets a
    network follow a feature as locally as a tree does. A category becomes one indicator for each of its most
    frequent values. A gap becomes the median, no piece, and an indicator. A column that is
    constant carries nothing and is left out.

    Args:
        n_bins: pieces of the piecewise linear encoding; fewer if the table is short or wide.
        max_categories: values of a category that get an indicator of their own.

    Source: [Gorishniy 2022, sec. 3.1].
    """

    max_width = 2048
    rows_per_bin = 60

    def __init__(self, n_bins: int = 16, max_categories: int = 32):
        self.n_bins = n_bins
        self.max_categories = max_categories
        self.columns: list[dict[str, Any]] = []

    def fit(self, table: pd.DataFrame) -> TableEncoder:
        """Learn the encoding.

        Raises:
            ValueError: if a column has no value at all, or one that is infinite or no number, text or date.
        """
        # With few rows in a piece its slope is noise.
        n_bins = max(
            3, min(self.n_bins, len(table) // self.rows_per_bin, self.max_width // max(1, table.shape[1]))
        )
        self.columns = [self._fit_column(str(name), table.iloc[:, i], n_bins)
                        for i, name in enumerate(table.columns)]  # fmt: skip
        return self

    def _fit_column(self, name: str, values: pd.Series, n_bins: int) -> dict[str, Any]:
        if values.isna().all():
            raise ValueError(f"column {name!r} has no value at all: drop it")
        if not is_number(values):
            text = _as_text(values)
            counts = text.value_counts()
            kept = [str(v) for v in counts.index[: self.max_categories]]
            return {"name": name, "kind": "constant" if len(counts) < 2 else "category", "values": kept}
        numbers = _as_numbers(name, values)
        known = numbers[~np.isnan(numbers)]
        has_gaps = len(known) < len(numbers)
        mean, std = float(known.mean()), float(known.std())
        if not std > 1e-12 * max(1.0, abs(mean)):
            return {"name": name, "kind": "gap-only" if has_gaps else "constant", "values": []}
        edges = np.unique(np.quantile(known, np.linspace(0, 1, n_bins + 1)))
        return {
            "name": name,
            "kind": "number",
            "median": float(np.median(known)),
            "mean": mean,
            "std": std,
            "has_gaps": has_gaps,
            "edges": edges.tolist() if len(edges) > 2 else [],
        }

    def transform(self, table: pd.DataFrame) -> np.ndarray:
        """``[rows, width]`` float32.

        Raises:
            ValueError: if the columns are not those of the training table, or a value is infinite.
        """
        if table.shape[1] != len(self.columns):
            raise ValueError(f"expected {len(self.columns)} columns, got {table.shape[1]}")
        parts: list[np.ndarray] = []
        for i, column in enumerate(self.columns):
            values = table.iloc[:, i]
            if column["kind"] == "category":
                text = _as_text(values).to_numpy()
                parts += [(text == v).astype(np.float32) for v in column["values"]]
            elif column["kind"] == "gap-only":
                parts.append(values.isna().to_numpy(np.float32))
            elif column["kind"] == "number":
                parts += self._encode_number(column, _as_numbers(column["name"], values))
        return np.stack(parts, 1).astype(np.float32) if parts else np.zeros((len(table), 1), np.float32)

    @staticmethod
    def _encode_number(column: dict[str, Any], numbers: np.ndarray) -> list[np.ndarray]:
        gaps = np.isnan(numbers)
        numbers = np.where(gaps, column["median"], numbers)
        parts = [np.clip((numbers - column["mean"]) / column["std"], -5, 5)]
        edges = np.asarray(column["edges"])
        for i, (left, right) in enumerate(itertools.pairwise(edges)):
            # The outermost pieces go on beyond the values seen, for a while, so that a slope is carried on.
            lowest = -2.0 if i == 0 else 0.0
            highest = 3.0 if i == len(edges) - 2 else 1.0
            piece = 2 * np.clip((numbers - left) / (right - left), lowest, highest) - 1
            parts.append(np.where(gaps, 0.0, piece))
        if column["has_gaps"]:
            parts.append(gaps)
        return parts

    @property
    def ignored(self) -> list[str]:
        """Columns that carry nothing."""
        return [c["name"] for c in self.columns if c["kind"] == "constant"]

    def state(self) -> dict[str, Any]:
        """All that was learned, fit for JSON."""
        return {"n_bins": self.n_bins, "max_categories": self.max_categories, "columns": self.columns}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TableEncoder:
        """The encoder again.

        Raises:
            KeyError: if something is lacking.
        """
        for column in state["columns"]:
            needed = {"median", "mean", "std", "has_gaps", "edges"} if column["kind"] == "number" else {"values"}
            for key in {"name", *needed} - set(column):
                raise KeyError(f"column without {key!r}")
        encoder = cls(state["n_bins"], state["max_categories"])
        encoder.columns = state["columns"]
        return encoder


def is_number(values: pd.Series) -> bool:
    """Whether a column holds numbers (truth values, dates and spans of time count as numbers)."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return False
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
        return True
    if pd.api.types.is_timedelta64_dtype(values):
        return True
    return bool(values.map(lambda v: isinstance(v, int | float | np.number) or v is None or v is pd.NA).all())


def _as_numbers(name: str, values: pd.Series) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(values):
        days = (values - pd.Timestamp("1970-01-01", tz=values.dt.tz)) / pd.Timedelta(days=1)
        return days.to_numpy(np.float64)
    if pd.api.types.is_timedelta64_dtype(values):
        return (values / pd.Timedelta(days=1)).to_numpy(np.float64)
    try:
        numbers = pd.to_numeric(values).to_numpy(np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        example = next(v for v in values if pd.isna(pd.to_numeric(pd.Series([v]), errors="coerce")).all())
        raise ValueError(
            f"column {name!r} held numbers in training, but now has {example!r}: give a number or leave it empty"
        ) from None
    if np.isinf(numbers).any():
        row = int(np.flatnonzero(np.isinf(numbers))[0])
        raise ValueError(f"column {name!r} has an infinite value (first in row {row}): replace or remove it")
    return numbers


def check_entries(values: pd.Series) -> None:
    """Refuse a column that holds lists, arrays or the like.

    Raises:
        ValueError: in words.
    """
    known = values.dropna()
    foreign = known[[isinstance(v, dict | list | set | tuple | np.ndarray) for v in known]]
    if len(foreign):
        raise ValueError(
            f"column {values.name!r} holds a {type(foreign.iloc[0]).__name__} (row {foreign.index[0]}): an entry "
            "must be a number, a text or a date"
        )


def _as_text(values: pd.Series) -> pd.Series:
    check_entries(values)
    return values.astype(object).where(values.notna(), _MISSING).map(str)
