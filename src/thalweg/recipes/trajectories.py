"""Whole trajectories from their first state, and after a past: energies of stretches beside a Gaussian RNN."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from thalweg._torch_state import seeded
from thalweg.data.systems import pendulum
from thalweg.energies.densities.recurrent import RecurrentGaussian
from thalweg.estimators.forecaster import EnergyForecaster
from thalweg.evaluation.generation import frechet_distance, pca_features
from thalweg.objectives.base import Batch
from thalweg.objectives.energy_loss import EnergyLoss
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.training.loop import Plan, Trainer

N_TRAIN, N_TRUE, N_DRAWN, N_STEPS = 400, 2000, 1000, 60
# Paths that end further from hanging than this have taken neither way.
ASTRAY = 0.6
MOTIONS = "motions.npz"


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    for seed in settings.seeds:
        found, drawn = _pendulum(seed, settings.quick)
        if settings.data is not None:
            found |= _hands(settings.data, seed, settings.quick)
        for name, value in found.items():
            figures.setdefault(name, []).append(value)
        settings.tell(f"seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))
        pictures = pictures or {"Angles of pendulums that stood upright and were pushed": _picture(drawn)}
    bounds = {} if settings.quick else _targets(figures)
    rows = [Figure(name, values, *bounds.get(name, (None, True))) for name, values in figures.items()]
    notes = [
        "Every pendulum stands upright; a coin pushes it to the left or to the right. Distances are Frechet "
        "distances of whole paths, in 20 principal components of standardised states, to new true paths; those of "
        "as many true paths are the floor. A path is astray if it does not end hanging on either side.",
        "The Gaussian recurrent network has 64 units, is trained on the same series by maximum likelihood, and "
        "stops at its best held-out fifth.",
    ]
    if settings.data is None:
        notes.append(f"With --data and a folder that has {MOTIONS}, gestures of hands are generated as well.")
    return Result(rows, pictures, notes, time.monotonic() - started)


def _targets(figures: dict[str, list[float]]) -> dict[str, tuple[float, bool]]:
    half = 0.5 * float(np.mean(figures["pendulum: distance, Gaussian RNN"]))
    return {
        "pendulum: distance, energy": (half, True),
        "pendulum: right share off one half, energy": (0.05, True),
        "pendulum: given the push, on its side, energy": (0.95, False),
    }


def _pendulum(seed: int, quick: bool) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    rng = np.random.RandomState(100 + seed)
    n, n_train, n_true = (60, 40, 200) if quick else (N_DRAWN, N_TRAIN, N_TRUE)
    train, true = pendulum(n_train, N_STEPS, rng), pendulum(n_true, N_STEPS, rng)
    model = forecaster(seed, quick, stretch=15, window=15).fit(train)
    network = recurrent(train, seed, quick)
    first, generator = true[:1, :1], torch.Generator().manual_seed(seed)
    drawn = {
        "truth": pendulum(n, N_STEPS, rng)[:, 1:],
        "energy": model.sample(first[0], N_STEPS - 1, n, random_state=seed),
        "Gaussian RNN": network.draws_after(_tensor(first), N_STEPS - 1, n, generator)[0].double().numpy(),
    }
    scale = true.std((0, 1))
    found = {}
    features = pca_features((true[:, 1:] / scale).reshape(n_true, -1), 20)
    for who, paths in drawn.items():
        flat = (paths / scale).reshape(n, -1)
        found[f"pendulum: distance, {who}"] = frechet_distance(
            flat, (true[:, 1:] / scale).reshape(n_true, -1), features
        )
        ends = paths[:, -1, 0]
        found[f"pendulum: right share off one half, {who}"] = abs(float((ends > 0).mean()) - 0.5)
        found[f"pendulum: astray, {who}"] = float((np.abs(np.abs(ends) - np.pi) > ASTRAY).mean())
    # Given the push, the side is known.
    past = true[:100, :4]
    after = {
        "energy": model.sample(list(past), N_STEPS - 4, 5, random_state=seed)[:, :, -1, 0],
        "Gaussian RNN": network.draws_after(_tensor(past), N_STEPS - 4, 5, generator)[:, :, -1, 0].numpy(),
    }
    for who, ends in after.items():
        right = np.sign(ends) == np.sign(true[:100, -1, 0])[:, None]
        found[f"pendulum: given the push, on its side, {who}"] = float(right.mean())
    return found, drawn


def _hands(data: Path, seed: int, quick: bool) -> dict[str, float]:
    """Gestures generated from their first states: distances to those that nobody learned from."""
    path = data if data.is_file() else data / MOTIONS
    if not path.exists():
        raise ValueError(f"{data} holds no {MOTIONS} (hand_train, hand_test)")
    with np.load(path, allow_pickle=False) as arrays:
        train, test = (np.asarray(arrays[f"hand_{part}"], np.float64)[..., None] for part in ("train", "test"))
    train, test = (train[:20, :60], test[:30, :60]) if quick else (train, test)
    horizon = test.shape[1] - 1
    model = forecaster(seed, quick).fit(train)
    network = recurrent(train, seed, quick)
    generator = torch.Generator().manual_seed(seed)
    firsts = test[:, :1]
    drawn = {
        "training gestures": train[:, 1:],
        "energy": model.sample(list(firsts), horizon, 1, random_state=seed)[:, 0],
        "Gaussian RNN": network.draws_after(_tensor(firsts), horizon, 1, generator)[:, 0].double().numpy(),
    }
    features = pca_features(test[:, 1:].reshape(len(test), -1), 10)
    whole = test[:, 1:].reshape(len(test), -1)
    return {
        f"hands: distance, {who}": frechet_distance(paths.reshape(len(paths), -1), whole, features)
        for who, paths in drawn.items()
    }


def forecaster(seed: int, quick: bool, **how: Any) -> EnergyForecaster:
    small: dict[str, Any] = {"hidden": (8,), "max_steps": 10, "n_members": 2} if quick else {}
    return EnergyForecaster(n_threads=1, random_state=seed, **how | small)


def recurrent(series: np.ndarray, seed: int, quick: bool, piece: int = 60) -> RecurrentGaussian:
    """A Gaussian recurrent network, trained on pieces of the series ``[n, T, D]``."""
    order = np.random.RandomState(seed).permutation(len(series))
    held_out, kept = (_tensor(series[part]) for part in np.split(order, [max(1, len(series) // 5)]))
    with seeded(seed):
        network = RecurrentGaussian(kept)
    length = min(piece, kept.shape[1])
    # Pieces overlap by half, so that a network sees beginnings and middles alike.
    starts = sorted({*range(0, kept.shape[1] - length + 1, max(1, length // 2)), kept.shape[1] - length})
    pieces = torch.cat([kept[:, start : start + length] for start in starts])
    plan = Plan(
        max_epochs=10_000,
        max_steps=5 if quick else 3000,
        batch_size=min(32, len(pieces)),
        learning_rate=3e-3,
        validate_every=5,
        patience=40,
        clip_norm=1.0 * length,
        seed=seed,
    )

    def validate(energy: Any) -> Tensor:
        return energy(held_out[:, 0], held_out[:, 1:]).mean()

    Trainer(plan).fit(network, EnergyLoss(), Batch(pieces[:, 0], pieces[:, 1:]), validate)
    return network.eval()


def _tensor(series: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(series)).float()


def _picture(drawn: dict[str, np.ndarray], n: int = 40) -> go.Figure:
    figure = go.Figure()
    colours = {"truth": "#888888", "energy": "#1f77b4", "Gaussian RNN": "#d62728"}
    for k, (who, paths) in enumerate(drawn.items()):
        for i, path in enumerate(paths[:n]):
            figure.add_scatter(
                x=np.arange(1, paths.shape[1] + 1) + k * (paths.shape[1] + 5),
                y=path[:, 0],
                mode="lines",
                line={"color": colours[who], "width": 1},
                opacity=0.5,
                name=who,
                showlegend=i == 0,
            )
    figure.update_layout(
        height=380,
        margin={"l": 50, "r": 10, "t": 20, "b": 45},
        xaxis={"title": "step; the three sets side by side", "showticklabels": False},
        yaxis={"title": "angle from upright"},
    )
    return figure


RECIPE = Recipe(
    name="trajectories",
    title="Whole trajectories from one first state: both branches, or the mean of them",
    source="Du and Mordatch, Implicit Generation and Modeling with Energy-Based Models (2019)",
    run=run,
    minutes=6,
)
