"""Forecasts of 20 steps beside those of other libraries: CRPS, energy score, coverage, time.

    .venv/bin/python benchmarks/forecasting.py --data DIR

Series: hand positions of gestures (50 to learn from, 150 to test with, 150 steps) and a wrist watch's six channels
in four activities (40 and 40, 100 steps), from ``motions.npz`` in DIR, skipped with a word where it is missing;
and 40 + 40 synthesised series with a season, a trend and noise. Forecasts begin at three moments of every test
series.

Rivals at their recommended settings: the naive forecast (the last value, and the increments that followed in
training), the seasonal naive one where there is a season, exponential smoothing with a damped trend and
ARIMA(2,1,2) of statsmodels (each fitted to the past of every test series), quantiles by LightGBM's boosted trees
(nine of them at eight horizons, straight lines between; a path keeps its level), a Gaussian recurrent network.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightgbm
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from statsmodels.tsa.holtwinters import ExponentialSmoothing
from statsmodels.tsa.statespace.sarimax import SARIMAX

from thalweg import EnergyForecaster
from thalweg.data.windows import Series, Windows
from thalweg.evaluation.forecast_baselines import NaiveForecast
from thalweg.evaluation.forecasts import coverage_by_horizon, crps_of_draws, energy_score
from thalweg.recipes.trajectories import recurrent

HORIZON, N_DRAWS = 20, 100
LEVELS = np.linspace(0.1, 0.9, 9)
ANCHORS = np.array([1, 2, 3, 5, 8, 12, 16, 20])


class Task(NamedTuple):
    """Series to learn from and to test with ``[n, T, D]``, the moments before the forecasts, and a season."""

    train: np.ndarray
    test: np.ndarray
    moments: tuple[int, ...]
    season: int = 0

    def pasts(self) -> list[np.ndarray]:
        return [series[: moment + 1] for moment in self.moments for series in self.test]

    def truth(self) -> np.ndarray:
        return np.concatenate([self.test[:, moment + 1 : moment + 1 + HORIZON] for moment in self.moments])


# Draws ``[forecasts, N_DRAWS, HORIZON, D]`` of a task, by a seed.
Rival = Callable[[Task, int], np.ndarray]


def seasonal(rng: np.random.RandomState, n: int = 40, n_steps: int = 120) -> np.ndarray:
    """A season of 12 steps of its own in each series, a trend, and noise that lasts."""
    t, noise = np.arange(n_steps), rng.normal(size=(n, n_steps)).cumsum(1) * 0.1
    phase, size = rng.uniform(0, 2 * np.pi, (n, 1)), rng.uniform(0.5, 2, (n, 1))
    wave = np.sin(2 * np.pi * t / 12 + phase) + 0.3 * np.sin(4 * np.pi * t / 12 + 2 * phase)
    level = rng.normal(0, 2, (n, 1)) + rng.normal(0, 0.02, (n, 1)) * t
    return (level + size * wave + noise + 0.1 * rng.normal(size=(n, n_steps)))[..., None]


def tasks(folder: Path | None) -> dict[str, Task]:
    rng = np.random.RandomState(0)
    found = {"seasonal": Task(seasonal(rng), seasonal(rng), (59, 79, 99), 12)}
    path = None if folder is None else folder / "motions.npz"
    if path is None or not path.exists():
        print("hands and watch are skipped: name a folder with motions.npz by --data")
        return found
    with np.load(path, allow_pickle=False) as arrays:
        hand = [np.asarray(arrays[f"hand_{part}"], np.float64)[..., None] for part in ("train", "test")]
        watch = [np.asarray(arrays[f"watch_{part}"], np.float64).swapaxes(1, 2) for part in ("train", "test")]
    return {"hands": Task(*hand, (49, 89, 129)), "watch": Task(*watch, (39, 59, 79)), **found}


def energy(task: Task, seed: int) -> np.ndarray:
    model = EnergyForecaster(stretch=HORIZON, season=task.season or None, n_threads=1, random_state=seed)
    return model.fit(list(task.train)).sample(task.pasts(), HORIZON, N_DRAWS, random_state=seed)


def naive(task: Task, seed: int, season: int = 0) -> np.ndarray:
    """The last value, or that of one season ago, and the errors that such a forecast makes in training."""
    model, rng = NaiveForecast(HORIZON, season).fit(list(task.train), seed), np.random.RandomState(seed)
    return np.concatenate([model.draws(past, np.array([len(past) - 1]), N_DRAWS, rng) for past in task.pasts()])


def seasonal_naive(task: Task, seed: int) -> np.ndarray:
    return naive(task, seed, task.season)


def _each(task: Task, simulate: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Paths of every column of every past by itself."""
    found = []
    for past in task.pasts():
        columns = [simulate(past[:, d]) for d in range(past.shape[1])]
        found.append(np.stack(columns, -1))
    return np.stack(found)


def smoothing(task: Task, seed: int) -> np.ndarray:
    how = {"seasonal": "add", "seasonal_periods": task.season} if task.season else {}

    def simulate(past: np.ndarray) -> np.ndarray:
        past = past + 1e-9 * np.random.RandomState(0).normal(size=len(past))
        fitted = ExponentialSmoothing(past, trend="add", damped_trend=True, **how).fit()
        drawn = fitted.simulate(HORIZON, anchor="end", repetitions=N_DRAWS, rng=np.random.default_rng(seed))
        return np.asarray(drawn).reshape(HORIZON, N_DRAWS).T

    return _each(task, simulate)


