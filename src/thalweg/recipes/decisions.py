"""Decisions: a robot chooses its steering by the lowest energy of (what it sees, what it does) [Florence 2021]."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor

from thalweg.data.corridors import (
    LENGTH,
    OBSTACLE,
    STEP,
    Courses,
    Demonstrations,
    crashed,
    demonstrate,
    expert_actions,
    make_courses,
    moved,
    view,
)
from thalweg.energies.base import Conditioned
from thalweg.energies.networks import DirectRegression, NetworkEnergy, convnet
from thalweg.inference.ascent import gradient_ascent
from thalweg.objectives.base import Batch
from thalweg.objectives.energy_loss import EnergyLoss
from thalweg.objectives.noise_contrastive import RankingNCE
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.refinement import fit
from thalweg.training.loop import Plan

# Courses that the expert drives, to learn from, to hold out and to test with; and those driven by each policy.
N_COURSES, N_DRIVES = (200, 30, 60), 200
N_FEATURES, WIDTH = 128, 8
GRIDS = (3, 5, 9, 17, 33, 65, 257)
SHOWN = f"grid of {GRIDS[-2]}"
N_STARTS, N_STEPS, STEP_SIZE = 8, 15, 0.05
# A steering is right within this of one of the expert's, of a range from -1 to 1.
TOLERANCE = 0.15
TARGETS = {
    f"runs that arrive, {SHOWN}": (0.9, False),
    "runs that arrive, gradient": (0.9, False),
    f"right, either side, {SHOWN}": (0.95, False),
}
NOTES = [
    "A robot sees the ground before it as a picture of 20 x 20: the walls of a corridor and three obstacles near "
    "its middle. The expert keeps to the middle and turns late, past the side to which it is heading, or past "
    "either with equal probability where that is the middle of the obstacle. It never steers straight there.",
    f"Right: the share of pictures of new drives of the expert in which the steering is within {TOLERANCE:g} "
    "of one that is right. Either side: of the pictures in which both sides are. Arrive: the share of new "
    "courses that are driven to the end without touching a wall or an obstacle.",
    f"Grid: the lowest energy of so many evenly spaced steerings. Gradient: the lowest end of {N_STARTS} "
    f"descents of {N_STEPS} steps. Squared error: a network with the same features. 1-NN: what the expert did "
    "in the nearest picture. Time is that of one decision about one picture on this machine, the features of "
    "the picture included, the median of fifty.",
]

# Steerings [N] for pictures [N, 1, size, size].
Policy = Callable[[np.ndarray], np.ndarray]


def run(settings: Settings) -> Result:
    started = time.monotonic()
    shrink = 10 if settings.quick else 1
    n_drives = 5 if settings.quick else N_DRIVES
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    for seed in settings.seeds:
        train, held_out, test = (demonstrate(max(2, n // shrink), 10 * seed + k) for k, n in enumerate(N_COURSES))
        energy, direct = _networks(train, held_out, seed, settings.quick)
        policies = _policies(energy, direct, train)
        courses = make_courses(n_drives, np.random.default_rng(1000 + seed))
        ways = {}
        for name, policy in policies.items():
            found = accuracy(policy, test)
            ways[name], arrived = drive(policy, courses)
            found["runs that arrive"] = float(arrived.mean())
            found["ms a decision"] = _milliseconds(policy, test.images, 5 if settings.quick else 50)
            for what, value in found.items():
                figures.setdefault(f"{what}, {name}", []).append(value)
        rng = np.random.default_rng(seed)
        _, arrived = drive_expert(courses, rng)
        figures.setdefault("runs that arrive, the expert", []).append(float(arrived.mean()))
        shown = figures[f"runs that arrive, {SHOWN}"][-1], figures["runs that arrive, squared error"][-1]
        settings.tell("seed {}: {:.3f} of runs arrive, {:.3f} by squared error".format(seed, *shown))
        if not pictures:
            pictures = {
                "Ways along one course: lowest energy, squared error, nearest neighbour": _ways(policies, courses),
                "The energy of a steering, where both sides are right and elsewhere": _valleys(energy, test),
            }
    bound = {} if settings.quick else TARGETS
    # All of one kind stand together.
    order = sorted(figures, key=lambda name: [k for k in ("arrive", "either", "right", "ms") if k in name][:1])
    rows = [Figure(k, figures[k], *bound.get(k, (None, True))) for k in order]
    return Result(rows, pictures, NOTES, time.monotonic() - started)


# -- policies -------------------------------------------------------------------------------------------------


def _networks(
    train: Demonstrations, held_out: Demonstrations, seed: int, quick: bool
) -> tuple[NetworkEnergy, DirectRegression]:
    plan = Plan(1 if quick else 12, batch_size=128, learning_rate=2e-3, clip_norm=5.0, seed=seed)
    rows = [
        Batch(_tensor(d.images), torch.as_tensor(d.action, dtype=torch.float32)[:, None])
        for d in (train, held_out)
    ]
    torch.manual_seed(seed)
    energy = NetworkEnergy(convnet(1, N_FEATURES, WIDTH), N_FEATURES, 1, hidden=64, n_residual=2)
    fit(energy, RankingNCE((0.05, 0.3, 1.0), 8 if quick else 64), rows[0], rows[1], plan)
    direct = DirectRegression(convnet(1, N_FEATURES, WIDTH), N_FEATURES, 1)
    fit(direct, EnergyLoss(), rows[0], rows[1], plan)
    return energy.eval(), direct.eval()


def _policies(energy: NetworkEnergy, direct: DirectRegression, train: Demonstrations) -> dict[str, Policy]:
    def searching(search: Callable[[Conditioned], Tensor]) -> Policy:
        def policy(images: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return search(energy.given(_tensor(images))).numpy()

        return policy

    policies = {f"grid of {n}": searching(partial(exhaustive, n=n)) for n in GRIDS}
    policies["gradient"] = searching(descend)
    policies["squared error"] = lambda images: _answer(direct, images)
    near = KNeighborsRegressor(1).fit(train.images.reshape(len(train.images), -1), train.action)
    policies["1-NN"] = lambda images: near.predict(images.reshape(len(images), -1))
    return policies


def exhaustive(given: Conditioned, n: int) -> Tensor:
    """The steering of lowest energy ``[B]`` among n evenly spaced ones."""
    grid = torch.linspace(-1, 1, n)
    return grid[given(grid.reshape(1, n, 1).expand(given.n_rows, n, 1)).argmin(1)]


def descend(given: Conditioned) -> Tensor:
    """The lowest end ``[B]`` of descents from evenly spaced starts."""
    starts = torch.linspace(-1, 1, N_STARTS).reshape(1, N_STARTS, 1).expand(given.n_rows, N_STARTS, 1)
    ends = gradient_ascent(given, starts, N_STEPS, STEP_SIZE).clamp(-1, 1)
    return ends[torch.arange(len(ends)), given(ends).argmin(1), 0]


def _answer(direct: DirectRegression, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return direct.features(_tensor(images))[:, 0].numpy()


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy((images - 0.4) / 0.4)


# -- figures --------------------------------------------------------------------------------------------------


def accuracy(policy: Policy, test: Demonstrations) -> dict[str, float]:
    """The share of steerings that are right, of all pictures and of those in which both sides are."""
    found = np.concatenate([policy(part) for part in np.array_split(test.images, max(1, len(test.images) // 500))])
    right = np.abs(test.right - found[:, None]).min(1) < TOLERANCE
    either = np.ptp(test.right, axis=1) > 2 * TOLERANCE
    return {"right": float(right.mean()), "right, either side": float(right[either].mean())}


def drive(policy: Policy, courses: Courses) -> tuple[np.ndarray, np.ndarray]:
    """The poses along the courses ``[T, N, 3]``, at rest after the end, and whether each arrived ``[N]``."""
    return _drive(lambda pose, here: policy(view(pose, here)), courses)


def drive_expert(courses: Courses, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same of the expert, who draws a side where both are right."""

    def act(pose: np.ndarray, here: Courses) -> np.ndarray:
        right, first = expert_actions(pose, here)
        return np.where(rng.random(len(pose)) < first, right[:, 0], right[:, 1])

    return _drive(act, courses)


