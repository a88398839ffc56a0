"""A run on a table: split, fit, score, save; and the folder that holds it all.

The folder of a run::

    fit.json               the settings; enough to go on after an interruption
    training/              the checkpoint, while the run is not finished
    model/                 the model: config.json and model.safetensors
    training_rows.parquet  training rows (a sample of a large table), for the report
    test_rows.parquet      the rows that were held out, with the truth
    figures.json           what was measured; written last, so a folder with one is finished
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.encoding import check_entries
from thalweg.data.tables import read_table, write_table
from thalweg.data.target import check_target
from thalweg.estimators.distribution import MultivariateDistribution, PredictiveDistribution
from thalweg.estimators.regressor import EnergyRegressor
from thalweg.evaluation.baselines import BASELINES
from thalweg.evaluation.regression import pit_values, score, score_rows, score_targets
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

_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ].*)?$"
_MAX_SAVED_ROWS = 5000
_MAX_TEXTS = 32
MODEL_NAME = "thalweg"
TASK = "regression"
_FIGURES = {
    "table", "inputs", "dates", "ignored", "remarks", "rows", "training_rows", "test_rows", "validation_nll",
    "scores", "seconds", "made_with",
}  # fmt: skip


@dataclass(frozen=True)
class RunSettings:
    """What decides a run's result.

    Attributes:
        table: path of the table.
        targets: columns to predict.
        drop: columns to leave out.
        test_fraction: part of the rows held out and never trained on, in [0, 1).
        seed: of the split, the folds and the training.
        objective, epochs, members, point, threads: see :class:`EnergyRegressor`.
        checkpoint_seconds: least time between two checkpoints.
    """

    table: str
    targets: list[str]
    drop: list[str] = field(default_factory=list)
    test_fraction: float = 0.1
    seed: int = 0
    objective: str = "auto"
    epochs: int = 200
    members: int = 8
    point: str = "mean"
    threads: int | None = None
    checkpoint_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"the test fraction must be at least 0 and below 1, got {self.test_fraction}")
        if not self.targets:
            raise ValueError("name the column to predict with --target COLUMN")
        for names in (self.targets, self.drop):
            if len(set(names)) < len(names):
                raise ValueError(f"a column is named twice: {', '.join(names)}")


@dataclass
class FinishedRun:
    """A finished run, read from its folder.

    Attributes:
        folder: where it lies.
        settings: how it was made.
        figures: what was measured: ``scores`` (by model, the first is ours), ``seconds``, and more.
        model: the fitted model.
        training_rows: rows that it was trained on, a sample if they are many.
        test_rows: rows held out, None if there are none.
    """

    folder: Path
    settings: RunSettings
    figures: dict[str, Any]
    model: EnergyRegressor
    training_rows: pd.DataFrame
    test_rows: pd.DataFrame | None

    @property
    def targets(self) -> list[str]:
        return self.settings.targets

    def inputs(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The columns that the model takes."""
        return rows[list(self.figures["inputs"])]

    def truth(self, rows: pd.DataFrame) -> np.ndarray:
        """The target of rows ``[rows]``, or the targets ``[rows, K]``."""
        values = rows[self.targets].to_numpy(np.float64)
        return values[:, 0] if values.shape[1] == 1 else values


# -- making a run ------------------------------------------------------------------------------------


