"""From the rows of a table to the states of visible units, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.target import location_and_scale

# Of columns, where they have any.
Names = Sequence[str] | None

KINDS = ("auto", "binary", "gaussian", "categorical")


class StateEncoder:
    """Encodes rows as states of binary, Gaussian or categorical units.

    Args:
        kind: "binary" (numbers in [0, 1]), "gaussian" (any numbers; standardised), "categorical" (each column's
            values are its categories, one number for each), or "auto": categorical for texts, binary for numbers
            in [0, 1], else Gaussian.

    Attributes:
        kind: never "auto" once fitted.
        grey: whether binary columns hold probabilities beside 0 and 1.
        location, scale: ``[D]``, of Gaussian columns.
        categories: of each column, for categorical units.
    """

    def __init__(self, kind: str = "auto"):
        if kind not in KINDS:
            raise ValueError(f"visible must be one of {', '.join(KINDS)}; got {kind!r}")
        self.kind = kind
        self.grey = False
        self.location, self.scale = np.zeros(0), np.ones(0)
        self.categories: list[list[Any]] = []

    def fit(self, X: np.ndarray, names: Names = None) -> StateEncoder:
        """Learn the encoding of rows ``[N, D]`` without gaps.

        Args:
            names: of the columns, for messages.

        Raises:
            ValueError: for values that the units can't take, in words.
        """
        if self.kind == "auto":
            self.kind = _suitable(X)
        self.location, self.scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if self.kind == "binary":
            self._check_probabilities(X, names)
            self.grey = not ((X == 0) | (X == 1)).all()
        elif self.kind == "gaussian":
            location, scale = location_and_scale(X)
            # A constant column has no scale: it stays as it is, about zero.
            self.location, self.scale = location, np.where(scale > 0, scale, 1.0)
        else:
            self.categories = [sorted(pd.unique(X[:, k]).tolist(), key=_by_kind) for k in range(X.shape[1])]
        return self

    @property
    def n_states(self) -> int:
        """Of a categorical unit: as many as the column with most categories has."""
        return max(2, *(len(c) for c in self.categories)) if self.categories else 2

    @property
    def width(self) -> int:
        """Numbers in a state."""
        return len(self.location) * (self.n_states if self.kind == "categorical" else 1)

    def encode(self, X: np.ndarray, names: Names = None) -> np.ndarray:
        """States ``[N, width]`` float64; NaN where a row has gaps.

        Args:
            names: of the columns, for messages.

        Raises:
            ValueError: for values that the units can't take, in words.
        """
        if self.kind == "gaussian":
            return (X - self.location) / self.scale
        if self.kind == "binary":
            self._check_probabilities(X, names)
            return X.astype(np.float64)
        states = np.zeros((len(X), X.shape[1], self.n_states))
        for k, known in enumerate(self.categories):
            gaps = pd.isna(X[:, k])
            codes = pd.Categorical(X[:, k], categories=known).codes
            unknown = np.flatnonzero((codes < 0) & ~gaps)
            if len(unknown):
                raise ValueError(
                    f"{_named(names, k)} holds {X[unknown[0], k]!r}, a category that no training row had"
                )
            states[np.arange(len(X)), k, codes] = 1.0
            states[gaps, k] = np.nan
        return states.reshape(len(X), -1)

    def decode(self, states: np.ndarray) -> np.ndarray:
        """Rows ``[*batch, D]`` from states or their means ``[*batch, width]``: of categories the likeliest."""
        if self.kind != "categorical":
            return self.location + self.scale * states
        chosen = states.reshape(*states.shape[:-1], -1, self.n_states).argmax(-1)
        columns = [_array(known)[chosen[..., k]] for k, known in enumerate(self.categories)]
        return np.stack(columns, -1)

    def impossible(self) -> np.ndarray:
        """Which numbers of a state are never 1 ``[width]``: categories beyond those of their column."""
        if self.kind != "categorical":
            return np.zeros(self.width, bool)
        return np.concatenate([np.arange(self.n_states) >= len(known) for known in self.categories])

    def _check_probabilities(self, X: np.ndarray, names: Names) -> None:
        with np.errstate(invalid="ignore"):
            odd = np.argwhere((X < 0) | (X > 1))
        if len(odd):
            row, column = odd[0]
            raise ValueError(
                f"binary units take 0, 1 or probabilities between, but {_named(names, column)} holds "
                f"{X[row, column]:g}: scale to [0, 1], or take visible='gaussian'"
            )

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "grey": self.grey,
            "location": self.location.tolist(),
            "scale": self.scale.tolist(),
            "categories": self.categories,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> StateEncoder:
        encoder = cls(state["kind"])
        encoder.grey = bool(state["grey"])
        encoder.location, encoder.scale = np.array(state["location"]), np.array(state["scale"])
        encoder.categories = state["categories"]
        return encoder


def _suitable(X: np.ndarray) -> str:
    if X.dtype == object or X.dtype.kind in "US":
        return "categorical"
    return "binary" if ((X >= 0) & (X <= 1)).all() else "gaussian"


def _by_kind(value: Any) -> tuple[bool, Any]:
    """Numbers before texts, each in order."""
    return isinstance(value, str), value


def _array(values: list[Any]) -> np.ndarray:
    kind = object if any(isinstance(v, str) for v in values) else None
    return np.array(values, dtype=kind)


def _named(names: Names, k: int) -> str:
    return f"column {k + 1}" if names is None else f"column {names[k]!r}"
