"""Head pose from pictures: the joint density of yaw, pitch and roll, against a Gaussian and plain regression."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import nn

from thalweg.data.rendered import Heads, render_heads
from thalweg.energies.densities.tilted import MixtureDensity, TiltedEnergy
from thalweg.energies.networks import DirectRegression, NetworkEnergy, convnet
from thalweg.estimators.regressor import EnergyRegressor
from thalweg.objectives.base import Batch
from thalweg.objectives.energy_loss import EnergyLoss
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.refinement import fit, gallery
from thalweg.training.loop import Plan

N_TRAIN, N_TEST = 8000, 1000
N_FEATURES, WIDTH = 128, 8
ANGLES = ("yaw", "pitch", "roll")


def run(settings: Settings) -> Result:
    started = time.monotonic()
    shrink, epochs = (40, 1) if settings.quick else (1, 15)
    columns: dict[str, list[float]] = {}

    def record(name: str, value: float) -> None:
        columns.setdefault(name, []).append(float(value))

    for seed in settings.seeds:
        train, test = (render_heads(n // shrink, 10 * seed + k) for k, n in enumerate((N_TRAIN, N_TEST)))
        x, x_test = _inputs(train), _inputs(test)
        common: dict[str, Any] = {
            "batch_size": 128,
            "max_epochs": epochs,
            "n_samples": 32,
            "random_state": seed,
            "weight_decay": 1e-3,
        }
        torch.manual_seed(seed)
        mixture = MixtureDensity(convnet(1, N_FEATURES, WIDTH), N_FEATURES, 3, n_components=8)
        residual = NetworkEnergy(nn.Identity(), N_FEATURES, 3, hidden=64)
        model = EnergyRegressor(energy=TiltedEnergy(mixture, residual), **common).fit(x, train.pose)
        density = model.predict_distribution(x_test)

        torch.manual_seed(seed)
        gaussian = MixtureDensity(convnet(1, N_FEATURES, WIDTH), N_FEATURES, 3, n_components=1)
        reference = EnergyRegressor("likelihood", energy=gaussian, **common).fit(x, train.pose)

        record("NLL of the pose, energy (nats)", -density.log_prob(test.pose).mean())
        record("NLL of the pose, Gaussian network (nats)", _gaussian_nll(reference, x_test, test.pose))
        answers = {"energy": density.mean(), "direct regression": _direct(x, train.pose, x_test, epochs, seed)}
        for label, pose in answers.items():
            error = np.abs(pose - test.pose)
            for angle, value in zip(ANGLES, error.mean(0), strict=True):
                record(f"MAE of the {angle}, {label} (degrees)", value)
            record(f"MAE, {label} (degrees)", error.mean())
            record(f"MAE, {label}, lit from the front (degrees)", error[~test.backlit].mean())
            record(f"MAE, {label}, lit from behind (degrees)", error[test.backlit].mean())
        low, high = np.moveaxis(density.interval(0.9), 1, 0)
        record("share of angles in their 90 % interval", ((low <= test.pose) & (test.pose <= high)).mean())
        settings.tell(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.2f}" for k, v in columns.items() if "of" in k))
    v = {name: np.array(values) for name, values in columns.items()}
    nll_gain = v["NLL of the pose, Gaussian network (nats)"] - v["NLL of the pose, energy (nats)"]
    ratio = v["MAE, energy (degrees)"] / v["MAE, direct regression (degrees)"]
    off = np.abs(v["share of angles in their 90 % interval"] - 0.9)
    return Result(
        [
            *(Figure(name, values) for name, values in columns.items()),
            Figure("NLL, gain on the Gaussian network (nats)", nll_gain.tolist(), 0.3, at_most=False),
            Figure("MAE over direct regression's (ratio)", ratio.tolist(), 1.05),
            Figure("90 % intervals, coverage off by", off.tolist(), 0.05),
        ],
        {
            "Rendered heads: true and estimated yaw / pitch / roll": _gallery(test, answers["energy"]),
            "Draws from p(yaw, pitch | picture)": _draws(model, test, x_test),
        },
        [
            "Rendered heads, a quarter of them lit from behind; yaw within 75 degrees, pitch 40, roll 30. Energy, "
            "Gaussian network (one mean, one spread for each angle and picture) and direct regression (squared "
            "error) have the same convnet, data and number of epochs."
        ],
        time.monotonic() - started,
    )


def _inputs(heads: Heads) -> np.ndarray:
    return (heads.images - 0.45) / 0.3


def _gaussian_nll(model: EnergyRegressor, x: np.ndarray, pose: np.ndarray) -> float:
    # A mixture is normalised as it is: no estimate of Z is needed.
    scaled = torch.as_tensor((pose - model.location_) / model.scale_, dtype=torch.float32)
    with torch.no_grad():
        energy = model.energy_(torch.as_tensor(x, dtype=torch.float32), scaled)
    return float(energy.mean()) + float(np.log(model.scale_).sum())


def _direct(x: np.ndarray, pose: np.ndarray, x_test: np.ndarray, epochs: int, seed: int) -> np.ndarray:
    mean, std = pose.mean(0), pose.std(0)
    data = Batch(torch.from_numpy(x), torch.as_tensor((pose - mean) / std, dtype=torch.float32))
    n_held_out = len(x) // 10
    torch.manual_seed(seed)
    network = DirectRegression(convnet(1, N_FEATURES, WIDTH), N_FEATURES, 3)
    plan = Plan(
        max_epochs=epochs, batch_size=128, learning_rate=2e-3, weight_decay=1e-3, warmup_steps=50, seed=seed
    )
    fit(network, EnergyLoss(), data.rows(slice(n_held_out, None)), data.rows(slice(n_held_out)), plan)
    with torch.no_grad():
        return network.features(torch.from_numpy(x_test)).double().numpy() * std + mean


def _gallery(test: Heads, pose: np.ndarray, n: int = 12) -> go.Figure:
    def text(angles: np.ndarray) -> str:
        return " / ".join(f"{a:.0f}" for a in angles)

    titles = [f"{text(t)}<br>{text(p)}" for t, p in zip(test.pose[:n], pose[:n], strict=True)]
    figure = gallery(test.images[:n, 0], 6, titles)
    figure.update_annotations(font_size=11)
    return figure


def _draws(model: EnergyRegressor, test: Heads, x_test: np.ndarray, n_draws: int = 300) -> go.Figure:
    """Lit heads give tight clouds, outlines long ones."""
    rows = np.concatenate([np.flatnonzero(~test.backlit)[:3], np.flatnonzero(test.backlit)[:3]])
    draws = model.sample(x_test[rows], n_samples=n_draws, random_state=0)
    colours = ("#7fb3d5", "#2a6fbb", "#123c69", "#f4a261", "#d62839", "#7b2d26")
    figure = go.Figure()
    for i, row in enumerate(rows):
        label = f"picture {row + 1}, lit from {'behind' if test.backlit[row] else 'the front'}"
        figure.add_scatter(
            x=draws[i, :, 0], y=draws[i, :, 1], mode="markers", name=label, legendgroup=label,
            marker={"size": 3, "opacity": 0.5, "color": colours[i]},
        )  # fmt: skip
        figure.add_scatter(
            x=test.pose[[row], 0], y=test.pose[[row], 1], mode="markers", legendgroup=label, showlegend=False,
            marker={"size": 14, "symbol": "x", "color": colours[i], "line": {"width": 1, "color": "black"}},
        )  # fmt: skip
    figure.update_layout(
        xaxis_title="yaw (degrees); the truth is a cross", yaxis_title="pitch (degrees)", height=480
    )
    return figure


RECIPE = Recipe(
    name="head-pose",
    title="Head pose from pictures (R^3): a joint density, tight or wide as the picture allows",
    source="Gustafsson et al., Energy-Based Models for Deep Probabilistic Regression (2020)",
    run=run,
    minutes=3,
)
