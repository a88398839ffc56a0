"""Learning to rank: ours beside LightGBM's lambdarank, boosted and ridge regression of relevance, and chance.

    make bench-ranking                # made-up queries
    make bench-ranking DATA=FOLDER    # wine, concrete and houses in random groups of twenty too

NDCG at 10 on test groups, a quarter of all. LightGBM is stopped early on a fifth of the training groups, and
fitted again with as many trees to all of them. The best figure of a table is in bold, and so is what is level
with it: less than two standard errors of the paired difference over the test groups of all splits behind.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import GroupShuffleSplit
from threadpoolctl import threadpool_limits

from thalweg import EnergyRanker
from thalweg.evaluation.ranking import ndcg_of_groups
from thalweg.evaluation.ranking_baselines import BestColumn, BoostedRelevance, RandomOrder, RidgeRelevance
from thalweg.objectives.names import RANKING

MAX_ROWS = 4000


class Queries(NamedTuple):
    X: pd.DataFrame
    relevance: np.ndarray
    groups: np.ndarray

    def of(self, rows: np.ndarray) -> Queries:
        return Queries(self.X.iloc[rows].reset_index(drop=True), self.relevance[rows], self.groups[rows])


def graded(utility: np.ndarray, shares: tuple[float, ...] = (0.5, 0.75, 0.9, 0.97)) -> np.ndarray:
    """Grades 0 to 4, the higher the rarer."""
    return np.digitize(utility, np.quantile(utility, shares))


def made_up(curved: bool) -> Queries:
    """250 queries of 5 to 40 answers: eight columns of an answer, three of its query.

    The utility is linear in the columns, up to an effect of the query on its level that no column shows; or it is
    made of waves, products and a dependence on the query's columns.
    """
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 41, 250)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    query = rng.normal(size=(len(sizes), 3))[groups]
    shift = 0.5 * rng.normal(size=(len(sizes), 8))[groups]
    x = rng.normal(size=(len(groups), 8)) + shift
    noise = rng.normal(size=len(groups))
    if curved:
        utility = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + np.abs(x[:, 3]) + query[:, 0] * x[:, 4] + 0.7 * noise
    else:
        hidden = rng.normal(size=len(sizes))[groups]
        utility = x @ np.linspace(1, -0.4, 8) + 0.5 * query[:, 0] + hidden + noise
    names = [*(f"answer {k}" for k in range(8)), *(f"query {k}" for k in range(3))]
    return Queries(pd.DataFrame(np.column_stack([x, query]), columns=names), graded(utility), groups)


def from_table(file: Path, grades: Callable[[np.ndarray], np.ndarray]) -> Queries:
    """The rows of a table in random groups of twenty, a grade of the target as relevance."""
    data = np.load(file)
    X, y = (np.concatenate([data[f"{k}_train"], data[f"{k}_test"]]) for k in "Xy")
    order = np.random.RandomState(0).permutation(len(X))[:MAX_ROWS]
    order = order[: len(order) // 20 * 20]
    table = pd.DataFrame(X[order].astype(float)).rename(columns=str)
    return Queries(table, grades(y.ravel()[order]), np.repeat(np.arange(len(order) // 20), 20))


def problems(folder: Path | None) -> dict[str, Callable[[], Queries]]:
    found: dict[str, Callable[[], Queries]] = {
        "queries, linear": lambda: made_up(False),
        "queries, curved": lambda: made_up(True),
    }
    if folder is not None:
        found["wine quality"] = lambda: from_table(
            folder / "uci_wine_red.npz", lambda y: np.round(y).astype(int) - 3
        )
        found["concrete"] = lambda: from_table(folder / "uci_concrete.npz", graded)
        found["houses"] = lambda: from_table(folder / "california_housing.npz", graded)
        found["robot arm"] = lambda: from_table(folder / "uci_kin8nm.npz", graded)
    return found


class LambdaRank:
    """LightGBM's ranker."""

    def __init__(self, seed: int):
        self.seed = seed

    def fit(self, X: pd.DataFrame, relevance: np.ndarray, groups: np.ndarray) -> LambdaRank:
        from lightgbm import early_stopping

        split = GroupShuffleSplit(1, test_size=0.2, random_state=self.seed)
        fitted, judged = next(split.split(X, groups=groups))
        model = self._model(2000)
        model.fit(
            X.iloc[fitted], relevance[fitted], group=_sizes(groups[fitted]), eval_at=[10],
            eval_set=[(X.iloc[judged], relevance[judged])], eval_group=[_sizes(groups[judged])],
            callbacks=[early_stopping(100, verbose=False)],
        )  # fmt: skip
        self._final = self._model(max(model.best_iteration_, 1)).fit(X, relevance, group=_sizes(groups))
        return self

    def _model(self, n_trees: int) -> Any:
        from lightgbm import LGBMRanker

        how = {"objective": "lambdarank", "learning_rate": 0.05, "n_jobs": 1, "verbose": -1}
        return LGBMRanker(n_estimators=n_trees, random_state=self.seed, **how)

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return self._final.predict(X)


