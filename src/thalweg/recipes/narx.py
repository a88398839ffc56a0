"""System identification: the density of the next output given the past, on systems with known noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import plotly.graph_objects as go
from sklearn.linear_model import LinearRegression

from thalweg.data.systems import Series, ar1, bimodal_noise, chen, gaussian_noise
from thalweg.estimators.regressor import EnergyRegressor
from thalweg.recipes.base import Figure, Recipe, Result, Settings

N_TRAIN, N_TEST = 1000, 1000

Simulate = Callable[[int, np.random.RandomState], Series]
SYSTEMS: dict[str, Simulate] = {
    "AR(1), Gaussian noise": lambda n, rng: ar1(n, gaussian_noise(0.2), rng),
    "AR(1), noise with two modes": lambda n, rng: ar1(n, bimodal_noise(0.4, 0.2), rng),
    "Chen's nonlinear system": lambda n, rng: chen(n, 0.3, rng),
}


def run(settings: Settings) -> Result:
    started = time.monotonic()
    models: dict[str, Callable[[int], EnergyRegressor]] = {
        "default": lambda seed: EnergyRegressor(random_state=seed),
        "ranking NCE": lambda seed: EnergyRegressor(
            "nce",
            noise_stds=(0.1, 0.2, 0.8),
            n_samples=64,
            hidden=(64, 64),
            learning_rate=5e-3,
            batch_size=32,
            max_steps=6000,
            weight_decay=0.0,
            patience=100,
            random_state=seed,
        ),
    }
    figures: list[Figure] = []
    pictures = {}
    for system, simulate in SYSTEMS.items():
        columns: dict[str, list[float]] = {}
        for seed in settings.seeds:
            train, test = (
                simulate(n, np.random.RandomState(1000 * seed + k)) for k, n in enumerate((N_TRAIN, N_TEST))
            )
            record = partial(_record, columns)
            record("NLL, truth", -test.log_density.mean())
            record("MSE, truth", float(np.mean((test.y - test.mean) ** 2)))
            linear = LinearRegression().fit(train.X, train.y)
            std = np.std(train.y - linear.predict(train.X))
            residual = test.y - linear.predict(test.X)
            record(
                "NLL, least squares",
                float(0.5 * np.mean((residual / std) ** 2) + np.log(std * np.sqrt(2 * np.pi))),
            )
            record("MSE, least squares", float(np.mean(residual**2)))
            for label, build in models.items():
                model = build(seed)
                if settings.quick:
                    model.set_params(max_epochs=2, n_members=2, hidden=(32,), n_samples=32)
                density = model.fit(train.X, train.y).predict_distribution(test.X)
                record(f"NLL, {label}", -density.log_prob(test.y).mean())
                for point in ("mean", "mode"):
                    record(
                        f"MSE of the {point}, {label}", float(np.mean((test.y - getattr(density, point)()) ** 2))
                    )
            settings.tell(f"{system}, seed {seed}: " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in columns.items()))
        figures += [Figure(f"{system}: {k}", v) for k, v in columns.items()]
        figures += _claims(system, {k: np.array(v) for k, v in columns.items()})
        if system == "AR(1), noise with two modes":
            pictures["p(y_t | y_(t-1) = 0), noise with two modes"] = _picture(model)
    return Result(
        figures,
        pictures,
        ["NLL in nats on 1000 new samples of the system. The mode of a noise with two modes jumps from one to the "
         "other: predict the mean."],
        time.monotonic() - started,
    )  # fmt: skip


def _record(columns: dict[str, list[float]], name: str, value: float) -> None:
    columns.setdefault(name, []).append(float(value))


def _claims(system: str, v: dict[str, np.ndarray]) -> list[Figure]:
    out = []
    for label in ("default", "ranking NCE"):
        if "Gaussian" in system:
            gap = v[f"NLL, {label}"] - v["NLL, truth"]
            out.append(Figure(f"{system}: NLL less the truth's, {label} (nats)", gap.tolist(), 0.03))
        elif "two modes" in system:
            gain = v["NLL, least squares"] - v[f"NLL, {label}"]
            out.append(
                Figure(f"{system}: gain over a Gaussian, {label} (nats)", gain.tolist(), 0.08, at_most=False)
            )
            ratio = v[f"MSE of the mean, {label}"] / v[f"MSE of the mode, {label}"]
            out.append(Figure(f"{system}: MSE of the mean over the mode's, {label} (ratio)", ratio.tolist(), 0.6))
        else:
            ratio = v[f"MSE of the mean, {label}"] / v["MSE, least squares"]
            out.append(Figure(f"{system}: MSE over least squares', {label} (ratio)", ratio.tolist(), 0.5))
    return out


def _picture(model: EnergyRegressor) -> go.Figure:
    y = np.linspace(-1.5, 1.5, 301)
    density = np.exp(model.predict_distribution(np.zeros((1, 1))).log_prob(y[None]))[0]
    truth = np.exp(bimodal_noise(0.4, 0.2).log_pdf(y))
    figure = go.Figure()
    figure.add_scatter(x=y, y=truth, name="truth", line={"dash": "dash"})
    figure.add_scatter(x=y, y=density, name="learned (ranking NCE)")
    figure.update_layout(xaxis_title="y_t", yaxis_title="density", height=360)
    return figure


RECIPE = Recipe(
    name="narx",
    title="The density of a system's next output given its past",
    source="Hendriks et al., Deep Energy-Based NARX Models (2021)",
    run=run,
    minutes=4,
)
