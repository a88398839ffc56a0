"""Densities of tables: ours beside a Gaussian mixture, a kernel density estimate and a flow of splines.

    make bench-tables                    # two moons, and tables that scikit-learn ships
    make bench-tables DATA=FOLDER        # concrete, energy, wine, kin8nm and california too

Every model sees the same rows: splits of each table, four fifths to train on and one to test. Columns that are
rounded are spread over their rounding cells first, for every model alike, or there would be no density to speak
of. Number and kind of a mixture's covariances and a kernel's bandwidth are chosen by cross-validation; the flow
stops on a fifth of the training rows. Log-likelihoods are in nats for each row, of standardised columns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from sklearn.model_selection import train_test_split

from thalweg import EnergyDensity
from thalweg.data.target import find_resolution
from thalweg.evaluation.density_baselines import GaussianBaseline, KernelBaseline, MixtureBaseline

MAX_ROWS = 5000
FILES = {
    "concrete": "uci_concrete",
    "energy": "uci_energy",
    "wine (red)": "uci_wine_red",
    "kin8nm": "uci_kin8nm",
    "california": "california_housing",
}

Fit = Callable[[np.ndarray, int], Callable[[np.ndarray], np.ndarray]]
"""(training rows, seed) -> log p of rows."""


def ours(rows: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    return EnergyDensity(resolution=0, random_state=seed, n_threads=1).fit(rows).score_samples


def baseline(kind: type[GaussianBaseline]) -> Fit:
    return lambda rows, seed: kind().fit(rows, seed).log_prob


def flow(rows: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """A neural spline flow, three transforms of two layers of 64, AdamW 1e-3, stopped after 30 idle epochs."""
    import zuko

    torch.manual_seed(seed)
    training, held_out = (
        torch.as_tensor(p, dtype=torch.float32) for p in train_test_split(rows, test_size=0.2, random_state=seed)
    )
    model = zuko.flows.NSF(rows.shape[1], transforms=3, hidden_features=(64, 64))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    best, idle, kept = np.inf, 0, model.state_dict()
    for _ in range(500):
        for batch in training[torch.randperm(len(training))].split(128):
            optimizer.zero_grad()
            (-model().log_prob(batch).mean()).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(-model().log_prob(held_out).mean())
        if loss < best:
            best, idle, kept = loss, 0, {k: v.clone() for k, v in model.state_dict().items()}
        elif (idle := idle + 1) > 30:
            break
    model.load_state_dict(kept)

    def log_prob(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model().log_prob(torch.as_tensor(x, dtype=torch.float32)).double().numpy()

    return log_prob


MODELS: dict[str, Fit] = {
    "thalweg": ours,
    "one Gaussian": baseline(GaussianBaseline),
    "Gaussian mixture": baseline(MixtureBaseline),
    "kernel density estimate": baseline(KernelBaseline),
    "spline flow": flow,
}


def load_tables(folder: Path | None) -> dict[str, np.ndarray]:
    tables = {
        "two moons": datasets.make_moons(2000, noise=0.1, random_state=0)[0],
        "iris": datasets.load_iris().data,
        "wine": datasets.load_wine().data,
        "diabetes": datasets.load_diabetes(scaled=False).data,
        "breast cancer": datasets.load_breast_cancer().data,
    }
    if folder is None:
        print("no --data folder: only two moons and the tables that scikit-learn ships")
        return tables
    for name, file in FILES.items():
        path = folder / f"{file}.npz"
        if not path.exists():
            raise SystemExit(f"{path} is missing: --data must be a folder with {', '.join(FILES.values())}.npz")
        z = np.load(path)
        columns = [np.concatenate([z[f"{part}_train"], z[f"{part}_test"]]) for part in "Xy"]
        tables[name] = np.column_stack(columns).astype(float)
    return tables


def prepared(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows of a split: spread over rounding cells, and standardised by the training rows."""
    rng = np.random.RandomState(seed)
    cells = np.array([find_resolution(column) for column in rows.T])
    rows = (rows + cells * rng.uniform(-0.5, 0.5, rows.shape))[rng.permutation(len(rows))[:MAX_ROWS]]
    train, test = train_test_split(rows, test_size=0.2, random_state=seed)
    mean, std = train.mean(0), train.std(0)
    return (train - mean) / std, (test - mean) / std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the larger tables")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--tables", help="only those whose names start so, separated by commas")
    parser.add_argument("--models", help="only those whose names start so, separated by commas")
    parser.add_argument("--out", type=Path, help="write all figures here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    wanted = tuple((arguments.tables or "").split(","))
    models = tuple((arguments.models or "").split(","))
    tables = {k: v for k, v in load_tables(arguments.data).items() if k.startswith(wanted)}
    figures: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, rows in tables.items():
        for seed in range(arguments.splits):
            train, test = prepared(rows, seed)
            for model, fit in MODELS.items():
                if not model.startswith(models):
                    continue
                began = time.process_time()
                log_prob = fit(train, seed)
                seconds = time.process_time() - began
                found = float(log_prob(test).mean()), seconds
                figures.setdefault(name, {}).setdefault(model, []).append(found)
                print(f"{name}, split {seed}, {model}: {found[0]:.3f} in {seconds:.1f} s", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(figures, indent=1))
    console, table = (
        Console(width=120),
        Table("table", "model", "log p of a test row (nats)", "of each split", "CPU (s)"),
    )
    for name, by_model in figures.items():
        title = f"{name}, {min(len(tables[name]), MAX_ROWS)} x {tables[name].shape[1]}"
        for model, runs in by_model.items():
            values, seconds = zip(*runs, strict=True)
            mean = f"{statistics.fmean(values):.3f}"
            each = " ".join(f"{v:.3f}" for v in values)
            table.add_row(title, model, mean, each, f"{statistics.median(seconds):.1f}")
            title = ""
        table.add_section()
    console.print(table)


if __name__ == "__main__":
    main()
