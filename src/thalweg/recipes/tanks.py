"""System identification: the level of the second of two tanks, one step ahead and in free run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import torch
from sklearn.linear_model import LinearRegression

from thalweg.data.tanks import Series, lagged, load_tanks, simulate_tanks
from thalweg.energies.base import ConditionalEnergy
from thalweg.energies.densities.tilted import TiltedMixtureEnsemble
from thalweg.energies.networks import NetworkEnergy, mlp
from thalweg.estimators.distribution import PredictiveDistribution
from thalweg.estimators.regressor import EnergyRegressor
from thalweg.recipes.base import Figure, Recipe, Result, Settings

N_LAGS = 6

# The next level, from the past ``[rows, 2 N_LAGS]`` to ``[rows]``.
Predict = Callable[[np.ndarray], np.ndarray]


def run(settings: Settings) -> Result:
    started = time.monotonic()
    columns: dict[str, list[float]] = {}

    def record(name: str, value: float) -> None:
        columns.setdefault(name, []).append(float(value))

    for seed in settings.seeds:
        if settings.data is not None:
            train, test = load_tanks(settings.data)
        else:
            train, test = simulate_tanks(seed=10 * seed), simulate_tanks(seed=10 * seed + 1)
        if settings.quick:
            test = Series(test.u[:60], test.y[:60])
        (x, y), (x_test, y_test) = lagged(train, N_LAGS), lagged(test, N_LAGS)
        linear = LinearRegression().fit(x, y)
        std = float(np.std(y - linear.predict(x)))
        residual = y_test - linear.predict(x_test)
        nll = 0.5 * np.mean((residual / std) ** 2) + np.log(std * np.sqrt(2 * np.pi))
        record("NLL one step ahead, linear ARX (nats)", nll)
        runs = {"linear ARX": _record_errors(record, "linear ARX", linear.predict, test)}
        for label in ("energy", "energy by ranking NCE"):
            model = Model(label, linear, x, y, seed, settings.quick)
            density = model.density(x_test)
            record(f"NLL one step ahead, {label} (nats)", -density.log_prob(residual).mean())
            runs[label] = _record_errors(record, label, model.predict, test)
            if label == "energy":
                low, high = density.interval(0.9).T
                record("share of levels in their 90 % interval", ((low <= residual) & (residual <= high)).mean())
                picture = _one_step_picture(density, linear.predict(x_test), y_test)
        settings.tell(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in columns.items()))
    # The simulated sensor's noise is Gaussian, as the linear model takes it to be; the measured one's is not.
    # On the measured series a model trained for one step gains little in free run: that is only reported there.
    least_gain, most_drift = (0.0, 0.8) if settings.data is None else (0.2, None)
    v = {name: np.array(values) for name, values in columns.items()}
    free = "RMSE in free run, {} (V)"
    one = "RMSE one step ahead, {} (V)"
    gain = v["NLL one step ahead, linear ARX (nats)"] - v["NLL one step ahead, energy (nats)"]
    return Result(
        [
            *(Figure(name, values) for name, values in columns.items()),
            Figure("RMSE one step ahead over linear ARX's (ratio)",
                   (v[one.format("energy")] / v[one.format("linear ARX")]).tolist(), 1.0),
            Figure("RMSE in free run over linear ARX's (ratio)",
                   (v[free.format("energy")] / v[free.format("linear ARX")]).tolist(), most_drift),
            Figure("NLL one step ahead, gain on linear ARX (nats)", gain.tolist(), least_gain, at_most=False),
        ],
        {
            "Free run: the level from the pump's voltage alone": _free_run_picture(test, runs),
            "One step ahead: what a linear model gets wrong": picture,
        },
        [
            ("The measured Cascaded Tanks series. " if settings.data is not None else
             "Two simulated tanks in cascade that overflow; with the folder of real data, the measured ones. ")
            + f"All models see {N_LAGS} past levels and voltages. In free run a model is fed its own predictions "
            "(means, not modes) from the first few levels on, over the whole test series. The energies model the "
            "density of what the linear model leaves, trained for one step."
        ],
        time.monotonic() - started,
    )  # fmt: skip


class Model:
    """p(y_t | past) = p(what a linear model leaves of y_t | past), the latter by an energy.

    Args:
        label: "energy" is an ensemble of tilted mixtures by maximum likelihood, else a network by ranking NCE.
        linear: fitted to the same rows.
    """

    def __init__(self, label: str, linear: LinearRegression, x: np.ndarray, y: np.ndarray, seed: int, quick: bool):
        self.linear = linear
        self.mean, self.std = x.mean(0), x.std(0)
        n_inputs = x.shape[1]
        torch.manual_seed(seed)
        energy: ConditionalEnergy
        if label == "energy":
            energy = TiltedMixtureEnsemble(n_inputs, 8, (48, 48), n_components=2, n_tilts=4, dropout=0.05)
        else:
            energy = NetworkEnergy(mlp([n_inputs, 64, 64]), 64, 1, hidden=64)
        self.regressor = EnergyRegressor(
            "auto" if label == "energy" else "nce",
            energy=energy,
            noise_stds=(0.1, 0.2, 0.8),
            n_samples=64,
            learning_rate=1e-3,
            weight_decay=1e-2,
            batch_size=64,
            max_epochs=2 if quick else 100,
            resolution=0.0,
            random_state=seed,
        ).fit(self._scaled(x), y - linear.predict(x))

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / self.std

    def density(self, x: np.ndarray) -> PredictiveDistribution:
        """Quantiles of the residuals of the linear model."""
        density = self.regressor.predict_distribution(self._scaled(x))
        assert isinstance(density, PredictiveDistribution)
        return density

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.linear.predict(x) + self.regressor.predict(self._scaled(x))


def _record_errors(record: Callable[[str, float], None], label: str, predict: Predict, test: Series) -> np.ndarray:
    """Record both errors of a model; return its free run."""
    x, y = lagged(test, N_LAGS)
    record(f"RMSE one step ahead, {label} (V)", float(np.sqrt(np.mean((predict(x) - y) ** 2))))
    level = free_run(predict, test)
    record(f"RMSE in free run, {label} (V)", float(np.sqrt(np.mean((level - y) ** 2))))
    return level


def free_run(predict: Predict, series: Series) -> np.ndarray:
    """``[T - N_LAGS]``: the level simulated from the first few measured ones and the pump's voltage."""
    past = list(series.y[:N_LAGS])
    for t in range(N_LAGS, len(series.y)):
        row = np.concatenate([past[: -N_LAGS - 1 : -1], series.u[t - N_LAGS : t][::-1]])
        # Levels outside the sensor's range don't occur: without this a linear model may run away.
        past.append(float(np.clip(predict(row[None])[0], 0.0, 10.0)))
    return np.array(past[N_LAGS:])


