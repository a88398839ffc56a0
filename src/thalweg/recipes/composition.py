"""Energies trained apart, put together: in the plane; four concepts of sprites; two objects from maps of one."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from thalweg.data.images import tile
from thalweg.data.planar import PlanarProblem
from thalweg.data.shapes import Sprites, draw_sprites, render_sprites
from thalweg.energies.base import ConditionalEnergy, Energy
from thalweg.energies.densities import GaussianMixtureEnergy, UniformEnergy
from thalweg.energies.networks import NetworkEnergy, mlp
from thalweg.energies.networks.perceptron import PerceptronEnergy
from thalweg.evaluation.density import grid, grid_energies, grid_figures
from thalweg.objectives.base import Batch
from thalweg.objectives.contrastive_divergence import ContrastiveDivergence
from thalweg.objectives.noise_contrastive import NoiseContrastiveEstimation
from thalweg.recipes import concepts
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.sampling.buffer import ReplayBuffer
from thalweg.sampling.chain import run_chain
from thalweg.sampling.langevin import ColdLangevin
from thalweg.training.loop import History, Plan, Trainer

SIZE = 16
KERNEL = ColdLangevin(0.3, 0.02, 1.0, 0.0, 1.0)
NEGATION = 0.5


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, go.Figure] = {}
    for seed in settings.seeds:
        plane, shown = _plane(seed, settings.quick)
        places, walls = _places(seed, settings.quick)
        composed, images = concepts.compose(seed, settings.quick)
        found = {**plane, **places, **composed}
        for name, value in found.items():
            figures.setdefault(name, []).append(value)
        settings.tell(f"seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
        title = "Four concepts never seen together: asked for (above), and drawn from the sum of energies (below)"
        pictures = pictures or {**shown, **walls, title: _wall(images)}
    rows = [Figure(name, values, *TARGETS.get(name, (None, True))) for name, values in figures.items()]
    notes = [
        "In the plane each energy is trained alone, by noise-contrastive estimation, on a Gaussian; the truth of "
        "what is put together is known in closed form.",
        "The energy of sprites given their place saw one object at a time.",
        f"Four concepts: {concepts.N_UNSEEN} of the {len(concepts.combinations().labels)} combinations are in no "
        "training set, and each energy sees the labels of one concept only. A concept is right if the rendering "
        "nearest to the drawn image, of all combinations, has it. Of four chains the one of lowest energy is "
        "taken. The settings were chosen on seed 0.",
    ]
    return Result(rows, pictures, notes, time.monotonic() - started)


TARGETS: dict[str, tuple[float, bool]] = {
    "plane, and: KL (nats)": (0.05, True),
    "plane, or: KL (nats)": (0.05, True),
    "plane, not: KL (nats)": (0.05, True),
    "drawn where asked, error of the centre (pixels)": (1.5, True),
    "two objects, correlation of the map with the sum of maps": (0.8, False),
    "four concepts, never seen: squared error": (0.02, True),
}


# -- the plane -----------------------------------------------------------------------------------------


def _gaussian(mean: list[float], std: list[float]) -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(torch.tensor([mean]), torch.tensor([std]))


def _plane(seed: int, quick: bool) -> tuple[dict[str, float], dict[str, go.Figure]]:
    """Two Gaussians that cross, one wide and one high, and a third that is taken away from the first."""
    # The third is wider than the first in every direction, or the first without it would have no density.
    parts = [
        _gaussian([1.0, 0.0], [1.0, 0.5]),
        _gaussian([0.0, 1.0], [0.5, 1.0]),
        _gaussian([0.0, 0.0], [1.5, 1.0]),
    ]
    learned = [_trained(part, seed + i, quick) for i, part in enumerate(parts)]
    compounds = {
        "and": (parts[0] + parts[1], learned[0] + learned[1]),
        "or": (parts[0] | parts[1], learned[0] | learned[1]),
        "not": (parts[0] - NEGATION * parts[2], learned[0] - NEGATION * learned[2]),
    }
    found, maps = {}, {}
    for name, (truth, model) in compounds.items():
        problem = PlanarProblem(name, lambda n, rng: np.empty((n, 2)), _log_density(truth), (-4.0, 5.0))
        found[f"plane, {name}: KL (nats)"] = grid_figures(model, problem, 201).kl
        points, _ = grid(problem, 81)
        maps[f"{name}: truth"] = np.exp(problem.log_density(points)).reshape(81, 81)
        log_p = -grid_energies(model, points)
        maps[f"{name}: learned"] = np.exp(log_p - log_p.max()).reshape(81, 81) * maps[f"{name}: truth"].max()
    return found, {"Energies put together, in the plane": _panels(maps, 6, "Viridis")}


def _log_density(energy: Energy) -> Callable[[np.ndarray], np.ndarray]:
    """log p of a compound, normalised on a fine grid."""
    axis = np.linspace(-6, 7, 521)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_z = np.logaddexp.reduce(-grid_energies(energy, points)) + 2 * np.log(axis[1] - axis[0])
    return lambda x: -grid_energies(energy, x) - log_z


class _Shifted(Energy):
    """An energy plus its learned log Z, so that its own Z is about 1 and mixtures have the right shares."""

    def __init__(self, energy: Energy, log_normaliser: Tensor):
        super().__init__()
        self.energy = energy
        self.register_buffer("log_normaliser", log_normaliser.detach().clone())

    log_normaliser: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x) + self.log_normaliser


def _trained(part: GaussianMixtureEnergy, seed: int, quick: bool) -> Energy:
    data = part.sample(20_000, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    energy = PerceptronEnergy(2, (64, 64)) + GaussianMixtureEnergy.from_moments(data, 2.0)
    objective = NoiseContrastiveEstimation(GaussianMixtureEnergy.from_moments(data, 1.5), 4)
    plan = Plan(max_epochs=1 if quick else 15, batch_size=256, learning_rate=5e-3, ema_decay=0.99, seed=seed)
    Trainer(plan).fit(energy, objective, Batch(None, data))
    return _Shifted(energy, objective.log_normaliser)


# -- where is it? ---------------------------------------------------------------------------------------


def _places(seed: int, quick: bool) -> tuple[dict[str, float], dict[str, go.Figure]]:
    """An energy of sprites given their place: it draws them at a given place, and finds them."""
    rng = np.random.RandomState(seed)
    energy, history = _trained_on_places(draw_sprites(400 if quick else 8000, rng, SIZE), seed, quick)
    test = draw_sprites(64, rng, SIZE)
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand((len(test.shape), SIZE**2), generator=generator)
    given = energy.given(_concept(test.place)).detach()
    drawn = (
        run_chain(KERNEL, given, start, 10 if quick else 300, generator).position.reshape(-1, SIZE, SIZE).numpy()
    )
    axis = (np.arange(SIZE) + 0.5) / SIZE
    mass = np.maximum(drawn.sum((1, 2)), 1e-6)
    centre = np.stack([(drawn.sum(1) @ axis) / mass, (drawn.sum(2) @ axis) / mass], 1)
    found = {"drawn where asked, error of the centre (pixels)": float(
        SIZE * np.linalg.norm(centre - test.place, axis=1).mean()
    )}  # fmt: skip
    found["divergences, energy of sprites given their place"] = float(history.rollbacks)
    map_figures, map_picture = _maps(energy, rng)
    walls = {
        "Told a place: sprites that were there (above), and what was drawn (below)": _wall(
            [test.images[:16], drawn[:16]]
        ),
        "Where are the objects? Energy over places: one object, another, both": map_picture,
    }
    return found | map_figures, walls


def _concept(place: np.ndarray) -> Tensor:
    return torch.as_tensor((place - 0.5) / 0.2, dtype=torch.float32)


def _trained_on_places(sprites: Sprites, seed: int, quick: bool) -> tuple[ConditionalEnergy, History]:
    """E(place, image), the image as a vector of pixels; shape, size and rotation are anything."""
    x, y = _concept(sprites.place), torch.from_numpy(sprites.images).flatten(1)
    torch.manual_seed(seed)
    energy = NetworkEnergy(
        mlp([2, 64, 64], nn.ReLU), 64, SIZE**2, y_hidden=(256,), hidden=256, n_residual=1, activation=nn.ReLU
    )
    noise = UniformEnergy(torch.zeros(SIZE**2), torch.ones(SIZE**2))
    buffer = ReplayBuffer(noise, 2000, 64, restart=0.1, x_event=(2,))
    objective = ContrastiveDivergence(KERNEL, 5 if quick else 30, buffer, 0.1, 1 / 16, (0.0, 1.0))
    n_steps = 10 if quick else 1000
    plan = Plan(max_epochs=-(-n_steps // (len(y) // 64)), max_steps=n_steps, batch_size=64, learning_rate=1e-3,
                seed=seed)  # fmt: skip
    history = Trainer(plan).fit(energy, objective, Batch(x, y))
    return energy.eval(), history


def _maps(
    energy: ConditionalEnergy, rng: np.random.RandomState, n: int = 12
) -> tuple[dict[str, float], go.Figure]:
    """The energy over places of pictures with one object and with two: the latter should be the former's sum."""
    axis = np.linspace(0.3, 0.7, 15)
    places = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    concept = torch.as_tensor((places - 0.5) / 0.2, dtype=torch.float32)
    correlations, panels = [], {}
    for i in range(n):
        place = np.array([[0.35, rng.uniform(0.3, 0.7)], [0.65, rng.uniform(0.3, 0.7)]])
        one, two = render_sprites(np.array([0, 0]), place, np.full(2, 0.16), np.zeros(2), SIZE)
        with torch.no_grad():
            pictures = torch.from_numpy(np.stack([one, two, np.maximum(one, two)])).flatten(1)
            maps = energy.given(concept)(pictures.expand(len(places), -1, -1)).T.reshape(3, 15, 15).numpy()
        correlations.append(float(np.corrcoef((maps[0] + maps[1]).ravel(), maps[2].ravel())[0, 1]))
        if i == 0:
            panels = {"one": one, "another": two, "both": np.maximum(one, two)}
            panels |= {"energy of one": -maps[0], "energy of another": -maps[1], "energy of both": -maps[2]}
    return (
        {"two objects, correlation of the map with the sum of maps": float(np.mean(correlations))},
        _panels(panels, 6, "Viridis"),
    )


