"""Hybrid training by contrast: cross-entropy, and each image against a queue of others under its own label."""

from __future__ import annotations

import time
from typing import Any

import plotly.graph_objects as go

from thalweg.evaluation.detection import energy
from thalweg.objectives.base import Objective
from thalweg.objectives.classification import CrossEntropy
from thalweg.objectives.classifier_contrast import QueueContrast
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.classifying import (
    ATTACK,
    N_LABELS,
    Rows,
    classified,
    detected,
    images,
    logits,
    robust_accuracy,
    strange_images,
    train,
    wrong_labels,
)
from thalweg.training.loop import Plan

# Classes that the network for detection has not seen: the last two.
N_KNOWN, WRONG = N_LABELS - 2, 0.3
# Figure: (target, whether it is an upper bound).
TARGETS: dict[str, tuple[float, bool]] = {
    "HDGE: accuracy less CE's": (0.0, False),
    "HDGE: AUROC, held out": (0.97, False),
    "HDGE: FPR95, held out": (0.15, True),
    "HDGE: accuracy, 30 % wrong labels": (0.93, False),
    "HDGE: robust accuracy less CE's": (0.05, False),
    "HDGE: roll-backs": (0.0, True),
}
NOTES = [
    "One network and 1000 updates of 64 images for both, before wrong labels are learned by heart. The queue "
    "holds 1024 rows of scores, scaled to length 1; the temperature is 0.1.",
    f"Held out: the classes {N_KNOWN} and {N_KNOWN + 1} are told from the others by the energy summed over "
    "labels (by probability: by the largest one), with a network that has not seen them. The other images of an "
    "AUROC are made of the test images, and the network knows all classes.",
    f"Robust accuracy: projected gradients, 40 steps, change each pixel in [0, 1] by up to {ATTACK}. Wrong "
    f"labels: {WRONG:.0%} of the training labels are of another class.",
    "The contrast says nothing about images unlike any of the data: by the energy of the inputs they may be told "
    "worse than by that of cross-entropy alone.",
]


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    name = ""
    for seed in settings.seeds:
        rows, test, name = images(settings, seed)
        found: dict[str, float] = {}
        for which in ("CE", "HDGE"):
            measured, scores = _measure(settings, which, rows, test, seed)
            found |= {f"{which}: {what}": value for what, value in measured.items()}
            if seed == settings.seeds[0]:
                pictures[f"Energies with {which}: classes that are known, and held out"] = scores
        for what in ("accuracy", "robust accuracy", "AUROC, held out"):
            found[f"HDGE: {what} less CE's"] = found[f"HDGE: {what}"] - found[f"CE: {what}"]
        found["HDGE: seconds over CE's (ratio)"] = found.pop("HDGE: seconds") / max(found.pop("CE: seconds"), 1e-9)
        for key, value in found.items():
            figures.setdefault(key, []).append(value)
        settings.tell(
            f"seed {seed}: "
            + ", ".join(
                f"{w} {found[f'{w}: accuracy']:.3f} / {found[f'{w}: AUROC, held out']:.3f}" for w in ("CE", "HDGE")
            )
        )
    bound = TARGETS if name == "digits" and not settings.quick else {}
    rows_out = [Figure(k, v, *bound.get(k, (None, True))) for k, v in figures.items()]
    return Result(rows_out, pictures, [f"Images: {name}.", *NOTES], time.monotonic() - started)


def _objective(settings: Settings, which: str, n_labels: int) -> Objective:
    if which == "CE":
        return CrossEntropy()
    return QueueContrast(n_labels, queue_size=65_536 if settings.paper_scale else 1024)


def _plan(settings: Settings, n_rows: int, seed: int) -> Plan:
    if settings.paper_scale:
        return Plan(200, batch_size=256, learning_rate=1e-3, weight_decay=5e-4, seed=seed)
    # With more updates both learn wrong labels by heart.
    n_steps = 10 if settings.quick else 1000
    return Plan(10**6, max_steps=n_steps, batch_size=min(64, n_rows), seed=seed)


def _measure(
    settings: Settings, which: str, rows: Rows, test: Rows, seed: int
) -> tuple[dict[str, float], go.Figure]:
    known, inside = rows.where(rows.y < N_KNOWN), test.where(test.y < N_KNOWN)
    held_out = test.where(test.y >= N_KNOWN)

    def fitted(chosen: Rows, n_labels: int = N_LABELS) -> Any:
        plan = _plan(settings, len(chosen.y), seed)
        return train(settings, _objective(settings, which, n_labels), chosen, plan, n_labels)

    full, wrong, without = fitted(rows), fitted(wrong_labels(rows, WRONG, seed)), fitted(known, N_KNOWN)
    out = classified(full.energy, test)
    out["robust accuracy"] = robust_accuracy(full.energy, test, seed, n_steps=5 if settings.quick else 40)
    for kind, found in strange_images(test, seed).items():
        out[f"AUROC, {kind}"] = detected(full.energy, test.x, found)["AUROC by energy"]
    told = detected(without.energy, inside.x, held_out.x)
    out["AUROC, held out"], out["FPR95, held out"] = told["AUROC by energy"], told["FPR95 by energy"]
    out["AUROC, held out, by probability"] = told["AUROC by probability"]
    out["accuracy, 30 % wrong labels"] = classified(wrong.energy, test)["accuracy"]
    out["roll-backs"] = float(sum(t.history.rollbacks for t in (full, wrong, without)))
    out["seconds"] = full.seconds
    figure = go.Figure()
    for label, some in (("known classes", inside), ("held out", held_out)):
        figure.add_histogram(x=(-energy(logits(without.energy, some.x))).tolist(), name=label, opacity=0.6)
    figure.update_layout(
        height=320,
        barmode="overlay",
        margin={"l": 50, "r": 10, "t": 20, "b": 45},
        xaxis_title="energy of the test images",
        yaxis_title="images",
    )
    return out, figure


RECIPE = Recipe(
    name="hdge",
    title="Hybrid training by contrast: novel classes and wrong labels beside cross-entropy alone",
    source="Liu and Abbeel, Hybrid Discriminative-Generative Training via Contrastive Learning (2020)",
    run=run,
    minutes=2,
)
