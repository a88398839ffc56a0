"""What the runs on tables share: reading numbers, splitting rows, filled tables, figures of held-out rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from thalweg.data.columns import only_numbers
from thalweg.data.images import Images
from thalweg.data.tables import column_names, read_cells
from thalweg.data.target import find_atoms, find_resolution
from thalweg.evaluation.verdict import Check, check_doubts, check_held_out, check_rows_used
from thalweg.runs.folder import listed
from thalweg.runs.settings import Settings

# The name of our model in every table of scores, where it comes first.
MODEL_NAME = "thalweg"
# With fewer rows to compare with more than one normal row in twenty has an outlier score above 0.95.
_FEWEST_FOR_SCORES = 19


@dataclass
class Numbers:
    """A table ready for a model of its rows.

    Attributes:
        training, test: rows, indexed by their places in the table.
        constant: columns that were left out because they never change, with their values.
        kinds: what each column of the table is.
        remarks: what a user should know about how the table was read.
        doubts: what may be wrong with its columns, in sentences.
        n_rows: number of rows in the table.
        fingerprint: a hash of the table.
    """

    training: pd.DataFrame
    test: pd.DataFrame
    constant: dict[str, Any]
    kinds: dict[str, str]
    remarks: list[str]
    doubts: list[str]
    n_rows: int
    fingerprint: str


class Typed(NamedTuple):
    """A table whose columns have the types that suit them.

    Attributes:
        table: the columns that are not dropped.
        kinds: what each is, one of :data:`~thalweg.data.columns.KINDS`.
        remarks: what a user should know about how they were read.
    """

    table: pd.DataFrame
    kinds: dict[str, str]
    remarks: list[str]


def read_typed(settings: Any, kept: Collection[str] = (), text: Collection[str] | None = None) -> Typed:
    """Read the table of a task, and decide what its columns are.

    Args:
        settings: with ``data``, ``drop``, ``text`` and ``missing``.
        kept: columns that are not dropped even if the settings say so.
        text: columns that are texts, whatever they hold; None for those that the settings name.

    Raises:
        ValueError: for columns that there are not, or that are in doubt; in words.
    """
    path = Path(settings.data)
    cells = read_cells(path)
    refuse_unknown_columns(settings.named_columns, list(cells.table.columns), path.name)
    table = cells.table.drop(columns=[name for name in settings.drop if name not in kept])
    if table.shape[1] == 0:
        raise ValueError(f"{path.name} has no column left")
    texts = settings.text if text is None else text
    found = cells._replace(table=table).decided(texts, settings.missing)
    return Typed(
        pd.DataFrame({name: column.values for name, column in found.items()}),
        {name: column.kind for name, column in found.items()},
        [remark for column in found.values() for remark in column.remarks],
    )


def numbers_of(typed: Typed) -> pd.DataFrame:
    """The columns as float64."""
    return pd.DataFrame({c: as_numbers(typed.table[c]) for c in typed.table.columns})


def read_numbers(settings: Any, convert: Callable[[Typed], pd.DataFrame] = numbers_of) -> Numbers:
    """Read a table, leave out rows with gaps and constant columns, and split the rows.

    Args:
        settings: of a task on tables.
        convert: turns the columns into those that a model takes.

    Raises:
        ValueError: for columns that a model can't take, or too few complete rows; in words.
    """
    name, typed = Path(settings.data).name, read_typed(settings)
    table, test_fraction, seed = typed.table, settings.test_fraction, settings.seed
    fingerprint = fingerprint_of(table)
    numbers = convert(typed)
    remarks = list(typed.remarks)
    complete = numbers.dropna()
    if len(complete) < 10:
        gaps = numbers.isna().sum().sort_values(ascending=False)
        worst = f"; most gaps has {gaps.index[0]!r} ({gaps.iloc[0]}): --drop it" if gaps.iloc[0] else ""
        raise ValueError(f"{name} has {len(complete)} rows without gaps: at least 10 are needed{worst}")
    if len(complete) < len(numbers):
        n = len(numbers) - len(complete)
        with_gaps = [c for c in numbers.columns if numbers[c].isna().any()]
        remarks.append(
            f"{n} of {len(numbers)} rows have gaps (in {listed(with_gaps)}) and were left out"
            + ("; the model can fill them with `thalweg impute`." if settings.fills_gaps else ".")
        )
    training_index, test_index = split_rows(len(complete), test_fraction, seed)
    training, test = complete.iloc[training_index], complete.iloc[test_index]
    constant = {c: _as_json(training[c].iloc[0]) for c in training.columns if training[c].nunique() == 1}
    if len(constant) == training.shape[1]:
        raise ValueError(f"{name} has no column that changes")
    if constant:
        remarks.append(f"Left out, because constant: {listed(list(constant))}.")
    training, test = training.drop(columns=list(constant)), test.drop(columns=list(constant))
    doubts = doubts_of_columns(numbers[training.columns])
    return Numbers(training, test, constant, typed.kinds, remarks, doubts, len(table), fingerprint)


def read_rows(settings: Any) -> Numbers:
    """Read a table of columns of any kind, with gaps, leave out constant columns, and split the rows.

    Raises:
        ValueError: for columns that hold nothing or an infinite value, or too few rows; in words.
    """
    name, typed = Path(settings.data).name, read_typed(settings)
    table, remarks = typed.table, list(typed.remarks)
    fingerprint = fingerprint_of(table)
    for column in table.columns:
        if table[column].isna().all():
            raise ValueError(f"column {column!r} has no value at all: leave it out (--drop)")
        if pd.api.types.is_float_dtype(table[column]) and np.isinf(table[column]).any():
            row = int(np.flatnonzero(np.isinf(table[column]))[0]) + 1
            raise ValueError(f"column {column!r} has an infinite value (row {row}): replace or remove it")
    known = table[table.notna().any(axis=1)]
    if len(known) < 10:
        raise ValueError(f"{name} has {len(known)} rows with any value: at least 10 are needed")
    if len(known) < len(table):
        remarks.append(f"{len(table) - len(known)} of {len(table)} rows hold nothing and were left out.")
    with_gaps = [c for c in known.columns if known[c].isna().any()]
    if with_gaps:
        n = int(known.isna().any(axis=1).sum())
        remarks.append(
            f"{n} of {len(known)} rows have gaps (in {listed(with_gaps)}): a gap is a value that is not known, "
            "and the rest of such a row counts; `thalweg impute` fills gaps."
        )
    known = known.apply(lambda c: c.astype(object) if isinstance(c.dtype, pd.CategoricalDtype) else c)
    training_index, test_index = split_rows(len(known), settings.test_fraction, settings.seed)
    training, test = known.iloc[training_index], known.iloc[test_index]
    empty = [c for c in training.columns if training[c].isna().all()]
    if empty:
        raise ValueError(f"column {empty[0]!r} has no value in the training rows: leave it out (--drop)")
    fixed = [c for c in training.columns if training[c].nunique(dropna=True) == 1 and training[c].notna().all()]
    constant = {c: _as_json(training[c].iloc[0]) for c in fixed}
    if len(constant) == training.shape[1]:
        raise ValueError(f"{name} has no column that changes")
    if constant:
        remarks.append(f"Left out, because constant: {listed(list(constant))}.")
    training, test = training.drop(columns=fixed), test.drop(columns=fixed)
    doubts = doubts_of_columns(known[training.columns])
    return Numbers(training, test, constant, typed.kinds, remarks, doubts, len(table), fingerprint)


def doubts_of_columns(table: pd.DataFrame) -> list[str]:
    """What may be wrong with columns, in sentences: they number or name rows, or have values far from others."""
    doubts = []
    for name, column in table.select_dtypes(exclude="number").items():
        if len(column) >= 20 and column.dtype == object and column.nunique() > 0.9 * column.notna().sum():
            doubts.append(
                f"Column {name!r} names the rows: nearly every one has a text of its own; leave it out (--drop)."
            )
    for name, column in table.select_dtypes("number").items():
        steps = column.diff().iloc[1:]
        if len(steps) and (steps == 1).all():
            doubts.append(f"Column {name!r} numbers the rows: leave it out (--drop) unless their order matters.")
        elif far := far_values(column.dropna().to_numpy(np.float64)):
            doubts.append(
                f"Column {name!r} has values far from all others ({far}): remove them if they are mistakes."
            )
    return doubts


def far_values(values: np.ndarray) -> str:
    """The range of values and of nine in ten of them, in words, where it is ten times as wide; else ""."""
    if not len(values):
        return ""
    low, first, last, high = np.quantile(values, [0, 0.05, 0.95, 1])
    if not high - low > 10 * (last - first) > 0:
        return ""
    return f"{low:g} to {high:g}; nine rows in ten are in {first:g} to {last:g}"


def refuse_unknown_columns(named: list[str], known: list[str], file: str) -> None:
    """Refuse names of columns that a table lacks."""
    for column in named:
        if column not in known:
            raise ValueError(f"{file} has no column {column!r}; it has {listed(known)}")


def check_columns(settings: Settings) -> None:
    """Refuse options that name columns that the table lacks, from its first line alone."""
    path = Path(settings.data)
    if settings.named_columns and path.is_file() and path.suffix.lower() != ".npz":
        refuse_unknown_columns(settings.named_columns, column_names(path), path.name)


def _as_json(value: Any) -> Any:
    return str(value) if isinstance(value, str | pd.Timestamp) else float(value)


def as_numbers(column: pd.Series) -> np.ndarray:
    """A column as float64, NaN where it has gaps.

    Raises:
        ValueError: if it holds something else.
    """
    values = only_numbers(
        column,
        f"this model is of numbers; correct such rows, or fit without the column (--drop {column.name!r})",
    )
    if np.isnan(values).all():
        raise ValueError(f"column {column.name!r} has no value at all: leave it out (--drop)")
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0]) + 1
        raise ValueError(f"column {column.name!r} has an infinite value (row {row}): replace or remove it")
    return values


def split_rows(n_rows: int, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows, in the order of the table. The same seed gives the same split."""
    n_test = max(1, round(test_fraction * n_rows)) if test_fraction else 0
    if n_rows - n_test < 5:
        raise ValueError(
            f"{n_rows - n_test} of {n_rows} are left to train on, and at least 5 are needed: give more, or lower "
            "--test-fraction"
        )
    order = np.random.RandomState(seed).permutation(n_rows)
    return np.sort(order[n_test:]), np.sort(order[:n_test])


