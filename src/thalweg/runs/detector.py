"""A run on a table for its odd rows: split, fit, find, save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kstest

from thalweg.data.tables import Cells, read_cells
from thalweg.estimators.detector import EnergyDetector
from thalweg.evaluation.verdict import Check
from thalweg.runs.base import MODEL_NAME, Run, Tell, TextTable
from thalweg.runs.density import as_json
from thalweg.runs.kinds import DetectorFigures
from thalweg.runs.settings.detector import DetectorSettings
from thalweg.runs.tables import Numbers, beside, checks_of_table, read_rows, rows_of, thinned

_N_ODD = 20
_MOST_CELLS = 3
# By how much the score of a row must rise without a cell for the cell to be odd.
ODD_CELL = 0.5


class DetectorRun(Run):
    """The odd rows of a table, with p-values from rows held out."""

    settings_class = DetectorSettings
    figures_class = DetectorFigures

    @property
    def columns(self) -> list[str]:
        return list(self.figures["columns"])

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: DetectorSettings) -> Numbers:
        return read_rows(settings)

    @classmethod
    def build(cls, settings: DetectorSettings, data: Numbers, verbose: bool) -> EnergyDetector:
        return EnergyDetector(settings.alpha, random_state=settings.seed)

    @classmethod
    def train(cls, model: EnergyDetector, data: Numbers, settings: DetectorSettings, **how: Any) -> None:
        # It takes seconds: there is nothing to resume.
        model.fit(data.training)

    @classmethod
    def measure(
        cls, model: EnergyDetector, data: Numbers, settings: DetectorSettings, tell: Tell
    ) -> dict[str, Any]:
        tell("Looking for odd rows.")
        start = time.monotonic()
        judged = ~np.isnan(model.held_out_scores_)
        rows, scores, p = data.training[judged], model.held_out_scores_[judged], model.held_out_p_values_[judged]
        n_training, figures = len(rows), {}
        if len(data.test):
            rows = pd.concat([rows, data.test])
            scores = np.concatenate([scores, model.score_samples(data.test)])
            p = np.concatenate([p, model.p_values(data.test)])
            share = float((p[n_training:] <= model.alpha).mean())
            figures = {MODEL_NAME: {"n_rows": len(data.test), "flagged": share}}
        return {
            "table": Path(settings.data).name,
            "columns": list(data.training.columns),
            "constant": data.constant,
            "kinds": {name: data.kinds[name] for name in data.training.columns},
            "remarks": data.remarks,
            "rows": data.n_rows,
            "training_rows": len(data.training),
            "test_rows": len(data.test),
            "alpha": model.alpha,
            "scores": figures,
            "odd_rows": _odd_rows(rows, scores, p, n_training),
            "training_p_values": thinned(p[:n_training]),
            "test_p_values": thinned(p[n_training:]),
            "seconds": {"looking for odd rows": time.monotonic() - start},
        }

    @classmethod
    def judge(
        cls, model: EnergyDetector, data: Numbers, figures: dict[str, Any], settings: DetectorSettings
    ) -> list[Check]:
        n_test = len(data.test)
        found = checks_of_table(data.n_rows, len(data.training) + n_test, n_test, data.doubts)
        if n_test:
            found.append(_check_p_values(model.p_values(data.test), len(data.training)))
        return found

    @classmethod
    def keep(
        cls, folder: Path, model: Any, data: Numbers, figures: dict[str, Any], settings: DetectorSettings
    ) -> None:
        cls.keep_rows(folder, data.training, data.test, settings.seed)
        origin = ("table", "columns", "constant", "training_rows", "test_rows")
        cls.keep_model(folder, model, {name: figures[name] for name in origin}, settings)

    @classmethod
    def load_model(cls, folder: Path, settings: DetectorSettings) -> EnergyDetector:
        return EnergyDetector.load(folder)

    # -- verbs ---------------------------------------------------------------------------------------

    def score(self, path: Path, keep: Sequence[str] = (), explain: bool = False) -> pd.DataFrame:
        """How odd each row of a file is: its p-value, its score, and whether it is flagged.

        Args:
            explain: name the cells that make each row odd, with how far its score would rise without each.
        """
        cells = read_cells(path)
        kept, rows = rows_of(cells.table, keep), self._columns(cells)
        p, scores = self.model.p_values(rows), self.model.score_samples(rows)
        found = pd.DataFrame({"p_value": p, "score": scores, "flagged": p <= self.model.alpha})
        if explain:
            reasons = odd_cells(self.model.score_columns(rows), scores, self.columns)
            found["odd_cells"] = pd.Series(reasons, dtype="string")
        return beside(kept, found)

    def _columns(self, cells: Cells) -> pd.DataFrame:
        kinds = {name: self.figures["kinds"][name] for name in self.columns}
        texts = {c["name"]: c["levels"] for c in self.model.scaler_.columns if c["kind"] == "text"}
        found = cells.again(kinds, self.settings.missing, texts)
        return found.apply(lambda c: c.astype(object) if isinstance(c.dtype, pd.CategoricalDtype) else c)

    # -- what is shown of it -------------------------------------------------------------------------

    def summary(self) -> dict[str, str]:
        figures = self.figures
        return {
            "odd rows of": ", ".join(self.columns),
            "model": f"{type(self.model.energy_).__name__} of {len(self.model.energy_.rows):,} rows",
            "table": f"{figures['table']}: {figures['training_rows']} training rows, {figures['test_rows']} test "
            f"rows (seed {self.settings.seed})",
            "flagged": f"rows whose p-value is at most {figures['alpha']:g}",
        }

    def tables(self) -> list[TextTable]:
        odd = self.figures["odd_rows"][:10]
        rows = [[str(e["row"]), f"{e['p_value']:.4f}", f"{e['score']:.2f}"] for e in odd]
        return [TextTable(f"{self.figures['table']}: the oddest rows", ["row", "p-value", "score"], rows)]


def odd_cells(cells: np.ndarray, scores: np.ndarray, columns: Sequence[str]) -> list[str | None]:
    """Of each row the cells that make it odd, the oddest first, such as "age +1.3"; None if no cell alone does."""
    found: list[str | None] = []
    for row, score in zip(cells, scores, strict=True):
        # In a usual row there are cells that are less usual than the others: none makes it odd.
        if score >= 0:
            found.append(None)
            continue
        order = [k for k in np.argsort(-row)[:_MOST_CELLS] if row[k] >= ODD_CELL]
        found.append(", ".join(f"{columns[k]} +{row[k]:.1f}" for k in order) or None)
    return found


def _odd_rows(rows: pd.DataFrame, scores: np.ndarray, p: np.ndarray, n_training: int) -> list[dict[str, Any]]:
    """The oddest rows, the oddest first; rows are counted from 1 in the table."""
    found = []
    for i in np.lexsort((scores, p))[:_N_ODD]:
        entry = {"row": int(rows.index[i]) + 1, "training": bool(i < n_training)}
        values = [as_json(v) for v in rows.iloc[i]]
        found.append({**entry, "score": float(scores[i]), "p_value": float(p[i]), "values": values})
    return found


def _check_p_values(p: np.ndarray, n_training: int) -> Check:
    """Whether p-values of held-out rows are as likely to be small as they say."""
    name = "p-values"
    # What the largest distance exceeds in one of a hundred samples, the one calibrated with being finite too.
    most = 1.63 * np.sqrt(1 / len(p) + 1 / n_training)
    distance = float(kstest(p, "uniform", alternative="greater").statistic)
    share = float((p <= 0.05).mean())
    text = f"{share:.1%} of {len(p)} test rows have a p-value of at most 5 %."
    if distance <= most:
        return Check(name, "passed", text)
    advice = "The test rows are odder than training rows: is the table in an order, or are rows related?"
    return Check(name, "doubtful", f"{text} {advice}")