def _drive(act: Callable[[np.ndarray, Courses], np.ndarray], courses: Courses) -> tuple[np.ndarray, np.ndarray]:
    pose = courses.start.copy()
    going, arrived, track = np.ones(len(pose), bool), np.zeros(len(pose), bool), [pose.copy()]
    for _ in range(int(1.5 * LENGTH / STEP)):
        index = np.flatnonzero(going)
        if not len(index):
            break
        here = courses.rows(index)
        pose[index] = moved(pose[index], act(pose[index], here))
        hit = crashed(pose[index], here)
        arrived[index] = ~hit & (pose[index, 0] >= LENGTH)
        going[index] = ~hit & ~arrived[index]
        track.append(pose.copy())
    return np.stack(track), arrived


def _milliseconds(policy: Policy, images: np.ndarray, n: int) -> float:
    times = []
    for image in images[:n]:
        begun = time.perf_counter()
        policy(image[None])
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


# -- pictures -------------------------------------------------------------------------------------------------


def _ways(policies: dict[str, Policy], courses: Courses, n: int = 8) -> go.Figure:
    """From n starts along one course, by three policies, one above the other."""
    start = np.stack([np.zeros(n), np.linspace(-0.3, 0.3, n), np.zeros(n)], 1)
    course = Courses(np.repeat(courses.obstacles[:1], n, 0), start)
    figure = go.Figure()
    for level, (name, colour) in enumerate(((SHOWN, "#2a6fbb"), ("squared error", "#e07a1f"), ("1-NN", "#888"))):
        up = -2.6 * level
        track, arrived = drive(policies[name], course)
        for k in range(n):
            figure.add_scatter(
                x=track[:, k, 0].tolist(), y=(track[:, k, 1] + up).tolist(), mode="lines", line={"color": colour},
                name=name, legendgroup=name, showlegend=k == 0,
            )  # fmt: skip
            if not arrived[k]:
                figure.add_scatter(
                    x=[track[-1, k, 0]], y=[track[-1, k, 1] + up], mode="markers", name="crash",
                    marker={"symbol": "x", "color": "red", "size": 9}, legendgroup="crash", showlegend=False,
                )  # fmt: skip
        for x, y in course.obstacles[0]:
            box = {"x0": x - OBSTACLE, "x1": x + OBSTACLE, "y0": y + up - OBSTACLE, "y1": y + up + OBSTACLE}
            figure.add_shape(type="circle", fillcolor="#333", **box)
        for wall in (-1, 1):
            figure.add_shape(type="line", x0=0, x1=LENGTH, y0=wall + up, y1=wall + up)
    figure.update_yaxes(visible=False, scaleanchor="x")
    figure.update_layout(height=520, margin={"l": 20, "r": 10, "t": 20, "b": 30})
    return figure


