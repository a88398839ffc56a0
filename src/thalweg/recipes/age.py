"""Age in whole years from measurements, against the distribution that they were drawn from."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.data.encoding import TableEncoder
from thalweg.data.rendered import ShellAges, shell_ages
from thalweg.energies.densities.tilted import MixtureDensity
from thalweg.energies.networks import mlp
from thalweg.estimators.distribution import PredictiveDistribution
from thalweg.estimators.regressor import EnergyRegressor
from thalweg.recipes.base import Figure, Recipe, Result, Settings

N_TRAIN, N_TEST = 8000, 2000


def run(settings: Settings) -> Result:
    started = time.monotonic()
    shrink = 20 if settings.quick else 1
    size: dict[str, Any] = (
        {"n_members": 2, "hidden": (32,), "max_epochs": 2} if settings.quick else {"n_members": 4}
    )
    columns: dict[str, list[float]] = {}

    def record(name: str, value: float) -> None:
        columns.setdefault(name, []).append(float(value))

    for seed in settings.seeds:
        train, test = (shell_ages(n // shrink, 10 * seed + k) for k, n in enumerate((N_TRAIN, N_TEST)))
        encoder = TableEncoder().fit(train.table)
        x, x_test = encoder.transform(train.table), encoder.transform(test.table)
        width = x.shape[1]

        model = EnergyRegressor(point="median", random_state=seed, **size).fit(train.table, train.age)
        one_gaussian = MixtureDensity(mlp([width, 128, 128]), 128, n_components=1)
        gaussian = EnergyRegressor(
            "likelihood", energy=one_gaussian, point="median", random_state=seed, **size
        ).fit(x, train.age)  # fmt: skip

        record("log loss of whole years, the true distribution (nats)", -test.log_mass(test.age).mean())
        record("MAE of the median, the true distribution (years)", np.abs(test.age - test.median()).mean())
        for label, fitted, inputs in (
            ("energy", model, test.table),
            ("Gaussian network", gaussian, x_test),
        ):
            density = fitted.predict_distribution(inputs)
            assert isinstance(density, PredictiveDistribution)
            record(f"log loss of whole years, {label} (nats)", -density.log_mass(test.age).mean())
            years = np.maximum(1.0, np.round(density.median()))
            record(f"MAE of the median, {label} (years)", np.abs(test.age - years).mean())
        settings.tell(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in columns.items()))

    def difference(quantity: str, a: str, b: str) -> list[float]:
        return [
            p - q for p, q in zip(columns[quantity.format(a)], columns[quantity.format(b)], strict=True)
        ]  # fmt: skip

    loss, mae = "log loss of whole years, {} (nats)", "MAE of the median, {} (years)"
    ratio = [
        p / q
        for p, q in zip(columns[mae.format("energy")], columns[mae.format("the true distribution")], strict=True)
    ]
    return Result(
        [
            *(Figure(name, values) for name, values in columns.items()),
            Figure(
                "log loss above the true distribution's (nats)",
                difference(loss, "energy", "the true distribution"),
                0.12,
            ),
            Figure("MAE over the true distribution's (ratio)", ratio, 1.08),
            Figure(
                "log loss, gain on the Gaussian network (nats)",
                difference(loss, "Gaussian network", "energy"),
                0.1,
                at_most=False,
            ),
        ],
        {"p(age | measurements) of six shells": _picture(model, gaussian, x_test, test)},
        [
            "Simulated shells: the spread of the age grows with it and leans to the right, and at one site the "
            "age has two modes. The true distribution gives the lowest log loss and MAE that any model can have. "
            "The Gaussian network has the same encoding of the table, and learns mean and spread."
        ],
        time.monotonic() - started,
    )


def _picture(model: EnergyRegressor, gaussian: EnergyRegressor, x_test: np.ndarray, test: ShellAges) -> go.Figure:
    by_site = [np.flatnonzero(test.table["site"] == s) for s in ("sheltered", "exposed")]
    length = test.table["length_mm"].to_numpy()
    rows = [int(site[np.argmin(np.abs(length[site] - mm))]) for site in by_site for mm in (60, 100, 135)]
    titles = [f"{test.table['site'].iloc[r]}, {length[r]:.0f} mm" for r in rows]
    figure = make_subplots(2, 3, subplot_titles=titles, horizontal_spacing=0.05, vertical_spacing=0.14)
    years = np.arange(1, 41)
    grid = np.tile(years, (len(rows), 1)).astype(float)
    densities = [model.predict_distribution(test.table.iloc[rows]), gaussian.predict_distribution(x_test[rows])]
    energy, normal = (np.exp(d.log_mass(grid)) for d in densities if isinstance(d, PredictiveDistribution))
    truth = np.exp(np.stack([ShellAges.log_mass(_row(test, r, len(years)), years) for r in rows]))
    for i in range(len(rows)):
        where = {"row": i // 3 + 1, "col": i % 3 + 1}
        first = i == 0
        figure.add_bar(x=years, y=truth[i], name="true distribution", legendgroup="a", showlegend=first,
                       marker_color="#d0d7de", **where)  # fmt: skip
        for name, mass, colour in (("energy", energy[i], "#2a6fbb"), ("Gaussian network", normal[i], "#e07a1f")):
            figure.add_scatter(x=years, y=mass, name=name, legendgroup=name, showlegend=first,
                               line={"color": colour}, **where)  # fmt: skip
    figure.update_xaxes(range=[0, 40])
    figure.update_layout(height=520, bargap=0.05)
    return figure


def _row(ages: ShellAges, row: int, n: int) -> ShellAges:
    """One shell n times over, to ask for n ages."""
    index = np.full(n, row)
    return ShellAges(
        ages.table.iloc[index], ages.age[index], ages.log_median[index], ages.log_std[index], ages.stunted[index]
    )


RECIPE = Recipe(
    name="age",
    title="Age in whole years from measurements, against the best score possible",
    source="Gustafsson et al., Energy-Based Models for Deep Probabilistic Regression (2020)",
    run=run,
    minutes=2,
)