def fingerprint_of(table: pd.DataFrame) -> str:
    """A hash of the values and the names: it shows whether a table is still the one that a run was started on."""
    digest = hashlib.sha256(repr([(str(c), str(t)) for c, t in table.dtypes.items()]).encode())
    digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def completed_tables(
    table: pd.DataFrame,
    known: pd.DataFrame,
    filled: Sequence[Any] | np.ndarray,
    constant: dict[str, Any],
    kinds: Mapping[str, str],
) -> pd.DataFrame:
    """A table with its gaps filled, once for each imputation, one below the other; all else stays as it was.

    Args:
        table: as it stands in the file.
        known: the model's columns of the table ``[rows, columns]``.
        filled: n tables ``[rows, columns]``.
        constant: columns that never changed, with their values.
        kinds: what each of the model's columns is.
    """
    n, stacked = len(filled), []
    for i in range(n):
        completed = table.copy()
        for k, name in enumerate(known.columns):
            gaps = known[name].isna().to_numpy()
            if gaps.any():
                values = (
                    filled[i].iloc[:, k].to_numpy() if isinstance(filled[i], pd.DataFrame) else filled[i][:, k]
                )
                completed[name] = _with_filled(completed[name], gaps, values, kinds[name])
        for name, value in constant.items():
            if name in completed.columns:
                gaps = completed[name].isna() | (completed[name] == "")
                if gaps.any():
                    completed[name] = _with_filled(completed[name], gaps.to_numpy(), np.full(len(table), value))
        # An empty text would be written as "", and a gap as nothing.
        completed = completed.mask(completed == "", None)
        if n > 1:
            completed.insert(0, "imputation", i + 1)
        stacked.append(completed)
    return pd.concat(stacked, ignore_index=True)


