"""A ranker's run on a table: read, hold groups out, train, compare with baselines, save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from thalweg.data.tables import read_cells
from thalweg.estimators._groups import checked_relevance, numbered_groups, teaching_groups
from thalweg.estimators.ranker import EnergyRanker, ranks_in_groups
from thalweg.evaluation.ranking import (
    CUTOFF,
    average_precision_of_groups,
    mean_over_groups,
    ndcg_of_groups,
    reciprocal_rank_of_groups,
)
from thalweg.evaluation.ranking_baselines import BASELINES
from thalweg.evaluation.ranking_checks import check_order, gain_over
from thalweg.evaluation.verdict import Check, check_doubts, check_held_out
from thalweg.runs.base import Run, Tell, TextTable
from thalweg.runs.kinds import RankerFigures
from thalweg.runs.settings.ranker import RankerSettings
from thalweg.runs.tables import (
    MODEL_NAME,
    beside,
    doubts_of_columns,
    fingerprint_of,
    model_settings,
    read_typed,
    rows_of,
    with_error,
)

CUTOFFS = (1, 3, 5, 10, 20)
_MANY_CELLS = 1_000_000


@dataclass
class Rows:
    """The inputs, the relevance and the group of each row, and which rows are held out.

    Attributes:
        numbers: of each row's group, from 0.
        ids: the groups as they are written, by their numbers.
        doubts: what may be wrong with the columns, in sentences.
    """

    X: pd.DataFrame
    relevance: np.ndarray
    numbers: np.ndarray
    ids: list[str]
    training: np.ndarray
    test: np.ndarray
    kinds: dict[str, str]
    remarks: list[str]
    doubts: list[str]
    fingerprint: str

    def rows(self, places: np.ndarray) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        """Inputs, relevance and groups, numbered from 0, of some rows."""
        numbers = np.unique(self.numbers[places], return_inverse=True)[1]
        return self.X.iloc[places].reset_index(drop=True), self.relevance[places], numbers


class RankerRun(Run):
    """An order of the rows of each group, beside baselines on groups held out."""

    settings_class = RankerSettings
    figures_class = RankerFigures

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: RankerSettings) -> Rows:
        name, (target,), (group,) = Path(settings.data).name, settings.target, settings.group
        # Groups are names, whatever they look like.
        typed = read_typed(settings, (target, group), text=[*settings.text, group])
        X = typed.table.drop(columns=[target, group])
        if X.shape[1] == 0:
            raise ValueError(f"{name} has no column left to rank by")
        if typed.kinds[target] not in ("number", "truth"):
            raise ValueError(f"the target {target!r} holds {typed.kinds[target]}s: relevance is a number from 0")
        relevance = checked_relevance(typed.table[target].to_numpy(np.float64, na_value=np.nan), len(X))
        numbers = numbered_groups(typed.table[group], len(X))
        ids = typed.table[group].astype(object).drop_duplicates()
        kinds = {column: typed.kinds[column] for column in X.columns}
        parts = _split(numbers, settings)
        return Rows(
            X, relevance, numbers, list(ids), *parts, kinds, list(typed.remarks),
            [*doubts_of_columns(X), *_doubts_of_relevance(relevance, numbers)], fingerprint_of(typed.table),
        )  # fmt: skip

    @classmethod
    def build(cls, settings: RankerSettings, data: Rows, verbose: bool) -> EnergyRanker:
        return EnergyRanker(
            settings.objective,
            n_members=settings.members,
            max_epochs=settings.epochs,
            verbose=verbose,
            **model_settings(settings),
        )

    @classmethod
    def train(cls, model: EnergyRanker, data: Rows, settings: RankerSettings, **how: Any) -> None:
        X, relevance, groups = data.rows(data.training)
        model.fit(X, relevance, groups, **how)

    @classmethod
    def measure(cls, model: EnergyRanker, data: Rows, settings: RankerSettings, tell: Tell) -> dict[str, Any]:
        tell(f"Scoring the model and {len(BASELINES)} baselines on the held-out groups.")
        fitted, judged = data.rows(data.training), data.rows(data.test)
        even = int((~teaching_groups(judged[1], judged[2])).sum())
        seconds: dict[str, float] = {}
        start = time.monotonic()
        predicted = {MODEL_NAME: model.predict(judged[0])}
        seconds["scoring"] = time.monotonic() - start
        for kind in BASELINES:
            start = time.monotonic()
            # Two threads on a small table wait for one another, and where others work too, most of the time.
            with threadpool_limits(1 if data.X.size < _MANY_CELLS else None):
                predicted[kind.name] = kind(settings.seed).fit(*fitted).predict(judged[0])
            seconds[kind.name] = time.monotonic() - start
        sizes = np.bincount(data.numbers)
        return {
            "table": Path(settings.data).name,
            "inputs": list(data.X.columns),
            "kinds": data.kinds,
            "remarks": [
                *data.remarks,
                *_remarks_on_groups(even, int(judged[2].max()) + 1),
                *model.history_.events,
            ],
            "rows": len(data.X),
            "training_rows": len(data.training),
            "test_rows": len(data.test),
            "test_places": data.test.tolist(),
            "groups": len(sizes),
            "test_groups": int(judged[2].max()) + 1,
            "group_rows": [int(sizes.min()), int(np.median(sizes)), int(sizes.max())],
            "scores": _scores(predicted, judged[1], judged[2]),
            "seconds": seconds,
        }

    @classmethod
    def judge(
        cls, model: EnergyRanker, data: Rows, figures: dict[str, Any], settings: RankerSettings
    ) -> list[Check]:
        others = {name: entry for name, entry in figures["scores"].items() if name != MODEL_NAME}
        gains = {
            name: (np.nan if entry["ndcg_gain"] is None else entry["ndcg_gain"], entry["ndcg_gain_error"])
            for name, entry in others.items()
        }
        return [
            check_held_out(figures["test_groups"], what="group"),
            check_doubts(data.doubts),
            check_order(gains, figures["scores"][MODEL_NAME]["n_groups"]),
        ]

    @classmethod
    def keep(cls, folder: Path, model: Any, data: Rows, figures: dict[str, Any], settings: RankerSettings) -> None:
        added = {settings.target[0]: data.relevance, settings.group[0]: np.array(data.ids, object)[data.numbers]}
        everything = data.X.assign(**added)
        cls.keep_rows(folder, everything.iloc[data.training], everything.iloc[data.test], settings.seed)
        origin = ("table", "inputs", "kinds", "training_rows", "test_rows", "scores")
        cls.keep_model(folder, model, {name: figures[name] for name in origin}, settings)

    @classmethod
    def load_model(cls, folder: Path, settings: RankerSettings) -> EnergyRanker:
        return EnergyRanker.load(folder)

    # -- verbs ---------------------------------------------------------------------------------------

    def predict(self, path: Path, keep: Sequence[str] = ()) -> pd.DataFrame:
        """``score`` of each row, the higher the better, and its ``rank`` in its group, 1 the best.

        Equal scores have equal rank, and ``tied`` says how many rows of the group share it. Without the column of
        the groups there is no rank.
        """
        cells = read_cells(path)
        X = cells.again(self.figures["kinds"], self.settings.missing, self.model.encoder_.texts)
        found = pd.DataFrame({"score": self.model.predict(X)})
        if self.settings.group[0] in cells.table.columns:
            groups = cells.again({self.settings.group[0]: "text"}, self.settings.missing).iloc[:, 0]
            numbers = numbered_groups(groups, len(found))
            found["rank"] = ranks_in_groups(found["score"].to_numpy(), numbers)
            found["tied"] = found.groupby([numbers, found["rank"]])["score"].transform("size")
        return beside(rows_of(cells.table, keep), found)

    # -- what is shown of it -------------------------------------------------------------------------

    def summary(self) -> dict[str, str]:
        figures, model = self.figures, self.model
        least, middle, most = figures["group_rows"]
        data = f"{figures['table']}: {figures['training_rows']} training rows, {figures['test_rows']} test rows"
        return {
            "target": f"{self.settings.target[0]} in groups of {self.settings.group[0]}",
            "groups": f"{figures['groups']}, {figures['test_groups']} of them held out; {least} to {most} rows, "
            f"median {middle}",
            "model": f"{type(model.energy_).__name__}, objective {model.objective}",
            "data": f"{data} (seed {self.settings.seed})",
            "training": f"{figures['seconds']['training']:.1f} s, {len(model.history_.epochs)} epochs, "
            f"ended: {model.history_.stopped}",
        }

    def tables(self) -> list[TextTable]:
        rows = []
        for name, entry in self.figures["scores"].items():
            gain = "" if name == MODEL_NAME else with_error(entry["ndcg_gain"], entry["ndcg_gain_error"], "+")
            rows.append([name, with_error(entry["ndcg"], entry["ndcg_error"]), gain,
                         with_error(entry["map"], None), with_error(entry["mrr"], None)])  # fmt: skip
        title = f"{self.figures['table']}: {self.figures['test_groups']} held-out groups"
        return [TextTable(title, ["model", f"NDCG at {CUTOFF}", "gain of ours", "MAP", "MRR"], rows)]


def _split(numbers: np.ndarray, settings: RankerSettings) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows, in the order of the table, by whole groups; the same seed gives the same split.

    Raises:
        ValueError: if too few groups are left on either side.
    """
    n_groups = int(numbers.max()) + 1
    n_test = max(1, round(settings.test_fraction * n_groups))
    if n_groups - n_test < 2:
        raise ValueError(
            f"{n_groups} groups in the column {settings.group[0]!r}, {n_test} of them held out: at least two are "
            "needed to train on"
        )
    chosen = np.random.RandomState(settings.seed).permutation(n_groups)[:n_test]
    is_test = np.isin(numbers, chosen)
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _doubts_of_relevance(relevance: np.ndarray, numbers: np.ndarray) -> list[str]:
    empty, n_groups = int((np.bincount(numbers, relevance > 0) == 0).sum()), int(numbers.max()) + 1
    if 2 * empty <= n_groups:
        return []
    return [f"{empty} of {n_groups} groups have no row of a relevance above 0, and no figure counts them."]


