"""Kill -9 at random moments of small fits, then resume: is the model that of an uninterrupted fit?

    .venv/bin/python benchmarks/kills.py --kills 20

Each command of fitting runs once undisturbed, which gives the model to reach and the time to kill within. Then it
is started again and again in new folders, killed at a moment drawn uniformly from shortly before it writes its
first file to its end, and resumed, or started anew where nothing had been written. Counted are the states that a
kill left, and the models whose weights are not those of the undisturbed fit, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

# Long enough that a run writes several checkpoints, and that most kills meet it in training.
OPTIONS: dict[str, list[str]] = {
    "regression": ["--target", "y", "--epochs", "300"],
    "density": ["--epochs", "300"],
    "classifier": ["--target", "label", "--epochs", "200"],
    "sequence": ["--target", "label", "--sequence", "group", "--epochs", "300"],
    "ranker": ["--target", "relevance", "--group", "group", "--epochs", "200"],
    "boltzmann": ["--epochs", "300"],
    "images": ["--steps", "300"],
}


def write_data(folder: Path) -> None:
    """One table that every command on tables can use, and small images."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(240, 3)), columns=list("abc"))
    table["y"] = np.rint(2 * (table["a"] + 0.3 * rng.normal(size=240)))
    table["relevance"] = table["y"].clip(0, 4)
    table["label"] = np.where(table["b"] > 0, "up", "down")
    table["group"] = np.repeat([f"g{i}" for i in range(24)], 10)
    table.to_csv(folder / "table.csv", index=False)
    table[["a", "b", "c"]].to_csv(folder / "numbers.csv", index=False)
    np.savez(folder / "images.npz", X=rng.uniform(size=(60, 6, 6)))


def data_of(task: str) -> str:
    return {"images": "images.npz", "density": "numbers.csv", "boltzmann": "numbers.csv"}.get(task, "table.csv")


def command(task: str, folder: Path, run: Path, resume: bool = False) -> list[str]:
    start = [sys.executable, "-m", "thalweg.cli", "fit", task]
    what = ["--resume"] if resume else [str(folder / data_of(task)), *OPTIONS[task], "--threads", "1"]
    return [*start, *what, "--out", str(run), "--quiet", "--no-report"]


def fit(arguments: list[str]) -> None:
    subprocess.run(arguments, check=True, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def undisturbed(task: str, folder: Path, run: Path) -> tuple[float, float]:
    """After how many seconds a fit wrote its first file, and after how many it ended."""
    start, begun = time.perf_counter(), 0.0
    with subprocess.Popen(command(task, folder, run), env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(0.01)
            if not begun and (run / "fit.json").exists():
                begun = time.perf_counter() - start
    return begun, time.perf_counter() - start


def killed(task: str, folder: Path, run: Path, after: float) -> str:
    """Kill a fit after so many seconds and finish it: what the kill left."""
    with subprocess.Popen(
        command(task, folder, run), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
    if (run / "model" / "model.safetensors").exists():
        left = "after the end"
    elif (run / "fit.json").exists():
        left = "in training"
    else:
        left = "before anything was written"
    fit(command(task, folder, run, resume=left != "before anything was written"))
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tasks", default=",".join(OPTIONS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    table = Table("fit", "seconds", "in training", "before", "after", "other models")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        for task in arguments.tasks.split(","):
            begun, seconds = undisturbed(task, folder, folder / task)
            found: Counter[str] = Counter()
            n_other = 0
            for k in range(arguments.kills):
                run = folder / f"{task}-{k}"
                found[killed(task, folder, run, rng.uniform(0.9 * begun, seconds))] += 1
                n_other += weights(run) != weights(folder / task)
                print(task, k, dict(found), n_other, flush=True)
            counts = [found[s] for s in ("in training", "before anything was written", "after the end")]
            table.add_row(task, f"{seconds:.0f}", *map(str, counts), str(n_other))
    Console().print(table)


if __name__ == "__main__":
    main()
