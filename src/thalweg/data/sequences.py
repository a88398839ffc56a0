"""Sequences of elements: numbers, tokens or rows of a table, and the features that tokens have."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from thalweg.data.columns import decide
from thalweg.data.encoding import TableEncoder

# A column of texts with more values than these holds tokens; one with fewer, categories.
_MOST_CATEGORIES = 32
_MOST_FEATURES = 300_000
# A feature that one element alone has says nothing of others, and stands for all that are new.
_LEAST_COUNT = 2
# So many elements, padding among them, are computed at once.
_ELEMENTS_AT_ONCE = 16384
_BEFORE, _AFTER = "<before>", "<after>"


@functools.lru_cache(maxsize=100_000)
def word_shape(token: str) -> str:
    """Letters as x or X, digits as d, all else as it is; runs are cut to two: "McGraw-2001" is "XxXxx-dd"."""
    shape = re.sub(r"[^\W\d_]", lambda m: "X" if m.group().isupper() else "x", token)
    shape = re.sub(r"\d", "d", shape)
    return re.sub(r"(.)\1+", r"\1\1", shape)[:12]


def features_of(tokens: Sequence[str]) -> list[list[str]]:
    """The features of each token of a sequence, the same number for all.

    The word in lower case, its first two and three letters, its last one to four, its shape, and the words and
    shapes on either side: what taggers of words are customarily given.

    Source: after the features of [Ratnaparkhi 1996].
    """
    words = [_BEFORE, *(token.lower() for token in tokens), _AFTER]
    shapes = [_BEFORE, *(word_shape(token) for token in tokens), _AFTER]
    found = []
    for t in range(1, len(words) - 1):
        word = words[t]
        found.append(
            [
                f"w={word}",
                f"p2={word[:2]}",
                f"p3={word[:3]}",
                *(f"s{n}={word[-n:]}" for n in (1, 2, 3, 4)),
                f"shape={shapes[t]}",
                f"w-1={words[t - 1]}",
                f"w+1={words[t + 1]}",
                f"shape-1={shapes[t - 1]}",
                f"shape+1={shapes[t + 1]}",
            ]
        )
    return found


class TokenFeatures:
    """The vocabulary of the features of tokens.

    Attributes:
        places: of each feature, from 1.
    """

    def __init__(self, features: Sequence[str] = ()):
        self.places = {name: k + 1 for k, name in enumerate(features)}

    def fit(self, sequences: Sequence[Sequence[str]]) -> TokenFeatures:
        """Take the features that two elements or more have, the most frequent ones if they are too many."""
        counts = Counter(name for tokens in sequences for row in features_of(tokens) for name in row)
        few = sum(counts.values()) < 2000 * len(features_of(["a"])[0])
        kept = [name for name, n in counts.most_common(_MOST_FEATURES) if few or n >= _LEAST_COUNT]
        self.places = {name: k + 1 for k, name in enumerate(kept)}
        return self

    def transform(self, tokens: Sequence[str]) -> np.ndarray:
        """The places of each token's features ``[T, n]``, 0 for those that are not in the vocabulary."""
        get = self.places.get
        return np.array([[get(name, 0) for name in row] for row in features_of(tokens)], dtype=np.float32)


