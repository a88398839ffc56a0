"""Classifiers of tables: ours beside logistic regression, two kinds of boosting and a random forest.

    make bench-classification                # tables that scikit-learn ships
    make bench-classification DATA=FOLDER    # handwritten letters, wine, and the mixed tables of the folder too

All at their recommended settings, with and without a temperature (scikit-learn's, cross-validated), on the same
splits, three quarters to train on. The best log loss of a table is in bold, and so is what is level with it:
less than two standard errors of the paired difference over the test rows of all splits behind.
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
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from thalweg import EnergyClassifier
from thalweg.evaluation.calibration import expected_calibration_error

MAX_ROWS = 4000
LEAST = 1e-12


def bundled() -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """Tables that scikit-learn ships."""
    loaders = {
        "breast cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
        "digits": datasets.load_digits,
    }
    found = {name: load(as_frame=True) for name, load in loaders.items()}
    return {name: (data.data, data.target.to_numpy()) for name, data in found.items()}


def from_folder(folder: Path) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """Handwritten letters, wine by grade, and mixed tables with a class as target."""
    out = {}
    letters = np.load(folder / "ocr_letters.npz")
    some = np.random.RandomState(0).permutation(len(letters["y_train"]))[:MAX_ROWS]
    pixels = letters["X_train"].reshape(-1, 128)[some].astype(float)
    out["letters"] = pd.DataFrame(pixels).rename(columns=str), letters["y_train"][some]
    wine = np.load(folder / "uci_wine_red.npz")
    X, grade = (np.concatenate([wine[f"{k}_train"], wine[f"{k}_test"]]) for k in "Xy")
    # There are ten and eighteen rows of the outermost grades.
    out["wine, grades"] = pd.DataFrame(X).rename(columns=str), np.clip(grade.ravel(), 4, 7).astype(int)
    for name, file, target, left_out in (
        ("credit", "credit", "Status", []),
        ("titanic", "titanic", "survived", []),
        ("penguins, sex", "penguins", "sex", []),
        ("pbc, status", "pbc", "status", ["id"]),
        ("wage, insurance", "wage", "health_ins", ["logwage"]),
        ("wage, education", "wage", "education", ["logwage"]),
        ("diamonds, cut", "diamonds_8k", "cut", []),
    ):
        table = pd.read_csv(folder / "mixed" / f"{file}.csv").dropna(subset=[target])[: 2 * MAX_ROWS]
        table = table.iloc[np.random.RandomState(0).permutation(len(table))[:MAX_ROWS]].reset_index(drop=True)
        out[name] = table.drop(columns=[target, *left_out]), table[target].to_numpy()
    return out


def typed(X: pd.DataFrame) -> pd.DataFrame:
    """Texts as pandas' categories, a gap among them as a category, as gradient boosting wants them."""
    out = X.copy()
    for name in out.columns:
        if not pd.api.types.is_numeric_dtype(out[name]):
            out[name] = out[name].fillna("(missing)").astype("category")
    return out


def one_hot(model: Any) -> Pipeline:
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    columns = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_exclude="number")),
    )
    return make_pipeline(columns, model)


def logistic(X: pd.DataFrame, seed: int) -> Any:
    if len(X) > 2000:
        return one_hot(LogisticRegression(max_iter=500))
    how = {"scoring": "neg_log_loss", "max_iter": 1000, "l1_ratios": (0,), "use_legacy_attributes": False}
    return one_hot(LogisticRegressionCV(Cs=10, **how))


def catboost(X: pd.DataFrame, seed: int) -> Any:
    from catboost import CatBoostClassifier

    categories = [name for name in X.columns if isinstance(X[name].dtype, pd.CategoricalDtype)]
    how = {"cat_features": categories, "thread_count": 1, "verbose": 0, "allow_writing_files": False}
    return CatBoostClassifier(random_seed=seed, **how)


MODELS: dict[str, Callable[[pd.DataFrame, int], Any]] = {
    "thalweg": lambda X, seed: EnergyClassifier(random_state=seed, n_threads=1),
    "logistic": logistic,
    "hist. boosting": lambda X, seed: HistGradientBoostingClassifier(
        categorical_features="from_dtype", random_state=seed
    ),
    "random forest": lambda X, seed: one_hot(RandomForestClassifier(500, random_state=seed)),
    "catboost": catboost,
}


def log_loss_of_rows(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], LEAST))


