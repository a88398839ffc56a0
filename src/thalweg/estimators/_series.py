"""What a user gives as series: checked, and brought to one form."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg.data.windows import Series


def as_many(past: Any, known: Any, times: Any) -> tuple[bool, Any, Any, Any]:
    """Whether one series was given rather than several, and all as lists."""
    several = isinstance(past, list | tuple) and len(past) > 0 and np.ndim(past[0]) > 0
    if several or np.ndim(past) == 3:
        return False, list(past), known, times
    return True, [past], None if known is None else [known], None if times is None else [times]


def check_series(X: Any, known: Any = None, times: Any = None, *, ahead: int | None = None) -> list[Series]:
    """Series as arrays of float64.

    Args:
        X: a list of ``[T_i, D]`` or ``[T_i]``, an array ``[n, T, D]``, or one series.
        known: of each series ``[T_i, U]``; with ``ahead`` reaching that many steps further.
        times: of each series ``[T_i]``, with ``ahead`` also ``[T_i + ahead]``.
        ahead: steps that are to be forecast; None where the series are learned from.

    Raises:
        ValueError: in words, naming the series.
    """
    _, many, known, times = as_many(X, known, times)
    if not len(many):
        raise ValueError("there are no series")
    for name, given in (("known", known), ("times", times)):
        if given is not None and len(given) != len(many):
            raise ValueError(f"there are {len(many)} series and {name} of {len(given)}")
    found = []
    for i, values in enumerate(many):
        values = _numbers(values, f"series {i}")
        n = len(values)
        if not n or np.isnan(values).all():
            raise ValueError(f"series {i} has no values")
        inputs = None if known is None else _inputs(known[i], i, n, ahead)
        found.append(Series(values, inputs, None if times is None else _times(times[i], i, n, ahead)))
    for what, widths in (
        ("columns", {one.values.shape[1] for one in found}),
        ("inputs known ahead", {0 if one.known is None else one.known.shape[1] for one in found}),
    ):
        if len(widths) > 1:
            raise ValueError(f"all series must have the same number of {what}, got {sorted(widths)}")
    return found


def _numbers(values: Any, what: str) -> np.ndarray:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must hold numbers") from None
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or not found.shape[1]:
        raise ValueError(f"{what} must be [steps] or [steps, columns], got the shape {list(np.shape(values))}")
    if np.isinf(found).any():
        raise ValueError(f"{what} holds infinity")
    return found


def _inputs(known: Any, i: int, n: int, ahead: int | None) -> np.ndarray:
    found = _numbers(known, f"known of series {i}")
    if np.isnan(found).any():
        raise ValueError(f"known of series {i} has gaps: what is known ahead must be known at every step")
    needed = n + (ahead or 0)
    if len(found) < needed or (ahead is None and len(found) != n):
        raise ValueError(f"known of series {i} must have {needed} steps, got {len(found)}")
    return found


def _times(times: Any, i: int, n: int, ahead: int | None) -> np.ndarray:
    found = np.asarray(times)
    found = found.astype("datetime64[ns]").astype(np.int64) / 1e9 if found.dtype.kind == "M" else found
    try:
        found = found.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"times of series {i} must be numbers or dates") from None
    if found.ndim != 1 or not (len(found) == n or (ahead is not None and len(found) >= n)):
        raise ValueError(f"times of series {i} must be [{n}], got the shape {list(found.shape)}")
    if not np.isfinite(found).all():
        raise ValueError(f"times of series {i} hold NaN or infinity")
    steps = np.diff(found)
    if (steps == 0).any():
        raise ValueError(f"times of series {i} hold {found[:-1][steps == 0][0]:g} twice")
    if (steps < 0).any():
        raise ValueError(f"times of series {i} are not sorted")
    return found
