"""Eight Gaussians: every way to train one network, against the density that is known, and what each needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
import zuko
from torch import Tensor, nn

from thalweg.data.planar import EIGHT_GAUSSIANS
from thalweg.energies.base import Energy
from thalweg.energies.densities import FlowEnergy, GaussianMixtureEnergy
from thalweg.energies.networks.perceptron import PerceptronEnergy
from thalweg.evaluation.density import grid, grid_energies, grid_figures
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.contrastive_divergence import ContrastiveDivergence, ImprovedContrastiveDivergence
from thalweg.objectives.energy_discrepancy import EnergyDiscrepancy
from thalweg.objectives.importance_sampling import ImportanceSampling
from thalweg.objectives.likelihood import GridLikelihood
from thalweg.objectives.noise_contrastive import (
    ConditionalNCE,
    FlowContrastiveEstimation,
    NoiseContrastiveEstimation,
)
from thalweg.objectives.score_matching import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching
from thalweg.objectives.stein import SteinDiscrepancy
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.sampling.buffer import ReplayBuffer
from thalweg.sampling.langevin import Langevin
from thalweg.training.loop import DivergenceError, History, Plan, Trainer

PROBLEM = EIGHT_GAUSSIANS
N_POINTS, BATCH_SIZE = 51_200, 256

# A plane Gaussian of variance s^2 blurred by noise of variance v: KL = ln(1 + v/s^2) + 1/(1 + v/s^2) - 1.
_BLUR = 0.2**2 / (0.5 / 1.414) ** 2
DSM_BIAS = float(np.log1p(_BLUR) + 1 / (1 + _BLUR) - 1)


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        build: the objective, given the training data.
        n_steps: updates.
        target: bound on the mean KL in nats, None if it is only reported.
        needs: beside values of the energy.
        any_network: whether the network may be anything (score matching asks for smooth ones).
        likelihood: whether it approximates the likelihood.
        high_dimensions: whether the source counts it as fit for many dimensions.
        base: whether a Gaussian of the data's moments is added to the network.
        learning_rate: the highest one.
        noisy: whether its updates are noisy, which asks for a longer moving average of the weights.
    """

    build: Callable[[Tensor], Objective]
    n_steps: int
    target: float | None
    needs: str = ""
    any_network: bool = True
    likelihood: bool = False
    high_dimensions: bool = True
    base: bool = False
    learning_rate: float = 5e-3
    noisy: bool = False


def _noise(data: Tensor) -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy.from_moments(data)


def _buffer(data: Tensor) -> ReplayBuffer:
    return ReplayBuffer(_noise(data), size=2000, n_chains=BATCH_SIZE, restart=0.05)


def _flow(data: Tensor) -> FlowContrastiveEstimation:
    flow = zuko.flows.NSF(2, transforms=3, passes=2, hidden_features=(64, 64))
    return FlowContrastiveEstimation(FlowEnergy(flow, data.mean(0), data.std(0)))


def _critic(data: Tensor) -> SteinDiscrepancy:
    critic = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
    return SteinDiscrepancy(critic, l2=1.0, n_critic_steps=5)


LANGEVIN = Langevin(0.15**2 / 2)

