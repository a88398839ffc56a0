"""What the recipes of boxes and of head poses share: fitting with rows held out, refining boxes, and a gallery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy
from thalweg.energies.networks import DirectRegression, NetworkEnergy
from thalweg.inference.ascent import gradient_ascent
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.energy_loss import EnergyLoss
from thalweg.objectives.noise_contrastive import RankingNCE
from thalweg.training.loop import Plan, Trainer


def fit(energy: ConditionalEnergy, objective: Objective, train: Batch, held_out: Batch, plan: Plan) -> None:
    """Train in place, and keep the weights at which the objective is lowest on the rows held out."""

    def validate(model: nn.Module) -> Tensor:
        assert isinstance(model, ConditionalEnergy)
        generator = torch.Generator().manual_seed(0)  # the same noise every time
        pieces = zip(held_out.x.split(256), held_out.y.split(256), strict=True)
        return torch.cat([objective.per_row(model, Batch(*piece), generator) for piece in pieces]).mean()

    Trainer(plan).fit(energy, objective, train, validate)


@dataclass(frozen=True)
class BoxTask:
    """Box regression from rough detections, whichever the input and the number of parameters.

    Codes are a box's parameters relative to the detection, times ``scale``; a code of zeros is the detection.

    Attributes:
        feature_network: makes a fresh network from inputs to ``n_features`` numbers.
        noise: standard deviations of the noise of ranking NCE, in scaled codes.
        spread: standard deviation of each parameter round the detection, in scaled codes ``[K]``.
        scale: ``[K]``.
    """

    feature_network: Callable[[], nn.Module]
    n_features: int
    noise: Sequence[float]
    spread: Tensor
    scale: np.ndarray


STEP_SIZES = (0.01, 0.03, 0.1)
N_STEPS, N_STARTS = 10, 10  # of the source
REFINEMENTS = {
    "detection": "the detection",
    "refined": "the detection refined",
    "starts": "lowest of 10 starts refined",
    "direct": "direct regression",
    "direct refined": "direct regression refined",
}


def refine_boxes(
    task: BoxTask,
    train: Batch,
    held_out: Batch,
    test: Batch,
    quality: Callable[[np.ndarray], float],
    seed: int,
    quick: bool,
) -> tuple[dict[str, np.ndarray], NetworkEnergy]:
    """The source's procedure: a direct network, an energy on its features, gradient ascent from either's start.

    The energy's feature network starts from that of a direct network, as the source's do from a trained
    detector's, and trains on. The direct network that it is compared with trains as many epochs as both.

    Args:
        quality: mean quality of codes for the held-out rows; by it the step size is chosen.

    Returns:
        codes ``[N, K]`` for the test rows, unscaled, by the names of ``REFINEMENTS``; and the energy.
    """
    first, second, n_samples = (1, 1, 8) if quick else (8, 6, 32)
    n_targets = train.y.shape[1]

    def plan(epochs: int) -> Plan:
        return Plan(
            max_epochs=epochs,
            batch_size=128,
            learning_rate=3e-3,
            weight_decay=1e-3,
            warmup_steps=100,
            clip_norm=5.0,
            seed=seed,
        )

    def direct_network(epochs: int) -> DirectRegression:
        torch.manual_seed(seed)
        network = DirectRegression(task.feature_network(), task.n_features, n_targets)
        fit(network, EnergyLoss(), train, held_out, plan(epochs))
        return network

    direct, trained = direct_network(first + second), direct_network(first).feature_network
    energy = NetworkEnergy(trained, task.n_features, n_targets, hidden=96, n_residual=2)
    fit(energy, RankingNCE(task.noise, n_samples), train, held_out, plan(second))

    def unscaled(codes: Tensor) -> np.ndarray:
        return codes.double().numpy() / task.scale

    def answer(network: DirectRegression, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([network.features(part) for part in x.split(512)])

    def ascend(x: Tensor, start: Tensor, step_size: float) -> Tensor:
        parts = []
        for xs, ys in zip(x.split(512), start.split(512), strict=True):
            parts.append(gradient_ascent(energy.given(xs).detach(), ys, N_STEPS, step_size))
        return torch.cat(parts)

    # The step is the one choice left; it is made on rows that no network was trained on, nor tested.
    def held_out_quality(step_size: float) -> float:
        start = torch.zeros_like(held_out.y)
        return quality(unscaled(ascend(held_out.x, start, step_size)))

    step_size = max(STEP_SIZES, key=held_out_quality)
    zeros = torch.zeros_like(test.y)
    generator = torch.Generator().manual_seed(seed)
    starts = task.spread * torch.randn(len(zeros), N_STARTS, n_targets, generator=generator)
    starts[:, 0] = 0
    tops = ascend(test.x, starts, step_size)
    with torch.no_grad():
        best = torch.cat([energy(x, y).argmin(1) for x, y in zip(test.x.split(512), tops.split(512), strict=True)])
    straight = answer(direct, test.x)
    codes = {
        "detection": zeros,
        "refined": ascend(test.x, zeros, step_size),
        "starts": tops[torch.arange(len(tops)), best],
        "direct": straight,
        "direct refined": ascend(test.x, straight, step_size),
    }
    return {name: unscaled(code) for name, code in codes.items()}, energy


def gallery(images: np.ndarray, columns: int, titles: Sequence[str] = (), height: int = 190) -> go.Figure:
    """Grey pictures ``[N, H, W]`` side by side; the axes count pixels, y down."""
    rows = -(-len(images) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=list(titles), horizontal_spacing=0.015, vertical_spacing=0.12 / rows
    )
    for i, image in enumerate(images):
        figure.add_heatmap(
            z=np.clip(image, 0, 1),
            zmin=0,
            zmax=1,
            colorscale="gray",
            showscale=False,
            hoverinfo="skip",
            row=i // columns + 1,
            col=i % columns + 1,
        )
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain", autorange="reversed")
    for i in range(len(images)):
        name = f"x{i + 1 if i else ''}"
        figure.update_yaxes(scaleanchor=name, row=i // columns + 1, col=i % columns + 1)
    figure.update_layout(height=height * rows + 60, margin={"l": 10, "r": 10, "t": 60 if titles else 20, "b": 10})
    return figure