class ElementEncoder:
    """From the elements of sequences to numbers and features; what they are is decided once, in training.

    Elements are rows of numbers (arrays ``[T, *]``), tokens (lists of texts), or rows of a table (frames), whose
    columns are numbers, dates and categories as :class:`~thalweg.data.encoding.TableEncoder` takes them; a column
    of texts with more than 32 values holds tokens.

    Attributes:
        kind: "numbers", "tokens" or "table".
        n_numbers: numbers of an element.
        n_vocabulary: features in the vocabulary.
        n_features: features of an element.
    """

    def __init__(self) -> None:
        self.kind = ""
        self.mean: list[float] = []
        self.std: list[float] = []
        self.shape: list[int] = []
        self.table: TableEncoder | None = None
        self.columns: list[str] = []
        self.tokens: dict[str, TokenFeatures] = {}

    def fit(self, sequences: Sequence[Any]) -> ElementEncoder:
        """Learn the encoding from :func:`checked` sequences of one kind."""
        first = sequences[0]
        if isinstance(first, np.ndarray):
            self.kind, self.shape = "numbers", list(first.shape[1:])
            rows = np.concatenate([s.reshape(len(s), -1) for s in sequences])
            std = rows.std(0)
            self.mean, self.std = rows.mean(0).tolist(), np.where(std > 1e-12, std, 0.0).tolist()
        elif isinstance(first, list):
            self.kind, self.tokens = "tokens", {"token": TokenFeatures().fit(sequences)}
        else:
            self.kind, self.columns = "table", [str(name) for name in first.columns]
            whole = pd.concat(sequences, ignore_index=True)
            holds = [name for name in self.columns if _holds_tokens(whole[name])]
            self.tokens = {name: TokenFeatures().fit([_as_tokens(s[name]) for s in sequences]) for name in holds}
            rest = whole.drop(columns=holds)
            self.table = TableEncoder().fit(rest) if rest.shape[1] else None
        return self

    def transform(self, sequences: Sequence[Any]) -> list[np.ndarray]:
        """Numbers, then places of features, of each sequence ``[T, n_numbers + n_features]`` float32."""
        if self.kind == "numbers":
            std = np.array(self.std)
            scale = np.where(std > 0, 1 / np.where(std > 0, std, 1.0), 0.0)
            flat = [s.reshape(len(s), -1) for s in sequences]
            return [np.clip((s - np.array(self.mean)) * scale, -10, 10).astype(np.float32) for s in flat]
        if self.kind == "tokens":
            return [self.tokens["token"].transform(s) for s in sequences]
        lengths = np.cumsum([len(s) for s in sequences])[:-1]
        parts = []
        if self.table is not None:
            whole = pd.concat([s.drop(columns=list(self.tokens)) for s in sequences], ignore_index=True)
            parts.append(np.split(self.table.transform(whole), lengths))
        for name, features in self.tokens.items():
            shift = self._offset(name)
            places = [features.transform(_as_tokens(s[name])) for s in sequences]
            parts.append([np.where(p > 0, p + shift, 0).astype(np.float32) for p in places])
        return [np.concatenate(found, 1) for found in zip(*parts, strict=True)]

    def _offset(self, name: str) -> int:
        """Where a column's vocabulary starts among those of all columns."""
        before = list(self.tokens)[: list(self.tokens).index(name)]
        return sum(len(self.tokens[other].places) for other in before)

    @property
    def n_vocabulary(self) -> int:
        return sum(len(features.places) for features in self.tokens.values())

    @property
    def n_features(self) -> int:
        return len(self.tokens) * len(features_of(["a"])[0])

    @property
    def n_numbers(self) -> int:
        if self.kind == "numbers":
            return len(self.mean)
        if self.table is None:
            return 0
        empty = pd.DataFrame({c["name"]: pd.Series([None], dtype=object) for c in self.table.columns})
        return self.table.transform(empty).shape[1]

    def state(self) -> dict[str, Any]:
        """All that was learned, fit for JSON."""
        return {
            "kind": self.kind,
            "mean": self.mean,
            "std": self.std,
            "shape": self.shape,
            "columns": self.columns,
            "table": None if self.table is None else self.table.state(),
            "tokens": {name: list(features.places) for name, features in self.tokens.items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ElementEncoder:
        """The encoder again.

        Raises:
            KeyError: if something is lacking.
        """
        encoder = cls()
        encoder.kind, encoder.columns = state["kind"], state["columns"]
        encoder.mean, encoder.std, encoder.shape = state["mean"], state["std"], state["shape"]
        encoder.table = None if state["table"] is None else TableEncoder.from_state(state["table"])
        encoder.tokens = {name: TokenFeatures(places) for name, places in state["tokens"].items()}
        return encoder


def checked(X: Any, encoder: ElementEncoder | None = None) -> list[Any]:
    """Sequences of one kind, as an encoder takes them: arrays, lists of texts, or frames.

    Args:
        X: what a user gave.
        encoder: of the training, whose kind, shape and columns they must have; None in training.

    Raises:
        ValueError: naming the first sequence that can't be used.
    """
    if isinstance(X, str | bytes) or not hasattr(X, "__len__") or isinstance(X, pd.DataFrame | dict):
        raise ValueError(
            f"X must be a list of sequences, each an array [elements, numbers], a list of tokens, or a frame; got "
            f"{_shown(X)}"
        )
    found = [_checked_one(sequence, i) for i, sequence in enumerate(X)]
    for i, sequence in enumerate(found):
        if len(sequence) == 0:
            raise ValueError(f"sequence {i} is empty: leave it out")
    if not found and encoder is None:
        raise ValueError("X holds no sequences: give some")
    kinds = {_kind(sequence): i for i, sequence in reversed(list(enumerate(found)))}
    wanted = encoder.kind if encoder is not None else _kind(found[0])
    for kind, i in kinds.items():
        if kind != wanted:
            raise ValueError(f"sequence {i} is of {_WORDS[kind]}, and {_WORDS[wanted]} are expected")
    shape = None
    if wanted == "numbers":
        shape = tuple(encoder.shape) if encoder is not None else found[0].shape[1:]
    columns = encoder.columns if encoder is not None else []
    if wanted == "table" and encoder is None:
        columns = [str(name) for name in found[0].columns]
    for i, sequence in enumerate(found):
        if shape is not None and sequence.shape[1:] != shape:
            raise ValueError(
                f"sequence {i} has elements of shape {list(sequence.shape[1:])}, and {list(shape)} is expected"
            )
        if wanted == "table":
            names = [str(name) for name in sequence.columns]
            if missing := [name for name in columns if name not in names]:
                raise ValueError(f"sequence {i} lacks the column {missing[0]!r}")
            found[i] = sequence.set_axis(names, axis=1)[columns]
    return found


_WORDS = {"numbers": "rows of numbers", "tokens": "tokens", "table": "rows of a table"}


def padded(rows: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """``[n, T, *]`` of sequences ``[T_i, *]``, with this value after their ends."""
    longest = max(len(r) for r in rows)
    found = np.full((len(rows), longest, *rows[0].shape[1:]), fill, rows[0].dtype)
    for own, r in zip(found, rows, strict=True):
        own[: len(r)] = r
    return found


def in_batches(lengths: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of sequences, those of like length together, as many as are computed at once."""
    order = np.argsort(lengths, kind="stable")[::-1]
    start = 0
    while start < len(order):
        size = max(1, _ELEMENTS_AT_ONCE // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


class LabelCounts(NamedTuple):
    """How often each label ``[K]``, each pair of neighbours ``[K, K]``, each first and each last label occurs."""

    labels: np.ndarray
    pairs: np.ndarray
    first: np.ndarray
    last: np.ndarray


def label_counts(places: Sequence[np.ndarray], n_labels: int) -> LabelCounts:
    """Count the labels of sequences, numbers from 0; negative ones are unknown and count nowhere."""
    before, after = (np.concatenate([own[part] for own in places]) for part in (slice(-1), slice(1, None)))
    pairs = np.zeros((n_labels, n_labels))
    known = (before >= 0) & (after >= 0)
    np.add.at(pairs, (before[known], after[known]), 1)
    columns = np.concatenate(places), np.array([own[0] for own in places]), np.array([own[-1] for own in places])
    labels, first, last = (np.bincount(c[c >= 0], minlength=n_labels).astype(float) for c in columns)
    return LabelCounts(labels, pairs, first, last)


def _kind(sequence: Any) -> str:
    return "numbers" if isinstance(sequence, np.ndarray) else "tokens" if isinstance(sequence, list) else "table"


def _checked_one(sequence: Any, i: int) -> Any:
    if isinstance(sequence, pd.DataFrame):
        return sequence.reset_index(drop=True)
    if isinstance(sequence, str | bytes) or not hasattr(sequence, "__len__"):
        raise ValueError(
            f"sequence {i} is {_shown(sequence)}: give a list of tokens, an array [elements, numbers] or "
            "a frame; a text must be cut into tokens first"
        )
    if not isinstance(sequence, np.ndarray) and len(sequence) and isinstance(sequence[0], str):
        odd = next((t for t, token in enumerate(sequence) if not isinstance(token, str)), None)
        if odd is not None:
            raise ValueError(f"element {odd} of sequence {i} is {sequence[odd]!r}, where all others are tokens")
        return [str(token) for token in sequence]
    if len(sequence) == 0 and not isinstance(sequence, np.ndarray):
        return []
    try:
        rows = np.asarray(sequence, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"sequence {i} holds neither tokens nor rows of numbers: {error}") from error
    if rows.ndim < 2:
        raise ValueError(
            f"sequence {i} has shape {list(rows.shape)}: each element needs a row of numbers, so that it is "
            "[elements, numbers]; of one number an element make it [elements, 1]"
        )
    if not np.isfinite(rows).all():
        place = int(np.argwhere(~np.isfinite(rows))[0][0])
        raise ValueError(f"element {place} of sequence {i} has a value that is not finite: fill or remove it")
    return rows


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def _holds_tokens(column: pd.Series) -> bool:
    return decide(column).kind == "text" and column.nunique() > _MOST_CATEGORIES


def _as_tokens(column: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else str(value) for value in column]