def _remarks_on_groups(even: int, n_groups: int) -> list[str]:
    if not even:
        return []
    return [
        f"{even} of {n_groups} held-out groups have a single row, or rows of one relevance: every order of them "
        "is right, and raises all figures alike if they are relevant."
    ]


def _scores(predicted: dict[str, np.ndarray], relevance: np.ndarray, numbers: np.ndarray) -> dict[str, Any]:
    """The figures of each model, with the gain of ours over it on the same groups."""
    ndcg = {name: ndcg_of_groups(relevance, scores, numbers, CUTOFF) for name, scores in predicted.items()}
    found = {}
    for name, scores in predicted.items():
        mean = mean_over_groups(ndcg[name])
        by_cutoff = [mean_over_groups(ndcg_of_groups(relevance, scores, numbers, k)) for k in CUTOFFS]
        gain, error = gain_over(ndcg[MODEL_NAME], ndcg[name])
        found[name] = {
            "n_groups": mean.n_groups,
            "ndcg": _finite(mean.value),
            "ndcg_error": mean.standard_error,
            "ndcg_by_cutoff": [_finite(one.value) for one in by_cutoff],
            "ndcg_by_cutoff_error": [one.standard_error for one in by_cutoff],
            "map": _finite(mean_over_groups(average_precision_of_groups(relevance, scores, numbers)).value),
            "mrr": _finite(mean_over_groups(reciprocal_rank_of_groups(relevance, scores, numbers)).value),
        }
        if name != MODEL_NAME:
            found[name] |= {"ndcg_gain": _finite(gain), "ndcg_gain_error": error}
    return found


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
