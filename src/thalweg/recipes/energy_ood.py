"""Inputs unlike the training data: a classifier's energy beside other scores, and fine-tuning with outliers."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from thalweg.data.images import read_split
from thalweg.energies.densities import KernelDensity
from thalweg.energies.labelled import LabelledEnergy
from thalweg.evaluation.calibration import Estimate
from thalweg.evaluation.detection import auroc, detection_scores, false_positive_rate
from thalweg.objectives.base import Batch
from thalweg.objectives.classification import CrossEntropy
from thalweg.objectives.classifier_contrast import EnergyMargin
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.classifying import N_LABELS, Rows, classified, images, strange_images, train
from thalweg.training.loop import Plan, Trainer

# Classes that the network for the held-out ones has not seen: the last two.
N_KNOWN = N_LABELS - 2
# Share of the training rows on which nothing is fitted: they give the location and the scale of the scores.
SET_ASIDE = 0.1
OTHERS = "fashion_mnist_8k.npz"
# As the table names them, the scores of the network.
OF_NETWORK = {
    "max_softmax": "softmax",
    "energy": "energy",
    "neighbour_distance": "kNN",
    "boundary_distance": "fDBD",
    "generalised_entropy": "GEN",
    "virtual_logit": "ViM",
}
# Sums of standardised scores, by the weights of their terms.
SUMS = {
    "sum, half the energy": {"density": 1.0, "energy": 0.5, "1-NN": 1.0},
    "sum": {"density": 1.0, "energy": 1.0, "1-NN": 1.0},
}
SCORES = (*OF_NETWORK.values(), "1-NN", "density", *SUMS)
# Kinds of outliers that fine-tuning is shown.
SEEN = ("uniform noise", "shuffled")
# Figure: (target, whether it is an upper bound).
TARGETS: dict[str, tuple[float, bool]] = {
    "AUROC, Fashion-MNIST: sum": (0.99, False),
    **{f"FPR95, {kind}: less softmax's": (0.0, True) for kind in (*SEEN, "inverted")},
    **{f"FPR95 tuned, {kind}: energy": (0.005, True) for kind in SEEN},
    "accuracy: tuned less before": (-0.005, False),
}
# Where many hands wrote, as in MNIST, the last two classes are too much like some of the others.
TARGETS_OF_DIGITS = {"AUROC, held out: sum": (0.99, False)}
NOTES = [
    "Softmax, energy, kNN, fDBD, GEN and ViM are scores of one network trained by cross-entropy. 1-NN is the "
    "distance to the nearest training image, pixel by pixel; density is a kernel density of the pixels, its "
    "kernels shaped by their class. The sums add density, energy and 1-NN, each less its mean and over its "
    f"standard deviation on {SET_ASIDE:.0%} of the training images, on which nothing else was fitted. No outlier "
    "takes part in any of it; but that these three are summed was chosen in a trial on the digits, held-out ones "
    "in view; on the splits of five other seeds (3 to 7) the AUROC was 0.992 for the sum, 0.991 for the density.",
    "AUROC: the probability that a test image scores as more typical than an outlier. FPR95: the share of "
    "outliers that pass where 95 % of the test images do. Held out: the classes 8 and 9, which the network has "
    "not seen. In MNIST no score here tells these two well, and those of pixels least: the best AUROC is 0.90, "
    "and the sum has no more of it than the network's own GEN.",
    "Tuned: the same network after fine-tuning with uniform noise and shuffled training images as outliers. It "
    "tells outliers of these kinds, and accuracy is kept; held-out classes it tells WORSE than before.",
]


class Case(NamedTuple):
    """What a network learns from, and what its scores must tell apart."""

    rows: Rows
    inside: Rows
    outside: dict[str, Tensor]
    n_labels: int


class Told(NamedTuple):
    """How well one score tells one kind of outlier: AUROC and FPR95 with their standard errors."""

    auroc: Estimate
    fpr: Estimate


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    tables: dict[tuple[str, str], list[Told]] = {}
    pictures: dict[str, Any] = {}
    name = ""
    for seed in settings.seeds:
        cases, name = _cases(settings, seed)
        found: dict[str, float] = {}
        for case in cases:
            told, measured, shown = _measure(settings, case, seed)
            for key, one in told.items():
                tables.setdefault(key, []).append(one)
                found[f"AUROC, {key[0]}: {key[1]}"] = one.auroc.value
                found[f"FPR95, {key[0]}: {key[1]}"] = one.fpr.value
            # Of all cases the last one's accuracy counts, that of the most classes.
            found |= measured
            if seed == settings.seeds[0]:
                pictures |= shown
        for key_of_figure, value in found.items():
            figures.setdefault(key_of_figure, []).append(value)
        told_of = {score: found[f"AUROC, held out: {score}"] for score in ("energy", "density", "sum")}
        settings.tell(f"seed {seed}: held out, " + ", ".join(f"{s} {v:.4f}" for s, v in told_of.items()))
    bound = TARGETS | (TARGETS_OF_DIGITS if name == "digits" else {})
    if settings.quick or settings.paper_scale:
        bound = {}
    rows = [Figure(k, v, *bound.get(k, (None, True))) for k, v in figures.items()]
    pictures = {"Scores and kinds of outliers, with standard errors": _table(tables), **pictures}
    return Result(rows, pictures, [f"Images: {name}.", *NOTES], time.monotonic() - started)


def _cases(settings: Settings, seed: int) -> tuple[list[Case], str]:
    """Classes 0 to 7 against the last two and strange images; with other images at hand, all classes too."""
    rows, test, name = images(settings, seed)
    known, inside = rows.where(rows.y < N_KNOWN), test.where(test.y < N_KNOWN)
    held_out = {"held out": test.where(test.y >= N_KNOWN).x}
    others = None if settings.data is None else settings.data / OTHERS
    if others is None or not others.exists():
        return [Case(known, inside, held_out | strange_images(inside, seed), N_KNOWN)], name
    _, strangers = read_split(others)
    foreign = {"Fashion-MNIST": torch.from_numpy(strangers.pixels[: len(test.x)])}
    return [
        Case(known, inside, held_out, N_KNOWN),
        Case(rows, test, foreign | strange_images(test, seed), N_LABELS),
    ], f"{name} against {OTHERS}"


def _measure(
    settings: Settings, case: Case, seed: int
) -> tuple[dict[tuple[str, str], Told], dict[str, float], dict[str, go.Figure]]:
    order = torch.randperm(len(case.rows.y), generator=torch.Generator().manual_seed(seed))
    n_aside = round(SET_ASIDE * len(order))
    aside, rows = case.rows.where(order[:n_aside]), case.rows.where(order[n_aside:])
    model = train(settings, CrossEntropy(), rows, _plan(settings, rows, seed), case.n_labels).energy
    scores = Scores(model, rows, aside, seed)
    inside = scores(case.inside.x)
    told: dict[tuple[str, str], Told] = {}
    for kind, x in case.outside.items():
        for score, values in scores(x).items():
            told[kind, score] = _told(inside[score], values)

    before = classified(model, case.inside)["accuracy"]
    tuned = copy.deepcopy(model)
    strange = strange_images(rows, seed)
    objective = EnergyMargin(torch.cat([strange[kind] for kind in SEEN]))
    Trainer(_plan(settings, rows, seed, tuning=True)).fit(tuned, objective, Batch(rows.x, rows.y))
    after = classified(tuned, case.inside)["accuracy"]
    found = {"accuracy": before, "accuracy: tuned": after, "accuracy: tuned less before": after - before}
    ins = network_scores(tuned, rows, case.inside.x)
    for kind, x in case.outside.items():
        outs = network_scores(tuned, rows, x)
        for score in ("energy", "softmax"):
            one = _told(ins[score], outs[score])
            found[f"AUROC tuned, {kind}: {score}"] = one.auroc.value
            found[f"FPR95 tuned, {kind}: {score}"] = one.fpr.value
        found[f"AUROC, {kind}: tuned less before"] = (
            found[f"AUROC tuned, {kind}: energy"] - told[kind, "energy"].auroc.value
        )
        found[f"FPR95, {kind}: less softmax's"] = told[kind, "energy"].fpr.value - told[kind, "softmax"].fpr.value
    shown = {
        f"Energies of {', '.join(case.outside)}, {when}": _histograms(network, case)
        for when, network in (("before fine-tuning", model), ("after", tuned))
    }
    return told, found, shown


class Scores:
    """All scores of inputs, higher for inputs more like the training data.

    Args:
        model: a trained network.
        rows: what it was trained on.
        aside: other rows of the training data, which give every score its location and scale.
        seed: of the draw of rows for the density, if there are many.
    """

    def __init__(self, model: LabelledEnergy, rows: Rows, aside: Rows, seed: int):
        self.model, self.rows = model, rows
        flat = rows.x.flatten(1).numpy()
        self.density = KernelDensity.of(flat, rows.y.numpy(), seed=seed)
        self.nearest = NearestNeighbors(n_neighbors=1).fit(flat)
        typical = self._plain(aside.x)
        self.moments = {name: (float(v.mean()), float(v.std())) for name, v in typical.items()}

    def __call__(self, x: Tensor) -> dict[str, np.ndarray]:
        """By name, each ``[n]``, for inputs ``[n, *event]``."""
        plain = self._plain(x)
        standard = {name: (v - self.moments[name][0]) / self.moments[name][1] for name, v in plain.items()}
        sums = {
            name: np.sum([weight * standard[term] for term, weight in terms.items()], axis=0)
            for name, terms in SUMS.items()
        }
        return plain | sums

    def _plain(self, x: Tensor) -> dict[str, np.ndarray]:
        flat = x.flatten(1)
        with torch.no_grad():
            density = self.density.log_prob(flat).numpy()
        nearest = -self.nearest.kneighbors(flat.numpy())[0][:, 0]
        return {**network_scores(self.model, self.rows, x), "1-NN": nearest, "density": density}


def network_scores(model: LabelledEnergy, rows: Rows, x: Tensor) -> dict[str, np.ndarray]:
    """By name, what the features and the logits of a network say of inputs, given what it was trained on."""
    features, last = _last_inputs(model, rows.x)
    k = min(50, len(rows.x))
    weight, bias = last.weight.detach(), last.bias.detach()
    found = detection_scores(features, weight, bias, _last_inputs(model, x)[0], k=k)
    return {name: found[key] for key, name in OF_NETWORK.items()}


def _last_inputs(model: LabelledEnergy, x: Tensor) -> tuple[Tensor, nn.Linear]:
    """The inputs ``[n, D]`` of a network's last linear layer, which gives the logits, and that layer."""
    last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    found: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda layer, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for part in x.split(1000):
            model.energies(part)
    hook.remove()
    return torch.cat(found), last


