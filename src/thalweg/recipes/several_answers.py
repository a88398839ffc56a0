"""One input, several right answers: a curve with two branches, and the next frame of a ball at a crossroads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from thalweg.data.crossroads import Crossings, render_crossings
from thalweg.energies.base import ConditionalEnergy
from thalweg.energies.densities.mixture_of_experts import MixtureOfExperts
from thalweg.energies.densities.tilted import MixtureDensity
from thalweg.energies.latent import LatentNetwork
from thalweg.energies.networks import DirectRegression, mlp
from thalweg.inference.quadrature import normalise
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.energy_loss import EnergyLoss
from thalweg.objectives.noise_contrastive import RankingNCE
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.refinement import fit, gallery
from thalweg.training.loop import Plan

N_TRAIN, N_HELD_OUT, N_TEST, N_DRAWS = 8000, 1000, 300, 400
NOISE = 0.05  # standard deviation of the points round their branch
GREY = 0.2  # of the roads: by it frames are shifted and scaled for the networks
N_LATENT = 6  # more than there are answers: their number is not known to the model
N_NEIGHBOURS = 20
# An answer counts as found if so large a share of the draws lies on it.
LEAST_SHARE = 0.05
TARGETS = {
    "all answers found (share)": (0.95, False),
    "frequency, mean error": (0.05, True),
    "frequency, worst fifth": (0.05, True),
}
NOTES = [
    f"Branches: y is sqrt(x) or -sqrt(x) with noise of {NOISE}, the upper with probability 0.2 + 0.6 x; inputs "
    "of the test lie between 0.05 and 1, where the branches are apart. A draw is on a branch if it lies "
    "within three standard deviations of the noise. Frames: a bright ball turns left more often, a dark one "
    "right, none less often than in 0.2 of cases. A draw is on a right frame if its root-mean-square "
    "difference from it, noise-free, is less than a third of that between the two right frames that are "
    "nearest to each other.",
    f"An answer is found if at least {LEAST_SHARE:g} of {N_DRAWS} draws are on it. Frequencies: the share of "
    "draws nearest to each answer less its true probability, as a mean over inputs and answers; and the mean "
    "share less the mean probability in each fifth of the inputs, by x or brightness, the worst. Even draws "
    "from the truth have a mean error of about .016.",
    f"Latent: an answer and a probability for each of {N_LATENT} values of z, by maximum likelihood, the "
    "answers first and then, with these held, the probabilities. Latent, free: a network of (x, y) with an "
    "output for each z, z summed out, by ranking NCE; its draws come from quadrature. Feed-forward: squared "
    f"error. MDN: a mixture density network. 1-NN: the answer of the nearest training row; {N_NEIGHBOURS}-NN "
    "draws from the answers of so many. All networks have the same features of x, rows and epochs.",
]

# Draws of y for inputs x: [N, M, D], M = 1 where a model has one answer.
Draw = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """Inputs with several right answers, and their probabilities.

    Attributes:
        rows: training rows, y as vectors ``[n, D]``.
        held_out: rows to choose the weights by.
        x: inputs of the test.
        answers: right ones without noise ``[N, A, D]``.
        probabilities: of them ``[N, A]``.
        tolerance: how near, as a root-mean-square difference, an answer is on a right one ``[N]``.
        order: by what inputs are divided into fifths ``[N]``.
    """

    rows: Batch
    held_out: Batch
    x: Tensor
    answers: Tensor
    probabilities: Tensor
    tolerance: Tensor
    order: Tensor


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    for seed in settings.seeds:
        shrink = 20 if settings.quick else 1
        for name, make, show in (("branches", branches, _curve), ("frames", frames, _film)):
            problem = make(shrink, seed)
            draws = {}
            for model, draw in _models(name, problem, seed, settings.quick).items():
                draws[model] = draw(problem.x)
                for what, value in measure(draws[model], problem).items():
                    figures.setdefault(f"{name}, {model}: {what}", []).append(value)
            title = {
                "branches": "Two branches: the truth, and draws",
                "frames": "The next frame: what is right, what is drawn, and the feed-forward network's answer",
            }[name]
            pictures.setdefault(title, show(problem, draws))
        found = {n: figures[f"{n}, latent: all answers found (share)"][-1] for n in ("branches", "frames")}
        settings.tell(f"seed {seed}, all answers found: " + ", ".join(f"{n} {v:.3f}" for n, v in found.items()))
    rows = []
    for key, values in figures.items():
        bound = TARGETS.get(key.split(": ")[1]) if ", latent: " in key and not settings.quick else None
        rows.append(Figure(key, values, *(bound or (None, True))))
    return Result(rows, pictures, NOTES, time.monotonic() - started)


# -- problems -------------------------------------------------------------------------------------------------


def branches(shrink: int, seed: int) -> Problem:
    """y = sqrt(x) with probability 0.2 + 0.6 x, else -sqrt(x), and noise; x uniform on [0, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def rows(n: int) -> Batch:
        x = torch.rand(n, 1, generator=generator)
        up = torch.rand(n, 1, generator=generator) < 0.2 + 0.6 * x
        y = torch.where(up, 1.0, -1.0) * x.sqrt() + NOISE * torch.randn(n, 1, generator=generator)
        return Batch(x, y)

    train, held_out = rows(N_TRAIN // shrink), rows(max(50, N_HELD_OUT // shrink))
    x = torch.linspace(0.05, 1, N_TEST // min(shrink, 5)).unsqueeze(1)
    answers = torch.stack([x.sqrt(), -x.sqrt()], 1)
    up = 0.2 + 0.6 * x
    return Problem(
        train, held_out, x, answers, torch.cat([up, 1 - up], 1), torch.full_like(x[:, 0], 3 * NOISE), x[:, 0]
    )


def frames(shrink: int, seed: int) -> Problem:
    """The next frame of a ball at a crossroads, given two (see :mod:`thalweg.data.crossroads`)."""
    sizes = N_TRAIN // shrink, max(50, N_HELD_OUT // shrink), N_TEST // min(shrink, 5)
    train, held_out, test = (render_crossings(n, 10 * seed + k) for k, n in enumerate(sizes))

    def rows(of: Crossings) -> Batch:
        return Batch((torch.from_numpy(of.frames) - GREY) / GREY, torch.from_numpy(of.next_frame).flatten(1))

    answers = torch.from_numpy(test.answers).flatten(2)
    apart = _rms(answers[:, :, None] - answers[:, None]) + torch.eye(3) * 1e9
    probabilities = torch.from_numpy(test.probabilities).float()
    return Problem(
        rows(train),
        rows(held_out),
        rows(test).x,
        answers,
        probabilities,
        apart.amin((1, 2)) / 3,
        probabilities[:, 0],
    )


def _rms(t: Tensor) -> Tensor:
    return t.square().mean(-1).sqrt()


# -- models ---------------------------------------------------------------------------------------------------


def _models(name: str, problem: Problem, seed: int, quick: bool) -> dict[str, Draw]:
    n_inputs, n_targets = problem.rows.x[0].numel(), problem.rows.y.shape[1]
    image = name == "frames"
    width = 256 if image else 64

    def features() -> nn.Module:
        return nn.Sequential(nn.Flatten(), mlp([n_inputs, width, width]))

    n_epochs = 2 if quick else 28
    plan = Plan(n_epochs, batch_size=64, learning_rate=3e-3, clip_norm=5.0, seed=seed)
    torch.manual_seed(seed)

    def fitted(energy: ConditionalEnergy, objective: Objective | None = None, how: Plan = plan) -> Any:
        fit(energy, objective or EnergyLoss(), problem.rows, problem.held_out, how)
        return energy.eval()

    generator = torch.Generator().manual_seed(seed)
    n_draws = 20 if quick else N_DRAWS

    def of_density(model: Any) -> Draw:
        return lambda x: model.given(x).sample(n_draws, generator).movedim(1, 0)

    # First the answers, every z equally likely, or those of few rows would die out; then how likely each is.
    gate = nn.Sequential(nn.Flatten(), mlp([n_inputs, width]), nn.Linear(width, N_LATENT))
    for weight in gate[-1].parameters():
        nn.init.zeros_(weight)
    experts = MixtureOfExperts(
        features(), width, (n_targets,), N_LATENT, width if image else 0, std=1.5 if image else 0.5, gate=gate
    )
    gate.requires_grad_(False)
    fitted(experts).requires_grad_(False)
    gate.requires_grad_(True)
    second = replace(plan, max_epochs=1 if quick else 15, learning_rate=1e-3, weight_decay=0.3)
    models: dict[str, Draw] = {"latent": of_density(fitted(experts, how=second))}
    if not image:  # one number: quadrature normalises any energy of it
        free = LatentNetwork(features(), width, 1, N_LATENT, hidden=width).marginal()
        free = fitted(free, RankingNCE((0.1, 0.5, 2.0), 64))
        models["latent, free"] = lambda x: _by_quadrature(free, x, n_draws, generator)
    direct = fitted(DirectRegression(features(), width, n_targets))
    models["feed-forward"] = lambda x: direct.features(x).detach().unsqueeze(1)
    models["MDN"] = of_density(fitted(MixtureDensity(features(), width, n_targets, N_LATENT)))
    near = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(problem.rows.x.flatten(1).numpy())

    def neighbours(x: Tensor, n: int, n_draws: int) -> Tensor:
        which = torch.from_numpy(near.kneighbors(x.flatten(1).numpy(), n, return_distance=False))
        chosen = torch.randint(n, (len(x), n_draws), generator=generator)
        return problem.rows.y[which.gather(1, chosen)]

    models["1-NN"] = lambda x: neighbours(x, 1, 1)
    models[f"{N_NEIGHBOURS}-NN"] = lambda x: neighbours(x, N_NEIGHBOURS, n_draws)
    return models


def _by_quadrature(model: ConditionalEnergy, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    with torch.no_grad():
        density = normalise(model.given(x), -2.0, 2.0)
        return density.quantile(torch.rand(len(x), n, generator=generator)).unsqueeze(-1).float()


# -- figures --------------------------------------------------------------------------------------------------


def measure(draws: Tensor, problem: Problem) -> dict[str, float]:
    """The figures of draws ``[N, M, D]``: on a right answer, all found, and how often each is drawn."""
    off = torch.stack([_rms(draws - answer.unsqueeze(1)) for answer in problem.answers.unbind(1)], -1)
    nearest, which = off.min(-1)
    is_on = nearest < problem.tolerance[:, None]
    chosen = nn.functional.one_hot(which, problem.answers.shape[1]).float()
    found = ((chosen * is_on[..., None]).mean(1) >= LEAST_SHARE).all(1)
    out = {"on a right answer (share)": float(is_on.float().mean())}
    if draws.shape[1] == 1:  # one answer finds one at most
        return out
    error = chosen.mean(1) - problem.probabilities
    fifths = torch.stack([part.mean(0).abs().max() for part in error[problem.order.argsort()].chunk(5)])
    return out | {
        "all answers found (share)": float(found.float().mean()),
        "frequency, mean error": float(error.abs().mean()),
        "frequency, worst fifth": float(fifths.max()),
    }


# -- pictures -------------------------------------------------------------------------------------------------


def _curve(problem: Problem, draws: dict[str, Tensor]) -> go.Figure:
    figure = go.Figure()
    x = problem.x[:, 0].tolist()
    for label, colour in (("latent", "#2a6fbb"), ("MDN", "#9bbf85")):
        y = draws[label][:, :4, 0]
        figure.add_scatter(
            x=np.repeat(x, y.shape[1]).tolist(),
            y=y.flatten().tolist(),
            mode="markers",
            marker={"size": 4, "color": colour},
            name=f"draws, {label}",
        )
    for k in range(2):
        figure.add_scatter(
            x=x, y=problem.answers[:, k, 0].tolist(), line={"color": "black", "dash": "dash"},
            name="right answers", legendgroup="truth", showlegend=k == 0,
        )  # fmt: skip
    y = draws["feed-forward"][:, 0, 0]
    figure.add_scatter(x=x, y=y.tolist(), line={"color": "#e07a1f", "width": 3}, name="feed-forward")
    figure.update_layout(xaxis_title="x", yaxis_title="y", height=420)
    return figure


def _film(problem: Problem, draws: dict[str, Tensor], n: int = 4) -> go.Figure:
    """For each of a few inputs: the last frame, the right answers, six draws, and the feed-forward answer."""
    size = problem.x.shape[-1]
    titles, shown = [], []
    for i in range(n):
        row = [
            GREY * problem.x[i, -1] + GREY,
            *problem.answers[i],
            *draws["latent"][i, :6],
            draws["feed-forward"][i, 0],
        ]
        shown += [picture.reshape(size, size).numpy() for picture in row]
        if not i:
            titles = ["last frame", "left", "straight on", "right", *["draw"] * 6, "network"]
    return gallery(np.stack(shown), len(shown) // n, titles + [""] * (len(shown) - len(titles)), height=120)


RECIPE = Recipe(
    name="several-answers",
    title="Several right answers: two branches, and a ball at a crossroads, by a latent variable",
    source="LeCun et al., A Tutorial on Energy-Based Learning (2006); Jacobs et al. (1991)",
    run=run,
    minutes=10,
)