def _free_run_picture(test: Series, runs: dict[str, np.ndarray]) -> go.Figure:
    seconds = 4.0 * np.arange(N_LAGS, len(test.y))
    figure = go.Figure()
    figure.add_scatter(x=seconds, y=test.y[N_LAGS:], name="measured", line={"color": "black", "width": 3})
    colours = {"linear ARX": "#e07a1f", "energy": "#2a6fbb", "energy by ranking NCE": "#1a9e5c"}
    for label, level in runs.items():
        figure.add_scatter(x=seconds, y=level, name=label, line={"color": colours[label], "width": 1.5})
    figure.update_layout(xaxis_title="time (s)", yaxis_title="level (V)", height=420)
    return figure


def _one_step_picture(
    density: PredictiveDistribution, linear: np.ndarray, y: np.ndarray, n: int = 150
) -> go.Figure:
    shown = density[slice(0, n)]
    seconds = 4.0 * np.arange(N_LAGS, N_LAGS + len(shown))
    low, high = shown.interval(0.9).T
    figure = go.Figure()
    figure.add_scatter(x=seconds, y=high, line={"width": 0}, showlegend=False, hoverinfo="skip")
    figure.add_scatter(
        x=seconds,
        y=low,
        fill="tonexty",
        line={"width": 0},
        name="90 % interval",
        fillcolor="rgba(42, 111, 187, 0.25)",
    )
    figure.add_scatter(x=seconds, y=shown.mean(), name="mean", line={"color": "#2a6fbb"})
    figure.add_scatter(
        x=seconds, y=(y - linear)[:n], name="measured", mode="markers", marker={"color": "black", "size": 4}
    )
    figure.update_layout(xaxis_title="time (s)", yaxis_title="level less linear ARX (V)", height=380)
    return figure


RECIPE = Recipe(
    name="tanks",
    title="Cascaded tanks: the next level given the past, and the whole series in free run",
    source="Hendriks et al., Deep Energy-Based NARX Models (2021); Schoukens and Noël (2016)",
    run=run,
    minutes=2,
)