def arima(task: Task, seed: int) -> np.ndarray:
    how = {"seasonal_order": (1, 0, 0, task.season)} if task.season else {}

    def simulate(past: np.ndarray) -> np.ndarray:
        past = past + 1e-6 * np.random.RandomState(0).normal(size=len(past))
        fitted = SARIMAX(past, order=(2, 1, 2), **how).fit(disp=0, maxiter=30)
        drawn = fitted.simulate(HORIZON, anchor="end", repetitions=N_DRAWS, rng=np.random.default_rng(seed))
        return np.asarray(drawn).reshape(HORIZON, N_DRAWS).T

    return _each(task, simulate)


def boosted(task: Task, seed: int) -> np.ndarray:
    n_columns = task.train.shape[2]
    windows = Windows(n_columns, 0, min(4 * HORIZON, task.train.shape[1] // 2), HORIZON, task.season)
    rows = windows.rows([Series(one) for one in task.train], 50_000, np.random.RandomState(0))
    pasts = task.pasts()
    x = np.concatenate([windows.inputs(windows.recent(past, np.array([len(past) - 1]))) for past in pasts])
    ahead = rows.y.reshape(len(rows.y), HORIZON, n_columns)
    found = np.zeros((len(LEVELS), len(pasts), HORIZON, n_columns))
    for d in range(n_columns):
        at_anchors = np.zeros((len(LEVELS), len(pasts), len(ANCHORS)))
        for k, step in enumerate(ANCHORS):
            for q, level in enumerate(LEVELS):
                model = lightgbm.LGBMRegressor(
                    objective="quantile", alpha=level, n_jobs=1, verbose=-1, random_state=seed
                )
                at_anchors[q, :, k] = model.fit(rows.x, ahead[:, step - 1, d]).predict(x)
        for q in range(len(LEVELS)):
            for i in range(len(pasts)):
                found[q, i, :, d] = np.interp(np.arange(1, HORIZON + 1), ANCHORS, at_anchors[q, i])
    found = np.sort(found, 0)
    levels = np.random.RandomState(seed).uniform(size=(len(pasts), N_DRAWS))
    last = np.stack([past[-1] for past in pasts])[:, None, None]
    return last + _between(found, levels)


def _between(quantiles: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Draws at these levels ``[n, m]``, on straight lines through the quantiles and on beyond the outermost."""
    place = (levels - LEVELS[0]) / (LEVELS[1] - LEVELS[0])
    low = np.clip(np.floor(place).astype(int), 0, len(LEVELS) - 2)
    share = (place - low)[..., None, None]
    rows = np.arange(len(levels))[:, None]
    return (1 - share) * quantiles[low, rows] + share * quantiles[low + 1, rows]


def network(task: Task, seed: int) -> np.ndarray:
    model, generator = recurrent(task.train, seed, quick=False), torch.Generator().manual_seed(seed)
    draws = [
        model.draws_after(torch.from_numpy(task.test[:, : moment + 1]).float(), HORIZON, N_DRAWS, generator)
        for moment in task.moments
    ]
    return torch.cat(draws).double().numpy()


RIVALS: dict[str, Rival] = {
    "thalweg": energy,
    "naive": naive,
    "seasonal naive": seasonal_naive,
    "exponential smoothing": smoothing,
    "ARIMA": arima,
    "LightGBM quantiles": boosted,
    "Gaussian recurrent network": network,
}
# These give the same whatever the seed, but for the draws.
ONCE = ("naive", "seasonal naive", "exponential smoothing", "ARIMA", "LightGBM quantiles")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder with motions.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", default="hands,watch,seasonal")
    parser.add_argument("--rivals", default=",".join(RIVALS))
    parser.add_argument("--out", type=Path, default=Path("forecasting.json"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found: list[dict[str, object]] = []
    for task_name, task in tasks(arguments.data).items():
        if task_name not in arguments.tasks.split(","):
            continue
        for name in arguments.rivals.split(","):
            if name == "seasonal naive" and not task.season:
                continue
            for seed in range(1 if name in ONCE else arguments.seeds):
                begun = time.process_time()
                draws, truth = RIVALS[name](task, seed), task.truth()
                covered = coverage_by_horizon(draws, truth)
                entry = {
                    "task": task_name,
                    "model": name,
                    "seed": seed,
                    "CRPS": float(crps_of_draws(draws, truth).mean()),
                    "energy score": float(energy_score(draws, truth).mean()),
                    "coverage": [float(covered.min()), float(covered.mean()), float(covered.max())],
                    "seconds": time.process_time() - begun,
                }
                found.append(entry)
                print(json.dumps(entry), flush=True)
                arguments.out.write_text(json.dumps(found, indent=1))
    show(found)


def show(found: list[dict[str, object]]) -> None:
    for task in dict.fromkeys(entry["task"] for entry in found):
        table = Table(
            "model", "CRPS", "energy score", "coverage of 90 %: least, mean, most", "CPU s", title=str(task)
        )
        own = [entry for entry in found if entry["task"] == task]
        for name in dict.fromkeys(entry["model"] for entry in own):
            runs = [entry for entry in own if entry["model"] == name]
            table.add_row(
                str(name),
                *(" ".join(f"{run[key]:.4g}" for run in runs) for key in ("CRPS", "energy score")),
                "; ".join(" ".join(f"{share:.2f}" for share in run["coverage"]) for run in runs),  # type: ignore
                " ".join(f"{run['seconds']:.0f}" for run in runs),
            )
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
