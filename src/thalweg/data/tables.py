"""Tables in and out: CSV and Parquet."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

_DECIMAL_COMMA = r"\s*[+-]?\d+(,\d+)?([eE][+-]?\d+)?\s*"


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV (also .tsv, also compressed) or Parquet file. A CSV may be separated by semicolons instead.

    Raises:
        ValueError: if the file is missing, of another kind, empty, or can't be read; in words.
    """
    kind = _kind_of_file(path)
    with _errors_in_words(path, kind):
        names, table = _read_parquet(path) if kind == "parquet" else _read_text(path, kind)
    if table.shape[0] == 0 or table.shape[1] == 0:
        raise ValueError(f"{path} has no rows")
    doubled = names[names.duplicated()]
    if len(doubled):
        raise ValueError(f"{path} has the column {doubled[0]!r} more than once: rename or remove one")
    return table


def column_names(path: Path) -> list[str]:
    """The names of a table's columns, without reading its rows.

    Raises:
        ValueError: if the file is missing, of another kind, or can't be read.
    """
    kind = _kind_of_file(path)
    with _errors_in_words(path, kind):
        if kind == "parquet":
            return [str(name) for name in pq.read_schema(path).names]
        return [str(name) for name in pd.read_csv(path, sep=_read_head(path, kind)[0], nrows=0).columns]


def _kind_of_file(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    return _kind(path)


@contextlib.contextmanager
def _errors_in_words(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: save it as {kind} in UTF-8 ({error.reason})") from error
    except Exception as error:  # a damaged gzip, zip or Parquet file has errors of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} can't be read as {kind}: {reason}") from error


def _read_parquet(path: Path) -> tuple[pd.Index, pd.DataFrame]:
    table = pd.read_parquet(path)
    for name in table.columns[~table.columns.duplicated()]:
        table[name] = _plain(table[name])
    return table.columns.map(str), table


def _plain(column: pd.Series) -> pd.Series:
    """Decimals, days and spans of time, which pandas keeps as objects, as numbers and dates."""
    if pd.api.types.is_timedelta64_dtype(column):
        return column / pd.Timedelta(days=1)
    if column.dtype == object:
        kind = pd.api.types.infer_dtype(column, skipna=True)
        if kind == "decimal":
            return column.astype(float)
        if kind == "date":
            return column.astype("datetime64[s]")  # in nanoseconds a date such as 9999-12-31 has no place
    return column


def _read_text(path: Path, kind: str) -> tuple[pd.Index, pd.DataFrame]:
    """The names as they stand in the file (pandas renames the second of two alike), and the table."""
    separator, names = _read_head(path, kind)
    # The parser that is quick by default is off in the last digit of some numbers.
    table = pd.read_csv(path, sep=separator, float_precision="round_trip")
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("the rows have more fields than the first line has names")
    if separator == ";":
        for name in table.columns:
            table[name] = _with_decimal_points(table[name])
    return names, table


def _read_head(path: Path, kind: str) -> tuple[str, pd.Index]:
    """What separates the fields, and the names in the first line."""
    separator = "\t" if kind == "tsv" else ","
    head = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str)
    if kind == "csv" and head.shape[1] == 1 and ";" in str(head.iat[0, 0]):
        separator = ";"
        head = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str)
    return separator, pd.Index(head.iloc[0].dropna())


def _with_decimal_points(column: pd.Series) -> pd.Series:
    """Numbers, if a column of texts holds nothing but numbers with decimal commas."""
    known = column.dropna()
    if pd.api.types.is_numeric_dtype(column) or not known.astype(str).str.fullmatch(_DECIMAL_COMMA).all():
        return column
    return pd.to_numeric(column.astype(str).str.replace(",", "."), errors="coerce")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV (also compressed) or Parquet file, by the name's ending.

    An existing file is replaced whole or not at all.

    Raises:
        ValueError: if the ending is none of those that :func:`check_writable` takes.
    """
    check_writable(path)
    kind = _kind(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under its own name, which tells pandas the compression and is kept inside a .zip or .gz file.
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=path.parent) as folder:
        aside = Path(folder) / path.name
        if kind == "parquet":
            table.to_parquet(aside, index=False)
        else:
            table.to_csv(aside, index=False, sep="\t" if kind == "tsv" else ",")
        aside.replace(path)


def check_writable(path: Path) -> None:
    """Refuse a file name under which no table can be written, before there is a table.

    Raises:
        ValueError: unless the name ends in .csv or .tsv, with or without .gz, .bz2, .xz, .zip or .zst, or in
            .parquet.
    """
    kind, ending = _kind(path), path.suffix.lower()
    if ending in (".csv", ".tsv", ".parquet", ".pq"):
        return
    if kind == "parquet":
        raise ValueError(f"{path.name}: a Parquet file is compressed in itself: name it .parquet")
    if path.with_suffix("").suffix.lower() != f".{kind}" or ending not in (".gz", ".bz2", ".xz", ".zip", ".zst"):
        raise ValueError(
            f"{path.name}: name the file .{kind}, or for a compressed one .{kind}.gz, .{kind}.bz2, .{kind}.xz, "
            f".{kind}.zip or .{kind}.zst"
        )
    if ending == ".zst" and importlib.util.find_spec("zstandard") is None:
        raise ValueError(f"{path.name}: .zst needs the package zstandard: install it, or name the file .{kind}.gz")


def _kind(path: Path) -> str:
    for suffix in reversed(path.suffixes):
        if suffix.lower() in (".csv", ".tsv", ".parquet"):
            return suffix.lower()[1:]
        if suffix.lower() == ".pq":
            return "parquet"
    raise ValueError(f"{path.name}: tables are read from and written to .csv, .tsv or .parquet")
