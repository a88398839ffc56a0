"""One network as a classifier and an energy: what the joint energy model, and what came after it, add to one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from thalweg.data.images import tile
from thalweg.energies.base import standard_normal
from thalweg.energies.densities import UniformEnergy, gaussian_of_classes
from thalweg.energies.networks.generator import NoisyGenerator, generating_network
from thalweg.evaluation.generation import frechet_distance, pca_features
from thalweg.objectives.amortised_sampling import VERA
from thalweg.objectives.base import Objective, evaluating
from thalweg.objectives.classification import CrossEntropy
from thalweg.objectives.classifier_contrast import DualAdversarialTraining
from thalweg.objectives.joint import JointGame, JointLikelihood, jem
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.classifying import (
    ATTACK,
    Rows,
    Trained,
    classified,
    detected,
    few_labels,
    images,
    robust_accuracy,
    strange_images,
    train,
    wrong_labels,
)
from thalweg.training.loop import Plan

FEW, WRONG, HELD_OUT = "100 labels", "30 % wrong labels", "held out"
# Labels that are kept of each class, and the share that is wrong, where there are few or wrong ones.
N_EACH, SHARE_WRONG = 10, 0.3
RADII = (0.0, 0.05, 0.1, 0.15, 0.2)
# Images drawn for the Frechet distance from the training images, which depends on how many there are.
N_DRAWS = 400


@dataclass(frozen=True)
class Variant:
    """A way to train the network.

    Attributes:
        build: the objective, given the rows and whether the run is at the source's own scale.
        of_all_rows: whether rows without a label take part.
        sharpness: radius of sharpness-aware minimisation.
        tasks: what it is trained for beside all images with all labels: FEW labels, WRONG ones, and without the
            classes that are HELD_OUT.
        n_players: who move in turn, each with an update of its own for one of the classifier.
        paper_batch_size: rows in an update at the source's own scale.
    """

    build: Callable[[Rows, bool], Objective]
    of_all_rows: bool = True
    sharpness: float = 0.0
    tasks: tuple[str, ...] = (FEW,)
    n_players: int = 1
    paper_batch_size: int = 64


def _box(rows: Rows) -> UniformEnergy:
    return UniformEnergy(torch.zeros(rows.x.shape[1:]), torch.ones(rows.x.shape[1:]))


def _joint(rows: Rows, paper: bool) -> JointLikelihood:
    """As published; on the digits with fewer chains, more noise, and within bounds."""
    if paper:
        return jem(_box(rows), 0.5)
    return jem(_box(rows), 0.5, n_chains=32, buffer_size=2000, input_noise=0.1, bounds=(-0.25, 1.25))


def _from_mixture(rows: Rows, paper: bool) -> JointLikelihood:
    start = gaussian_of_classes(rows.x, rows.y)
    if paper:
        return jem(start, 0.5, n_steps=10)
    return jem(start, 0.5, n_chains=64, n_steps=5, buffer_size=2000, input_noise=0.1, bounds=(-0.25, 1.25))


def _amortised(rows: Rows, paper: bool) -> JointGame:
    """VERA's own settings for images in [-1, 1], whose range is half as wide here and squared slopes four times.

    On the digits the game weighs more and learns faster: there are 1000 updates, not a million.
    """
    event, n_latent = rows.x.shape[1:], 128 if paper else 16
    network = generating_network(event, n_latent, width=128 if paper else None)
    made = NoisyGenerator(network, n_latent, std=0.05, least=0.005, most=0.15)
    if paper:
        return JointGame(VERA(made, 1e-4, 0.025, learning_rate=3e-5, generator_learning_rate=6e-5), 0.01)
    game = VERA(made, 0.01, 0.025, n_draws=5, learning_rate=1e-3, generator_learning_rate=2e-3)
    return JointGame(game, 0.3, _noisy)


def _noisy(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Images with the noise that JEM's have on the digits."""
    return x + 0.05 * standard_normal(x.shape, x, generator)


def _dual(rows: Rows, paper: bool) -> DualAdversarialTraining:
    start, radius = _box(rows), 8 / 255 if paper else ATTACK
    return DualAdversarialTraining(start, 1.0, 10, attack_radius=radius, attack_steps=5, bounds=(0.0, 1.0))


