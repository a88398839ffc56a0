"""A run on a table for its joint density: split, fit, score, save. The folder is that of a regression run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.encoding import is_number
from thalweg.data.tables import read_table, write_table
from thalweg.estimators.density import EnergyDensity
from thalweg.evaluation.density_baselines import BASELINES
from thalweg.runs.folder import (
    begin_run,
    check_run,
    fingerprint_of,
    finish_run,
    listed,
    read_figures,
    read_run_settings,
    split_rows,
    versions,
    without_infinities,
)

TASK = "density"
MODEL_NAME = "thalweg"
_MAX_SAVED_ROWS = 5000
_N_OUTLIERS = 20
_FIGURES = {
    "table", "columns", "constant", "remarks", "rows", "training_rows", "test_rows", "validation_nll", "scores",
    "outliers", "training_log_prob", "seconds", "made_with",
}  # fmt: skip


@dataclass(frozen=True)
class DensitySettings:
    """What decides a run's result.

    Attributes:
        table: path of the table.
        drop: columns to leave out.
        test_fraction: part of the rows held out and never trained on, in [0, 1).
        seed: of the split and the training.
        objective, epochs, members, threads: see :class:`EnergyDensity`.
        checkpoint_seconds: least time between two checkpoints.
    """

    table: str
    drop: list[str] = field(default_factory=list)
    test_fraction: float = 0.1
    seed: int = 0
    objective: str = "auto"
    epochs: int = 200
    members: int = 8
    threads: int | None = None
    checkpoint_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"the test fraction must be at least 0 and below 1, got {self.test_fraction}")
        if len(set(self.drop)) < len(self.drop):
            raise ValueError(f"a column is named twice: {', '.join(self.drop)}")


@dataclass
class FinishedDensity:
    """A finished run, read from its folder.

    Attributes:
        folder: where it lies.
        settings: how it was made.
        figures: what was measured: ``scores`` (by model, the first is ours), ``outliers``, ``seconds``, and more.
        model: the fitted model.
        training_rows: rows that it was trained on, a sample if they are many.
        test_rows: rows held out, None if there are none.
    """

    folder: Path
    settings: DensitySettings
    figures: dict[str, Any]
    model: EnergyDensity
    training_rows: pd.DataFrame
    test_rows: pd.DataFrame | None

    @property
    def columns(self) -> list[str]:
        return list(self.figures["columns"])


# -- making a run ------------------------------------------------------------------------------------


def fit_density_run(
    folder: Path,
    settings: DensitySettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> FinishedDensity:
    """Fit the density of a table's rows, score it beside three baselines on rows held out, and save it all.

    Args:
        folder: of the run.
        resume: go on with the run in the folder, which must have the same settings.
        overwrite: replace a run in the folder.
        verbose: show the progress of training.
        tell: called with a line at every stage.

    Raises:
        ValueError: for data or settings that can't be used, or a folder that holds another run.
        DivergenceError: if training can't be kept from diverging.
    """
    if check_run(folder, TASK, settings, resume=resume, overwrite=overwrite):
        tell("This run is finished already.")
        return load_density_run(folder)
    data = read_numbers(settings.table, settings.drop, settings.test_fraction, settings.seed)
    begin_run(folder, TASK, settings, settings.table, data.fingerprint, resume=resume)
    model = EnergyDensity(
        settings.objective,
        n_members=settings.members,
        max_epochs=settings.epochs,
        n_threads=settings.threads,
        verbose=verbose,
        random_state=settings.seed,
    )
    model.fit(
        data.training, run_dir=folder / "training", resume=resume, checkpoint_seconds=settings.checkpoint_seconds
    )
    n_test = len(data.test)
    tell("Scoring the model and three baselines on the rows held out." if n_test else "No rows were held out.")
    scores, seconds = _scores(model, data, settings.seed) if n_test else ({}, {})
    start = time.monotonic()
    outliers = _outliers(model, data)
    seconds["looking for outliers"] = time.monotonic() - start
    figures = {
        "table": Path(settings.table).name,
        "columns": list(data.training.columns),
        "constant": data.constant,
        "remarks": data.remarks + _remarks(model, data),
        "rows": data.n_rows,
        "training_rows": len(data.training),
        "test_rows": n_test,
        "resolution": dict(zip(data.training.columns, model.resolution_.tolist(), strict=True)),
        "log_normaliser": model.log_normaliser_,
        "log_normaliser_error": model.log_normaliser_error_,
        "validation_nll": None if np.isnan(model.validation_nll_) else model.validation_nll_,
        "scores": scores,
        "outliers": outliers,
        "training_log_prob": thinned(model.training_log_prob_),
        "seconds": {"training": sum(h.seconds for h in model.history_), **seconds},
        "made_with": versions(),
    }
    shown = np.sort(np.random.RandomState(settings.seed).permutation(len(data.training))[:_MAX_SAVED_ROWS])
    write_table(data.training.iloc[shown], folder / "training_rows.parquet")
    if n_test:
        write_table(data.test, folder / "test_rows.parquet")
    extra = {k: figures[k] for k in ("table", "columns", "constant", "training_rows", "test_rows", "scores")}
    extra |= {"task": TASK, "seed": settings.seed, "test_fraction": settings.test_fraction}
    model.save(folder / "model", extra)
    finish_run(folder, figures)
    return load_density_run(folder)


@dataclass
class Numbers:
    """A table ready for a density.

    Attributes:
        training, test: complete rows, indexed by their places in the table.
        constant: columns left out because they never change, with their values.
        remarks: what a user should know of how the table was taken.
        n_rows: of the table.
        fingerprint: of the table.
    """

    training: pd.DataFrame
    test: pd.DataFrame
    constant: dict[str, Any]
    remarks: list[str]
    n_rows: int
    fingerprint: str


def numbers_of(table: pd.DataFrame) -> pd.DataFrame:
    """The columns as float64."""
    return pd.DataFrame({c: as_numbers(table[c]) for c in table.columns})


def read_numbers(
    path: str,
    drop: list[str],
    test_fraction: float,
    seed: int,
    convert: Callable[[pd.DataFrame], pd.DataFrame] = numbers_of,
) -> Numbers:
    """Read a table, leave out what has no density, and split the rows.

    Args:
        convert: what makes the columns those that a model takes.

    Raises:
        ValueError: for columns that a model can't take, or too few complete rows; in words.
    """
    table = read_table(Path(path))
    table.columns = table.columns.map(str)
    name = Path(path).name
    for column in drop:
        if column not in table.columns:
            raise ValueError(f"{name} has no column {column!r}; it has {listed(list(table.columns))}")
    table = table.drop(columns=drop)
    if table.shape[1] == 0:
        raise ValueError(f"{name} has no column left")
    fingerprint = fingerprint_of(table)
    numbers = convert(table)
    remarks = []
    complete = numbers.dropna()
    if len(complete) < 10:
        gaps = numbers.isna().sum().sort_values(ascending=False)
        worst = f"; most gaps has {gaps.index[0]!r} ({gaps.iloc[0]}): --drop it" if gaps.iloc[0] else ""
        raise ValueError(f"{name} has {len(complete)} rows without gaps: at least 10 are needed{worst}")
    if len(complete) < len(numbers):
        n = len(numbers) - len(complete)
        with_gaps = [c for c in numbers.columns if numbers[c].isna().any()]
        remarks.append(
            f"{n} of {len(numbers)} rows have gaps (in {listed(with_gaps)}) and were left out; the model can fill "
            "them with `thalweg impute`."
        )
    training_index, test_index = split_rows(len(complete), test_fraction, seed)
    training, test = complete.iloc[training_index], complete.iloc[test_index]
    constant = {c: _as_json(training[c].iloc[0]) for c in training.columns if training[c].nunique() == 1}
    if len(constant) == training.shape[1]:
        raise ValueError(f"{name} has no column that changes")
    if constant:
        remarks.append(f"Left out, because constant: {listed(list(constant))}.")
    training, test = training.drop(columns=list(constant)), test.drop(columns=list(constant))
    for column in training.select_dtypes("number").columns:
        steps = numbers[column].diff().iloc[1:]
        if len(steps) and (steps == 1).all():
            remarks.append(f"Column {column!r} numbers the rows: leave it out (--drop) unless it means something.")
    return Numbers(training, test, constant, remarks, len(table), fingerprint)


def _as_json(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)


def as_numbers(column: pd.Series) -> np.ndarray:
    """A column as float64, NaN where it has gaps.

    Raises:
        ValueError: if it holds something else.
    """
    if pd.api.types.is_datetime64_any_dtype(column):
        raise ValueError(
            f"column {column.name!r} holds dates, and a density is over numbers: leave it out (--drop)"
        )
    converted = pd.to_numeric(column, errors="coerce") if not is_number(column) else pd.to_numeric(column)
    bad = column[converted.isna() & column.notna()]
    if len(bad):
        example = f"{bad.iloc[0]!r} in row {int(bad.index[0]) + 1}"
        raise ValueError(
            f"column {column.name!r} holds texts ({example}), and a density is over numbers: mend the row, or "
            f"fit without the column (--drop {column.name!r})"
        )
    values = converted.to_numpy(np.float64, na_value=np.nan)
    if np.isnan(values).all():
        raise ValueError(f"column {column.name!r} has no value at all: leave it out (--drop)")
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0]) + 1
        raise ValueError(f"column {column.name!r} has an infinite value (row {row}): replace or remove it")
    return values


def held_out_log_prob(
    model: Any, test: np.ndarray, resolution: np.ndarray, seed: int, n_spreads: int = 8
) -> np.ndarray:
    """log p of each row ``[rows]``, of rounded columns the mean over places in the rounding cell.

    Every model that is asked with the same seed is asked at the same places.

    Args:
        model: with ``score_samples`` or ``log_prob``.
        resolution: of each column, 0 where it is not rounded.
    """
    ask = model.score_samples if hasattr(model, "score_samples") else model.log_prob
    rng = np.random.RandomState(seed)
    n_spreads = n_spreads if resolution.any() else 1
    total = np.zeros(len(test))
    for _ in range(n_spreads):
        total += ask(test + resolution * (rng.uniform(size=test.shape) - 0.5))
    return total / n_spreads


def scored(log_prob: np.ndarray) -> dict[str, Any]:
    """Mean held-out NLL with its standard error."""
    error = float(log_prob.std(ddof=1) / np.sqrt(len(log_prob))) if len(log_prob) > 1 else None
    return {"n_rows": len(log_prob), "nll": float(-log_prob.mean()), "nll_error": error}


def baseline_scores(data: Numbers, resolution: np.ndarray, seed: int) -> dict[str, tuple[np.ndarray, str, float]]:
    """Of each baseline: log p of the test rows, what was chosen, and the seconds it took."""
    training, test = data.training.to_numpy(), data.test.to_numpy()
    spread = training + resolution * (np.random.RandomState(seed).uniform(size=training.shape) - 0.5)
    found = {}
    for baseline in BASELINES:
        start = time.monotonic()
        fitted = baseline().fit(spread, seed)
        log_prob = held_out_log_prob(fitted, test, resolution, seed)
        found[baseline.name] = (log_prob, fitted.detail, time.monotonic() - start)
    return found


def _scores(model: EnergyDensity, data: Numbers, seed: int) -> tuple[dict[str, Any], dict[str, float]]:
    start = time.monotonic()
    ours = held_out_log_prob(_Unnamed(model), data.test.to_numpy(), model.resolution_, seed)
    exact = not model.log_normaliser_error_
    detail = "log Z exact" if exact else f"log Z ± {model.log_normaliser_error_:.2g}"
    scores = {MODEL_NAME: without_infinities({**scored(ours), "detail": detail})}
    seconds = {"scoring": time.monotonic() - start}
    for name, (log_prob, detail, took) in baseline_scores(data, model.resolution_, seed).items():
        gain = scored(ours - log_prob)
        # Both were scored on the same rows: the difference is known better than either figure.
        entry = {**scored(log_prob), "detail": detail, "nll_gain": -gain["nll"]}
        if gain["nll_error"] is not None:
            entry["nll_gain_error"] = gain["nll_error"]
        scores[name], seconds[name] = without_infinities(entry), took
    return scores, seconds


class _Unnamed:
    """A model asked by arrays, though it was fitted on a table."""

    def __init__(self, model: EnergyDensity):
        self.model = model

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        return self.model.score_samples(pd.DataFrame(X, columns=self.model.feature_names_in_))


def _outliers(model: EnergyDensity, data: Numbers) -> list[dict[str, Any]]:
    """The rows least likely under the model, least likely first; places in the table count from 1.

    Training rows are judged by networks that did not learn from them, or all test rows would look odd beside them.
    """
    rows = pd.concat([data.training, data.test])
    log_prob = model.training_log_prob_
    if len(data.test):
        log_prob = np.concatenate([log_prob, model.score_samples(data.test)])
    found = []
    for i in np.argsort(log_prob, kind="stable")[:_N_OUTLIERS]:
        place = int(rows.index[i])
        entry = {"row": place + 1, "log_prob": float(log_prob[i]), "training": bool(i < len(data.training))}
        found.append(entry | {"values": [float(v) for v in rows.iloc[i]]})
    return found


def thinned(values: np.ndarray, most: int = 1000) -> list[float]:
    """The values in order, or as many of them, evenly."""
    places = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return [round(float(v), 4) for v in np.sort(values)[places]]


def _remarks(model: EnergyDensity, data: Numbers) -> list[str]:
    remarks = []
    rounded = [f"{c!r} to {r:g}" for c, r in zip(data.training.columns, model.resolution_, strict=True) if r]
    if rounded:
        most = 12
        more = f" and {len(rounded) - most} more" if len(rounded) > most else ""
        remarks.append(
            f"Rounded columns: {', '.join(rounded[:most])}{more}. They are spread over their rounding cells "
            "(dequantised) in training and for all figures, and draws are rounded."
        )
    if model.log_normaliser_error_ > 0.1:
        remarks.append(
            f"log Z is known to ± {model.log_normaliser_error_:.2g} nats only; all log densities are off by that "
            "much alike. The objective 'auto' has it exactly."
        )
    several = len(model.history_) > 1
    for k, history in enumerate(model.history_):
        where = f"column {data.training.columns[k]!r}, " if several else ""
        remarks += [where + event for event in history.events]
    return remarks


# -- using a run -------------------------------------------------------------------------------------


def read_density_settings(folder: Path) -> DensitySettings:
    """The settings of a run.

    Raises:
        ValueError: if the folder holds no run, one of another kind, or a damaged one.
    """
    return read_run_settings(folder, TASK, DensitySettings)


def load_density_run(folder: Path) -> FinishedDensity:
    """Read a finished run.

    Raises:
        ValueError: if the folder holds no run, one of another kind, an unfinished or a damaged one.
    """
    settings = read_density_settings(folder)
    figures = read_figures(folder, TASK, _FIGURES)
    test = folder / "test_rows.parquet"
    return FinishedDensity(
        folder,
        settings,
        figures,
        EnergyDensity.load(folder / "model"),
        read_table(folder / "training_rows.parquet"),
        read_table(test) if test.exists() else None,
    )


def sample_table(run: FinishedDensity, n: int, seed: int = 0) -> pd.DataFrame:
    """n rows drawn from the model, with the training table's columns."""
    table = pd.DataFrame(run.model.sample(n, seed), columns=run.columns)
    for name, value in run.figures["constant"].items():
        table[name] = value
    return table


