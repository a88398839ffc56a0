"""A run on a table for a target: split, fit, score, save, predict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.columns import row_of, to_numbers
from thalweg.data.tables import Cells, read_cells
from thalweg.data.target import check_target
from thalweg.estimators.distribution import MultivariateDistribution, PredictiveDistribution
from thalweg.estimators.regressor import EnergyRegressor
from thalweg.evaluation.baselines import BASELINES, WithAtoms
from thalweg.evaluation.regression import joint_log_prob, pit_values, score, score_rows, score_targets
from thalweg.evaluation.verdict import Check, check_baselines, check_coverage
from thalweg.runs.base import MODEL_NAME, Run, Tell, TextTable
from thalweg.runs.folder import listed
from thalweg.runs.kinds import RegressionFigures
from thalweg.runs.settings.regression import RegressionSettings
from thalweg.runs.tables import (
    Typed,
    beside,
    checks_of_table,
    doubts_of_columns,
    far_values,
    fingerprint_of,
    gains_of,
    model_settings,
    read_typed,
    rows_of,
    split_rows,
    without_infinities,
)

_TELLS_ALL = 0.999
_MAX_TEXTS = 32
_ROWS_AT_ONCE = 10_000


@dataclass
class Rows:
    """A table ready for a regression.

    Attributes:
        X: the inputs of all rows.
        y: the target ``[rows]``, or the targets ``[rows, K]``.
        kinds: what each column of X is (see :data:`~thalweg.data.columns.KINDS`).
        remarks: what a user should know about how the columns were read.
        training, test: positions of the training rows and of the held-out rows.
        fingerprint: a hash of the table.
    """

    X: pd.DataFrame
    y: np.ndarray
    kinds: dict[str, str]
    remarks: list[str]
    training: np.ndarray
    test: np.ndarray
    fingerprint: str


class RegressionRun(Run):
    """The density of a target given all other columns, beside two baselines on rows held out."""

    settings_class = RegressionSettings
    figures_class = RegressionFigures

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

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: RegressionSettings) -> Rows:
        typed = read_typed(settings, settings.targets)
        X, y = _split_columns(typed, settings)
        training, test = split_rows(len(X), settings.test_fraction, settings.seed)
        kinds = {name: typed.kinds[name] for name in X.columns}
        return Rows(X, y, kinds, typed.remarks, training, test, fingerprint_of(typed.table))

    @classmethod
    def build(cls, settings: RegressionSettings, data: Rows, verbose: bool) -> EnergyRegressor:
        return EnergyRegressor(
            settings.objective,
            point=settings.point,
            n_members=settings.members,
            max_epochs=settings.epochs,
            verbose=verbose,
            **model_settings(settings),
        )

    @classmethod
    def train(cls, model: EnergyRegressor, data: Rows, settings: RegressionSettings, **how: Any) -> None:
        model.fit(data.X.iloc[data.training], data.y[data.training], **how)

    @classmethod
    def measure(
        cls, model: EnergyRegressor, data: Rows, settings: RegressionSettings, tell: Tell
    ) -> dict[str, Any]:
        tell(
            "Scoring the model and two baselines on the held-out rows."
            if len(data.test)
            else "No rows were held out."
        )
        scores, seconds = _scores(model, data.X, data.y, data.training, data.test, settings)
        assert model.encoder_ is not None
        return {
            "table": Path(settings.data).name,
            "inputs": list(data.X.columns),
            "kinds": data.kinds,
            "ignored": model.encoder_.ignored,
            "remarks": data.remarks + _remarks(data.X, data.y, model, settings) + not_trusted_in_words(scores),
            "rows": len(data.X),
            "training_rows": len(data.training),
            "test_rows": len(data.test),
            "resolution": dict(zip(settings.targets, np.atleast_1d(model.resolution_).tolist(), strict=True)),
            "validation_nll": None if np.isnan(model.validation_nll_) else model.validation_nll_,
            "scores": scores,
            "seconds": seconds,
        }

    @classmethod
    def judge(
        cls, model: EnergyRegressor, data: Rows, figures: dict[str, Any], settings: RegressionSettings
    ) -> list[Check]:
        scores, n_test = figures["scores"], len(data.test)
        n_rows = len(data.X)
        found = checks_of_table(n_rows, n_rows, n_test, doubts_of_columns(data.X) + _doubts(data, model, settings))
        if scores:
            found.append(check_baselines(gains_of(scores), n_test))
            ours = scores[MODEL_NAME]
            for name, entry in ours.get("targets", {"": ours}).items():
                check = check_coverage(entry["coverage"], 0.9, n_test)
                found.append(replace(check, name=f"{check.name} of {name}") if name else check)
        return found

    @classmethod
    def keep(
        cls, folder: Path, model: Any, data: Rows, figures: dict[str, Any], settings: RegressionSettings
    ) -> None:
        everything = pd.concat(
            [data.X, pd.DataFrame(data.y, columns=settings.targets, index=data.X.index)], axis=1
        )
        cls.keep_rows(folder, everything.iloc[data.training], everything.iloc[data.test], settings.seed)
        origin = ("table", "inputs", "kinds", "training_rows", "test_rows", "scores")
        cls.keep_model(
            folder, model, {name: figures[name] for name in origin} | {"targets": settings.targets}, settings
        )

    @classmethod
    def load_model(cls, folder: Path, settings: RegressionSettings) -> EnergyRegressor:
        return EnergyRegressor.load(folder)

    # -- verbs ---------------------------------------------------------------------------------------

    def predict(
        self,
        path: Path,
        quantiles: str = "0.05,0.95",
        coverage: float | None = None,
        samples: int = 0,
        seed: int = 0,
        keep: Sequence[str] = (),
    ) -> pd.DataFrame:
        """The predictions for a file (see :meth:`predict_table`), each after its row and the columns to keep."""
        try:
            levels = [float(p) for p in quantiles.split(",") if p.strip()]
        except ValueError:
            raise ValueError(f"--quantiles takes numbers separated by commas, got {quantiles!r}") from None
        cells = read_cells(path)
        kept = rows_of(cells.table, keep)
        return beside(kept, self._predict(cells, levels, coverage, samples, seed))

    def predict_table(
        self,
        table: pd.DataFrame,
        *,
        quantiles: list[float],
        coverage: float | None = None,
        n_samples: int = 0,
        seed: int = 0,
    ) -> pd.DataFrame:
        """The predictions for a table, one line for each of its rows.

        Args:
            quantiles: probabilities whose quantiles are wanted.
            coverage: coverage of a central interval, if one is wanted.
            n_samples: number of draws from p(y|x), each in a column of its own.
            seed: seed of the draws.

        Raises:
            ValueError: if the table lacks a column that the model was trained on, or a value can't be used.
        """
        named = table.set_axis(table.columns.map(str), axis=1).reset_index(drop=True)
        return self._predict(Cells(named), quantiles, coverage, n_samples, seed)

    def _predict(
        self, cells: Cells, quantiles: list[float], coverage: float | None, n_samples: int, seed: int
    ) -> pd.DataFrame:
        for p in quantiles:
            if not 0 < p < 1:
                raise ValueError(f"a quantile must lie strictly between 0 and 1, got {p:g}")
        if coverage is not None and not 0 < coverage < 1:
            raise ValueError(f"the coverage must lie strictly between 0 and 1, got {coverage:g}")
        X = cells.again(self.figures["kinds"], self.settings.missing, self.model.encoder_.texts)
        rng, parts = np.random.RandomState(seed), []
        for start in range(0, len(X), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            distribution = self.model.predict_distribution(X.iloc[rows])
            truth = cells._replace(table=cells.table.iloc[rows])
            parts.append(_predictions(self, distribution, truth, quantiles, coverage, n_samples, rng))
        found = pd.concat(parts, ignore_index=True)
        if "log_prob" in found:
            note = pd.Series("no true value to score", found.index, dtype="string")
            found["note"] = note.where(found["log_prob"].isna())
        return found

    # -- what is shown of it -------------------------------------------------------------------------

    def summary(self) -> dict[str, str]:
        figures, model = self.figures, self.model
        kinds = [f"{c['name']} ({c['kind']})" for c in model.encoder_.columns]
        n_weights = sum(p.numel() for p in model.energy_.parameters())
        return {
            "target": ", ".join(self.targets),
            "model": f"{type(model.energy_).__name__}, objective {model.objective_name}, "
            f"{n_weights:,} weights, predicts the {model.point}",
            "table": f"{figures['table']}: {figures['training_rows']} training rows, {figures['test_rows']} test "
            f"rows (seed {self.settings.seed})",
            "inputs": ", ".join(kinds),
            "rounded": rounded_in_words(figures["resolution"]) or "no",
            "training": f"{figures['seconds']['training']:.1f} s, {len(model.history_.epochs)} epochs, "
            f"ended: {model.history_.stopped}",
        }

    def tables(self) -> list[TextTable]:
        scores = self.figures["scores"]
        if not scores:
            return []
        title = f"{', '.join(self.targets)}: {self.figures['test_rows']} test rows"
        if len(self.targets) > 1:
            # Many figures and three models: a line for each figure.
            rows = [["joint NLL", *(_cell(entry["nll"], "nll") for entry in scores.values())]]
            for target in self.targets:
                for name, label in (("crps", "CRPS"), ("rmse", "RMSE"), ("coverage", "90 % coverage")):
                    cells = [_cell(entry["targets"][target][name], name) for entry in scores.values()]
                    rows.append([f"{target}: {label}", *cells])
            return [TextTable(title, ["figure", *scores], rows, best=False)]
        columns = {"nll": "NLL", "crps": "CRPS", "rmse": "RMSE", "mae": "MAE", "coverage": "90 % coverage"}
        rows = [[model, *(_cell(entry[name], name) for name in columns)] for model, entry in scores.items()]
        return [TextTable(title, ["model", *columns.values()], rows)]

    def remarks(self) -> list[str]:
        nll = self.figures["validation_nll"]
        held_out = [] if nll is None else [f"The NLL of held-out folds of the training rows is {nll:.4f} nats."]
        return held_out + super().remarks()


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return "not finite"
    return f"{100 * value:.1f} %" if name == "coverage" else f"{value:.4g}" if name != "nll" else f"{value:.4f}"


def _split_columns(typed: Typed, settings: RegressionSettings) -> tuple[pd.DataFrame, np.ndarray]:
    name, table = Path(settings.data).name, typed.table
    y = np.column_stack([_numbers(table[t], typed.kinds[t]) for t in settings.targets])
    X = table.drop(columns=settings.targets)
    if X.shape[1] == 0:
        raise ValueError(f"{name} has no column left to predict from")
    if len(X) < 10:
        raise ValueError(f"{name} has {len(X)} rows: at least 10 are needed")
    return X, y[:, 0] if y.shape[1] == 1 else y


def _numbers(column: pd.Series, kind: str) -> np.ndarray:
    if kind in ("date", "span"):
        what = "dates" if kind == "date" else "spans of time"
        raise ValueError(
            f"the target {column.name!r} holds {what}: turn it into a number first, such as days since a date"
        )
    if kind == "text":
        known = column.dropna()
        raise ValueError(
            f"the target {column.name!r} must hold numbers, but has {known.iloc[0]!r} in row {row_of(known)}: "
            "correct or remove such rows"
        )
    values = column.to_numpy(np.float64, na_value=np.nan)
    try:
        check_target(values[:, None])
    except ValueError as error:
        raise ValueError(f"column {column.name!r}: {error}") from None
    return values


def _scores(
    model: EnergyRegressor,
    X: pd.DataFrame,
    y: np.ndarray,
    training: np.ndarray,
    test: np.ndarray,
    settings: RegressionSettings,
) -> tuple[dict[str, Any], dict[str, float]]:
    if not len(test):
        return {}, {}
    scores: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    start = time.monotonic()
    distribution = model.predict_distribution(X.iloc[test])
    if isinstance(distribution, MultivariateDistribution):
        joint = score_targets(y[test], distribution, settings.targets, model.resolution_, settings.seed)
        scores[MODEL_NAME] = without_infinities(joint)
        seconds["scoring"] = time.monotonic() - start
        for baseline in BASELINES:
            start = time.monotonic()
            parts = {}
            for k, name in enumerate(settings.targets):
                width = float(model.resolution_[k])
                fitted = baseline().fit(X.iloc[training], y[training, k], width)
                parts[name] = score(y[test, k], fitted.predict_distribution(X.iloc[test]), width)
            rows = np.sum([p.log_score for p in parts.values()], axis=0)
            entry = {
                "n_rows": len(rows),
                "nll": float(-rows.mean()),
                "nll_error": float(rows.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else None,
                "targets": {
                    name: {k: p.summary()[k] for k in ("crps", "rmse", "mae", "coverage")}
                    for name, p in parts.items()
                },
            }
            scores[baseline.name] = without_infinities(entry)
            seconds[baseline.name] = time.monotonic() - start
        return scores, seconds
    ours = score(y[test], distribution, model.resolution_)
    scores[MODEL_NAME] = without_infinities(ours.summary())
    seconds["scoring"] = time.monotonic() - start
    for baseline in BASELINES:
        start = time.monotonic()
        rival: Any = baseline()
        if model.atoms_ and not model.resolution_:
            # At an atom a log mass is scored, and a rival without one would be out of the question there.
            rival = WithAtoms(rival, model.atoms_)
        fitted = rival.fit(X.iloc[training], y[training], model.resolution_)
        other = score(y[test], fitted.predict_distribution(X.iloc[test]), model.resolution_)
        gain = ours.log_score - other.log_score
        # Both were scored on the same rows, so the difference is more precise than either figure.
        paired = {"nll_gain": float(gain.mean())}
        if len(gain) > 1:
            paired["nll_gain_error"] = float(gain.std(ddof=1) / np.sqrt(len(gain)))
        scores[baseline.name] = without_infinities(other.summary() | paired)
        seconds[baseline.name] = time.monotonic() - start
    return scores, seconds


def _remarks(X: pd.DataFrame, y: np.ndarray, model: EnergyRegressor, settings: RegressionSettings) -> list[str]:
    """What a user should know about how the table was read."""
    remarks = []
    assert model.encoder_ is not None
    if model.encoder_.ignored:
        remarks.append(f"Left out, because constant: {listed(model.encoder_.ignored)}.")
    rounded = dict(zip(settings.targets, np.atleast_1d(model.resolution_).tolist(), strict=True))
    if any(rounded.values()):
        scored = "the probability of the cell."
        if len(rounded) > 1:
            scored = (
                "the mean log density over its cell; of the baselines it is the log of the cell's probability."
            )
        remarks.append(
            f"Rounded: {rounded_in_words(rounded)}. Such a target was spread over its rounding cells in training "
            f"(dequantised), and is scored by {scored}"
        )
    return remarks + model.history_.events


def _doubts(data: Rows, model: EnergyRegressor, settings: RegressionSettings) -> list[str]:
    """What may be wrong with the target and with texts, in sentences."""
    doubts = []
    assert model.encoder_ is not None
    for column in model.encoder_.columns:
        if column["kind"] == "category":
            n = data.X[column["name"]].nunique()
            if n > _MAX_TEXTS:
                doubts.append(
                    f"Column {column['name']!r} has {n} different texts; the {_MAX_TEXTS} most frequent are used. "
                    "If it names the rows, drop it."
                )
    for name, values in zip(settings.targets, data.y.reshape(len(data.y), -1).T, strict=True):
        if far := far_values(values):
            advice = "remove them if they are mistakes" + (
                "; or predict its logarithm." if values.min() > 0 else "."
            )
            hidden = "which hide the structure of the rest"
            doubts.append(f"The target {name!r} has values far from all others ({far}), {hidden}: {advice}")
        for telling, correlation in _telling(data.X, values).items():
            doubts.append(
                f"Column {telling!r} alone nearly gives the target {name!r} (rank correlation {correlation:.4f}): "
                "leave it out (--drop) if it is not known before the target."
            )
    return doubts


def _telling(X: pd.DataFrame, target: np.ndarray) -> dict[str, float]:
    """The columns, of several, that tell the order of the target, and their rank correlations with it."""
    numbers = X.select_dtypes("number")
    if X.shape[1] < 2 or numbers.empty:
        return {}
    with np.errstate(all="ignore"):  # of constant columns
        found = numbers.rank().corrwith(pd.Series(target, X.index).rank())
    return {str(name): value for name, value in found.items() if abs(value) > _TELLS_ALL}


def _predictions(
    run: RegressionRun,
    distribution: PredictiveDistribution | MultivariateDistribution,
    cells: Cells,
    quantiles: list[float],
    coverage: float | None,
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
    if coverage is not None:
        interval = distribution.interval(coverage)
        add(f"lower_{coverage:g}", interval[:, 0])
        add(f"upper_{coverage:g}", interval[:, 1])
    if n_samples:
        draws = distribution.sample(n_samples, rng)
        for i in range(n_samples):
            add(f"sample_{i + 1}", draws[:, i])
    if all(t in cells.table.columns for t in run.targets):
        truth = _truth_of(cells, run.targets, run.settings.missing)
        known = np.isfinite(truth).all(1)
        if known.any():
            log_prob, pit = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
            # Rows without the truth are scored at any value, and left empty.
            filled = np.where(known[:, None], truth, np.asarray(run.model.location_))
            if isinstance(distribution, PredictiveDistribution):
                resolution = run.model.resolution_
                log_prob = np.where(known, score_rows(filled[:, 0], distribution, resolution), np.nan)
                pit = np.where(known, pit_values(filled[:, 0], distribution, resolution), np.nan)
                columns["log_prob"], columns["pit"] = log_prob, pit
            else:
                log_prob = joint_log_prob(filled, distribution, run.model.resolution_)
                columns["log_prob"] = np.where(known, log_prob, np.nan)
    return pd.DataFrame(columns)


def rounded_in_words(resolution: dict[str, float]) -> str:
    """Which targets are rounded, and to what: "" if none is."""
    return ", ".join(f"{target} to multiples of {step:g}" for target, step in resolution.items() if step)


def not_trusted_in_words(scores: dict[str, Any]) -> list[str]:
    """For how many rows the joint likelihood of several targets can't be trusted; nothing if for none."""
    share = scores.get(MODEL_NAME, {}).get("not_trusted", 0.0)
    if not share:
        return []
    return [
        f"For {100 * share:.1f} % of the test rows few importance samples have the weight (Pareto k above 0.7): "
        "log Z is too low there, and the joint NLL of the model looks better than it is."
    ]


def _truth_of(cells: Cells, targets: list[str], missing: list[str]) -> np.ndarray:
    """The targets of rows that are predicted ``[rows, K]``; NaN where they are not known, or no numbers."""
    found = [to_numbers(cells.table[target], missing, cells.decimal) for target in targets]
    return np.column_stack(found)
