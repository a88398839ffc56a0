"""Tables in and out: CSV and Parquet."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV (also .tsv, also compressed) or Parquet file.

    Raises:
        ValueError: if the file is missing, of another kind, empty, or can't be read; in words.
    """
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    kind = _kind(path)
    try:
        if kind == "parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, sep="\t" if kind == "tsv" else ",")
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
        OSError,
        ValueError,
    ) as error:
        raise ValueError(f"{path} can't be read as {kind}: {str(error).splitlines()[0]}") from error
    if table.shape[0] == 0 or table.shape[1] == 0:
        raise ValueError(f"{path} has no rows")
    doubled = table.columns[table.columns.duplicated()]
    if len(doubled):
        raise ValueError(f"{path} has the column {doubled[0]!r} more than once")
    return table


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV or Parquet file, by the name's ending; an existing file is replaced whole or not at all."""
    kind = _kind(path)
    aside = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if kind == "parquet":
            table.to_parquet(aside, index=False)
        else:
            table.to_csv(aside, index=False, sep="\t" if kind == "tsv" else ",", compression=None)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _kind(path: Path) -> str:
    for suffix in reversed(path.suffixes):
        if suffix.lower() in (".csv", ".tsv", ".parquet"):
            return suffix.lower()[1:]
        if suffix.lower() == ".pq":
            return "parquet"
    raise ValueError(f"{path.name}: tables are read from and written to .csv, .tsv or .parquet")