VARIANTS = {
    "CE": Variant(lambda rows, paper: CrossEntropy(), of_all_rows=False, tasks=(FEW, WRONG, HELD_OUT)),
    "JEM": Variant(_joint, tasks=(FEW, WRONG, HELD_OUT)),
    "JEM, SAM": Variant(_joint, sharpness=0.05, tasks=()),
    "JEM++": Variant(_from_mixture),
    "VERA": Variant(_amortised, tasks=(FEW, WRONG, HELD_OUT), n_players=3, paper_batch_size=40),
    "DAT": Variant(_dual),
}
# Figure: (target, whether it is an upper bound).
JOINT_TARGETS: dict[str, tuple[float, bool]] = {
    "ECE over CE's, 100 labels": (0.6, True),
    "NLL over CE's, 100 labels": (0.7, True),
    "accuracy less CE's, 100 labels": (0.0, False),
    "accuracy, 30 % wrong labels": (0.93, False),
    "robust accuracy less CE's": (0.08, False),
    "AUROC, shuffled": (0.99, False),
    "AUROC, uniform noise": (0.99, False),
    "seconds over CE's (ratio)": (8.0, True),
}
TARGETS: dict[str, tuple[float, bool]] = {
    **{f"{name}: {what}": bound for name in ("JEM", "VERA") for what, bound in JOINT_TARGETS.items()},
    **{f"{name}: roll-backs": (0.0, True) for name in VARIANTS},
}


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    name = ""
    for seed in settings.seeds:
        train_rows, test, name = images(settings, seed)
        found, shown = _measure(settings, train_rows, test, seed)
        for key, value in found.items():
            figures.setdefault(key, []).append(value)
        settings.tell(
            f"seed {seed}: "
            + ", ".join(
                f"{v} {found[f'{v}: accuracy']:.3f} / {found[f'{v}: robust accuracy']:.3f}" for v in VARIANTS
            )
        )
        pictures = pictures or shown
    bound = TARGETS if name == "digits" and not settings.quick else {}
    rows = [Figure(k, v, *bound.get(k, (None, True))) for k, v in figures.items()]
    return Result(rows, pictures, [f"Images: {name}.", *NOTES], time.monotonic() - started)


NOTES = [
    "The network is the same for all (64-256-256-10 for the digits), and so is the number of updates: CE is "
    "cross-entropy alone. JEM runs 20 steps of 32 chains for each update; with SAM its gradient is taken a step "
    "uphill in the weights; JEM++ starts chains from a Gaussian of each class and runs 5 steps of 64; VERA draws "
    "128 images of a generator instead, which learns beside the network; DAT learns against adversaries of both "
    "terms.",
    f"Robust accuracy is that under projected gradients, 40 steps, that change each pixel in [0, 1] by up to "
    f"{ATTACK}. DAT trains against such an attack, of 5 steps; the others have never seen one.",
    "AUROC: test images against others, by the energy summed over labels. Held out are the classes 8 and 9, which "
    "a network of their own has not seen; do not expect a generative term to help there.",
    f"Frechet distance: {N_DRAWS} draws, chains or the generator's, from the training images, by 20 principal "
    "components; beside it that of as many test images.",
    f"100 labels: {N_EACH} of each class; CE learns from these alone, the others from all images too. Wrong "
    f"labels: {SHARE_WRONG:.0%} of the training labels are of another class.",
]


def _plan(settings: Settings, variant: Variant, n_rows: int, seed: int) -> Plan:
    if settings.paper_scale:
        # 200 epochs of each player's updates.
        return Plan(
            200 * variant.n_players,
            batch_size=variant.paper_batch_size,
            learning_rate=1e-4,
            warmup_steps=1000,
            sharpness_radius=variant.sharpness,
            seed=seed,
        )
    return Plan(
        max_epochs=10**6,
        max_steps=variant.n_players * (10 if settings.quick else 1000),
        batch_size=min(128, n_rows),
        sharpness_radius=variant.sharpness,
        seed=seed,
    )