def _sizes(groups: np.ndarray) -> np.ndarray:
    """Rows of each group, for groups whose rows stand together."""
    return np.diff(np.flatnonzero(np.r_[True, groups[1:] != groups[:-1], True]))


MODELS: dict[str, Callable[[int], Any]] = {
    "thalweg": lambda seed: EnergyRanker(random_state=seed, n_threads=1),
    "LightGBM": LambdaRank,
    BoostedRelevance.name: BoostedRelevance,
    RidgeRelevance.name: RidgeRelevance,
    BestColumn.name: BestColumn,
    RandomOrder.name: RandomOrder,
    **{
        f"thalweg {name}": lambda seed, name=name: EnergyRanker(name, random_state=seed, n_threads=1)
        for name in RANKING
    },
}
COMPARED = (
    "thalweg",
    "LightGBM",
    *(kind.name for kind in (BoostedRelevance, RidgeRelevance, BestColumn, RandomOrder)),
)


def parts(data: Queries, seed: int, validation: bool) -> tuple[Queries, Queries]:
    """Training groups and groups to judge by; the latter from the training groups where defaults are chosen."""
    training, test = next(
        GroupShuffleSplit(1, test_size=0.25, random_state=seed).split(data.X, groups=data.groups)
    )
    if not validation:
        return data.of(training), data.of(test)
    return parts(data.of(training), seed, False)


def measure(data: Queries, seeds: range, names: list[str], validation: bool) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {"ndcg": [], "seconds": []} for name in names}
    for seed in seeds:
        fitted, judged = parts(data, seed, validation)
        numbers = np.unique(judged.groups, return_inverse=True)[1]
        for name in names:
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = MODELS[name](seed).fit(fitted.X, fitted.relevance, fitted.groups)
                scores = model.predict(judged.X)
            found[name]["seconds"].append(time.process_time() - start)
            found[name]["ndcg"].append(ndcg_of_groups(judged.relevance, scores, numbers, 10))
    for entry in found.values():
        entry["ndcg"] = np.concatenate(entry["ndcg"])
    return found


def error_of(values: np.ndarray) -> float:
    return float(np.nanstd(values, ddof=1) / np.sqrt((~np.isnan(values)).sum()))


def level(found: dict[str, dict[str, Any]]) -> set[str]:
    """The model of the best mean, and those level with it."""
    best = max(found, key=lambda name: np.nanmean(found[name]["ndcg"]))
    gaps = {name: found[best]["ndcg"] - entry["ndcg"] for name, entry in found.items()}
    return {name for name, gap in gaps.items() if name == best or np.nanmean(gap) < 2 * error_of(gap)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with uci_wine_red.npz, uci_concrete.npz and others")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tables", nargs="*", help="names of the problems; all by default")
    parser.add_argument("--models", nargs="*", default=list(COMPARED), choices=list(MODELS))
    parser.add_argument("--validation", action="store_true", help="judge on a quarter of the training groups")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    makers = problems(arguments.data)
    if arguments.data is None:
        print("No --data FOLDER: only made-up queries.")
    makers = {name: make for name, make in makers.items() if name in (arguments.tables or makers)}
    shown = Table(title=f"NDCG at 10 (CPU seconds); {arguments.seeds} splits")
    for head in ("problem", "rows x columns, groups", *arguments.models):
        shown.add_column(head)
    everything = {}
    for name, make in makers.items():
        data = make()
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        with threadpool_limits(1):
            found = measure(data, seeds, arguments.models, arguments.validation)
        best, cells = level(found), []
        for model in arguments.models:
            values, seconds = found[model]["ndcg"], np.mean(found[model]["seconds"])
            text = f"{np.nanmean(values):.4f}"
            text = f"[bold]{text}[/bold]" if model in best else text
            cells.append(f"{text} ± {error_of(values):.4f}\n{seconds:.1f} s")
        shown.add_row(name, f"{len(data.X)} x {data.X.shape[1]}, {data.groups.max() + 1}", *cells)
        everything[name] = {
            model: {"ndcg": float(np.nanmean(e["ndcg"])), "error": error_of(e["ndcg"]), "seconds": e["seconds"]}
            for model, e in found.items()
        }
        gap = {m: found[arguments.models[0]]["ndcg"] - e["ndcg"] for m, e in found.items()}
        print(name, {m: round(e["ndcg"], 4) for m, e in everything[name].items()}, "gain of the first:",
              {m: f"{np.nanmean(g):+.4f} ± {error_of(g):.4f}" for m, g in gap.items()}, flush=True)  # fmt: skip
    Console(width=200).print(shown)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