def score_table(run: FinishedDensity, table: pd.DataFrame) -> pd.DataFrame:
    """How likely each row is, one line for each; empty for rows with gaps.

    ``log_prob`` is in nats; ``outlier_score`` is the part of the training rows that are likelier, these judged by
    networks that did not learn from them: 1 is less likely than all of them.
    """
    X = _model_columns(run, table)
    known = X.notna().all(axis=1).to_numpy()
    log_prob, score = np.full(len(X), np.nan), np.full(len(X), np.nan)
    if known.any():
        log_prob[known] = run.model.score_samples(X[known])
        training = np.array(run.figures["training_log_prob"])
        score[known] = 1 - np.searchsorted(training, log_prob[known], side="right") / len(training)
    return pd.DataFrame({"log_prob": log_prob, "outlier_score": score})


def impute_table(
    run: FinishedDensity, table: pd.DataFrame, n: int = 1, seed: int = 0, n_candidates: int = 256
) -> pd.DataFrame:
    """The table with the gaps in the model's columns filled by draws given the rest of the row.

    With several imputations they are stacked, and a column ``imputation`` counts them from 1.
    """
    if n > 1 and "imputation" in table.columns:
        raise ValueError("the table has a column 'imputation' already: rename it, or ask for one imputation")
    X = _model_columns(run, table)
    filled = run.model.impute(X, n, seed, n_candidates=n_candidates).reshape(n, *X.shape)
    return completed_tables(table, X, filled, run.figures["constant"])


