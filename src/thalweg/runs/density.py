"""A run on a table for its joint density: split, fit, score, save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.columns import read_as
from thalweg.data.encoding import TableEncoder
from thalweg.data.tables import Cells, read_cells
from thalweg.estimators.density import EnergyDensity
from thalweg.evaluation.density_baselines import BASELINES, BesideAtoms
from thalweg.evaluation.row_checks import check_samples
from thalweg.evaluation.verdict import Check, check_baselines
from thalweg.runs.base import MODEL_NAME, Run, Tell, TextTable
from thalweg.runs.kinds import DensityFigures
from thalweg.runs.mixed_scores import mixed_scores
from thalweg.runs.settings.density import DensitySettings
from thalweg.runs.tables import (
    Numbers,
    atoms_in_words,
    beside,
    checks_of_table,
    completed_tables,
    few_held_out,
    gains_of,
    model_settings,
    outlier_scores,
    read_numbers,
    read_rows,
    refuse_counter,
    refuse_unknown_columns,
    rows_of,
    scored,
    scored_rows,
    thinned,
    with_error,
    without_infinities,
)

_N_OUTLIERS = 20
# Nats beyond the mean of its column at which a cell is odd.
ODD_CELL = 3.0


class DensityRun(Run):
    """The joint density of a table's rows, beside three baselines on rows held out."""

    settings_class = DensitySettings
    figures_class = DensityFigures

    @property
    def columns(self) -> list[str]:
        return list(self.figures["columns"])

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: DensitySettings) -> Numbers:
        return read_rows(settings) if settings.objective == "auto" else read_numbers(settings)

    @classmethod
    def build(cls, settings: DensitySettings, data: Numbers, verbose: bool) -> EnergyDensity:
        return EnergyDensity(
            settings.objective,
            n_members=settings.members,
            max_epochs=settings.epochs,
            verbose=verbose,
            **model_settings(settings),
        )

    @classmethod
    def measure(cls, model: EnergyDensity, data: Numbers, settings: DensitySettings, tell: Tell) -> dict[str, Any]:
        n_test = len(data.test)
        tell("Scoring the model and baselines on the held-out rows." if n_test else "No rows were held out.")
        plain = only_numbers(data.training) and only_numbers(data.test)
        ask = _scores if plain else mixed_scores
        scores, seconds = ask(model, data, settings.seed) if n_test else ({}, {})
        start = time.monotonic()
        rows, log_prob = _judged_rows(model, data)
        seconds["looking for outliers"] = time.monotonic() - start
        return {
            "table": Path(settings.data).name,
            "columns": list(data.training.columns),
            "constant": data.constant,
            "kinds": {name: data.kinds[name] for name in data.training.columns},
            "remarks": data.remarks + _remarks(model, data) + few_held_out(len(rows)),
            "rows": data.n_rows,
            "training_rows": len(data.training),
            "test_rows": n_test,
            "resolution": dict(zip(data.training.columns, model.resolution_.tolist(), strict=True)),
            "column_nll": dict(zip(data.training.columns, _usual(model).tolist(), strict=True)),
            "log_normaliser": model.log_normaliser_,
            "log_normaliser_error": model.log_normaliser_error_,
            "validation_nll": None if np.isnan(model.validation_nll_) else model.validation_nll_,
            "scores": scores,
            "outliers": _outliers(rows, log_prob, len(rows) - n_test),
            "held_out_log_prob": thinned(log_prob),
            "seconds": seconds,
        }

    @classmethod
    def judge(
        cls, model: EnergyDensity, data: Numbers, figures: dict[str, Any], settings: DensitySettings
    ) -> list[Check]:
        n_test = len(data.test)
        found = checks_of_table(data.n_rows, len(data.training) + n_test, n_test, data.doubts)
        if n_test:
            found.append(check_baselines(gains_of(figures["scores"]), n_test))
            draws = pd.DataFrame(model.sample(max(200, min(n_test, 500)), random_state=settings.seed))
            encoder = TableEncoder(1, 12).fit(data.training)
            told = [encoder.transform(rows) for rows in (draws, data.training, data.test)]
            if only_numbers(data.training):
                told = [rows.to_numpy(np.float64) for rows in (draws, data.training, data.test)]
            drawn, training, test = told
            found += check_samples(drawn, training, test)
        return found

    @classmethod
    def keep(
        cls, folder: Path, model: Any, data: Numbers, figures: dict[str, Any], settings: DensitySettings
    ) -> None:
        cls.keep_rows(folder, data.training, data.test, settings.seed)
        origin = ("table", "columns", "constant", "training_rows", "test_rows", "scores")
        cls.keep_model(folder, model, {name: figures[name] for name in origin}, settings)

    @classmethod
    def load_model(cls, folder: Path, settings: DensitySettings) -> EnergyDensity:
        return EnergyDensity.load(folder)

    # -- verbs ---------------------------------------------------------------------------------------

    def sample(self, n: int, seed: int = 0, given: Sequence[str] = (), where: str | None = None) -> pd.DataFrame:
        """n rows drawn from the model, with the training table's columns.

        Args:
            given: values that all rows have, each "COLUMN=VALUE".
            where: a relation that all rows meet.
        """
        conditions = {"given": self._given(given), "where": where} if given or where else {}
        drawn = self.model.sample(n, random_state=seed, **conditions)
        table = drawn if isinstance(drawn, pd.DataFrame) else pd.DataFrame(drawn, columns=self.columns)
        for name, value in self.figures["constant"].items():
            table[name] = value
        return table

    def score(self, path: Path, keep: Sequence[str] = (), explain: bool = False) -> pd.DataFrame:
        """How likely each row of a file is (see :func:`scored_rows`), after its row and the columns to keep.

        Args:
            explain: name the cells that make each row odd, with the nats that each has beyond its column's mean.
        """
        cells = read_cells(path)
        kept, rows = rows_of(cells.table, keep), self._columns(cells)
        if self.settings.objective != "auto":
            if explain:
                raise ValueError("--explain needs the conditionals of the columns: fit with the objective 'auto'")
            return beside(kept, scored_rows(self.model, rows, self.figures["held_out_log_prob"]))
        parts, known = self.model.score_columns(rows), rows.notna().to_numpy()
        beyond = np.where(known, parts - self.model.column_nll_, 0.0)
        # Of a gap the mean of its column is taken: what a row would have on average, were it known.
        whole = -(parts + np.where(known, 0.0, self.model.column_nll_)).sum(1)
        found = pd.DataFrame(
            {
                "log_prob": -parts.sum(1),
                "outlier_score": outlier_scores(whole, self.figures["held_out_log_prob"]),
            }
        )
        if explain:
            found["odd_cells"] = pd.Series(explained(beyond, self.columns), dtype="string")
        return beside(kept, found)

    def impute(self, path: Path, draws: int = 1, seed: int = 0, candidates: int = 256) -> pd.DataFrame:
        """The table of a file with the gaps in the model's columns filled by draws given the rest of the row.

        Several filled tables are stacked, and a column ``imputation`` counts them from 1.
        """
        cells = read_cells(path)
        refuse_counter(cells.table, draws)
        X = self._columns(cells)
        filled = self.model.impute(X, n_draws=draws, random_state=seed, n_candidates=candidates)
        return completed_tables(cells.table, X, list(filled), self.figures["constant"], self.figures["kinds"])

    def predict(self, path: Path, columns: str | None, keep: Sequence[str] = ()) -> pd.DataFrame:
        """What to expect in some columns of each row of a file, given what it has of the others.

        Args:
            columns: names, separated by commas.

        Returns:
            of a number the mean, the median and a central interval of 90 %, of levels the most probable one and
            the probability of each.
        """
        if not columns:
            raise ValueError("name the columns to predict with --columns")
        if self.settings.objective != "auto":
            raise ValueError("a conditional of a column needs the objective 'auto': fit with that")
        asked = [name.strip() for name in columns.split(",") if name.strip()]
        refuse_unknown_columns(asked, self.columns, "the model")
        cells = read_cells(path)
        table = cells.table.assign(**{name: None for name in asked if name not in cells.table.columns})
        found = self.model.predict(self._columns(cells._replace(table=table)), asked)
        parts = {}
        for name, one in found.items():
            if isinstance(one, pd.DataFrame):
                parts[name] = one.columns[one.to_numpy().argmax(1)]
                parts |= {f"p_{name}_{level}": one[level].to_numpy() for level in one.columns}
            else:
                low, high = one.interval(0.9).T
                parts |= {f"{name}": one.mean(), f"median_{name}": one.median()}
                parts |= {f"lower_{name}": low, f"upper_{name}": high}
        return beside(rows_of(cells.table, keep), pd.DataFrame(parts))

    def _given(self, given: Sequence[str]) -> dict[str, Any]:
        found = {}
        for text in given:
            name, sign, value = text.partition("=")
            if not sign or not value:
                raise ValueError(f"--given {text!r}: write it as COLUMN=VALUE")
            refuse_unknown_columns([name], self.columns, "the model")
            column = pd.Series([value], name=name)
            read = read_as(column, self.figures["kinds"][name], known=self._texts.get(name, ()))
            found[name] = read.astype(object).iloc[0]
        return found

    def _columns(self, cells: Cells) -> pd.DataFrame:
        kinds = {name: self.figures["kinds"][name] for name in self.columns}
        found = cells.again(kinds, self.settings.missing, self._texts)
        if self.settings.objective == "auto":
            return found.apply(lambda c: c.astype(object) if isinstance(c.dtype, pd.CategoricalDtype) else c)
        return found.apply(lambda column: column.to_numpy(np.float64, na_value=np.nan))

    @property
    def _texts(self) -> dict[str, list[str]]:
        coder = getattr(self.model, "coder_", None)
        columns = [] if coder is None else coder.columns
        return {c["name"]: [*c["levels"], *c["rare"]] for c in columns if c["kind"] == "text"}

    # -- what is shown of it -------------------------------------------------------------------------

    def summary(self) -> dict[str, str]:
        figures, model = self.figures, self.model
        n_weights = sum(p.numel() for p in model.energy_.parameters())
        error, history = figures["log_normaliser_error"], model.history_
        levels = {c["name"]: c["levels"] for c in model.coder_.columns} if hasattr(model, "coder_") else {}
        columns = [
            f"{c} ({len(levels[c])} levels)" if levels.get(c) else f"{c} (rounded to {r:g})" if r else c
            for c, r in figures["resolution"].items()
        ]
        n_parts = len(history.parts) or 1
        return {
            "density of": ", ".join(columns),
            "model": f"{type(model.energy_.inner).__name__}, objective {model.objective}, {n_weights:,} weights",
            "table": f"{figures['table']}: {figures['training_rows']} training rows, {figures['test_rows']} test "
            f"rows (seed {self.settings.seed})",
            "log Z": f"{figures['log_normaliser']:.4f} ± {error:.2g} nats" if error else "0, exact",
            "training": f"{figures['seconds']['training']:.1f} s, {len(history.epochs)} epochs of {n_parts} "
            f"network{'s' if n_parts > 1 else ''}",
        }

    def tables(self) -> list[TextTable]:
        scores = self.figures["scores"]
        title = f"{self.figures['table']}: {len(self.columns)} columns, {self.figures['test_rows']} test rows"
        rows = []
        for name, entry in scores.items():
            gain = entry.get("nll_gain")
            shown = "" if gain is None else with_error(gain, entry.get("nll_gain_error"), "+")
            rows.append([name, with_error(entry["nll"], entry["nll_error"]), shown, entry["detail"]])
        return [TextTable(title, ["model", "NLL, nats", "gain of ours", "detail"], rows)] if rows else []


