"""Tables in and out: CSV, Parquet, CoNLL. One reader for all: cells first, then what the columns are."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow.parquet as pq

from thalweg.data import conll
from thalweg.data.columns import Column, as_text, decide, read_as

_DECIMAL_COMMA = r"[+-]?\d+(\.\d{3})*,\d+"


class Cells(NamedTuple):
    """A table as it stands in a file.

    Attributes:
        table: texts of a CSV, of a Parquet file what it holds; names are texts.
        decimal: sign of decimals in a CSV: a comma where it is seen between digits, and semicolons between fields.
    """

    table: pd.DataFrame
    decimal: str = "."

    def decided(self, text: Collection[str] = (), missing: Collection[str] = ()) -> dict[str, Column]:
        """What each column is (see :func:`~thalweg.data.columns.decide`).

        Args:
            text: columns that are texts, whatever they hold.
            missing: further words that stand for a gap.

        Raises:
            ValueError: for a column in doubt.
        """
        return {
            name: as_text(column, missing) if name in text else decide(column, missing, self.decimal)
            for name, column in self.table.items()
        }

    def again(
        self,
        kinds: Mapping[str, str],
        missing: Collection[str] = (),
        known: Mapping[str, Sequence[str]] | None = None,
    ) -> pd.DataFrame:
        """The columns that a model was trained on, each read as what it was then.

        Args:
            kinds: what each column was.
            missing: further words that stand for a gap.
            known: the texts of columns.

        Raises:
            ValueError: if the table lacks a column, or one holds something else now; in words.
        """
        lacking = [name for name in kinds if name not in self.table.columns]
        if lacking:
            shown = ", ".join(map(repr, lacking))
            raise ValueError(f"the table lacks {shown}, which the model was trained on")
        return pd.DataFrame(
            {
                name: read_as(self.table[name], kind, missing, self.decimal, (known or {}).get(name, ()))
                for name, kind in kinds.items()
            }
        )


def read_cells(path: Path) -> Cells:
    """Read a CSV (also .tsv, also compressed), Parquet or CoNLL file. A CSV may be separated by semicolons.

    A CoNLL file becomes a table with a row for each token (see :mod:`thalweg.data.conll`).

    Raises:
        ValueError: if the file is missing, of another kind, empty, or can't be read; in words.
    """
    kind = _kind_of_file(path)
    with _errors_in_words(path, kind):
        readers = {"parquet": _read_parquet, "conll": _read_conll}
        names, table, decimal = readers[kind](path) if kind in readers else _read_text(path, kind)
    if table.shape[0] == 0 or table.shape[1] == 0:
        raise ValueError(f"{path} has no rows")
    doubled = names[names.duplicated()]
    if len(doubled):
        raise ValueError(f"{path} has the column {doubled[0]!r} more than once: rename or remove one")
    return Cells(table.set_axis(table.columns.map(str), axis=1), decimal)


def read_table(path: Path, text: Collection[str] = (), missing: Collection[str] = ()) -> pd.DataFrame:
    """A table whose columns have the types that suit what they hold (see :func:`read_cells`).

    Args:
        text: columns that are texts, whatever they hold.
        missing: further words that stand for a gap.

    Raises:
        ValueError: if the file can't be read, or a column is in doubt; in words.
    """
    return pd.DataFrame({name: column.values for name, column in read_cells(path).decided(text, missing).items()})


def column_names(path: Path) -> list[str]:
    """The names of a table's columns, without reading its rows.

    Raises:
        ValueError: if the file is missing, of another kind, or can't be read.
    """
    kind = _kind_of_file(path)
    with _errors_in_words(path, kind):
        if kind == "parquet":
            return [str(name) for name in pq.read_schema(path).names]
        if kind == "conll":
            return [str(name) for name in _read_conll(path)[0]]
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


def _read_parquet(path: Path) -> tuple[pd.Index, pd.DataFrame, str]:
    table = pd.read_parquet(path)
    return table.columns.map(str), table, "."


def _read_conll(path: Path) -> tuple[pd.Index, pd.DataFrame, str]:
    names, rows = conll.read(path)
    return pd.Index(names), pd.DataFrame(rows, columns=names), "."


def _read_text(path: Path, kind: str) -> tuple[pd.Index, pd.DataFrame, str]:
    """The names as they stand in the file (pandas renames the second of two), the cells, the decimal sign."""
    separator, names = _read_head(path, kind)
    table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, na_filter=False)
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("the rows have more fields than the first line has names")
    comma = separator == ";" and any(
        table[name].str.strip().str.fullmatch(_DECIMAL_COMMA).any() for name in table.columns
    )
    return names, table, "," if comma else "."


def _read_head(path: Path, kind: str) -> tuple[str, pd.Index]:
    """What separates the fields, and the names in the first line."""
    separator = "\t" if kind == "tsv" else ","
    head = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str)
    if kind == "csv" and head.shape[1] == 1 and ";" in str(head.iat[0, 0]):
        separator = ";"
        head = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str)
    return separator, pd.Index(head.iloc[0].dropna())


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
            table.apply(_with_a_type).to_parquet(aside, index=False)
        else:
            table.to_csv(aside, index=False, sep="\t" if kind == "tsv" else ",")
        aside.replace(path)


def _with_a_type(column: pd.Series) -> pd.Series:
    """A column of cells in the type that suits it, as a Parquet file wants it; one in doubt stays as it is."""
    if not pd.api.types.is_object_dtype(column):
        return column
    try:
        return decide(column).values
    except ValueError:
        return column.astype(str).where(column.notna(), None)


def check_writable(path: Path) -> None:
    """Refuse a file name under which no table can be written, before there is a table.

    Raises:
        ValueError: unless the name ends in .csv or .tsv, with or without .gz, .bz2, .xz, .zip or .zst, or in
            .parquet.
    """
    kind, ending = _kind(path), path.suffix.lower()
    if kind == "conll":
        raise ValueError(f"{path.name}: CoNLL files are read, and not written: name it .csv, .tsv or .parquet")
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
    if conll.is_conll(path):
        return "conll"
    raise ValueError(f"{path.name}: tables are read from and written to .csv, .tsv or .parquet")