def _with_filled(column: pd.Series, gaps: np.ndarray, values: np.ndarray, kind: str = "") -> pd.Series:
    """Values put into the gaps of a column, written as it writes its own."""
    if pd.api.types.is_numeric_dtype(column) and not column.isna().all():
        numbers = column.to_numpy(np.float64, na_value=np.nan)
        return pd.Series(np.where(gaps, values.astype(np.float64), numbers), column.index)
    words: dict[Any, Any] = {}
    if kind == "date" and column.dtype != object and not pd.api.types.is_string_dtype(column):
        return column.where(~gaps, pd.Series(values, column.index))
    if kind == "date":
        dates = pd.Series(values, column.index).astype("datetime64[us]")
        midnight = (dates.dropna() == dates.dropna().dt.normalize()).all()
        values = dates.dt.strftime("%Y-%m-%d" if midnight else "%Y-%m-%d %H:%M:%S").to_numpy(object)
    if kind == "truth":
        texts = {str(v).casefold(): v for v in column[~gaps]}
        words = {1: texts.get("true", True), 0: texts.get("false", False)}
    # A whole number has no point among texts.
    written = [str(int(v)) if isinstance(v, float) and v.is_integer() else v for v in values.tolist()]
    out = column.astype(object).copy()
    out[gaps] = [words.get(v, text) for v, text, gap in zip(values, written, gaps, strict=True) if gap]
    return out


