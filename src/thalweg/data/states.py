"""From the rows of a table to the states of visible units, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.target import (
    find_resolution,
    location_and_scale,
    most_frequent,
    rounded,
    whole_numbers,
)

# Of columns, where they have any.
Names = Sequence[str] | None

# Of units, in the order in which they stand in a state.
_ORDER = ("binary", "categorical", "gaussian")
KINDS = ("auto", *_ORDER, "mixed")
# In fewer rows columns may hold a single 1 among them by chance.
_FEWEST_FOR_GROUPS = 20


class StateEncoder:
    """Encodes rows as states of binary, categorical or Gaussian units, or of all of these side by side.

    A state holds the binary columns first, then the categorical ones, then the numbers. Columns of 0 and 1 side by
    side of which every row has exactly one 1, as a category becomes by one-hot encoding, are one categorical unit
    together where the kind is found column by column.

    Args:
        kind: "binary" (numbers in [0, 1]), "gaussian" (any numbers; standardised), "categorical" (each column's
            values are its categories, one number for each), "mixed" (categorical for columns with texts, binary
            for columns of 0 and 1, else Gaussian), or "auto": binary if all are numbers in [0, 1], else as mixed.
        probabilities: binary columns may hold numbers between 0 and 1, if all columns are binary.
        grouped: look for groups of one-hot columns, if the kind is "auto" or "mixed".

    Attributes:
        kind: "mixed" where columns have different kinds or there are groups, else the one that they have, once
            fitted.
        kinds: of each column; "one-hot" in a group.
        groups: the columns of each group.
        grey: whether binary columns hold probabilities beside 0 and 1.
        location, scale: ``[D]``, of Gaussian columns.
        origin, resolution: ``[D]``, the grid that a Gaussian column is rounded to; 0 where it is not.
        whole: of each column, whether it held whole numbers only.
        categories: of each column, empty where it has other units.
    """

    def __init__(self, kind: str = "auto", probabilities: bool = True, grouped: bool = True):
        if kind not in KINDS:
            raise ValueError(f"visible must be one of {', '.join(KINDS)}; got {kind!r}")
        self.kind = kind
        self.probabilities, self.grouped = probabilities, grouped
        self.kinds: list[str] = []
        self.groups: list[list[int]] = []
        self.grey = False
        self.location, self.scale = np.zeros(0), np.ones(0)
        self.origin, self.resolution = np.zeros(0), np.zeros(0)
        self.whole: list[bool] = []
        self.categories: list[list[Any]] = []

    def fit(self, X: np.ndarray, names: Names = None, categorical: Sequence[int] = ()) -> StateEncoder:
        """Learn the encoding of rows ``[N, D]`` without gaps.

        Args:
            names: names of the columns, for messages.
            categorical: columns whose values are categories even if they are numbers.

        Raises:
            ValueError: for values that the units can't take, in words.
        """
        n = X.shape[1]
        if self.kind in _ORDER:
            self.kinds = [self.kind] * n
        elif self.kind == "auto" and self.probabilities and X.dtype.kind in "fiub" and ((X >= 0) & (X <= 1)).all():
            self.kinds = ["binary"] * n
        else:
            self.kinds = ["categorical" if k in categorical else _suitable(X[:, k]) for k in range(n)]
        self.groups = []
        if self.grouped and self.kind in ("auto", "mixed"):
            self.groups = _one_hot_groups(X, self.columns("binary"))
        for k in (k for group in self.groups for k in group):
            self.kinds[k] = "one-hot"
        self.kind = self.kinds[0] if len(set(self.kinds)) == 1 and not self.groups else "mixed"
        self.location, self.scale = np.zeros(n), np.ones(n)
        self.origin, self.resolution = np.zeros(n), np.zeros(n)
        self.whole, self.categories = [False] * n, [[] for _ in range(n)]
        for k in self.columns("categorical"):
            odd = [v for v in X[:, k] if not _is_category(v)]
            if odd:
                raise ValueError(f"{_named(names, k)} holds {odd[0]!r}: categories are texts or numbers")
            self.categories[k] = sorted(pd.unique(X[:, k]).tolist(), key=_by_kind)
        for k in self.columns("one-hot"):
            self.whole[k] = True
        numbers = np.concatenate([self.columns("binary"), self.columns("gaussian")])
        values = _numbers(X, numbers, names)
        for k, whole in zip(numbers, np.all(whole_numbers(values), 0), strict=True):
            self.whole[k] = bool(whole)
        bits, reals = np.split(values, [len(self.columns("binary"))], 1)
        self._check_bits(bits, names)
        self.grey = not ((bits == 0) | (bits == 1)).all()
        location, scale = location_and_scale(reals)
        # A constant column has no scale: it stays as it is, about zero.
        columns = self.columns("gaussian")
        self.location[columns], self.scale[columns] = location, np.where(scale > 0, scale, 1.0)
        for k, column in zip(columns, reals.T, strict=True):
            self.origin[k] = most_frequent(column)
            self.resolution[k] = find_resolution(column) or float(self.whole[k])
        return self

    def columns(self, kind: str) -> np.ndarray:
        """The numbers of the columns of a kind."""
        return np.flatnonzero([own == kind for own in self.kinds])

    @property
    def n_states(self) -> int:
        """Number of categories of a categorical unit: that of the column, or the group, with the most."""
        return max([2, *(len(c) for c in self.categories), *(len(group) for group in self.groups)])

    @property
    def n_categorical(self) -> int:
        """Number of categorical units: columns of categories, and groups of one-hot columns."""
        return len(self.columns("categorical")) + len(self.groups)

    @property
    def width(self) -> int:
        """Numbers in a state."""
        plain = len(self.columns("binary")) + len(self.columns("gaussian"))
        return plain + self.n_states * self.n_categorical

    @property
    def places(self) -> list[np.ndarray]:
        """Where the numbers of each column stand in a state."""
        found, start = [np.zeros(0, int)] * len(self.kinds), 0
        for kind in _ORDER:
            for k in self.columns(kind):
                end = start + (self.n_states if kind == "categorical" else 1)
                found[k], start = np.arange(start, end), end
            for group in self.groups if kind == "categorical" else ():
                for i, k in enumerate(group):
                    found[k] = np.array([start + i])
                start += self.n_states
        return found

    def encode(self, X: np.ndarray, names: Names = None) -> np.ndarray:
        """States ``[N, width]`` float64; NaN where a row has gaps.

        Args:
            names: names of the columns, for messages.

        Raises:
            ValueError: for values that the units can't take, in words.
        """
        binary, gaussian = self.columns("binary"), self.columns("gaussian")
        bits = _numbers(X, binary, names)
        self._check_bits(bits, names)
        reals = (_numbers(X, gaussian, names) - self.location[gaussian]) / self.scale[gaussian]
        return np.concatenate([bits, self._one_hot(X, names), self._of_groups(X, names), reals], 1)

    def _one_hot(self, X: np.ndarray, names: Names) -> np.ndarray:
        columns = self.columns("categorical")
        states = np.zeros((len(X), len(columns), self.n_states))
        for i, k in enumerate(columns):
            gaps = pd.isna(X[:, k])
            codes = pd.Categorical(X[:, k], categories=self.categories[k]).codes
            unknown = np.flatnonzero((codes < 0) & ~gaps)
            if len(unknown):
                raise ValueError(
                    f"{_named(names, k)} holds {X[unknown[0], k]!r}, a category that no training row had"
                )
            states[np.arange(len(X)), i, codes] = 1.0
            states[gaps, i] = np.nan
        return states.reshape(len(X), len(columns) * self.n_states)

    def breaks_groups(self, X: np.ndarray) -> np.ndarray:
        """Which rows have not exactly one 1, or room for it in gaps, in each group ``[N]``."""
        return np.logical_or.reduce([np.zeros(len(X), bool), *(_breaks(X, group) for group in self.groups)])

    def _of_groups(self, X: np.ndarray, names: Names) -> np.ndarray:
        """States of the groups, with gaps where the columns have any that nothing else in the group fills."""
        broken = self.breaks_groups(X)
        if broken.any():
            row = X[[int(broken.argmax())]]
            group = next(group for group in self.groups if _breaks(row, group)[0])
            held = ", ".join(map(str, row[0, group[:6]])) + (", ..." if len(group) > 6 else "")
            ends = f"{_named(names, group[0])} to {_named(names, group[-1])}"
            raise ValueError(
                f"a row holds {held} from {ends}, of which one was 1 and the others 0 in every row learned from: "
                "mend the row, or take visible='binary'"
            )
        states = np.zeros((len(X), len(self.groups), self.n_states))
        for i, group in enumerate(self.groups):
            values = _numbers(X, np.array(group), names)
            gaps, known = np.isnan(values), (values == 1).any(1)
            # A 1 says that the others are 0; a single gap beside zeros is the 1.
            values[gaps & known[:, None]] = 0.0
            values[gaps & (~known & (gaps.sum(1) == 1))[:, None]] = 1.0
            states[:, i, : len(group)] = values
        return states.reshape(len(X), len(self.groups) * self.n_states)

    def decode(self, states: np.ndarray, draws: bool = False) -> np.ndarray:
        """Rows ``[*batch, D]`` from states or their means ``[*batch, width]``: of categories the likeliest.

        Args:
            draws: numbers come on the grid of their column, and beside texts whole ones as ``int``.
        """
        if draws and self.groups:
            states = self._one_in_each_group(states)
        numbers = [k for k, kind in enumerate(self.kinds) if kind != "categorical"]
        own = [int(place[0]) for place in self.places]
        values = self.location[numbers] + self.scale[numbers] * states[..., [own[k] for k in numbers]]
        if draws:
            for i, k in enumerate(numbers):
                values[..., i] = rounded(values[..., i], self.origin[k], self.resolution[k])
        if len(numbers) == len(self.kinds):
            return values
        columns: list[np.ndarray] = []
        for k, (place, known) in enumerate(zip(self.places, self.categories, strict=True)):
            if known:
                columns.append(_array(known)[states[..., place].argmax(-1)])
                continue
            column = values[..., numbers.index(k)]
            # Of an array of objects every column has a type of its own.
            columns.append(column.astype(int).astype(object) if draws and self.whole[k] else column)
        return np.stack(columns, -1)

    def _one_in_each_group(self, states: np.ndarray) -> np.ndarray:
        """States whose largest number in each group is 1, the others 0."""
        places, found = self.places, states.copy()
        for group in self.groups:
            own = [int(places[k][0]) for k in group]
            found[..., own] = np.eye(len(group))[states[..., own].argmax(-1)]
        return found

    def impossible(self) -> np.ndarray:
        """Which numbers of a state are never 1 ``[width]``: categories beyond those of their column."""
        possible = np.zeros(self.width, bool)
        for place, known in zip(self.places, self.categories, strict=True):
            possible[place[: len(known) or 1]] = True
        return ~possible

    def _check_bits(self, bits: np.ndarray, names: Names) -> None:
        """The values of the binary columns ``[N, n]``."""
        grey = self.probabilities and self.kind != "mixed"
        with np.errstate(invalid="ignore"):
            odd = (bits < 0) | (bits > 1) if grey else (bits != 0) & (bits != 1) & ~np.isnan(bits)
        if odd.any():
            row, place = np.argwhere(odd)[0]
            takes, way_out = (
                ("0, 1 or probabilities between", "scale to [0, 1]") if grey else ("0 and 1", "binarise")
            )
            raise ValueError(
                f"binary units take {takes}, but {_named(names, self.columns('binary')[place])} holds "
                f"{bits[row, place]:g}: {way_out}, or take visible='gaussian'"
            )

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "probabilities": self.probabilities,
            "kinds": self.kinds,
            "groups": self.groups,
            "grey": self.grey,
            "location": self.location.tolist(),
            "scale": self.scale.tolist(),
            "origin": self.origin.tolist(),
            "resolution": self.resolution.tolist(),
            "whole": self.whole,
            "categories": self.categories,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> StateEncoder:
        encoder = cls(state["kind"], state["probabilities"])
        encoder.kinds, encoder.grey, encoder.whole = state["kinds"], bool(state["grey"]), state["whole"]
        # Models saved by earlier versions have no groups.
        encoder.groups = state.get("groups", [])
        encoder.location, encoder.scale = np.array(state["location"]), np.array(state["scale"])
        encoder.origin, encoder.resolution = np.array(state["origin"]), np.array(state["resolution"])
        encoder.categories = state["categories"]
        return encoder


def _is_category(value: Any) -> bool:
    is_span = isinstance(value, np.timedelta64)  # a number to NumPy
    return isinstance(value, str | bool | int | float | np.number | np.bool_) and not is_span


def _suitable(column: np.ndarray) -> str:
    if column.dtype.kind in "OUS" and any(isinstance(v, str) for v in column):
        return "categorical"
    return "binary" if ((column == 0) | (column == 1)).all() else "gaussian"


def _breaks(X: np.ndarray, group: Sequence[int]) -> np.ndarray:
    """Which rows have not exactly one 1, or room for it in gaps, in these columns ``[N]``."""
    values = _numbers(X, np.array(group), None)
    gaps, ones = np.isnan(values), (values == 1).sum(1)
    odd = ~(gaps | (values == 0) | (values == 1)).all(1)
    return odd | (ones > 1) | ((ones == 0) & ~gaps.any(1))


def _one_hot_groups(X: np.ndarray, columns: np.ndarray) -> list[list[int]]:
    """Columns of 0 and 1 side by side of which every row has exactly one 1, and each column some row."""
    groups: list[list[int]] = []
    if len(X) < _FEWEST_FOR_GROUPS:
        return groups
    bits, start = _numbers(X, columns, None), 0
    while start < len(columns):
        size = _size_of_group(bits[:, start:], columns[start:])
        if size > 1:
            groups.append(columns[start : start + size].tolist())
        start += max(size, 1)
    return groups


def _size_of_group(bits: np.ndarray, columns: np.ndarray) -> int:
    """How many of the first columns are a one-hot group: there is at most one such number, or 0."""
    sums = np.zeros(len(bits))
    for i, column in enumerate(bits.T):
        sums = sums + column
        if columns[i] != columns[0] + i or not column.any() or sums.max() > 1:
            return 0
        if sums.min() == 1:
            return i + 1
    return 0


def _numbers(X: np.ndarray, columns: np.ndarray, names: Names) -> np.ndarray:
    """Columns of X as float64 ``[N, n]``, NaN for gaps."""
    if X.dtype.kind in "fiub":
        values = X[:, columns].astype(np.float64)
        infinite = np.isinf(values).any(0)
        if infinite.any():
            raise ValueError(f"{_named(names, columns[int(infinite.argmax())])} has an infinite value")
        return values
    values = np.full((len(X), len(columns)), np.nan)
    for i, k in enumerate(columns):
        known = ~pd.isna(X[:, k])
        try:
            values[known, i] = X[known, k].astype(np.float64)
        except (TypeError, ValueError, OverflowError):
            odd = next(v for v in X[known, k] if not _is_float(v))
            raise ValueError(f"{_named(names, k)} holds {odd!r}, which is no number") from None
        if np.isinf(values[:, i]).any():
            raise ValueError(f"{_named(names, k)} has an infinite value")
    return values


def _is_float(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, pd.Timestamp | pd.Timedelta)


def _by_kind(value: Any) -> tuple[bool, Any]:
    """Numbers before texts, each in order."""
    return isinstance(value, str), value


def _array(values: list[Any]) -> np.ndarray:
    kind = object if any(isinstance(v, str) for v in values) else None
    return np.array(values, dtype=kind)


def _named(names: Names, k: int) -> str:
    return f"column {k + 1}" if names is None else f"column {names[k]!r}"
