"""Few labels and many rows without: two spirals by a game with a flow, digits by a joint energy model."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
import zuko
from sklearn.calibration import CalibratedClassifierCV
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from sklearn.svm import SVC
from torch import Tensor, nn

from thalweg.energies.densities import FlowEnergy, UniformEnergy
from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks.labelled_perceptron import LabelledPerceptron
from thalweg.evaluation.calibration import expected_calibration_error, mean_log_loss
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.classification import CrossEntropy
from thalweg.objectives.classifier_contrast import QueueContrast
from thalweg.objectives.joint import Augment, JointGame, jem
from thalweg.objectives.noise_contrastive import FlowContrastiveEstimation
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.classifying import N_LABELS, Rows, classified, few_labels, images, logits, train
from thalweg.training.loop import Plan, Trainer

N_POINTS, N_EACH = 2000, 7
N_DIGITS_EACH = 10
# Moved copies of every image among which labels are spread.
N_COPIES = 3
# Figure: (target, whether it is an upper bound).
TARGETS: dict[str, tuple[float, bool]] = {
    "spirals, joint energy: accuracy": (0.97, False),
    "spread twice, HDGE: accuracy": (0.955, False),
    "spread twice, HDGE: ECE": (0.03, True),
    "roll-backs": (0.0, True),
}
NOTES = [
    f"Spirals: {N_POINTS} points, {N_EACH} of each arm labelled, evenly along it. The joint energy learns by "
    "cross-entropy of the labelled points and, in its sum over the labels, by the game with a flow; cross-entropy "
    "alone has the same network. Accuracy is that of other points.",
    f"Digits: {N_DIGITS_EACH} labels of each class; the other training images have none. CE, cross-entropy, sees "
    "only the labelled ones. LabelSpreading with 7 neighbours: alpha 0.2 is scikit-learn's default, 0.9 was "
    "chosen on images that are not among the test images, and so was all else here.",
    "Moved copies are turned, shifted, scaled and sheared a little. Spread once: LabelSpreading of the pixels of "
    f"all training images and {N_COPIES} moved copies of each labels all of them, and a network learns from these "
    "labels. Spread twice: the same again, with that network's features for the pixels.",
    "Read LabelSpreading's own rows first: on these images and spirals it is at least as accurate as any network "
    "here. What a network adds is a model that needs no training images, and an energy.",
]


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    name = ""
    for seed in settings.seeds:
        found, picture = _spirals(settings, seed)
        of_images, name = _images(settings, seed)
        found |= of_images
        found["roll-backs"] = found.pop("rolled back") + found.pop("rolled back, images")
        for key, value in found.items():
            figures.setdefault(key, []).append(value)
        pictures = pictures or {
            "Two spirals: points, labels, and where the joint energy puts the classes": picture
        }
        settings.tell(
            f"seed {seed}: spirals {found['spirals, joint energy: accuracy']:.3f}, images "
            f"{found['spread twice, HDGE: accuracy']:.3f}"
        )
    bound = {} if settings.quick or settings.data else TARGETS
    rows = [Figure(k, v, *bound.get(k, (None, True))) for k, v in figures.items()]
    return Result(rows, pictures, [f"Images: {name}.", *NOTES], time.monotonic() - started)


# -- spirals --------------------------------------------------------------------------------------------------


def two_spirals(n: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points ``[n, 2]`` on two arms of one and a half turns with noise of 0.1, arms ``[n]``, places along them."""
    arm = rng.randint(2, size=n)
    place = np.sqrt(rng.uniform(0.04, 1.0, n))
    angle = 3 * np.pi * place + np.pi * arm
    points = 3 * place[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return (points + 0.1 * rng.standard_normal((n, 2))).astype(np.float32), arm, place


def spread_labels(arm: np.ndarray, place: np.ndarray, n_each: int) -> np.ndarray:
    """-1, but for as many points of each arm, evenly along it."""
    labels = np.full(len(arm), -1)
    for k in (0, 1):
        along = np.flatnonzero(arm == k)
        along = along[np.argsort(place[along])]
        labels[along[((np.arange(n_each) + 0.5) / n_each * len(along)).astype(int)]] = k
    return labels


def _spirals(settings: Settings, seed: int) -> tuple[dict[str, float], go.Figure]:
    rng = np.random.RandomState(seed)
    points, arm, place = two_spirals(200 if settings.quick else N_POINTS, rng)
    labels = spread_labels(arm, place, N_EACH)
    test, test_arm, _ = two_spirals(N_POINTS, rng)
    x, y = torch.from_numpy(points), torch.from_numpy(labels)
    known = y >= 0
    out: dict[str, float] = {}
    for alpha in (0.2, 0.9):
        spread = _spread(points, y, 10, alpha)
        out[f"spirals, LabelSpreading {alpha}: accuracy"] = float(
            (_predicted(spread, test).argmax(1) == test_arm).mean()
        )

    def fitted(objective: Objective, rows: Batch, n_steps: int) -> tuple[LabelledEnergy, int]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
            model = LabelledEnergy(nn.Sequential(*layers, nn.Linear(128, 2)))
        n_steps = 10 if settings.quick else n_steps
        plan = Plan(10**6, max_steps=n_steps, batch_size=min(256, len(rows.y)), learning_rate=2e-3, seed=seed)
        return model, Trainer(plan).fit(model, objective, rows).rollbacks

    # As many labelled points as others, so that every batch has some of each.
    n_times = int((~known).sum()) // int(known.sum())
    joint_rows = Batch(torch.cat([x, x[known].repeat(n_times, 1)]), torch.cat([y, y[known].repeat(n_times)]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = zuko.flows.NSF(2, transforms=3, passes=2, hidden_features=(64, 64))
    noise = FlowEnergy(flow, x.mean(0), x.std(0))
    game = JointGame(FlowContrastiveEstimation(noise, warm_up=5 if settings.quick else 300))
    alone, first = fitted(CrossEntropy(), Batch(x[known], y[known]), 1000)
    joint, second = fitted(game, joint_rows, 4000)
    for which, model in (("cross-entropy alone", alone), ("joint energy", joint)):
        found = logits(model, torch.from_numpy(test)).argmax(1)
        out[f"spirals, {which}: accuracy"] = float((found == test_arm).mean())
    out["rolled back"] = float(first + second)
    return out, _plane(joint, x, y)


def _plane(model: LabelledEnergy, x: Tensor, y: Tensor) -> go.Figure:
    """The density that the energy stands for, signed by the class, with the points and the labels."""
    axis = torch.linspace(-4, 4, 120)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    with torch.no_grad():
        energies = model.energies(grid.reshape(-1, 2))
        density = (-model.marginal()(grid.reshape(-1, 2))).exp()
        side = torch.softmax(-energies, 1)[:, 1] - 0.5
    height = (2 * side * density / density.quantile(0.98)).clamp(-1, 1).reshape(120, 120)
    figure = go.Figure(
        go.Heatmap(x=axis.tolist(), y=axis.tolist(), z=height.tolist(), colorscale="RdBu", zmid=0, showscale=False)
    )
    figure.add_scatter(
        x=x[y < 0][:600, 0].tolist(), y=x[y < 0][:600, 1].tolist(), mode="markers", name="without a label",
        marker={"size": 3, "color": "grey"},
    )  # fmt: skip
    for k, color in ((0, "darkred"), (1, "darkblue")):
        chosen = x[y == k]
        figure.add_scatter(
            x=chosen[:, 0].tolist(), y=chosen[:, 1].tolist(), mode="markers", name=f"label {k}",
            marker={"size": 11, "color": color, "line": {"width": 2, "color": "white"}},
        )  # fmt: skip
    figure.update_layout(height=560, width=640, margin={"l": 40, "r": 10, "t": 20, "b": 40})
    return figure


# -- images ---------------------------------------------------------------------------------------------------


def moved(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images turned by up to 12 degrees, shifted by half a pixel of eight, scaled and sheared a little."""
    turn, size, right, down, shear = (
        s * (2 * torch.rand(len(x), generator=generator) - 1) for s in (0.21, 0.1, 0.125, 0.125, 0.15)
    )
    cos, sin = turn.cos() * (1 + size), turn.sin() * (1 + size)
    rows = torch.stack([cos, shear - sin, right], 1), torch.stack([sin, cos, down], 1)
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _images(settings: Settings, seed: int) -> tuple[dict[str, float], str]:
    settings = replace(settings, paper_scale=False)
    rows, test, name = images(settings, seed)
    rows = rows.where(torch.arange(min(len(rows.y), 5000)))
    generator = torch.Generator().manual_seed(seed)
    few = few_labels(rows, N_DIGITS_EACH, seed)
    known = few.where(few.y >= 0)
    copies = torch.cat([few.x, *(moved(few.x, generator) for _ in range(N_COPIES))])
    pixels, of_test = few.x.flatten(1).numpy(), test.x.flatten(1).numpy()
    found: dict[str, dict[str, float]] = {}
    rollbacks = 0

    def judge(which: str, probabilities: np.ndarray) -> None:
        p, truth = probabilities + 1e-6, test.y.numpy()
        p = p / p.sum(1, keepdims=True)
        accuracy = float((p.argmax(1) == truth).mean())
        ece = expected_calibration_error(p, truth)
        found[which] = {"accuracy": accuracy, "NLL (nats)": mean_log_loss(p, truth).value, "ECE": ece}

    def fitted(which: str, objective: Objective, chosen: Rows) -> LabelledEnergy:
        nonlocal rollbacks
        trained = train(settings, objective, chosen, _plan(settings, chosen, seed))
        found[which] = classified(trained.energy, test)
        rollbacks += trained.history.rollbacks
        return trained.energy

    for alpha in (0.2, 0.9):
        judge(f"LabelSpreading {alpha}", _predicted(_spread(pixels, few.y, 7, alpha), of_test))
    machine = CalibratedClassifierCV(SVC(C=10.0), ensemble=False)
    judge("self-training SVC", SelfTrainingClassifier(machine).fit(pixels, few.y.numpy()).predict_proba(of_test))

    fitted("CE", CrossEntropy(), known)
    fitted("CE, moved copies", CrossEntropy(), _with_copies(known, 50, generator))
    fitted("JEM", _joint(few), few)
    fitted("JEM, moved copies", _joint(few, moved), few)
    once = _spread(copies.flatten(1).numpy(), few.y.repeat(N_COPIES + 1), 7, 0.9)
    judge("LabelSpreading, moved copies", _predicted(once, of_test))
    labelled = [_labels(once, few)]
    model = fitted("spread once, HDGE", QueueContrast(N_LABELS), _with_copies(labelled[0], 5, generator))
    twice = _spread(_features(model, copies), few.y.repeat(N_COPIES + 1), 10, 0.9)
    labelled.append(_labels(twice, few))
    chosen = _with_copies(labelled[1], 5, generator)
    fitted("spread twice, HDGE", QueueContrast(N_LABELS), chosen)
    fitted("spread twice, CE", CrossEntropy(), chosen)
    fitted("spread twice, JEM", _joint(labelled[1], moved), labelled[1])

    out = {f"{which}: {what}": value for which, values in found.items() for what, value in values.items()}
    for which, spread in zip(("once", "twice"), labelled, strict=True):
        out[f"labels spread {which} that are right (share)"] = float((spread.y == rows.y).float().mean())
    return out | {"rolled back, images": float(rollbacks)}, name


def _spread(features: np.ndarray, labels: Tensor, n_neighbors: int, alpha: float) -> LabelSpreading:
    spread = LabelSpreading(kernel="knn", n_neighbors=n_neighbors, alpha=alpha, max_iter=1000)
    with np.errstate(invalid="ignore"):  # rows that no label reaches have no distribution
        return spread.fit(features, labels.numpy())


def _predicted(spread: LabelSpreading, features: np.ndarray) -> np.ndarray:
    """Probabilities ``[n, C]``, equal ones where no label reaches a row's neighbours."""
    with np.errstate(invalid="ignore"):
        found = spread.predict_proba(features)
    return np.where(np.isfinite(found), found, 1 / found.shape[1])


def _labels(spread: LabelSpreading, few: Rows) -> Rows:
    """The rows with their labels, or with those that were spread to them and their copies."""
    n = len(few.y)
    p = torch.from_numpy(np.nan_to_num(spread.label_distributions_)).reshape(-1, n, N_LABELS)
    mean = (p / p.sum(-1, keepdim=True).clamp_min(1e-9)).mean(0)
    return Rows(few.x, torch.where(few.y >= 0, few.y, mean.argmax(1)))


def _with_copies(rows: Rows, n: int, generator: torch.Generator) -> Rows:
    """The rows, and so many moved copies of each."""
    return Rows(torch.cat([rows.x, *(moved(rows.x, generator) for _ in range(n))]), rows.y.repeat(n + 1))


def _features(model: LabelledEnergy, x: Tensor) -> np.ndarray:
    """What goes into the last layer of a perceptron, of length 1."""
    assert isinstance(model, LabelledPerceptron)
    h = 2 * x.flatten(1) - 1
    with torch.no_grad():
        for layer in model.layers:
            h = model.activation.value(layer(h))
    return F.normalize(h, dim=1).numpy()


def _joint(rows: Rows, augment: Augment | None = None) -> Objective:
    box = UniformEnergy(torch.zeros(rows.x.shape[1:]), torch.ones(rows.x.shape[1:]))
    how: dict[str, Any] = {"n_chains": 32, "buffer_size": 2000, "input_noise": 0.1, "bounds": (-0.25, 1.25)}
    return jem(box, 0.5, augment=augment, **how)


def _plan(settings: Settings, rows: Rows, seed: int) -> Plan:
    n_steps = 10 if settings.quick else 1000
    return Plan(10**6, max_steps=n_steps, batch_size=min(128, len(rows.y)), seed=seed)


RECIPE = Recipe(
    name="semi-supervised",
    title="Few labels: two spirals by an energy and a flow, digits by spread labels and a joint energy model",
    source="Gao et al., Flow Contrastive Estimation of Energy-Based Models (2020); Grathwohl et al. (2020)",
    run=run,
    minutes=12,
)