def checks_of_table(n_rows: int, n_used: int, n_test: int, doubts: list[str]) -> list[Check]:
    """Checks of how a table was read.

    Args:
        n_rows, n_used: rows of the table, and those of them that have no gaps.
        n_test: rows held out.
        doubts: what may be wrong with its columns.
    """
    advice = "Leave out the columns with most gaps (--drop)."
    return [check_rows_used(n_used, n_rows, advice), check_held_out(n_test), check_doubts(doubts)]


def gains_of(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float | None, float | None]]:
    """The gain over each baseline and its standard error, from the figures of a run."""
    ours, gains = scores[MODEL_NAME], {}
    for name, entry in scores.items():
        if "nll_gain" in entry:
            gains[name] = (entry["nll_gain"], entry.get("nll_gain_error"))
        elif name != MODEL_NAME and None not in (ours["nll"], entry["nll"]):
            # Not paired, the error is at most what it is of two means of their own.
            error = float(np.hypot(ours["nll_error"] or 0.0, entry["nll_error"] or 0.0))
            gains[name] = (entry["nll"] - ours["nll"], error)
        elif name != MODEL_NAME:
            gains[name] = (None, None)
    return gains


def scored(log_prob: np.ndarray) -> dict[str, Any]:
    """Mean held-out NLL with its standard error."""
    error = float(log_prob.std(ddof=1) / np.sqrt(len(log_prob))) if len(log_prob) > 1 else None
    return {"n_rows": len(log_prob), "nll": float(-log_prob.mean()), "nll_error": error}


def thinned(values: np.ndarray, most: int = 1000) -> list[float]:
    """The values in order, or as many of them, evenly."""
    places = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return [round(float(v), 4) for v in np.sort(values)[places]]