def held_out_log_prob(
    model: Any, test: np.ndarray, resolution: np.ndarray, seed: int, n_spreads: int = 8
) -> np.ndarray:
    """log p of each row ``[rows]``, of rounded columns the mean over places in the rounding cell.

    The same seed gives the same places for every model.

    Args:
        model: with ``score_samples`` or ``log_prob``.
        resolution: step of rounding of each column, 0 where it is not rounded.
    """
    ask = model.score_samples if hasattr(model, "score_samples") else model.log_prob
    rng = np.random.RandomState(seed)
    n_spreads = n_spreads if resolution.any() else 1
    total = np.zeros(len(test))
    for _ in range(n_spreads):
        total += ask(test + resolution * (rng.uniform(size=test.shape) - 0.5))
    return total / n_spreads


def baseline_scores(
    data: Numbers, resolution: np.ndarray, seed: int, atoms: Sequence[Sequence[float]] = ()
) -> dict[str, tuple[np.ndarray, str, float]]:
    """For each baseline: log p of the test rows, what was chosen, and the seconds that it took.

    Args:
        resolution: step of rounding of each column, 0 where it is not rounded.
        atoms: values of each column that are scored by their log mass.
    """
    training, test = data.training.to_numpy(), data.test.to_numpy()
    spread = training + resolution * (np.random.RandomState(seed).uniform(size=training.shape) - 0.5)
    found = {}
    for kind in BASELINES:
        start = time.monotonic()
        baseline = BesideAtoms(kind, atoms) if any(map(len, atoms)) else kind()
        fitted = baseline.fit(spread, seed)
        log_prob = held_out_log_prob(fitted, test, resolution, seed)
        found[kind.name] = (log_prob, fitted.detail, time.monotonic() - start)
    return found


