"""What the columns of a table are: decided once, kept with a model, and checked when a table comes again.

A column is of one kind: numbers, truth values, dates, spans of time, or texts (categories). Cells of a text file
come as they stand there; columns of a ``DataFrame`` or a Parquet file come in the type that they have.
"""

from __future__ import annotations

import numbers
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

KINDS = ("number", "truth", "date", "span", "text")

# Words for a gap among numbers, dates and truth values. Among texts they are texts: NA is Namibia too.
_PLAIN_WORDS = frozenset(
    {"NA", "N/A", "n/a", "na", "NaN", "nan", "-nan", "-NaN", "NULL", "Null", "null", "None", "none", "<NA>",
     "#N/A", "NaT", "nil"}
)  # fmt: skip
_OTHER_WORDS = frozenset({"?", "-", "--", ".", "..", "missing", "Missing", "unknown", "Unknown", "#NA", "#VALUE!"})
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(inf|Inf|INF|infinity|Infinity)$"
_WHOLE = r"^[+-]?\d+$"
_ZEROS = r"^0\d+$"
_DATE = r"^\d{4}-\d{2}-\d{2}([T ].*)?$"
_TRUTH = {"true": True, "false": False}
# From so large a share of numbers on, what is no number is a doubt and not a category.
_MOSTLY = 0.9

# How numbers are written otherwise: what all cells match, the sign between thousands, the sign of decimals.
_STYLES = {
    "comma for thousands": (r"^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?$|^[+-]?\d+(\.\d*)?$", ",", "."),
    "comma for decimals": (r"^[+-]?\d+(,\d+)?([eE][+-]?\d+)?$|^[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d+)?$", ".", ","),
}


class Column(NamedTuple):
    """A column whose kind is known.

    Attributes:
        values: numbers as ``int64`` or ``float64``, dates as ``datetime64`` in UTC, spans in days, truth values as
            ``bool`` (``object`` beside gaps), texts as a categorical; gaps are NaN, NaT or None.
        kind: one of :data:`KINDS`.
        remarks: what a user should know about how it was read.
    """

    values: pd.Series
    kind: str
    remarks: tuple[str, ...] = ()


def decide(column: pd.Series, missing: Collection[str] = (), decimal: str = ".") -> Column:
    """Find out what a column is.

    Args:
        missing: further words that stand for a gap.
        decimal: sign of decimals in the file that it comes from.

    Raises:
        ValueError: if it holds lists or the like, if it is in doubt, or if it mixes what does not go together.
    """
    column = _with_gaps(column, missing)
    native = _native(column)
    if native.kind != "text" or isinstance(column.dtype, pd.CategoricalDtype):
        return native
    return _of_texts(native.values, decimal)


def as_text(column: pd.Series, missing: Collection[str] = ()) -> Column:
    """The column as texts without blanks around them, whatever it holds; empty cells are gaps."""
    texts = _labels(_with_gaps(column, missing)).str.strip().astype(object)
    return Column(_category(texts.where(texts.notna() & (texts != ""), None)), "text")


def read_as(
    column: pd.Series, kind: str, missing: Collection[str] = (), decimal: str = ".", known: Sequence[str] = ()
) -> pd.Series:
    """A column that comes again, read as what it was in training.

    Args:
        kind: what it was.
        known: the texts that it had.

    Raises:
        ValueError: if it holds something else now, naming the column, an example and its row.
    """
    if kind == "text":
        if len(known) and _is_truth(column):
            # Truth values that were texts in training, in the way that these were written.
            written = {text.casefold(): text for text in known}
            column = column.map(lambda v: written.get(str(v).casefold(), str(v)), na_action="ignore")
        return as_text(column, missing).values
    native = _native(_with_gaps(column, missing))
    if native.kind == kind or (native.kind == "truth" and kind == "number"):
        return native.values
    if native.kind == "number" and kind == "truth" and native.values.dropna().isin((0, 1)).all():
        return native.values.map(bool, na_action="ignore")
    if native.kind == "text":
        return _texts_as(native.values, kind, decimal)
    if native.values.isna().all():
        return native.values.astype(float)
    raise ValueError(_told_otherwise(column.name, kind, f"now holds {_PLURAL[native.kind]}"))