def _valleys(energy: NetworkEnergy, test: Demonstrations) -> go.Figure:
    apart = np.ptp(test.right, axis=1)
    steering = torch.linspace(-1, 1, 201)
    figure = go.Figure()
    for label, rows, colour in (
        ("both sides are right", np.argsort(-apart)[:3], "#e07a1f"),
        ("one is", np.flatnonzero(apart == 0)[:3], "#2a6fbb"),
    ):
        with torch.no_grad():
            values = energy.given(_tensor(test.images[rows]))(steering.reshape(1, -1, 1).expand(len(rows), -1, 1))
        for k, value in enumerate(values - values.amin(1, keepdim=True)):
            figure.add_scatter(
                x=steering.tolist(), y=value.tolist(), line={"color": colour}, name=label, legendgroup=label,
                showlegend=k == 0,
            )  # fmt: skip
    figure.update_layout(
        xaxis_title="steering (-1 right, 1 left)",
        yaxis_title="energy less the lowest",
        yaxis_range=[0, 12],
        height=360,
    )
    return figure


RECIPE = Recipe(
    name="decisions",
    title="Decisions: steering past obstacles by the lowest energy of (picture, steering)",
    source="LeCun et al. (2006), on decisions; Florence et al., Implicit Behavioral Cloning (2021)",
    run=run,
    minutes=6,
)