def atoms_scored(model: EnergyDensity) -> list[list[float]]:
    """Values of each column that the model scores by their log mass; of rounded columns that of a cell is."""
    return [[] if step else atoms for step, atoms in zip(model.resolution_, model.atoms_, strict=True)]


def _scores(model: EnergyDensity, data: Numbers, seed: int) -> tuple[dict[str, Any], dict[str, float]]:
    start = time.monotonic()
    ours = held_out_log_prob(_Unnamed(model), data.test.to_numpy(), model.resolution_, seed)
    exact = not model.log_normaliser_error_
    detail = "log Z exact" if exact else f"log Z ± {model.log_normaliser_error_:.2g}"
    scores = {MODEL_NAME: without_infinities({**scored(ours), "detail": detail})}
    seconds = {"scoring": time.monotonic() - start}
    for name, (log_prob, detail, took) in baseline_scores(
        data, model.resolution_, seed, atoms_scored(model)
    ).items():
        gain = scored(ours - log_prob)
        # Both were scored on the same rows, so the difference is more precise than either figure.
        entry = {**scored(log_prob), "detail": detail, "nll_gain": -gain["nll"]}
        if gain["nll_error"] is not None:
            entry["nll_gain_error"] = gain["nll_error"]
        scores[name], seconds[name] = without_infinities(entry), took
    return scores, seconds


