"""Regression against NGBoost, a mixture density network and quantile gradient boosting.

Every model sees the same rows: three splits of each table, 90 % to train and 10 % to test. A target that is
rounded to a grid of spacing r is scored by the log of the probability of [y - r/2, y + r/2], over r.

    make bench-regression                    # the tables that scikit-learn ships
    make bench-regression DATA=FOLDER        # concrete, energy, kin8nm, wine, california and diabetes
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from thalweg import EnergyRegressor
from thalweg.data.target import find_resolution
from thalweg.energies import MixtureDensity, mlp
from thalweg.evaluation.baselines import BoostedQuantiles, GaussianPredictive
from thalweg.evaluation.regression import score

FILES = {
    "concrete": "uci_concrete",
    "energy": "uci_energy",
    "kin8nm": "uci_kin8nm",
    "wine": "uci_wine_red",
    "california": "california_housing",
}


def load_tables(folder: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if folder is None:
        print("no --data folder: the tables that scikit-learn ships (small ones) are used")
        wine, iris = datasets.load_wine(), datasets.load_iris()
        tables["wine, alcohol"] = wine.data[:, 1:], wine.data[:, 0]
        tables["iris, sepal length"] = iris.data[:, 1:], iris.data[:, 0]
    else:
        for name, file in FILES.items():
            path = folder / f"{file}.npz"
            if not path.exists():
                raise SystemExit(
                    f"{path} is missing: --data must be a folder with {', '.join(FILES.values())}.npz"
                )
            z = np.load(path)
            tables[name] = (
                np.concatenate([z["X_train"], z["X_test"]]).astype(float),
                np.concatenate([z["y_train"], z["y_test"]]).astype(float).ravel(),
            )
    tables["diabetes"] = datasets.load_diabetes(return_X_y=True, scaled=False)
    return tables


def ours(X: np.ndarray, y: np.ndarray, seed: int, resolution: float) -> Callable[[np.ndarray], Any]:
    return EnergyRegressor(random_state=seed).fit(X, y).predict_distribution


def ngboost(X: np.ndarray, y: np.ndarray, seed: int, resolution: float) -> Callable[[np.ndarray], Any]:
    """Gaussian, learning rate 0.01, stopped early on a tenth of the rows, as its authors do."""
    from ngboost import NGBRegressor

    Xf, Xv, yf, yv = train_test_split(X, y, test_size=0.1, random_state=seed)
    model = NGBRegressor(n_estimators=2000, learning_rate=0.01, verbose=False, random_state=seed)
    model.fit(Xf, yf, X_val=Xv, Y_val=yv, early_stopping_rounds=50)

    def predict(X_new: np.ndarray) -> GaussianPredictive:
        normal = model.pred_dist(X_new)
        return GaussianPredictive(normal.loc, normal.scale)

    return predict


def mixture_network(X: np.ndarray, y: np.ndarray, seed: int, resolution: float) -> Callable[[np.ndarray], Any]:
    """Two layers of 128, five Gaussians, Adam 1e-3, stopped early; rounded targets dequantised as ours are."""
    torch.manual_seed(seed)
    network = MixtureDensity(mlp([X.shape[1], 128, 128]), 128, n_components=5)
    model = EnergyRegressor("likelihood", energy=network, learning_rate=1e-3, weight_decay=0.0, max_steps=None,
                            max_epochs=1000, patience=50, random_state=seed)  # fmt: skip
    pipeline = make_pipeline(StandardScaler(), model).fit(X, y)
    return lambda X_new: pipeline[-1].predict_distribution(pipeline[0].transform(X_new))


class _DefaultBoosting(BoostedQuantiles):
    def _model(self, loss: str, level: float | None) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(loss=loss, quantile=level, random_state=self.random_state)


def boosting(X: np.ndarray, y: np.ndarray, seed: int, resolution: float) -> Callable[[np.ndarray], Any]:
    """scikit-learn's HistGradientBoostingRegressor at its defaults, 19 quantiles and the mean."""
    model = _DefaultBoosting(seed).fit(pd.DataFrame(X), y, resolution)
    return lambda X_new: model.predict_distribution(pd.DataFrame(X_new))


RIVALS = {
    "thalweg (default)": ours,
    "NGBoost": ngboost,
    "mixture density network": mixture_network,
    "quantile boosting": boosting,
}
FIGURES = ("nll", "crps", "rmse", "coverage", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the .npz tables")
    parser.add_argument("--tables", help="only these, separated by commas")
    parser.add_argument("--rivals", help="only these, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write all figures here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    tables = load_tables(arguments.data)
    if arguments.tables:
        tables = {k: tables[k] for k in arguments.tables.split(",")}
    rivals = {k: v for k, v in RIVALS.items() if not arguments.rivals or k in arguments.rivals.split(",")}
    everything: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, (X, y) in tables.items():
        resolution = find_resolution(y)
        rows: dict[str, list[dict[str, float]]] = {rival: [] for rival in rivals}
        for seed in range(arguments.seeds):
            X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.1, random_state=seed)
            for rival, fit in rivals.items():
                start = time.perf_counter()
                predict = fit(X_train, y_train, seed, resolution)
                seconds = time.perf_counter() - start
                s = score(y_test, predict(X_test), resolution)
                rows[rival].append(
                    {"nll": s.nll, "crps": s.crps, "rmse": s.rmse, "coverage": s.coverage, "seconds": seconds}
                )
        everything[name] = rows
        show(name, len(y), X.shape[1], resolution, rows)
        if arguments.out:
            arguments.out.write_text(json.dumps(everything, indent=1))


def show(name: str, n: int, d: int, resolution: float, rows: dict[str, list[dict[str, float]]]) -> None:
    title = f"{name}: {n} rows, {d} columns" + (f", target rounded to {resolution:g}" if resolution else "")
    table = Table("", "test NLL (nats)", "CRPS", "RMSE", "90 % coverage", "fit (s)", title=title)
    for rival, runs in rows.items():
        cells = []
        for figure in FIGURES:
            v = np.array([run[figure] for run in runs])
            digits = 1 if figure == "seconds" else 3
            cells.append(f"{v.mean():.{digits}f} ± {v.std(ddof=1) if len(v) > 1 else 0:.{digits}f}")
        table.add_row(rival, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