def completed_tables(
    table: pd.DataFrame, known: pd.DataFrame, filled: np.ndarray, constant: dict[str, Any]
) -> pd.DataFrame:
    """A table with its gaps filled, once for each imputation, one beneath the other.

    Args:
        known: the model's columns of the table ``[rows, columns]``.
        filled: ``[n, rows, columns]``.
        constant: columns that never changed, with their values.
    """
    n, stacked = len(filled), []
    for i in range(n):
        completed = table.copy()
        completed.columns = completed.columns.map(str)
        for k, name in enumerate(known.columns):
            gaps = known[name].isna().to_numpy()
            if gaps.any():
                completed[name] = np.where(gaps, filled[i, :, k], known[name])
        for name, value in constant.items():
            if name in completed.columns and completed[name].isna().any():
                completed[name] = completed[name].fillna(value)
        if n > 1:
            completed.insert(0, "imputation", i + 1)
        stacked.append(completed)
    return pd.concat(stacked, ignore_index=True)


def columns_of(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The columns that a model was trained on."""
    table = table.set_axis(table.columns.map(str), axis=1)
    missing = [c for c in names if c not in table.columns]
    if missing:
        raise ValueError(f"the table lacks {listed(missing)}, which the model was trained on")
    return table[names]


def _model_columns(run: FinishedDensity, table: pd.DataFrame) -> pd.DataFrame:
    columns = columns_of(table, run.columns)
    empty = np.full(len(table), np.nan)
    return pd.DataFrame({c: empty if columns[c].isna().all() else as_numbers(columns[c]) for c in run.columns})