def only_numbers(column: pd.Series, advice: str) -> np.ndarray:
    """A column of numbers or truth values as float64 ``[rows]``, NaN where it has gaps.

    Args:
        advice: what to do about a column that holds something else, for the error.

    Raises:
        ValueError: if it does, naming the column and an example.
    """
    found = decide(column)
    if found.kind in ("number", "truth"):
        return found.values.to_numpy(np.float64, na_value=np.nan)
    known = found.values.dropna()
    example = f" ({known.iloc[0]!r} in row {row_of(known)})" if found.kind == "text" else ""
    raise ValueError(f"column {column.name!r} holds {_PLURAL[found.kind]}{example}: {advice}")


def to_numbers(column: pd.Series, missing: Collection[str] = (), decimal: str = ".") -> np.ndarray:
    """The numbers of a column ``[rows]``, NaN where a cell is none."""
    native = _native(_with_gaps(column, missing))
    if native.kind in ("number", "truth"):
        return native.values.to_numpy(np.float64, na_value=np.nan)
    if native.kind != "text":
        return np.full(len(column), np.nan)
    cells, gaps, words = _sorted_out(native.values.astype(object))
    rest = cells[~gaps & ~words]
    style, matching = _style(rest, decimal)
    return _to_numbers(cells.where(cells.index.isin(rest.index[matching])), style).to_numpy(np.float64)


def _with_gaps(column: pd.Series, missing: Collection[str]) -> pd.Series:
    """The column with gaps for the words that mean them, numbers included: -9999.0 is the word -9999 too."""
    if not missing:
        return column
    meant = _labels(column).str.strip().isin(list(missing))
    return column.mask(meant) if meant.any() else column


# -- columns in a type of their own -----------------------------------------------------------------------


def _native(column: pd.Series) -> Column:
    """A column by the type that it has; texts as ``object``, undecided."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return as_text(column)
    if isinstance(dtype, pd.PeriodDtype):
        return Column(column.dt.to_timestamp(), "date")
    if isinstance(dtype, pd.SparseDtype):
        return _native(pd.Series(np.asarray(column), column.index, name=column.name))
    if isinstance(dtype, pd.ArrowDtype | pd.StringDtype):
        objects = column.to_numpy(dtype=object, na_value=None)
        return _of_objects(pd.Series(objects, column.index, dtype=object, name=column.name))
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return Column(column.dt.tz_convert("UTC").dt.tz_localize(None) if column.dt.tz else column, "date")
    if pd.api.types.is_timedelta64_dtype(dtype):
        return Column(_days(column), "span")
    if pd.api.types.is_bool_dtype(dtype) and not pd.api.types.is_object_dtype(dtype):
        whole = not column.isna().any()
        values = column.astype(bool) if whole else column.astype(object).where(column.notna(), None)
        return Column(values, "truth")
    if pd.api.types.is_complex_dtype(dtype):
        raise ValueError(f"column {column.name!r} holds complex numbers: give their parts in two columns")
    if pd.api.types.is_numeric_dtype(dtype):
        whole = pd.api.types.is_integer_dtype(dtype) and not column.isna().any() and dtype != np.uint64
        values = column.astype(np.int64) if whole else _floats(column)
        return Column(values, "number")
    if pd.api.types.is_object_dtype(dtype):
        return _of_objects(column)
    raise ValueError(f"column {column.name!r} has the type {dtype}: give numbers, texts or dates")


def _days(spans: pd.Series) -> pd.Series:
    return spans / pd.Timedelta(days=1)


def _floats(column: pd.Series) -> pd.Series:
    return pd.Series(column.to_numpy(np.float64, na_value=np.nan), column.index, name=column.name)


def _of_objects(column: pd.Series) -> Column:
    """A column of Python's objects."""
    check_entries(column)
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    if inferred in ("date", "datetime", "datetime64"):
        # In microseconds the year 9999 has its place.
        values = pd.to_datetime(column, utc=True).dt.tz_localize(None) if inferred != "date" else column
        return Column(values.astype("datetime64[us]"), "date")
    if inferred in ("timedelta", "timedelta64"):
        return Column(_days(pd.to_timedelta(column)), "span")
    if inferred == "period":
        return Column(pd.Series(pd.PeriodIndex(column).to_timestamp(), column.index, name=column.name), "date")
    if inferred == "boolean":
        return _native(column.astype(bool if not column.isna().any() else "boolean"))
    known = column[column.notna()]
    if len(known) and known.map(lambda v: isinstance(v, numbers.Number) or _is_decimal(v)).all():
        if known.map(lambda v: isinstance(v, complex)).any():
            return _native(column.astype(complex))
        whole = len(known) == len(column) and known.map(lambda v: isinstance(v, int | np.integer)).all()
        if whole and known.map(abs).max() < 2**63:
            return Column(column.astype(np.int64), "number")
        values = np.full(len(column), np.nan)
        values[column.notna().to_numpy()] = [float(v) for v in known]
        return Column(pd.Series(values, column.index, name=column.name), "number")
    if not len(known):
        return Column(pd.Series(np.nan, column.index, dtype=float, name=column.name), "number")
    return Column(_labels(column), "text")


