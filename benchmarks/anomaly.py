"""Odd rows of tables: ours beside nearest neighbours, local outlier factors, isolation forests and others.

    make bench-anomaly                   # a class of a table that scikit-learn ships as the odd one
    make bench-anomaly DATA=FOLDER       # ten tables of ADBench too

Two protocols, the same rows for every detector, no label used by any. *One-class*: a random half of the normal
rows is learned from; the other half and all odd rows are scored. *Unsupervised*: all rows are learned from and
scored, the odd ones among them. Of larger tables 3000 rows are drawn. Rivals see standardised columns; ours and
the first three leave a row out of its own neighbours where it was learned from. ECOD and Deep SVDD are pyod's,
where that is installed. The figure is the area under the ROC curve; ranks are means over tables of ranks in the
mean over seeds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import kstest, rankdata
from sklearn import datasets
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from thalweg import EnergyDetector

MAX_ROWS = 3000
FILE = "adbench_10"
# Tables that scikit-learn ships, and the class of each that is the odd one.
SHIPPED = {"iris": (1, 2), "wine": (0, 1, 2), "breast_cancer": (0,), "digits": (0, 1, 4, 8)}
PREFIX = "shipped "

Scores = Callable[[np.ndarray, np.ndarray | None, int], np.ndarray]
"""(training rows, rows to score or None for the training rows, seed) -> how odd each is."""


def ours(train: np.ndarray, test: np.ndarray | None, seed: int) -> np.ndarray:
    detector = EnergyDetector(random_state=seed).fit(train)
    return -detector.held_out_scores_ if test is None else -detector.score_samples(test)


def neighbours(k: int) -> Scores:
    def score(train: np.ndarray, test: np.ndarray | None, seed: int) -> np.ndarray:
        found = NearestNeighbors(n_neighbors=k).fit(train)
        # Without rows of its own, scikit-learn leaves each training row out of its neighbours.
        return found.kneighbors(test)[0][:, -1]

    return score


def local_outlier_factor(train: np.ndarray, test: np.ndarray | None, seed: int) -> np.ndarray:
    found = LocalOutlierFactor(20, novelty=True).fit(train)
    return -found.negative_outlier_factor_ if test is None else -found.score_samples(test)


def isolation_forest(train: np.ndarray, test: np.ndarray | None, seed: int) -> np.ndarray:
    return -IsolationForest(random_state=seed).fit(train).score_samples(train if test is None else test)


def gaussian_mixture(train: np.ndarray, test: np.ndarray | None, seed: int) -> np.ndarray:
    sizes = [k for k in (1, 2, 4, 8) if len(train) >= 20 * k] or [1]
    fitted = [GaussianMixture(k, reg_covar=1e-2, random_state=seed).fit(train) for k in sizes]
    best = min(fitted, key=lambda mixture: mixture.bic(train))
    return -best.score_samples(train if test is None else test)


def ecod(train: np.ndarray, test: np.ndarray | None, seed: int) -> np.ndarray:
    from pyod.models.ecod import ECOD

    found = ECOD().fit(train)
    return found.decision_scores_ if test is None else found.decision_function(test)


def deep_svdd(train: np.ndarray, test: np.ndarray | None, seed: int) -> np.ndarray:
    from pyod.models.deep_svdd import DeepSVDD

    found = DeepSVDD(n_features=train.shape[1], verbose=0, random_state=seed).fit(train)
    return found.decision_scores_ if test is None else found.decision_function(test)


DETECTORS: dict[str, Scores] = {
    "thalweg": ours,
    "1-NN": neighbours(1),
    "kNN-5": neighbours(5),
    "LOF": local_outlier_factor,
    "isolation forest": isolation_forest,
    "Gaussian mixture": gaussian_mixture,
    "ECOD": ecod,
    "Deep SVDD": deep_svdd,
}


def load_tables(folder: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows of each table, and which of them are odd."""
    tables = {}
    if folder is None:
        print("no --data folder: only the tables that scikit-learn ships")
    else:
        path = folder / f"{FILE}.npz"
        if not path.exists():
            raise SystemExit(f"{path} is missing: --data must be a folder with {FILE}.npz")
        with np.load(path) as z:
            names = [key.removesuffix("_X") for key in z.files if key.endswith("_X")]
            tables = {name: (z[f"{name}_X"].astype(float), z[f"{name}_y"].astype(int)) for name in names}
    for name, classes in SHIPPED.items():
        data = getattr(datasets, f"load_{name}")()
        for label in classes:
            tables[f"{PREFIX}{name}, {data.target_names[label]}"] = data.data, (data.target == label).astype(int)
    return tables


