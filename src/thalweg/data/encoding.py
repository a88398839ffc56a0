"""From a table with numbers, categories and gaps to the numbers that a network learns well from."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.columns import decide, read_as, row_of

MISSING = "(missing)"
# Of a category with more values it is not kept which there were.
_MOST_KNOWN = 1000


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
        found = decide(values)
        if found.kind == "text":
            counts = found.values.value_counts()
            counts = counts[counts > 0]
            kept, rare = counts.index[: self.max_categories], counts.index[self.max_categories : _MOST_KNOWN]
            return {
                "name": name,
                "read": "text",
                "kind": "constant" if len(counts) + int(found.values.isna().any()) < 2 else "category",
                "values": [str(v) for v in kept],
                "rare": [str(v) for v in rare] if len(counts) <= _MOST_KNOWN else None,
                "has_gaps": bool(found.values.isna().any()),
            }
        numbers = as_numbers(name, found.values)
        known = numbers[~np.isnan(numbers)]
        has_gaps = len(known) < len(numbers)
        if not len(known):
            raise ValueError(f"column {name!r} has no value at all: drop it")
        mean, std = float(known.mean()), float(known.std())
        if not std > 1e-12 * max(1.0, abs(mean)):
            return {
                "name": name,
                "read": found.kind,
                "kind": "gap-only" if has_gaps else "constant",
                "values": [],
            }
        edges = np.unique(np.quantile(known, np.linspace(0, 1, n_bins + 1)))
        # A piece narrower than single precision tells apart has no slope.
        edges = edges[np.diff(edges, prepend=-np.inf) > 1e-6 * std]
        return {
            "name": name,
            "read": found.kind,
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

        Warns:
            UserWarning: where a category is one that no training row had.
        """
        if table.shape[1] != len(self.columns):
            raise ValueError(f"expected {len(self.columns)} columns, got {table.shape[1]}")
        parts: list[np.ndarray] = []
        for i, column in enumerate(self.columns):
            if column["kind"] == "constant":
                continue
            values = self._read(table.iloc[:, i].rename(column["name"]), column)
            if column["kind"] == "category":
                text = values.astype(object).where(values.notna(), MISSING).to_numpy()
                wanted = [*column["values"], *([MISSING] if column.get("has_gaps") else [])]
                parts += [(text == v).astype(np.float32) for v in wanted]
            elif column["kind"] == "gap-only":
                parts.append(values.isna().to_numpy(np.float32))
            else:
                parts += self._encode_number(column, as_numbers(column["name"], values))
        return np.stack(parts, 1).astype(np.float32) if parts else np.zeros((len(table), 1), np.float32)

    @staticmethod
    def _read(values: pd.Series, column: dict[str, Any]) -> pd.Series:
        """A column as what it was in training."""
        read = column.get("read")
        if read is None:
            # The first models kept no more than the kind.
            read = "text" if column["kind"] == "category" else decide(values).kind
        if read != "text":
            return read_as(values, read)
        seen = [*column["values"], *(column.get("rare") or [])]
        found = read_as(values, "text", known=seen)
        if column.get("rare") is not None:
            new = found[found.notna() & ~found.isin(seen)]
            if len(new):
                warnings.warn(
                    f"column {column['name']!r} has {new.iloc[0]!r} in row {row_of(new)}, which no training row "
                    f"had: the model knows nothing of such values, which {len(new)} of {len(found)} rows have",
                    stacklevel=2,
                )
        return found

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

    @property
    def texts(self) -> dict[str, list[str]]:
        """The texts of each category, by the name of its column."""
        return {c["name"]: c["values"] for c in self.columns if c["kind"] == "category"}

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
    return decide(values).kind != "text"


def as_numbers(name: str, values: pd.Series) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(values):
        return ((values - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1)).to_numpy(np.float64)
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(numbers).any():
        row = int(np.flatnonzero(np.isinf(numbers))[0])
        raise ValueError(f"column {name!r} has an infinite value (first in row {row + 1}): replace or remove it")
    return numbers