def explained(beyond: np.ndarray, columns: Sequence[str], most: int = 3) -> list[str | None]:
    """Of each row the cells with most nats beyond their column's mean, oddest first, such as "age +5.1"."""
    found: list[str | None] = []
    for row in beyond:
        order = [k for k in np.argsort(-row)[:most] if row[k] >= ODD_CELL]
        found.append(", ".join(f"{columns[k]} +{row[k]:.1f}" for k in order) or None)
    return found


def only_numbers(table: pd.DataFrame) -> bool:
    """Whether all columns are numbers, without gaps."""
    kinds = [pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t) for t in table.dtypes]
    return all(kinds) and not table.isna().any(axis=None)


def _usual(model: EnergyDensity) -> np.ndarray:
    """What a cell of each column contributes to -log p on average; nothing of an energy of whole rows."""
    return getattr(model, "column_nll_", np.zeros(model.n_features_in_))


class _Unnamed:
    """A model that takes arrays, though it was fitted on a table."""

    def __init__(self, model: EnergyDensity):
        self.model = model

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        return self.model.score_samples(pd.DataFrame(X, columns=self.model.feature_names_in_))


def _judged_rows(model: EnergyDensity, data: Numbers) -> tuple[pd.DataFrame, np.ndarray]:
    """Training rows, then test rows, that the model did not learn from, and log p of each ``[rows]``.

    Training rows are scored by networks that did not learn from them, or every test row would look unlikely.
    """
    judged = ~np.isnan(model.held_out_log_prob_)
    rows, log_prob = data.training[judged], model.held_out_log_prob_[judged]
    if len(data.test):
        rows = pd.concat([rows, data.test])
        log_prob = np.concatenate([log_prob, model.score_samples(data.test)])
    # Of a gap the mean of its column is taken: what a row would have on average, were it known.
    return rows, log_prob - rows.isna().to_numpy() @ _usual(model)


def _outliers(rows: pd.DataFrame, log_prob: np.ndarray, n_training: int) -> list[dict[str, Any]]:
    """The rows least likely under the model, least likely first; rows are counted from 1 in the table."""
    found = []
    for i in np.argsort(log_prob, kind="stable")[:_N_OUTLIERS]:
        place = int(rows.index[i])
        entry = {"row": place + 1, "log_prob": float(log_prob[i]), "training": bool(i < n_training)}
        found.append(entry | {"values": [as_json(v) for v in rows.iloc[i]]})
    return found


def as_json(value: Any) -> Any:
    """A cell as JSON has it; None for a gap."""
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return float(value) if isinstance(value, int | float | np.number) else str(value)


def _atoms_remarks(model: EnergyDensity, data: Numbers) -> list[str]:
    told = atoms_in_words(data.training.select_dtypes("number").apply(pd.to_numeric, errors="coerce"))
    if not told:
        return []
    if any(atoms_scored(model)):
        text = (
            "The model has point masses there. It is scored by their log mass, at all other values by the log "
            "density; so are the baselines."
        )
    else:
        text = (
            f"The objective {model.objective!r} has a density there, which spikes can inflate: no NLL here says "
            "how good a model is. Take the objective 'auto'."
        )
    return [f"Values of positive probability beside others: {told}. {text}"]


def _remarks(model: EnergyDensity, data: Numbers) -> list[str]:
    remarks = []
    rounded = [f"{c!r} to {r:g}" for c, r in zip(data.training.columns, model.resolution_, strict=True) if r]
    if rounded:
        most = 12
        more = f" and {len(rounded) - most} more" if len(rounded) > most else ""
        remarks.append(
            f"Rounded columns: {', '.join(rounded[:most])}{more}. Their values are spread over the rounding cells "
            "(dequantised) in training and for all figures, and draws are rounded."
        )
    return remarks + _atoms_remarks(model, data) + model.history_.events