def scored(model: Any, X: pd.DataFrame, truth: np.ndarray, n_labels: int) -> dict[str, Any]:
    p = np.full((len(X), n_labels), LEAST)
    p[:, np.asarray(model.classes_, int)] = model.predict_proba(X)
    p = p / p.sum(1, keepdims=True)
    return {
        "rows": log_loss_of_rows(p, truth),
        "accuracy": float((p.argmax(1) == truth).mean()),
        "ece": expected_calibration_error(p, truth, n_bins=10),
    }


def measure(X: pd.DataFrame, y: np.ndarray, seeds: int, tempered: bool, names: list[str]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    labels = np.unique(y, return_inverse=True)[1]
    n_labels = int(labels.max()) + 1
    for seed in range(seeds):
        parts = train_test_split(X, labels, test_size=0.25, random_state=seed, stratify=labels)
        fitted, judged, a, b = parts
        for name in names:
            table = (fitted, judged) if name == "thalweg" else tuple(map(typed, (fitted, judged)))
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = MODELS[name](table[0], seed).fit(table[0].reset_index(drop=True), a)
            seconds = time.process_time() - start
            entry = {**scored(model, table[1], b, n_labels), "seconds": seconds}
            if name == "thalweg":
                raw = scored(model.at_temperature(value=1.0), table[1], b, n_labels)
                entry["without"] = raw
            elif tempered and np.bincount(a).min() >= 5:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    scaled = CalibratedClassifierCV(MODELS[name](table[0], seed), method="temperature", cv=5)
                    scaled.fit(table[0].reset_index(drop=True), a)
                entry["with"] = scored(scaled, table[1], b, n_labels)
            found.setdefault(name, []).append(entry)
    return found


def level(found: dict[str, list[dict]]) -> set[str]:
    """The model of the best mean log loss, and those level with it."""
    rows = {name: np.concatenate([e["rows"] for e in entries]) for name, entries in found.items()}
    best = min(rows, key=lambda name: rows[name].mean())
    gaps = {name: values - rows[best] for name, values in rows.items()}
    return {n for n, g in gaps.items() if n == best or g.mean() < 2 * g.std() / np.sqrt(len(g))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with ocr_letters.npz, uci_wine_red.npz and mixed/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="*", help="names of the tables; all by default")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--tempered", action="store_true", help="the others with a temperature as well: slow")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    tables = bundled()
    if arguments.data is None:
        print("No --data FOLDER: only the tables that scikit-learn ships.")
    else:
        tables |= from_folder(arguments.data)
    if arguments.tables:
        tables = {name: tables[name] for name in arguments.tables}
    shown = Table(title=f"log loss in nats (accuracy, calibration error, CPU seconds); {arguments.seeds} splits")
    for head in ("table", "rows x columns, classes", *arguments.models):
        shown.add_column(head)
    everything = {}
    for name, (X, y) in tables.items():
        with threadpool_limits(1):
            found = measure(X, y, arguments.seeds, arguments.tempered, arguments.models)
        best, cells = level(found), []
        for model in arguments.models:
            entries = found[model]

            def mean(key: str, entries: list[dict] = entries, part: str | None = None) -> float:
                chosen = [e if part is None else e[part] for e in entries]
                return float(np.mean([np.mean(e[key]) for e in chosen]))

            text = f"{mean('rows'):.4f}"
            text = f"[bold]{text}[/bold]" if model in best else text
            for part, word in (("with", "T"), ("without", "T = 1")):
                if part in entries[0]:
                    text += f" [{word}: {mean('rows', part=part):.4f}]".replace("[T", "\\[T")
            cells.append(f"{text}\n{mean('accuracy'):.3f}, {mean('ece'):.3f}, {mean('seconds'):.1f}")
        shown.add_row(name, f"{len(X)} x {X.shape[1]}, {len(np.unique(y))}", *cells)
        everything[name] = {
            model: [{k: v for k, v in e.items() if k != "rows"} | {"log loss": float(np.mean(e["rows"]))}
                    for e in entries]
            for model, entries in found.items()
        }  # fmt: skip
        print(name, {m: round(float(np.mean([e["log loss"] for e in v])), 4) for m, v in everything[name].items()},
              "level with the best:", sorted(best), flush=True)  # fmt: skip
    Console(width=200).print(shown)
    if arguments.out is not None:
        plain = json.loads(json.dumps(everything, default=lambda v: np.mean(v).item()))
        arguments.out.write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    main()