def without_infinities(summary: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: an infinite or undefined figure becomes null."""
    return {
        k: without_infinities(v)
        if isinstance(v, dict)
        else None
        if isinstance(v, float) and not np.isfinite(v)
        else v
        for k, v in summary.items()
    }


def scored_rows(model: Any, X: pd.DataFrame, held_out_log_prob: list[float]) -> pd.DataFrame:
    """How likely each row is, one line for each; empty for rows with gaps.

    Args:
        model: with ``score_samples``.
        X: the model's columns.
        held_out_log_prob: log p of rows that the model did not learn from, sorted.

    Returns:
        ``log_prob`` in nats, the higher the likelier; ``outlier_score`` (see :func:`outlier_scores`); ``note``,
        why a row has neither.
    """
    known = X.notna().all(axis=1).to_numpy()
    log_prob, score = np.full(len(X), np.nan), np.full(len(X), np.nan)
    if known.any():
        log_prob[known] = model.score_samples(X[known])
        score[known] = outlier_scores(log_prob[known], held_out_log_prob)
    gaps = X.isna().to_numpy()
    note = pd.Series(pd.NA, range(len(X)), dtype="string")  # text in a Parquet file even if there is none
    note[~known] = ["has gaps in " + listed(list(map(str, X.columns[row]))) for row in gaps[~known]]
    return pd.DataFrame({"log_prob": log_prob, "outlier_score": score, "note": note})


def outlier_scores(log_prob: np.ndarray, held_out: list[float]) -> np.ndarray:
    """How many of the n rows held out are likelier, divided by n + 1, or 1 where all are ``[rows]``.

    Of rows from the same source at most one in twenty scores above 0.95, if n is 19 or more.

    Args:
        log_prob: of the rows.
        held_out: the same of rows that the model did not learn from, sorted.

    Source: one minus a conformal p-value [Vovk 2005].
    """
    n = len(held_out)
    likelier = n - np.searchsorted(np.array(held_out), log_prob, side="right")
    return np.where(likelier == n, 1.0, likelier / (n + 1))


def rows_of(table: pd.DataFrame, keep: Sequence[str]) -> pd.DataFrame:
    """What says which row of a table is meant: its number, from 1, and the columns to keep, as they stand there.

    Raises:
        ValueError: if the table lacks a column, or one is named twice or as the number is.
    """
    refuse_unknown_columns(list(keep), list(table.columns), "the table")
    found = pd.DataFrame({"row": np.arange(1, len(table) + 1)})
    for name in keep:
        if name in found.columns:
            raise ValueError(f"--keep {name}: there is a column of this name already")
        found[name] = table[name].reset_index(drop=True)
    return found


def rows_by_name(column: pd.Series, file: str, what: str) -> tuple[list[str], list[np.ndarray]]:
    """The names in a column, in the order in which they come first, and the rows of each.

    Args:
        what: what is named, such as "sequence".

    Raises:
        ValueError: for a row without a name.
    """
    gaps = column.isna().to_numpy()
    if gaps.any():
        row = int(np.flatnonzero(gaps)[0]) + 1
        raise ValueError(f"row {row} of {file} belongs to no {what}: {column.name!r} is empty there")
    codes, names = pd.factorize(column.astype(object))
    order = np.argsort(codes, kind="stable")
    cuts = np.cumsum(np.bincount(codes, minlength=len(names)))[:-1]
    return [str(name) for name in names], np.split(order, cuts)


def places_of(images: Images) -> pd.DataFrame:
    """What says which image is meant: its file in a folder, or its place in an array, from 1."""
    if images.files is None:
        return pd.DataFrame({"row": np.arange(1, len(images.pixels) + 1)})
    return pd.DataFrame({"file": list(images.files)})


def beside(places: pd.DataFrame, result: pd.DataFrame) -> pd.DataFrame:
    """A result for each row or image, after what says which one it is.

    Raises:
        ValueError: if a column that is kept has the name of one of the result.
    """
    for name in places.columns:
        if name in result.columns:
            raise ValueError(f"--keep {name}: the result has a column of this name: rename that of the table")
    return pd.concat([places, result], axis=1)


def atoms_in_words(table: pd.DataFrame) -> str:
    """Columns that take some values with positive probability beside others, and the values; "" if none does."""
    found = {name: column.dropna().to_numpy() for name, column in table.items()}
    atoms = {name: [] if find_resolution(x) else find_atoms(x) for name, x in found.items()}
    return ", ".join(f"{name!r} ({', '.join(f'{a:g}' for a in some)})" for name, some in atoms.items() if some)


def few_held_out(n: int) -> list[str]:
    """What a user should know about outlier scores, where few rows are held out."""
    if n >= _FEWEST_FOR_SCORES:
        return []
    return [
        f"Outlier scores compare new rows with {n} held-out rows only: of rows of the same kind one in {n + 1} "
        "scores 1. Hold out more (--test-fraction)."
    ]


def refuse_counter(table: pd.DataFrame, n_draws: int) -> None:
    """Refuse a table whose own column would be taken for the counter of several filled tables."""
    if n_draws > 1 and "imputation" in table.columns:
        raise ValueError("the table has a column 'imputation' already: rename it, or ask for one draw")


def model_settings(settings: Any) -> dict[str, Any]:
    """The parameters that every estimator takes from the settings of a run."""
    names = {
        "device": "device",
        "devices": "devices",
        "num_nodes": "nodes",
        "strategy": "strategy",
        "precision": "precision",
        "n_threads": "threads",
        "random_state": "seed",
    }
    return {name: getattr(settings, field) for name, field in names.items() if hasattr(settings, field)}


def with_error(value: float | None, error: float | None, sign: str = "") -> str:
    """A figure with its standard error, as text."""
    if value is None:
        return "not finite"
    return f"{value:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")
