"""Labels in a table: which columns hold some, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

# Numbers of so many values, most of them rare, are no classes.
_ROWS_PER_CLASS = 3


def refuse_measured(column: pd.Series, kind: str) -> None:
    """Refuse a target that is measured rather than a class."""
    name = column.name
    if kind in ("date", "span"):
        raise ValueError(f"the target {name!r} holds dates or spans of time: a class is a number or a text")
    known = column.dropna()
    n = known.nunique()
    if kind == "number" and n > 20 and n * _ROWS_PER_CLASS > len(known):
        raise ValueError(
            f"the target {name!r} has {n} different numbers in {len(known)} rows, such as {known.iloc[0]:g}: "
            f"predict it with `thalweg fit regression`, or read it as classes with --text {name}"
        )


def as_written(column: pd.Series) -> pd.Series:
    """Labels as texts: whole numbers without a point, truth values as they are read."""

    def written(value: Any) -> str:
        if isinstance(value, float | np.floating) and float(value).is_integer():
            return str(int(value))
        return str(value)

    return column.astype(object).map(written, na_action="ignore")


def in_order(labels: list[str]) -> list[str]:
    """Labels by number if they are all numbers, else by the alphabet."""
    try:
        return sorted(labels, key=float)
    except ValueError:
        return sorted(labels)


def beside_truth(
    truth: pd.Series, prediction: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """What a table's own labels say of predictions: ``correct``, ``log_loss``; ``note`` where a row has neither.

    Args:
        truth: labels as they are written ``[rows]``, None where there is none.
        prediction: labels ``[rows]``.
        probabilities: of each class ``[rows, classes]``.
    """
    place = truth.map({name: k for k, name in enumerate(classes)})
    given = place.notna()
    own = probabilities[np.arange(len(place)), place.fillna(0).astype(int)]
    found: dict[str, Any] = {"correct": pd.Series(prediction == truth.to_numpy()).where(given)}
    with np.errstate(divide="ignore"):
        found["log_loss"] = np.where(given, -np.log(own), np.nan)
    if not given.all():
        words = "no class is " + truth.map(repr, na_action="ignore")
        found["note"] = words.where(truth.notna(), "no label").where(~given).astype("string")
    return found
