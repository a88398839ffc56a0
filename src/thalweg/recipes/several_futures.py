"""Films that branch: the next frames of a ball that bounces off the edge of a wedge, to the left or the right."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from thalweg.data.wedges import N_FUTURE, N_PAST, Bounces, render_bounces
from thalweg.energies.densities import GaussianMixtureEnergy
from thalweg.energies.densities.mixture_of_experts import MixtureOfExperts
from thalweg.energies.networks import DirectRegression, ReconstructionEnergy, mlp
from thalweg.objectives.base import Batch
from thalweg.objectives.energy_loss import EnergyLoss
from thalweg.objectives.energy_matching import EnergyMatching
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.refinement import fit, gallery
from thalweg.sampling.chain import run_chain
from thalweg.sampling.flow import Heun
from thalweg.training.loop import Plan, Trainer

N_TRAIN, N_HELD_OUT, N_TEST, N_DRAWS = 8000, 500, 400, 16
SIZE = 16
N_INPUTS, N_TARGETS = N_PAST * SIZE**2, N_FUTURE * SIZE**2
MEAN, SCALE = 0.1, 0.25  # by which all frames are shifted and scaled for the networks
NOISE = 0.6  # standard deviation of the noise that flows to frames, of scaled pixels
N_STEPS, STEP_SIZE = 11, 0.1  # of the flow: a tenth longer than the lines that it learned from
N_LATENT = 6  # more than there are futures: their number is not known to the model
# A draw of less sharpness is a blur, on no branch.
LEAST_SHARPNESS = 0.75
TARGETS = {
    "both branches found (share)": (0.95, False),
    "share to the left, off 1/2": (0.05, True),
    "error of the best draw, relative": (1 / 3, True),
    "sharpness": (0.8, False),
}
NOTES = [
    f"Films: {N_PAST} frames of {SIZE} x {SIZE} before a ball meets a wedge, the {N_FUTURE} after it to be "
    "predicted at once. Where the ball hits the edge exactly, it goes left or right with probability 1/2: all "
    "figures but the last are of these three quarters. The others hit a face, and only one way is right.",
    f"{N_DRAWS} draws for each film. A draw is on a branch if it is nearer to its frames, free of noise, than "
    f"half the distance between the branches, and its sharpness is {LEAST_SHARPNESS:g} at least. Both are "
    "found if a draw is on each. Sharpness: the squared differences of neighbouring pixels less those of the "
    "wedge alone, over the same of the true frames; 1 is right, the mean of both branches has about 1/2, "
    "noise adds to it.",
    "Share to the left: of all draws, by the nearer branch; in a film, the mean distance of its own share from "
    f"1/2, which is about .098 for {N_DRAWS} fair draws. Error of the best draw: the least mean squared error of "
    "a pixel among a film's draws, against the frames that followed, over that of the feed-forward network. "
    "Distance from the nearer branch: root-mean-square, of a pixel.",
    "Energy: its gradient carries noise to frames (energy matching, given the past). Latent: an answer and a "
    f"probability for each of {N_LATENT} values of z, by maximum likelihood, the answers first; its draws are "
    "without pixel noise. Feed-forward: a network of about as many weights, by squared error. Neighbours: "
    f"the futures of the one or {N_DRAWS} training films with the nearest pasts. Settings come from other films.",
]

# Futures for pasts x [N, 3, H, W]: [N, M, D] of scaled pixels, M = 1 where a model has one answer.
Draw = Callable[[Tensor], Tensor]


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    for seed in settings.seeds:
        shrink = 20 if settings.quick else 1
        sizes = N_TRAIN // shrink, max(50, N_HELD_OUT // shrink), N_TEST // min(shrink, 5)
        train, held_out, test = (render_bounces(n, 100 + 10 * seed + k) for k, n in enumerate(sizes))
        x = rows(test).x
        draws = {}
        for model, draw in _models(rows(train), rows(held_out), seed, settings.quick).items():
            draws[model] = SCALE * draw(x) + MEAN
        reference = _best_errors(draws["feed-forward"], test)[_forked(test)].mean()
        figures.setdefault("feed-forward: mean squared error", []).append(float(reference))
        for model, drawn in draws.items():
            for what, value in measure(drawn, test, float(reference)).items():
                figures.setdefault(f"{model}: {what}", []).append(value)
        pictures.setdefault("What was seen, what may follow, and what is predicted", _film(test, draws))
        found = {n: figures[f"{n}: both branches found (share)"][-1] for n in ("energy", "latent")}
        settings.tell(f"seed {seed}, both branches found: " + ", ".join(f"{n} {v:.3f}" for n, v in found.items()))
    found_rows = []
    for key, values in figures.items():
        model, what = key.split(": ")
        bound = TARGETS.get(what) if model in ("energy", "latent") and not settings.quick else None
        found_rows.append(Figure(key, values, *(bound or (None, True))))
    return Result(found_rows, pictures, NOTES, time.monotonic() - started)


def rows(of: Bounces) -> Batch:
    """Pasts as x and futures as y ``[N, 768]``, both of scaled pixels."""
    past, future = ((torch.from_numpy(frames) - MEAN) / SCALE for frames in (of.past, of.future))
    return Batch(past, future.flatten(1))


# -- models ---------------------------------------------------------------------------------------------------


def _models(train: Batch, held_out: Batch, seed: int, quick: bool) -> dict[str, Draw]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    plan = Plan(2 if quick else 15, batch_size=64, learning_rate=2e-3, clip_norm=5.0, seed=seed)

    def features(*widths: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), mlp([N_INPUTS, *widths]))

    # The mean of the noise is that of the pixels, and so is near every future.
    noise = GaussianMixtureEnergy(torch.zeros(1, N_TARGETS), torch.full((1, N_TARGETS), NOISE))
    slope = NOISE * math.sqrt(N_TARGETS)
    energy = ReconstructionEnergy(features(256, 256), 256, N_TARGETS, hidden=512, slope=slope)
    longer = replace(plan, max_epochs=1 if quick else 20, batch_size=128, ema_decay=0.99, keep_best=False)
    Trainer(longer).fit(energy, EnergyMatching(noise), train)
    energy.eval()

    def flow(x: Tensor) -> Tensor:
        found = []
        for part in x.split(100):
            start = noise.sample((len(part), N_DRAWS), generator)
            found.append(
                run_chain(Heun(STEP_SIZE), energy.given(part).detach(), start, N_STEPS, generator).position
            )
        return torch.cat(found)

    latent = _latent(features, train, held_out, plan)
    # Its hidden layers are wider, so that it has as many weights as the others.
    direct = DirectRegression(features(512, 512), 512, N_TARGETS)
    fit(direct, EnergyLoss(), train, held_out, plan)
    near = NearestNeighbors(n_neighbors=N_DRAWS).fit(train.x.flatten(1).numpy())

    def neighbours(x: Tensor, n: int) -> Tensor:
        return train.y[torch.from_numpy(near.kneighbors(x.flatten(1).numpy(), n, return_distance=False))]

    return {
        "energy": flow,
        "latent": lambda x: latent.draw_answers(latent.features(x), N_DRAWS, generator),
        "feed-forward": lambda x: direct.features(x).detach().unsqueeze(1),
        "1-NN": lambda x: neighbours(x, 1),
        f"{N_DRAWS}-NN": lambda x: neighbours(x, N_DRAWS),
    }


def _latent(features: Callable[..., nn.Module], train: Batch, held_out: Batch, plan: Plan) -> MixtureOfExperts:
    """First the answers, every z equally likely, or those of few rows would die out; then how likely each is."""
    gate = nn.Sequential(features(256), nn.Linear(256, N_LATENT))
    for weight in gate[-1].parameters():
        nn.init.zeros_(weight)
    latent = MixtureOfExperts(features(256, 256), 256, (N_TARGETS,), N_LATENT, hidden=256, std=1.5, gate=gate)
    gate.requires_grad_(False)
    fit(latent, EnergyLoss(), train, held_out, plan)
    latent.requires_grad_(False)
    gate.requires_grad_(True)
    second = replace(plan, max_epochs=max(1, plan.max_epochs // 3), learning_rate=1e-3, weight_decay=0.3)
    fit(latent, EnergyLoss(), train, held_out, second)
    return latent.eval()


# -- figures --------------------------------------------------------------------------------------------------


def measure(draws: Tensor, test: Bounces, reference: float) -> dict[str, float]:
    """The figures of draws ``[N, M, D]`` of pixels.

    Args:
        reference: mean squared error of the network that the best draw's error is divided by.
    """
    branches = torch.from_numpy(test.branches).flatten(2)
    apart = (branches[:, 0] - branches[:, 1]).square().mean(-1).sqrt()
    off = (draws.unsqueeze(2) - branches.unsqueeze(1)).square().mean(-1).sqrt()
    nearest, which = off.min(-1)
    sharp = _sharpness(draws, test)
    is_on = (nearest < apart[:, None] / 2) & (sharp >= LEAST_SHARPNESS)
    forked = _forked(test)
    found = torch.stack([((which == way) & is_on).any(1) for way in range(2)], 1).all(1)
    left = (which == 0).float().mean(1)[forked]
    right_way = is_on & (which == torch.from_numpy(test.way)[:, None])
    out = {"on a branch (share)": float(is_on[forked].float().mean())}
    if draws.shape[1] > 1:  # one answer finds one branch at most
        out |= {
            "both branches found (share)": float(found[forked].float().mean()),
            "share to the left, off 1/2": float((left.mean() - 0.5).abs()),
            "share to the left, in a film off 1/2": float((left - 0.5).abs().mean()),
        }
    return out | {
        "error of the best draw, relative": float(_best_errors(draws, test)[forked].mean()) / reference,
        "distance from the nearer branch": float(nearest[forked].square().mean().sqrt()),
        "sharpness": float(sharp[forked].mean()),
        "one way only, draws on it (share)": float(right_way[~forked].float().mean()),
    }


def _forked(test: Bounces) -> Tensor:
    """Which films have two futures ``[N]``."""
    return torch.from_numpy(test.probabilities.min(1) > 0)


def _best_errors(draws: Tensor, test: Bounces) -> Tensor:
    """The least mean squared error of a pixel among the draws of each film ``[N]``."""
    truth = torch.from_numpy(test.future).flatten(1).unsqueeze(1)
    return (draws - truth).square().mean(-1).amin(1)


def _sharpness(draws: Tensor, test: Bounces) -> Tensor:
    """Squared differences of neighbouring pixels over those of the true frames, less the wedge's ``[N, M]``."""
    wedge = _edges(torch.from_numpy(test.scene).unsqueeze(1)) * N_FUTURE
    true = _edges(torch.from_numpy(test.branches)).mean(1, keepdim=True)
    return (_edges(draws.unflatten(-1, (N_FUTURE, SIZE, SIZE))) - wedge.unsqueeze(1)) / (true - wedge.unsqueeze(1))


