"""How long fitting and predicting take, and how much memory, on two cores.

    make bench-speed

Run it with nothing else on the machine. Times are medians of three; the fits of NGBoost and of a mixture density
network stand beside ours where NGBoost is installed (`make bench-regression` installs it).
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from thalweg import EnergyRegressor


def synthetic(n_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ten columns; a smooth mean, a spread that varies, two branches for a part of the rows."""
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((n_rows, 10))
    spread = 0.3 + 0.3 * (X[:, 2] > 0)
    branch = 1.5 * (rng.uniform(size=n_rows) < 0.2) * (X[:, 3] > 0)
    return X, 2 * X[:, 0] + np.sin(3 * X[:, 1]) + branch + spread * rng.standard_normal(n_rows)


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ngboost_fit(X: np.ndarray, y: np.ndarray) -> Callable[[], object] | None:
    try:
        from ngboost import NGBRegressor
    except ImportError:
        return None
    return lambda: NGBRegressor(verbose=False, random_state=0).fit(X, y)


def peak_memory(n_rows: int) -> float:
    """Peak of a fresh process that predicts this many rows, MiB."""
    command = [sys.executable, __file__, "--memory-of", str(n_rows)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def report_memory(n_rows: int) -> None:
    X, y = synthetic(2000)
    model = EnergyRegressor(random_state=0, max_epochs=3).fit(X, y)
    model.predict_interval(synthetic(n_rows, 1)[0])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    console = Console(width=100)
    table = Table("work", "thalweg (s)", "NGBoost (s)", "bound (s)")
    for n_rows, bound, repeats in ((1000, 10, 3), (10_000, 60, 1)):
        X, y = synthetic(n_rows)
        rival = ngboost_fit(X, y)
        own_time = seconds(lambda X=X, y=y: EnergyRegressor(random_state=0).fit(X, y), repeats)  # type: ignore[misc]
        rival_time = "not installed" if rival is None else f"{seconds(rival, repeats):.1f}"
        table.add_row(f"fit {n_rows} x 10, defaults", f"{own_time:.1f}", rival_time, f"{bound}")
    X, y = synthetic(1000)
    model = EnergyRegressor(random_state=0).fit(X, y)
    X_new, _ = synthetic(10_000, seed=1)
    levels = np.array([0.05, 0.5, 0.95])

    def predict() -> None:
        density = model.predict_distribution(X_new)
        density.mean()
        density.quantile(levels)

    predict()
    table.add_row("predict 10,000 distributions: mean, three quantiles", f"{seconds(predict, 5):.2f}", "", "2")
    console.print(table)
    memory = Table("rows predicted", "peak memory (MiB)")
    for n_rows in (1000, 20_000, 200_000):
        memory.add_row(f"{n_rows}", f"{peak_memory(n_rows):.0f}")
    console.print(memory)


if __name__ == "__main__":
    if "--memory-of" in sys.argv:
        report_memory(int(sys.argv[-1]))
    else:
        main()