# fmt: off
METHODS: dict[str, Entry] = {
    "maximum likelihood on a grid": Entry(
        lambda d: GridLikelihood(-5, 5, 64), 2000, 0.03, "a grid", likelihood=True, high_dimensions=False),
    "ML, importance sampling": Entry(
        lambda d: ImportanceSampling(_noise(d), 2048), 2000, 0.03, "a noise density", likelihood=True,
        high_dimensions=False),
    "NCE": Entry(
        lambda d: NoiseContrastiveEstimation(_noise(d), 10), 3000, 0.03, "a noise density", likelihood=True,
        high_dimensions=False),
    "conditional NCE, noise 0.5": Entry(lambda d: ConditionalNCE(0.5, 10), 3000, 0.03),
    "conditional NCE, noise 2": Entry(lambda d: ConditionalNCE(2.0, 10), 3000, 0.03),
    "conditional NCE, noise found": Entry(lambda d: ConditionalNCE(None, 10), 3000, 0.03),
    "flow contrastive estimation": Entry(_flow, 6000, 0.03, "a flow", likelihood=True),
    "score matching": Entry(
        lambda d: ScoreMatching(), 3000, 0.03, "2nd derivatives", any_network=False, high_dimensions=False),
    "sliced score matching": Entry(
        lambda d: SlicedScoreMatching(), 3000, 0.03, "2nd derivatives", any_network=False),
    "sliced score matching, VR": Entry(
        lambda d: SlicedScoreMatching(1, True), 3000, 0.03, "2nd derivatives", any_network=False,
        noisy=True),
    "denoising score matching, 0.2": Entry(
        lambda d: DenoisingScoreMatching(0.2), 6000, DSM_BIAS + 0.01, "derivatives", any_network=False,
        noisy=True),
    "energy discrepancy": Entry(lambda d: EnergyDiscrepancy(0.5, 16), 3000, None),
    "CD-20": Entry(lambda d: ContrastiveDivergence(LANGEVIN, 20), 3000, 0.03, "chains", likelihood=True),
    "persistent CD-20": Entry(
        lambda d: ContrastiveDivergence(LANGEVIN, 20, _buffer(d)), 3000, 0.1, "chains", likelihood=True,
        noisy=True),
    "IGEBM (PCD-20 and squares)": Entry(
        lambda d: ContrastiveDivergence(LANGEVIN, 20, _buffer(d), 0.01), 3000, 0.1, "chains", likelihood=True,
        noisy=True),
    "persistent CD-5": Entry(
        lambda d: ContrastiveDivergence(LANGEVIN, 5, _buffer(d)), 3000, None, "chains", likelihood=True,
        noisy=True),
    "improved CD-5": Entry(
        lambda d: ImprovedContrastiveDivergence(LANGEVIN, 5, _buffer(d)), 3000, None, "chains", likelihood=True,
        noisy=True),
    "learned Stein discrepancy": Entry(_critic, 12_000, 0.15, "a critic", any_network=False, base=True,
        learning_rate=1e-3, noisy=True),
}
# fmt: on


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: list[Figure] = []
    maps: dict[str, np.ndarray] = {}
    notes = [
        "Network 2-128-128-1, SiLU; Adam at 5e-3 (Stein: 1e-3), cosine, moving average of the weights at 0.99 "
        "(0.998 for denoising, sliced with VR, persistent chains and Stein); "
        "batches of 256; KL(truth || model) on 401 x 401 points of "
        "[-5, 5]^2. The truth has 0.125 of its mass round each of the eight modes.",
        f"Denoising score matching learns the blurred density; that alone costs {DSM_BIAS:.3f} nats.",
    ]
    rows = []
    divergences = dict.fromkeys(settings.seeds, 0)
    for name, entry in METHODS.items():
        kls, lows, highs, seconds, errors, diverged = [], [], [], [], [], 0
        for seed in settings.seeds:
            began = time.process_time()
            try:
                energy, objective, history = _train(entry, seed, settings.quick)
            except DivergenceError as error:
                notes.append(f"{name}, seed {seed}: {error}")
                kls.append(np.inf)
                diverged += 1
                divergences[seed] += 1
                continue
            seconds.append(time.process_time() - began)
            notes += [f"{name}, seed {seed}: {event}" for event in history.events]
            divergences[seed] += history.rollbacks
            found = grid_figures(energy, PROBLEM, 101 if settings.quick else 401)
            kls.append(found.kl)
            lows.append(float(found.cell_masses.min()))
            highs.append(float(found.cell_masses.max()))
            learned = getattr(objective, "log_normaliser", None)
            if learned is not None:
                errors.append(float(learned.detach()) - found.log_normaliser)
            maps.setdefault(name, _map(energy))
        figures.append(Figure(f"{name}: KL (nats)", kls, entry.target))
        for what, values in (
            ("least mass round a mode", lows),
            ("most mass round a mode", highs),
            ("learned less true log Z (nats)", errors),
            ("CPU time (s)", seconds),
        ):
            if values:
                figures.append(Figure(f"{name}: {what}", values))
        settings.tell(f"{name}: KL {' '.join(f'{v:.4f}' for v in kls)}; {sum(seconds):.0f} s in all")
        rows.append(_row(name, entry, kls, seconds, diverged))
    figures.append(Figure("divergences, all methods", list(divergences.values())))
    pictures = {"The comparison, as measured": _table(rows), "The densities": _picture(maps)}
    return Result(figures, pictures, notes, time.monotonic() - started)