def _edges(frames: Tensor) -> Tensor:
    """Sums of squared differences of neighbouring pixels ``[*batch]`` in frames ``[*batch, F, H, W]``."""
    return sum(frames.diff(dim=axis).square().sum((-1, -2, -3)) for axis in (-1, -2))  # type: ignore[return-value]


# -- pictures -------------------------------------------------------------------------------------------------


def _film(test: Bounces, draws: dict[str, Tensor]) -> go.Figure:
    """For a few films, the last two with one future: the past, both branches, and the answers of the models."""
    titles = ["past", "left", "right", *["energy"] * 3, *["latent"] * 2, "network", "1-NN"]
    forked = _forked(test)
    shown = []
    for i in [*forked.nonzero()[:6, 0].tolist(), *(~forked).nonzero()[:2, 0].tolist()]:
        one = [draws[model][i, 0] for model in ("feed-forward", "1-NN")]
        answers = [*draws["energy"][i, :3], *draws["latent"][i, :2], *one]
        films = [test.past[i], *test.branches[i], *(a.reshape(N_FUTURE, SIZE, SIZE).numpy() for a in answers)]
        shown += [_strip(film) for film in films]
    return gallery(np.stack(shown), len(titles), titles + [""] * (len(shown) - len(titles)), height=70)


def _strip(film: np.ndarray) -> np.ndarray:
    """Frames ``[F, H, W]`` side by side, a bright line between them."""
    framed = np.pad(film, ((0, 0), (0, 0), (0, 1)), constant_values=0.5)
    return np.concatenate(list(framed), 1)[:, :-1]


RECIPE = Recipe(
    name="several-futures",
    title="Films with two futures: next frames by an energy's flow and by a latent variable, beside their mean",
    source="Mathieu et al., Deep Multi-Scale Video Prediction Beyond Mean Square Error (2016); Balcerak (2025)",
    run=run,
    minutes=6,
)