def _plan(settings: Settings, rows: Rows, seed: int, tuning: bool = False) -> Plan:
    if settings.paper_scale:
        # The published rates of fine-tuning are those of SGD: 10 epochs at 0.001.
        return Plan(10 if tuning else 100, batch_size=128, learning_rate=1e-4 if tuning else 1e-3, seed=seed)
    n_steps = 50 if settings.quick else 500 if tuning else 1000 if len(rows.y) < 2000 else 2000
    return Plan(10**6, max_steps=n_steps, batch_size=min(128, len(rows.y)), seed=seed)


def _told(inside: np.ndarray, outside: np.ndarray) -> Told:
    return Told(auroc(inside, outside), false_positive_rate(inside, outside))


def _table(tables: dict[tuple[str, str], list[Told]]) -> go.Figure:
    """Means over the seeds and mean standard errors of one test set; seeds share some of their test images."""

    def words(values: Sequence[Estimate]) -> str:
        mean, error = np.mean(values, axis=0)
        return f"{mean:.4f} ± {error:.4f}"

    rows = [
        (kind, score, words([t.auroc for t in told]), words([t.fpr for t in told]))
        for (kind, score), told in tables.items()
    ]
    head = ["outliers", "score", "AUROC", "FPR at 95 % recall"]
    return go.Figure(go.Table(header={"values": head}, cells={"values": list(zip(*rows, strict=True))}))


def _histograms(model: LabelledEnergy, case: Case) -> go.Figure:
    energy = model.marginal()
    figure = go.Figure()
    with torch.no_grad():
        for name, x in {"test images": case.inside.x, **case.outside}.items():
            values = energy(x).tolist()
            figure.add_histogram(x=values, name=name, opacity=0.6, histnorm="probability", nbinsx=50)
    figure.update_layout(
        height=320,
        barmode="overlay",
        margin={"l": 50, "r": 10, "t": 20, "b": 45},
        xaxis_title="energy",
        yaxis_title="share of the images",
    )
    return figure


RECIPE = Recipe(
    name="energy-ood",
    title="Inputs unlike the training data, told by a classifier's energy, by a density of pixels, and by both",
    source="Liu et al., Energy-based Out-of-distribution Detection (2020)",
    run=run,
    minutes=1,
)