def _train(entry: Entry, seed: int, quick: bool) -> tuple[Energy, Objective, History]:
    rng = np.random.RandomState(seed)
    data = torch.as_tensor(PROBLEM.sample(N_POINTS, rng), dtype=torch.float32)
    torch.manual_seed(seed)
    energy: Energy = PerceptronEnergy(2, (128, 128))
    if entry.base:
        energy = energy + _noise(data)
    objective = entry.build(data)
    n_steps = 20 if quick else entry.n_steps
    plan = Plan(
        max_epochs=-(-n_steps // (N_POINTS // BATCH_SIZE)),
        max_steps=n_steps,
        batch_size=BATCH_SIZE,
        learning_rate=entry.learning_rate,
        ema_decay=0.998 if entry.noisy else 0.99,
        seed=seed,
    )
    history = Trainer(plan).fit(energy, objective, Batch(None, data))
    return energy, objective, history


def _row(name: str, entry: Entry, kls: list[float], seconds: list[float], diverged: int) -> list[str]:
    spread = f"{np.mean(kls):.3f} ({min(kls):.3f} to {max(kls):.3f})"
    return [
        name,
        spread,
        f"{np.mean(seconds):.0f} s" if seconds else "",
        f"{diverged} diverged" if diverged else "all",
        "yes" if entry.high_dimensions else "no",
        entry.needs or "nothing",
        "yes" if entry.any_network else "smooth",
        "yes" if entry.likelihood else "no",
    ]


def _table(rows: list[list[str]]) -> go.Figure:
    head = ["training method", "KL, mean (range over seeds)", "CPU time", "runs that ended well",
            "high dimensions (as the source has it)", "needs beside the energy", "any architecture",
            "approximates likelihood"]  # fmt: skip
    figure = go.Figure(
        go.Table(
            columnwidth=[3, 3, 1, 1.5, 2, 2, 1.5, 1.7],
            header={"values": head, "align": "left", "font": {"size": 13}, "fill_color": "#dcecf3"},
            cells={"values": list(map(list, zip(*rows, strict=True))), "align": "left", "height": 26,
                   "font": {"size": 13}, "fill_color": "#ffffff"},
        )
    )  # fmt: skip
    figure.update_layout(height=110 + 27 * len(rows), margin={"l": 0, "r": 0, "t": 10, "b": 10})
    return figure


def _map(energy: Energy, n_points: int = 101) -> np.ndarray:
    points, area = grid(PROBLEM, n_points)
    log_p = -grid_energies(energy, points)
    return np.exp(log_p - np.logaddexp.reduce(log_p) - np.log(area)).reshape(n_points, n_points)


def _picture(maps: dict[str, np.ndarray]) -> go.Figure:
    """The truth and every method's density."""
    from plotly.subplots import make_subplots

    points, _ = grid(PROBLEM, 101)
    panels = {"truth": np.exp(PROBLEM.log_density(points)).reshape(101, 101), **maps}
    columns = 5
    n_rows = -(-len(panels) // columns)
    figure = make_subplots(n_rows, columns, subplot_titles=list(panels), horizontal_spacing=0.02,
                           vertical_spacing=0.06)  # fmt: skip
    top = float(panels["truth"].max())
    for i, density in enumerate(panels.values()):
        # What is flat beside the truth would be a dark panel on its scale.
        own = min(top, float(density.max()))
        heat = go.Heatmap(z=density.T, zmin=0, zmax=own, colorscale="Viridis", showscale=False, hoverinfo="skip")
        figure.add_trace(heat, i // columns + 1, i % columns + 1)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(height=250 * n_rows, margin={"l": 10, "r": 10, "t": 40, "b": 10}, font={"size": 11})
    return figure


RECIPE = Recipe(
    name="density-2d",
    title="Eight Gaussians: every way to train an energy, against the density that is known",
    source="the comparison of training methods in Song and Kingma, How to Train Your Energy-Based Models (2021)",
    run=run,
    minutes=25,
)