def split(
    rows: np.ndarray, odd: np.ndarray, protocol: str, seed: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Rows to learn from; rows to score, None for the same; which of those are odd."""
    rng = np.random.RandomState(seed)
    some = rng.permutation(len(rows))[:MAX_ROWS]
    rows, odd = rows[some], odd[some]
    if protocol == "unsupervised":
        return rows, None, odd
    normal = rng.permutation(np.flatnonzero(odd == 0))
    held_out = np.concatenate([normal[len(normal) // 2 :], np.flatnonzero(odd)])
    return rows[normal[: len(normal) // 2]], rows[held_out], odd[held_out]


def false_alarms(train: np.ndarray, normal: np.ndarray, seed: int) -> dict[str, float]:
    """What is flagged of normal rows that were not learned from, and how far their p-values are from uniform."""
    p = EnergyDetector(random_state=seed).fit(train).p_values(normal)
    return {"1 %": float((p <= 0.01).mean()), "5 %": float((p <= 0.05).mean()), "10 %": float((p <= 0.1).mean()),
            "KS": float(kstest(p, "uniform").statistic), "rows": float(len(p))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help=f"folder with {FILE}.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", help="only those whose names start so, separated by commas")
    parser.add_argument("--detectors", help="only those whose names start so, separated by commas")
    parser.add_argument("--out", type=Path, help="write all figures here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    wanted = tuple((arguments.detectors or "").split(","))
    detectors = {name: score for name, score in DETECTORS.items() if name.startswith(wanted)}
    if importlib.util.find_spec("pyod") is None:
        print("pyod is not installed: without ECOD and Deep SVDD")
        detectors = {name: score for name, score in detectors.items() if name not in ("ECOD", "Deep SVDD")}
    tables = load_tables(arguments.data)
    tables = {k: v for k, v in tables.items() if k.startswith(tuple((arguments.tables or "").split(",")))}
    figures: dict[str, dict[str, dict[str, list[float]]]] = {"one-class": {}, "unsupervised": {}, "seconds": {}}
    alarms: dict[str, list[dict[str, float]]] = {}
    for name, (rows, odd) in tables.items():
        shipped = name.startswith(PREFIX)
        for protocol in ("one-class",) if shipped else ("one-class", "unsupervised"):
            for seed in range(arguments.seeds):
                train, test, truth = split(rows, odd, protocol, seed)
                # Ours scales the columns itself.
                mean, spread = train.mean(0), np.where(train.std(0) > 1e-9, train.std(0), 1.0)
                z, z_test = (train - mean) / spread, None if test is None else (test - mean) / spread
                for detector, score in detectors.items():
                    began = time.process_time()
                    found = score(train, test, seed) if detector == "thalweg" else score(z, z_test, seed)
                    seconds = time.process_time() - began
                    auroc = float(roc_auc_score(truth, found))
                    figures[protocol].setdefault(name, {}).setdefault(detector, []).append(auroc)
                    figures["seconds"].setdefault(name, {}).setdefault(detector, []).append(seconds)
                if test is not None and "thalweg" in detectors:
                    alarms.setdefault(name, []).append(false_alarms(train, test[truth == 0], seed))
            print(name, protocol, {k: round(float(np.mean(v)), 3) for k, v in figures[protocol][name].items()})
            if arguments.out:
                arguments.out.write_text(json.dumps({"figures": figures, "alarms": alarms}, indent=1))
    show(figures, alarms)


def show(figures: dict[str, dict[str, dict[str, list[float]]]], alarms: dict[str, list[dict[str, float]]]) -> None:
    """The figures as tables: those of ADBench and those of shipped tables apart."""
    console = Console(width=150)
    for protocol in ("one-class", "unsupervised"):
        for shipped in (False, True):
            chosen = {k: v for k, v in figures[protocol].items() if k.startswith(PREFIX) == shipped}
            if not chosen:
                continue
            names = list(next(iter(chosen.values())))
            table = Table(protocol, *names)
            means = np.array([[np.mean(by[n]) for n in names] for by in chosen.values()])
            for name, row in zip(chosen, means, strict=True):
                table.add_row(name, *(f"{value:.3f}" for value in row))
            ranks = np.array([rankdata(-row.round(3)) for row in means]).mean(0)
            table.add_section()
            table.add_row("mean", *(f"{value:.3f}" for value in means.mean(0)))
            table.add_row("mean rank", *(f"{value:.2f}" for value in ranks))
            console.print(table)
    seconds = {n: sum(sum(by.get(n, [])) for by in figures["seconds"].values()) for n in DETECTORS}
    console.print("CPU seconds in all:", {n: round(s, 1) for n, s in seconds.items() if s})
    table = Table("normal rows", "flagged at 1 %", "at 5 %", "at 10 %", "Kolmogorov-Smirnov", "rows a seed")
    for name, found in alarms.items():
        table.add_row(
            name, *(f"{np.mean([f[k] for f in found]):.3f}" for k in ("1 %", "5 %", "10 %", "KS")),
            f"{np.mean([f['rows'] for f in found]):.0f}",
        )  # fmt: skip
    if alarms:
        console.print(table)


if __name__ == "__main__":
    main()
