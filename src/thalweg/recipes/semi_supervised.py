"""Few labels and many rows without: two spirals by a game with a flow, digits by a joint energy model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import zuko
from sklearn.calibration import CalibratedClassifierCV
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from sklearn.svm import SVC
from torch import Tensor, nn

from thalweg.energies.densities import FlowEnergy, UniformEnergy
from thalweg.energies.labelled import LabelledEnergy
from thalweg.evaluation.calibration import expected_calibration_error, mean_log_loss
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.classification import CrossEntropy
from thalweg.objectives.joint import JointFlowContrast, jem
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.classifying import Rows, classified, few_labels, images, logits, train
from thalweg.training.loop import Plan, Trainer

N_POINTS, N_EACH = 2000, 7
N_DIGITS_EACH = 10
# The part of the rows whose spread labels are surest, and are taken for labels.
SURE = 0.8
# Figure: (target, whether it is an upper bound).
TARGETS: dict[str, tuple[float, bool]] = {
    "spirals, joint energy: accuracy": (0.97, False),
    "digits, spread labels and JEM: accuracy": (0.955, False),
    "digits, spread labels and JEM: ECE": (0.03, True),
    "roll-backs": (0.0, True),
}
NOTES = [
    f"Spirals: {N_POINTS} points, {N_EACH} of each arm labelled, evenly along it. The joint energy learns by "
    "cross-entropy of the labelled points and, in its sum over the labels, by the game with a flow; cross-entropy "
    "alone has the same network. Accuracy is that of other points.",
    f"Digits: {N_DIGITS_EACH} labels of each class; the other training images have none. Cross-entropy alone sees "
    "only the labelled ones. LabelSpreading with 7 neighbours: alpha 0.2 is scikit-learn's default, 0.9 was "
    "chosen on images that are not among the test images.",
    f"Spread labels: LabelSpreading (0.9) labels the {SURE:.0%} of the training images of which it is surest; the "
    "network learns from these labels, and JEM from the density of all images too.",
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
            f"{found['digits, spread labels and JEM: accuracy']:.3f}"
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
        spread = LabelSpreading(kernel="knn", n_neighbors=10, alpha=alpha, max_iter=5000)
        with np.errstate(invalid="ignore"):
            score = spread.fit(points, labels).score(test, test_arm)
        out[f"spirals, LabelSpreading {alpha}: accuracy"] = float(score)

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
        flow = zuko.flows.NSF(2, transforms=2, passes=2, hidden_features=(64, 64))
    game = JointFlowContrast(FlowEnergy(flow, x.mean(0), x.std(0)), warm_up=5 if settings.quick else 300)
    alone, first = fitted(CrossEntropy(), Batch(x[known], y[known]), 1000)
    joint, second = fitted(game, joint_rows, 2000)
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


def _images(settings: Settings, seed: int) -> tuple[dict[str, float], str]:
    rows, test, name = images(settings, seed)
    few = few_labels(rows, N_DIGITS_EACH, seed)
    flat, labels = few.x.flatten(1).numpy(), few.y.numpy()
    test_flat, truth = test.x.flatten(1).numpy(), test.y.numpy()
    found: dict[str, dict[str, float]] = {}
    probabilities = {}
    for alpha in (0.2, 0.9):
        spread = LabelSpreading(kernel="knn", n_neighbors=7, alpha=alpha, max_iter=1000)
        with np.errstate(invalid="ignore"):
            spread.fit(flat, labels)
            probabilities[f"LabelSpreading {alpha}"] = np.nan_to_num(spread.predict_proba(test_flat), nan=0.1)
    machine = CalibratedClassifierCV(SVC(C=10.0), ensemble=False)
    probabilities["self-training SVC"] = SelfTrainingClassifier(machine).fit(flat, labels).predict_proba(test_flat)
    for which, p in probabilities.items():
        p = (p + 1e-6) / (p + 1e-6).sum(1, keepdims=True)
        found[which] = {
            "accuracy": float((p.argmax(1) == truth).mean()),
            "NLL (nats)": mean_log_loss(p, truth).value,
            "ECE": expected_calibration_error(p, truth),
        }
    sure = _surest(spread, few)
    rollbacks = 0
    for which, chosen, joint in (
        ("cross-entropy alone", few.where(few.y >= 0), False),
        ("JEM", few, True),
        ("spread labels alone", sure.where(sure.y >= 0), False),
        ("spread labels and JEM", sure, True),
    ):
        trained = train(
            settings, _objective(chosen) if joint else CrossEntropy(), chosen, _plan(settings, chosen, seed)
        )
        found[which] = classified(trained.energy, test)
        rollbacks += trained.history.rollbacks
    out = {f"digits, {which}: {what}": v for which, values in found.items() for what, v in values.items()}
    out["spread labels that are right (share)"] = float((sure.y == rows.y)[sure.y >= 0].float().mean())
    return out | {"rolled back, images": float(rollbacks)}, name


def _surest(spread: LabelSpreading, few: Rows) -> Rows:
    """The rows with their labels, and the spread labels of those that are surest; -1 for the others."""
    p = torch.from_numpy(np.nan_to_num(spread.label_distributions_, nan=0.0))
    confidence, label = p.max(1)
    labels = torch.where(confidence >= confidence.quantile(1 - SURE), label, -1)
    return Rows(few.x, torch.where(few.y >= 0, few.y, labels))


def _objective(rows: Rows) -> Objective:
    box = UniformEnergy(torch.zeros(rows.x.shape[1:]), torch.ones(rows.x.shape[1:]))
    return jem(box, 0.5, n_chains=32, buffer_size=2000, input_noise=0.1, bounds=(-0.25, 1.25))


def _plan(settings: Settings, rows: Rows, seed: int) -> Plan:
    n_steps = 10 if settings.quick else 1000
    return Plan(10**6, max_steps=n_steps, batch_size=min(128, len(rows.y)), seed=seed)


RECIPE = Recipe(
    name="semi_supervised",
    title="Few labels: two spirals by an energy and a flow, digits by spread labels and a joint energy model",
    source="Gao et al., Flow Contrastive Estimation of Energy-Based Models (2020); Grathwohl et al. (2020)",
    run=run,
    minutes=6,
)