# -- pictures ------------------------------------------------------------------------------------------


def _panels(maps: dict[str, np.ndarray], columns: int, colours: str) -> go.Figure:
    from plotly.subplots import make_subplots

    n_rows = -(-len(maps) // columns)
    figure = make_subplots(n_rows, columns, subplot_titles=list(maps), horizontal_spacing=0.02)
    for i, values in enumerate(maps.values()):
        heat = go.Heatmap(z=values.round(4), colorscale=colours, showscale=False)
        figure.add_trace(heat, i // columns + 1, i % columns + 1)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(height=230 * n_rows, margin={"l": 10, "r": 10, "t": 40, "b": 10}, font={"size": 11})
    return figure


def _wall(rows: list[np.ndarray]) -> go.Figure:
    """Grey images, one list in each row."""
    figure = go.Figure(go.Image(z=tile(np.concatenate(rows)[:, None], len(rows[0]))))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(height=80 * len(rows), margin={"l": 0, "r": 0, "t": 5, "b": 5})
    return figure


RECIPE = Recipe(
    name="composition",
    title="Energies put together: and, or, not; four concepts of sprites; two objects from maps of one",
    source="Du, Li and Mordatch, Compositional Visual Generation with Energy Based Models (2020)",
    run=run,
    minutes=20,
)