def _measure(settings: Settings, rows: Rows, test: Rows, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    few, wrong = few_labels(rows, N_EACH, seed), wrong_labels(rows, SHARE_WRONG, seed)
    known, held_out = rows.where(rows.y < 8), test.where(test.y >= 8)
    others = strange_images(test, seed)
    out: dict[str, float] = {}
    lines: dict[str, list[float]] = {}
    draws: dict[str, Tensor] = {}
    components = pca_features(rows.x.numpy(), 20)
    out["test images: Frechet distance"] = frechet_distance(test.x[:N_DRAWS].numpy(), rows.x.numpy(), components)

    def fitted(variant: Variant, chosen: Rows, n_labels: int = 10) -> tuple[Trained, Objective]:
        chosen = chosen if variant.of_all_rows else chosen.where(chosen.y >= 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            objective = variant.build(chosen, settings.paper_scale)
        plan = _plan(settings, variant, len(chosen.y), seed)
        return train(settings, objective, chosen, plan, n_labels), objective

    for name, variant in VARIANTS.items():
        full, objective = fitted(variant, rows)
        figures = classified(full.energy, test)
        drawn = _drawn(objective, N_DRAWS, seed)
        if drawn is not None:
            draws[name] = drawn
            figures["Frechet distance, draws"] = frechet_distance(drawn.numpy(), rows.x.numpy(), components)
        n_steps = 5 if settings.quick else 40
        robust = [robust_accuracy(full.energy, test, seed, radius, n_steps) for radius in RADII[1:]]
        lines[name] = [figures["accuracy"], *robust]
        figures["robust accuracy"] = lines[name][RADII.index(ATTACK)]
        for kind, found in others.items():
            figures[f"AUROC, {kind}"] = detected(full.energy, test.x, found)["AUROC by energy"]
        trained = [full]
        if FEW in variant.tasks:
            trained.append(fitted(variant, few)[0])
            figures |= {f"{what}, {FEW}": v for what, v in classified(trained[-1].energy, test).items()}
        if WRONG in variant.tasks:
            trained.append(fitted(variant, wrong)[0])
            figures[f"accuracy, {WRONG}"] = classified(trained[-1].energy, test)["accuracy"]
        if HELD_OUT in variant.tasks:
            trained.append(fitted(variant, known, 8)[0])
            told = detected(trained[-1].energy, test.where(test.y < 8).x, held_out.x)
            figures[f"AUROC, {HELD_OUT}"] = told["AUROC by energy"]
            figures[f"AUROC, {HELD_OUT}, by probability"] = told["AUROC by probability"]
        figures["roll-backs"] = float(sum(t.history.rollbacks for t in trained))
        figures["seconds"] = full.seconds
        out |= {f"{name}: {what}": value for what, value in figures.items()}
    for name in list(VARIANTS)[1:]:
        out[f"{name}: seconds over CE's (ratio)"] = out.pop(f"{name}: seconds") / max(out["CE: seconds"], 1e-9)
        out[f"{name}: robust accuracy less CE's"] = out[f"{name}: robust accuracy"] - out["CE: robust accuracy"]
        if FEW in VARIANTS[name].tasks:
            for what, key in (("ECE", "ECE"), ("NLL", "NLL (nats)")):
                out[f"{name}: {what} over CE's, {FEW}"] = out[f"{name}: {key}, {FEW}"] / out[f"CE: {key}, {FEW}"]
            key = f"accuracy, {FEW}"
            out[f"{name}: accuracy less CE's, {FEW}"] = out[f"{name}: {key}"] - out[f"CE: {key}"]
    shown = {"Accuracy under attack": _lines(lines), "Training images": _wall(rows.x[:40])}
    return out, shown | {f"Draws of {name}": _wall(drawn[:40]) for name, drawn in draws.items()}


def _drawn(objective: Objective, n: int, seed: int) -> Tensor | None:
    """Images ``[n, C, H, W]``: chains that were kept, or draws of a generator; None where there are neither."""
    learned: Any = objective.cpu()
    if isinstance(objective, JointLikelihood):
        return learned.generative.start.positions[:n].clamp(0, 1)
    if not isinstance(objective, JointGame):
        return None
    generator = learned.game.generator
    with torch.no_grad(), evaluating(generator):
        return generator.draw(n, torch.Generator().manual_seed(seed)).clamp(0, 1)


def _lines(lines: dict[str, list[float]]) -> go.Figure:
    figure = go.Figure()
    for name, values in lines.items():
        figure.add_scatter(x=list(RADII), y=values, name=name, mode="lines+markers")
    figure.update_layout(
        height=360,
        margin={"l": 50, "r": 10, "t": 20, "b": 45},
        xaxis_title="largest change of a pixel in [0, 1]",
        yaxis_title="accuracy (share)",
    )
    return figure


def _wall(pixels: Tensor) -> go.Figure:
    """Images side by side, grey or in colour."""
    shown = tile(pixels.clamp(0, 1).numpy(), 20)
    figure = go.Figure(go.Image(z=shown))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    height = int(min(1000, 1000 * shown.shape[0] / shown.shape[1])) + 20
    figure.update_layout(height=height, margin={"l": 0, "r": 0, "t": 10, "b": 10})
    return figure


RECIPE = Recipe(
    name="jem",
    title="A classifier that is an energy as well: calibration, robustness and detection beside cross-entropy",
    source="Grathwohl et al., Your Classifier is Secretly an Energy Based Model (2020)",
    run=run,
    minutes=15,
)
