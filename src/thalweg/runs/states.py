"""Rows of a table or of images as a Boltzmann machine takes them: which columns are what, and what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.images import Images, read_images
from thalweg.data.states import StateEncoder
from thalweg.data.target import whole_numbers
from thalweg.runs.folder import listed
from thalweg.runs.settings.boltzmann import BoltzmannSettings
from thalweg.runs.tables import Typed, as_numbers, fingerprint_of, read_numbers, split_rows

_MOST_CATEGORIES = 50


@dataclass
class Rows:
    """Rows ready for a machine.

    Attributes:
        training, test: complete rows.
        encoder: how rows become states of the visible units.
        kinds: what each column of a table is, without constant ones.
        types: the type of each column of a table, constant ones included: "text", "truth", "whole" or "number".
        shape: (C, H, W) for images, None for a table.
        constant: columns that were left out because they never change, with their values.
        remarks: what a user should know about how the data were read.
        doubts: what may be wrong with columns, in sentences.
        n_rows: number of rows in the data.
        fingerprint: a hash of the data.
        n_used: number of rows that have no gaps; None for all.
        labels: labels of the training and of the test rows, counted from 0, where images have them.
    """

    training: pd.DataFrame
    test: pd.DataFrame
    encoder: StateEncoder
    kinds: dict[str, str]
    types: dict[str, str]
    shape: list[int] | None
    constant: dict[str, Any]
    remarks: list[str]
    doubts: list[str]
    n_rows: int
    fingerprint: str
    labels: tuple[np.ndarray, np.ndarray] | None = None
    n_used: int | None = None

    @property
    def kind(self) -> str:
        """The kind of the visible units."""
        return self.encoder.kind


def read_rows(settings: BoltzmannSettings) -> Rows:
    """Read what a run is made with, and split it.

    Raises:
        ValueError: for data that a machine can't take, in words.
    """
    path = Path(settings.data)
    images = path.is_dir() or path.suffix.lower() == ".npz"
    return _image_rows(settings, read_images(path)) if images else _table_rows(settings)


_TAKEN = {"binary": "binary (0 or 1)", "categorical": "categories", "gaussian": "numbers, as Gaussian units"}


def _table_rows(settings: BoltzmannSettings) -> Rows:
    if settings.grey:
        raise ValueError("--grey is for images")
    types: dict[str, str] = {}
    found = read_numbers(settings, partial(_as_states, visible=settings.visible, types=types))
    training, test = found.training, found.test
    n_used = len(training) + len(test)
    # Numbers of a table are not read as probabilities.
    visible = "mixed" if settings.visible == "auto" else settings.visible
    encoder = StateEncoder(visible).fit(training.to_numpy(), training.columns)
    remarks, doubts = [], list(found.doubts)
    for kind, name in _TAKEN.items():
        columns = [str(training.columns[k]) for k in encoder.columns(kind)]
        remarks += [f"Taken as {name}: {listed(columns)}."] if columns else []
    if encoder.groups:
        names = [f"{training.columns[g[0]]!r} to {training.columns[g[-1]]!r}" for g in encoder.groups]
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        remarks.append(f"One-hot groups of columns, each taken as one category: {', '.join(names[:10])}{more}.")
    remarks += found.remarks
    texts = [training.columns[k] for k in encoder.columns("categorical")]
    known = np.logical_and.reduce([np.ones(len(test), bool), *(test[c].isin(training[c].unique()) for c in texts)])
    if not known.all():
        n = int((~known).sum())
        doubts.append(f"{n} rows held out have categories that no training row has, and are not scored.")
    if len(test) and not known.any():
        most = max(texts, key=lambda c: training[c].nunique())
        raise ValueError(
            f"every row held out has a category that no training row has; column {most!r} has "
            f"{training[most].nunique()} of them in {len(training)} rows: leave it out (--drop)"
        )
    broken = encoder.breaks_groups(test.to_numpy())
    if broken[known].any():
        n = int((broken & known).sum())
        doubts.append(
            f"{n} rows held out have not one 1 in a group where all training rows have, and are not scored."
        )
    known &= ~broken
    test = test[known]
    encoder.encode(test.to_numpy(), training.columns)
    kinds = {str(name): found.kinds[name] for name in training.columns}
    return Rows(
        training,
        test,
        encoder,
        kinds,
        types,
        None,
        found.constant,
        remarks,
        doubts,
        found.n_rows,
        found.fingerprint,
        n_used=n_used,
    )


def _image_rows(settings: BoltzmannSettings, images: Images) -> Rows:
    if settings.visible in ("categorical", "mixed"):
        raise ValueError("pixels are all of one kind: give --visible auto, binary or gaussian")
    for option in ("drop", "text", "missing"):
        if getattr(settings, option):
            raise ValueError(f"--{option} is for columns of tables")
    flat = images.pixels.reshape(len(images.pixels), -1).astype(np.float64)
    kind = "binary" if settings.visible == "auto" else settings.visible
    two = bool(((flat == 0) | (flat == 1)).all())
    remarks = []
    if kind == "gaussian":
        remarks.append("Grey values are modelled as numbers, by Gaussian units.")
    elif settings.grey and not two:
        remarks.append(
            "Grey values are read as probabilities: black and white pixels are drawn from them anew for every "
            "update, and once for the figures."
        )
    elif not two:
        flat = (flat > 0.5).astype(np.float64)
        remarks.append("Pixels are rounded to black or white (--grey keeps grey values).")
    table = pd.DataFrame(flat, columns=[f"pixel {i + 1}" for i in range(flat.shape[1])])
    training, test = split_rows(len(table), settings.test_fraction, settings.seed)
    return Rows(
        table.iloc[training],
        table.iloc[test],
        StateEncoder(kind).fit(table.iloc[training].to_numpy(), table.columns),
        {},
        {},
        list(images.pixels.shape[1:]),
        {},
        remarks,
        [],
        len(table),
        fingerprint_of(table),
        None if images.labels is None else (images.labels[training], images.labels[test]),
    )


def _as_states(typed: Typed, visible: str, types: dict[str, str]) -> pd.DataFrame:
    """Columns as numbers or as categories; what they are goes to ``types``."""
    table = typed.table
    types.update({c: _type_of(table[c], typed.kinds[c]) for c in table.columns})
    constant = {c for c in table.columns if table[c].nunique() == 1}  # they say nothing of the others
    mixed = visible in ("auto", "mixed")
    return pd.DataFrame(
        {
            c: as_categories(table[c])
            if visible == "categorical" or (types[c] == "text" and (mixed or c in constant))
            else as_numbers(table[c])
            for c in table.columns
        }
    )


def _type_of(column: pd.Series, kind: str) -> str:
    if kind != "number":
        return kind if kind in ("text", "truth") else "number"  # dates and spans, which are refused
    values = column.dropna().to_numpy(np.float64)
    return "whole" if len(values) and whole_numbers(values).all() else "number"


def as_categories(column: pd.Series) -> pd.Series:
    """A column as texts, or as numbers if it holds numbers; gaps are NaN."""
    n = column.nunique()
    if n > _MOST_CATEGORIES:
        raise ValueError(
            f"column {column.name!r} has {n} different values, too many for categories (at most "
            f"{_MOST_CATEGORIES}): leave it out (--drop)"
        )
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.astype(object).where(column.notna(), np.nan)
    return pd.Series(as_numbers(column), column.index, name=column.name).astype(object)


def binary_rows(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows of 0 and 1, drawn from probabilities where there are any."""
    return (np.random.RandomState(seed).uniform(size=rows.shape) < rows).astype(np.float64)