def fit_run(
    folder: Path,
    settings: RunSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> FinishedRun:
    """Fit a model on a table, score it beside two baselines on rows held out, and save it all.

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
        return load_run(folder)
    table = read_table(Path(settings.table))
    table.columns = table.columns.map(str)
    X, y, dates = _split_columns(table, settings)
    fingerprint = fingerprint_of(table.drop(columns=settings.drop))
    training, test = split_rows(len(X), settings.test_fraction, settings.seed)

    begin_run(folder, TASK, settings, settings.table, fingerprint, resume=resume)
    model = EnergyRegressor(
        settings.objective,
        point=settings.point,
        n_members=settings.members,
        max_epochs=settings.epochs,
        n_threads=settings.threads,
        verbose=verbose,
        random_state=settings.seed,
    )
    model.fit(
        X.iloc[training],
        y[training],
        run_dir=folder / "training",
        resume=resume,
        checkpoint_seconds=settings.checkpoint_seconds,
    )
    tell("Scoring the model and two baselines on the rows held out." if len(test) else "No rows were held out.")
    scores, seconds = _scores(model, X, y, training, test, settings)
    assert model.encoder_ is not None
    figures = {
        "table": Path(settings.table).name,
        "inputs": list(X.columns),
        "dates": dates,
        "ignored": model.encoder_.ignored,
        "remarks": _remarks(X, y, model, settings),
        "rows": len(table),
        "training_rows": len(training),
        "test_rows": len(test),
        "resolution": model.resolution_,
        "validation_nll": None if np.isnan(model.validation_nll_) else model.validation_nll_,
        "scores": scores,
        "seconds": {"training": model.history_.seconds, **seconds},
        "made_with": versions(),
    }
    shown = np.sort(np.random.RandomState(settings.seed).permutation(training)[:_MAX_SAVED_ROWS])
    everything = pd.concat([X, pd.DataFrame(y, columns=settings.targets, index=X.index)], axis=1)
    write_table(everything.iloc[shown], folder / "training_rows.parquet")
    if len(test):
        write_table(everything.iloc[test], folder / "test_rows.parquet")
    extra = {k: figures[k] for k in ("table", "inputs", "dates", "training_rows", "test_rows", "scores")}
    extra |= {"targets": settings.targets, "seed": settings.seed, "test_fraction": settings.test_fraction}
    model.save(folder / "model", extra)
    finish_run(folder, figures)
    return load_run(folder)


def _split_columns(table: pd.DataFrame, settings: RunSettings) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    name = Path(settings.table).name
    for column in [*settings.targets, *settings.drop]:
        if column not in table.columns:
            raise ValueError(f"{name} has no column {column!r}; it has {listed(list(table.columns))}")
    y = np.column_stack([_numbers(table[t], t) for t in settings.targets])
    X = table.drop(columns=[*settings.targets, *(d for d in settings.drop if d not in settings.targets)])
    if X.shape[1] == 0:
        raise ValueError(f"{name} has no column left to predict from")
    if len(X) < 10:
        raise ValueError(f"{name} has {len(X)} rows: at least 10 are needed")
    for column in X.columns:
        if pd.api.types.is_object_dtype(X[column]):
            check_entries(X[column])
    dates = [c for c in X.columns if _looks_like_date(X[c])]
    X = _with_dates(X, dates)
    dates += [c for c in X.columns if pd.api.types.is_datetime64_any_dtype(X[c]) and c not in dates]
    return X, y[:, 0] if y.shape[1] == 1 else y, dates


def _numbers(column: pd.Series, name: str) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(column):
        converted = pd.to_numeric(column, errors="coerce")
        bad = column[converted.isna() & column.notna()]
        if len(bad):
            example = f"{bad.iloc[0]!r} in row {bad.index[0]}"
            raise ValueError(f"the target {name!r} must hold numbers, but has {example}: mend or remove such rows")
        column = converted
    values = column.to_numpy(np.float64, na_value=np.nan)
    try:
        check_target(values[:, None])
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from None
    return values


def _scores(
    model: EnergyRegressor,
    X: pd.DataFrame,
    y: np.ndarray,
    training: np.ndarray,
    test: np.ndarray,
    settings: RunSettings,
) -> tuple[dict[str, Any], dict[str, float]]:
    if not len(test):
        return {}, {}
    scores: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    start = time.monotonic()
    distribution = model.predict_distribution(X.iloc[test])
    if isinstance(distribution, MultivariateDistribution):
        scores[MODEL_NAME] = score_targets(y[test], distribution, settings.targets)
        seconds["scoring"] = time.monotonic() - start
        for baseline in BASELINES:
            start = time.monotonic()
            parts = {}
            for k, name in enumerate(settings.targets):
                fitted = baseline().fit(X.iloc[training], y[training, k])
                parts[name] = score(y[test, k], fitted.predict_distribution(X.iloc[test]))
            rows = np.sum([p.log_score for p in parts.values()], axis=0)
            scores[baseline.name] = {
                "n_rows": len(rows),
                "nll": float(-rows.mean()),
                "nll_error": float(rows.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else None,
                "targets": {
                    name: {k: p.summary()[k] for k in ("crps", "rmse", "mae", "coverage")}
                    for name, p in parts.items()
                },
            }
            seconds[baseline.name] = time.monotonic() - start
        return scores, seconds
    ours = score(y[test], distribution, model.resolution_)
    scores[MODEL_NAME] = without_infinities(ours.summary())
    seconds["scoring"] = time.monotonic() - start
    for baseline in BASELINES:
        start = time.monotonic()
        fitted = baseline().fit(X.iloc[training], y[training], model.resolution_)
        other = score(y[test], fitted.predict_distribution(X.iloc[test]), model.resolution_)
        gain = ours.log_score - other.log_score
        # The two were scored on the same rows: the difference is known better than either figure.
        paired = {"nll_gain": float(gain.mean())}
        if len(gain) > 1:
            paired["nll_gain_error"] = float(gain.std(ddof=1) / np.sqrt(len(gain)))
        scores[baseline.name] = without_infinities(other.summary() | paired)
        seconds[baseline.name] = time.monotonic() - start
    return scores, seconds


def _remarks(X: pd.DataFrame, y: np.ndarray, model: EnergyRegressor, settings: RunSettings) -> list[str]:
    """What a user should know of how the table was taken."""
    remarks = []
    assert model.encoder_ is not None
    if model.encoder_.ignored:
        remarks.append(f"Left out, because constant: {listed(model.encoder_.ignored)}.")
    for name in X.columns:
        if pd.api.types.is_integer_dtype(X[name]) and len(X) > 1 and (X[name].diff().iloc[1:] == 1).all():
            remarks.append(
                f"Column {name!r} numbers the rows: leave it out (--drop) unless their order means much."
            )
    for column in model.encoder_.columns:
        if column["kind"] == "category":
            n = X[column["name"]].nunique()
            if n > _MAX_TEXTS:
                remarks.append(
                    f"Column {column['name']!r} has {n} different texts; the {_MAX_TEXTS} most frequent are used. "
                    "If it names the rows, drop it."
                )
    if model.resolution_:
        remarks.append(
            f"The target is rounded to multiples of {model.resolution_:g}: it was spread over its rounding cells "
            "in training (dequantised), and is scored by the probability of the cell."
        )
    for k, name in enumerate(settings.targets):
        values = y if y.ndim == 1 else y[:, k]
        low, first, last, high = np.quantile(values, [0, 0.05, 0.95, 1])
        if high - low > 10 * (last - first) > 0:
            remark = (
                f"The target {name!r} has values far from all others ({low:g} to {high:g}; nine rows in ten lie "
            )
            remark += f"in {first:g} to {last:g}), which blur the rest: "
            remark += "remove them if they are mistakes" + ("; or predict its logarithm." if low > 0 else ".")
            remarks.append(remark)
    remarks += model.history_.events
    return remarks


# -- using a run -------------------------------------------------------------------------------------


def read_settings(folder: Path) -> RunSettings:
    """The settings of a run.

    Raises:
        ValueError: if the folder holds no run, or a damaged one.
    """
    return read_run_settings(folder, TASK, RunSettings)


def load_run(folder: Path) -> FinishedRun:
    """Read a finished run.

    Raises:
        ValueError: if the folder holds no run, an unfinished or a damaged one.
    """
    settings = read_settings(folder)
    figures = read_figures(folder, TASK, _FIGURES)
    test = folder / "test_rows.parquet"
    return FinishedRun(
        folder,
        settings,
        figures,
        EnergyRegressor.load(folder / "model"),
        read_table(folder / "training_rows.parquet"),
        read_table(test) if test.exists() else None,
    )


def predict_table(
    run: FinishedRun,
    table: pd.DataFrame,
    *,
    quantiles: list[float],
    coverage: float,
    n_samples: int = 0,
    seed: int = 0,
    chunk_rows: int = 10_000,
) -> pd.DataFrame:
    """The predictions for a table, one line for each of its rows.

    Args:
        quantiles: probabilities whose quantiles are wanted.
        coverage: of the central interval.
        n_samples: draws from p(y|x), in as many columns.
        seed: of the draws.

    Raises:
        ValueError: if the table lacks a column that the model was trained on, or a value can't be used.
    """
    for p in quantiles:
        if not 0 < p < 1:
            raise ValueError(f"a quantile must lie strictly between 0 and 1, got {p:g}")
    if not 0 < coverage < 1:
        raise ValueError(f"the coverage must lie strictly between 0 and 1, got {coverage:g}")
    table = table.copy()
    table.columns = table.columns.map(str)
    missing = [c for c in run.figures["inputs"] if c not in table.columns]
    if missing:
        raise ValueError(f"the table lacks {listed(missing)}, which the model was trained on")
    X = _with_dates(run.inputs(table), run.figures["dates"])
    rng = np.random.RandomState(seed)
    parts = []
    for start in range(0, len(X), chunk_rows):
        rows = slice(start, start + chunk_rows)
        distribution = run.model.predict_distribution(X.iloc[rows])
        parts.append(_predictions(run, distribution, table.iloc[rows], quantiles, coverage, n_samples, rng))
    return pd.concat(parts, ignore_index=True)


def _predictions(
    run: FinishedRun,
    distribution: PredictiveDistribution | MultivariateDistribution,
    table: pd.DataFrame,
    quantiles: list[float],
    coverage: float,
    n_samples: int,
    rng: np.random.RandomState,
) -> pd.DataFrame:
    several = len(run.targets) > 1
    columns: dict[str, np.ndarray] = {}

    def add(name: str, values: np.ndarray) -> None:
        """[rows] for one target; [rows, K] for several, which gives a column for each."""
        if several:
            columns.update({f"{name}_{target}": values[:, k] for k, target in enumerate(run.targets)})
        else:
            columns[name] = values

    add("mean", distribution.mean())
    add("median", distribution.median())
    add("mode", distribution.mode())
    if isinstance(distribution, PredictiveDistribution):
        add("std", distribution.std())
    if quantiles:
        values = distribution.quantile(np.array(quantiles))
        for i, p in enumerate(quantiles):
            add(f"q{p:g}", values[:, i])
    interval = distribution.interval(coverage)
    add(f"lower_{coverage:g}", interval[:, 0])
    add(f"upper_{coverage:g}", interval[:, 1])
    if n_samples:
        draws = distribution.sample(n_samples, rng)
        for i in range(n_samples):
            add(f"sample_{i + 1}", draws[:, i])
    if all(t in table.columns for t in run.targets):
        truth = table[run.targets].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
        known = np.isfinite(truth).all(1)
        if known.any():
            log_prob, pit = np.full(len(table), np.nan), np.full(len(table), np.nan)
            # Rows without the truth are asked at any value, and left empty.
            filled = np.where(known[:, None], truth, np.asarray(run.model.location_))
            if isinstance(distribution, PredictiveDistribution):
                resolution = run.model.resolution_
                log_prob = np.where(known, score_rows(filled[:, 0], distribution, resolution), np.nan)
                pit = np.where(known, pit_values(filled[:, 0], distribution, resolution), np.nan)
                columns["log_prob"], columns["pit"] = log_prob, pit
            else:
                columns["log_prob"] = np.where(known, distribution.log_prob(filled), np.nan)
    return pd.DataFrame(columns)


# -- dates, files, words -----------------------------------------------------------------------------


def _looks_like_date(column: pd.Series) -> bool:
    """Whether a column of texts holds nothing but dates as 2024-05-31, with a time or without."""
    if pd.api.types.is_numeric_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype):
        return False
    known = column.dropna()
    if not len(known) or not known.map(lambda v: isinstance(v, str)).all():
        return False
    if not known.str.match(_ISO_DATE).all():
        return False
    return bool(pd.to_datetime(known, format="ISO8601", errors="coerce", utc=True).notna().all())


def _with_dates(X: pd.DataFrame, dates: list[str]) -> pd.DataFrame:
    X = X.copy()
    for name in dates:
        column = X[name]
        parsed = pd.to_datetime(column, format="ISO8601", errors="coerce", utc=True).dt.tz_localize(None)
        bad = column[parsed.isna() & column.notna()]
        if len(bad):
            example = f"{bad.iloc[0]!r} in row {bad.index[0]}"
            raise ValueError(f"column {name!r} held dates in training, but has {example}: write it as 2024-05-31")
        X[name] = parsed
    return X
