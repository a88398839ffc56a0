"""Rows of a table as plain numbers, one a column, and back: standardised, codes of categories, gaps as NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.columns import decide, read_as
from thalweg.data.encoding import as_numbers
from thalweg.data.target import find_resolution, rounded

# Numbers with at most so many different values are categories whose values are numbers.
_FEW_VALUES = 8
_MOST_VALUES = 100


class PlainRows:
    """How a table's rows become numbers ``[rows, columns]``, as a density takes them, and how draws become rows.

    A number is standardised; a column of few different values, and texts, become codes from 0. A column of one
    value carries nothing and is left out; draws have that value.

    Attributes:
        n_values: for each column kept the number of values that have a code, or 0 for numbers.
        names: the columns kept.
    """

    def __init__(self, columns: list[dict[str, Any]]):
        self.columns = columns
        self.kept = [column for column in columns if column["values"] is None or len(column["values"]) > 1]
        self.n_values = [0 if column["values"] is None else len(column["values"]) for column in self.kept]
        self.names = [column["name"] for column in self.kept]

    @classmethod
    def of(cls, table: pd.DataFrame) -> PlainRows:
        """Learn from a table.

        Raises:
            ValueError: for a column that holds what is no number, text or date.
        """
        return cls([_described(table.iloc[:, i].rename(str(name))) for i, name in enumerate(table.columns)])

    def encode(self, table: pd.DataFrame) -> np.ndarray:
        """``[rows, columns kept]`` float64, NaN where a cell is missing. An unseen value has a code of its own.

        Raises:
            ValueError: if a column holds something else than in training.
        """
        place = {column["name"]: i for i, column in enumerate(self.columns)}
        parts = [_coded(table.iloc[:, place[column["name"]]], column) for column in self.kept]
        return np.column_stack(parts) if parts else np.zeros((len(table), 0))

    def decode(self, rows: np.ndarray) -> pd.DataFrame:
        """The table of rows ``[n, columns kept]``: numbers on their column's grid, and within the values seen."""
        found: dict[str, Any] = {}
        kept = {column["name"]: values for column, values in zip(self.kept, rows.T, strict=True)}
        for column in self.columns:
            name = column["name"]
            if column["values"] is None:
                numbers = column["mean"] + column["std"] * kept[name]
                numbers = rounded(numbers, column["origin"], column["resolution"])
                found[name] = _as_read(np.clip(numbers, column["low"], column["high"]), column)
                continue
            codes = np.nan_to_num(kept[name], nan=-1).astype(int) if name in kept else np.zeros(len(rows), int)
            # The last place is for a gap: a code of -1.
            if column["read"] == "text":
                found[name] = np.array([*column["values"], None], dtype=object)[codes]
            else:
                found[name] = _as_read(np.array([*column["values"], np.nan])[codes], column)
        return pd.DataFrame(found)

    def log_scale(self, rows: np.ndarray) -> np.ndarray:
        """What a log density of rows gains per unit of the columns, by the numbers that each row has ``[n]``."""
        scales = np.array([np.log(c["std"]) if c["values"] is None else 0.0 for c in self.kept])
        return -(np.where(np.isnan(rows), 0.0, 1.0) @ scales) if len(scales) else np.zeros(len(rows))

    def state(self) -> list[dict[str, Any]]:
        """All that was learned, fit for JSON."""
        return self.columns


def _described(values: pd.Series) -> dict[str, Any]:
    found = decide(values)
    is_whole = found.kind == "number" and pd.api.types.is_integer_dtype(found.values)
    about: dict[str, Any] = {"name": values.name, "read": found.kind, "values": None, "whole": is_whole}
    if found.kind == "text":
        counts = found.values.value_counts()
        return {**about, "values": [str(v) for v in counts.index[counts > 0][:_MOST_VALUES]]}
    numbers = as_numbers(str(values.name), found.values)
    known = numbers[~np.isnan(numbers)]
    different = np.unique(known)
    std = float(known.std()) if len(known) else 0.0
    if len(different) <= _FEW_VALUES or not std > 0:
        return {**about, "values": different.tolist()}
    return {
        **about,
        "mean": float(known.mean()),
        "std": std,
        "low": float(different[0]),
        "high": float(different[-1]),
        "origin": float(different[0]),
        "resolution": find_resolution(known),
    }


def _coded(values: pd.Series, column: dict[str, Any]) -> np.ndarray:
    if column["read"] == "text":
        texts = read_as(values, "text", known=column["values"])
        codes = {text: float(k) for k, text in enumerate(column["values"])}
        numbered = texts.astype(object).map(lambda v: codes.get(v, float(len(codes))), na_action="ignore")
        return numbered.to_numpy(np.float64, na_value=np.nan)
    numbers = as_numbers(str(values.name), read_as(values, column["read"]))
    if column["values"] is None:
        return (numbers - column["mean"]) / column["std"]
    levels = np.asarray(column["values"])
    place = np.searchsorted(levels, numbers).clip(0, len(levels) - 1)
    found = np.where(levels[place] == numbers, place, len(levels)).astype(np.float64)
    return np.where(np.isnan(numbers), np.nan, found)


def _as_read(numbers: np.ndarray, column: dict[str, Any]) -> Any:
    """Numbers as the type of a column has them."""
    if column["read"] == "date":
        return pd.Timestamp("1970-01-01") + pd.to_timedelta(numbers, unit="D")
    if column["read"] == "span":
        return pd.to_timedelta(numbers, unit="D")
    if np.isnan(numbers).any():
        return numbers
    if column["read"] == "truth":
        return numbers.astype(bool)
    return np.round(numbers).astype(np.int64) if column["whole"] else numbers