def _is_decimal(value: Any) -> bool:
    from decimal import Decimal

    return isinstance(value, Decimal)


def _is_truth(column: pd.Series) -> bool:
    known = column.dropna()
    return len(known) > 0 and all(isinstance(value, bool | np.bool_) for value in known)


def check_entries(values: pd.Series) -> None:
    """Refuse a column that holds lists, arrays or the like.

    Raises:
        ValueError: in words.
    """
    known = values.dropna()
    foreign = known[[isinstance(v, dict | list | set | tuple | bytes | np.ndarray) for v in known]]
    if len(foreign):
        raise ValueError(
            f"column {values.name!r} holds a {type(foreign.iloc[0]).__name__} (row {row_of(foreign)}): an entry "
            "must be a number, a text or a date"
        )


def _labels(column: pd.Series) -> pd.Series:
    """Every entry as a text, None for gaps; a whole number is the same text in every type."""
    return column.astype(object).map(_label, na_action="ignore").astype(object).where(column.notna(), None)


def _label(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _category(texts: pd.Series) -> pd.Series:
    return texts.astype(pd.CategoricalDtype(sorted(texts.dropna().unique())))


# -- columns of texts -------------------------------------------------------------------------------------


def _of_texts(texts: pd.Series, decimal: str) -> Column:
    """What a column of texts is."""
    cells, gaps, words = _sorted_out(texts)
    rest = cells[~gaps & ~words]
    if not len(rest):
        return Column(pd.Series(np.nan, texts.index, dtype=float, name=texts.name), "number")
    name, remarks = texts.name, []
    style, matching = _style(rest, decimal)
    if matching.all() and not (style is None and _matches(rest, _ZEROS).any()):
        if style is not None:
            written = rest[~_matches(rest, _WHOLE)]
            dotted = written[written.str.contains(".", regex=False)]
            if decimal == "." or len(dotted):
                example = (dotted if len(dotted) else written).iloc[:1]
                value = float(_to_numbers(example, style).iloc[0])
                remarks.append(f"Column {name!r} has a {style}: {example.iloc[0]!r} is read as {value:.10g}.")
        found = _to_numbers(cells.where(~(gaps | words)), style)
        return Column(found, "number", (*remarks, *_words_told(name, cells[words])))
    if _matches(rest, _DATE).all():
        dates = _to_dates(cells.where(~(gaps | words)))
        if dates is not None:
            return Column(dates, "date", _words_told(name, cells[words]))
    if rest.str.casefold().isin(list(_TRUTH)).all():
        return Column(_to_truth(cells.where(~(gaps | words))), "truth", _words_told(name, cells[words]))
    share, odd = matching.mean(), rest[~matching]
    if style is None and matching.all():
        example = rest[_matches(rest, _ZEROS)].iloc[0]
        remarks.append(f"Column {name!r} has leading zeros, as in {example!r}: it is read as texts.")
    elif share >= _MOSTLY and len(rest) >= 10:
        raise ValueError(
            f"column {name!r} holds numbers but for {odd.iloc[0]!r} in row {row_of(odd)} "
            f"({len(odd)} of {len(rest)} cells): correct it, say that it means a gap (--missing), or have the "
            "column read as texts (--text; in Python, make it categorical)"
        )
    if words.any() and not _PLAIN_WORDS.isdisjoint(cells[words]):
        word = cells[words].mode().iloc[0]
        n = int((cells[words] == word).sum())
        remarks.append(
            f"Column {name!r} has {word!r} in {n} rows, which is read as a text and not as a gap (--missing "
            f"{word!r} reads it as a gap)."
        )
    return Column(_category(cells.where(~gaps, None)), "text", tuple(remarks))


def _texts_as(texts: pd.Series, kind: str, decimal: str) -> pd.Series:
    """Texts read as numbers, dates, spans or truth values."""
    cells, gaps, words = _sorted_out(texts)
    empty = gaps | words
    rest = cells[~empty]
    if kind == "number":
        style, matching = _style(rest, decimal)
        if matching.all():
            return _to_numbers(cells.where(~empty), style)
        odd = rest[~matching]
    elif kind == "date":
        matching = _matches(rest, _DATE)
        dates = _to_dates(cells.where(~empty)) if matching.all() else None
        if dates is not None:
            return dates
        parsed = pd.to_datetime(rest.where(matching), format="ISO8601", errors="coerce", utc=True)
        odd = rest[parsed.isna()]
    elif kind == "span":
        spans = pd.to_timedelta(rest, errors="coerce")
        if spans.notna().all():
            return _days(pd.to_timedelta(cells.where(~empty)))
        odd = rest[spans.isna()]
    else:
        truth = rest.str.casefold().isin([*_TRUTH, "0", "1"])
        if truth.all():
            return _to_truth(cells.where(~empty))
        odd = rest[~truth]
    raise ValueError(_told_otherwise(texts.name, kind, f"has {odd.iloc[0]!r} in row {row_of(odd)}"))


_PLURAL = {"number": "numbers", "truth": "truth values", "date": "dates", "span": "spans of time", "text": "texts"}
_ADVICE = {
    "number": "give a number or leave it empty",
    "date": "write it as 2024-05-31",
    "truth": "write it as true or false",
    "span": "write it as 3 days 04:05:06",
}


def _told_otherwise(name: Any, kind: str, now: str) -> str:
    return f"column {name!r} held {_PLURAL[kind]} in training, but {now}: {_ADVICE[kind]}"


def row_of(cells: pd.Series) -> Any:
    """The row of the first cell, counted from 1 where rows are numbered from 0."""
    first = cells.index[0]
    return int(first) + 1 if isinstance(first, int | np.integer) else first


def _sorted_out(texts: pd.Series) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Cells without blanks around them; which are empty; which are words for a gap."""
    cells = texts.str.strip()
    gaps = cells.isna() | (cells == "")
    return cells, gaps, cells.isin(list(_PLAIN_WORDS | _OTHER_WORDS)) & ~gaps


def _words_told(name: Any, words: pd.Series) -> tuple[str, ...]:
    other = words[words.isin(list(_OTHER_WORDS))]
    if not len(other):
        return ()
    counts = other.value_counts()
    told = ", ".join(f"{word!r} ({n})" for word, n in counts.items())
    return (f"Column {name!r} holds numbers, dates or truth values but for {told}: read as gaps.",)


def _matches(cells: pd.Series, pattern: str) -> pd.Series:
    """Which cells match the whole pattern; none may be a gap."""
    found = pc.match_substring_regex(pa.array(cells.to_numpy(object), pa.string()), pattern)
    return pd.Series(found.to_numpy(zero_copy_only=False).astype(bool), cells.index)


def _style(cells: pd.Series, decimal: str) -> tuple[str | None, pd.Series]:
    """How numbers are written, None for plainly, and which cells are numbers so."""
    plain = _matches(cells, _NUMBER)
    if decimal == ",":
        comma = _matches(cells, _STYLES["comma for decimals"][0])
        if comma.all() or comma.mean() > plain.mean():
            return "comma for decimals", comma
        return None, plain
    if plain.all() or not len(cells):
        return None, plain
    tried = {style: _matches(cells, pattern) for style, (pattern, _, _) in _STYLES.items()}
    best = max(tried, key=lambda style: tried[style].mean())
    return (best, tried[best]) if tried[best].mean() > plain.mean() else (None, plain)


def _to_numbers(cells: pd.Series, style: str | None) -> pd.Series:
    """Cells, numbers or None, as ``int64`` where they are whole and without gaps, else as ``float64``."""
    if style is not None:
        _, thousands, decimals = _STYLES[style]
        cells = cells.str.replace(thousands, "", regex=False).str.replace(decimals, ".", regex=False)
    known = cells.dropna()
    if len(known) == len(cells) and _matches(known, _WHOLE).all() and known.str.len().max() <= 18:
        return cells.astype(np.int64)
    # From texts NumPy finds the nearest double; what is quicker is off in the last digit of some.
    values = np.where(cells.isna(), "nan", cells).astype("U").astype(np.float64)
    return pd.Series(values, cells.index, name=cells.name)


def _to_dates(cells: pd.Series) -> pd.Series | None:
    parsed = pd.to_datetime(cells, format="ISO8601", errors="coerce", utc=True).dt.tz_localize(None)
    return None if bool((parsed.isna() & cells.notna()).any()) else parsed


def _to_truth(cells: pd.Series) -> pd.Series:
    values = cells.str.casefold().map({**_TRUTH, "1": True, "0": False})
    return values.astype(bool) if not cells.isna().any() else values.astype(object).where(cells.notna(), None)
