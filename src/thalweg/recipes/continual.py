"""Continual learning: ten digits in tasks, by one network that sees its own images, and by an energy a class."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from thalweg.data.images import Images
from thalweg.energies.densities import UniformEnergy
from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks import mlp
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.classification import CrossEntropy
from thalweg.objectives.contrastive_divergence import ContrastiveDivergence
from thalweg.recipes.base import Figure, Recipe, Result, Settings, split_for
from thalweg.recipes.continual_rivals import N_TASKS, compare
from thalweg.sampling.buffer import Chains, FromNoise, ReplayBuffer, Start
from thalweg.sampling.langevin import ColdLangevin
from thalweg.training.feed import Stages
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import Messages

SHAPE = (1, 8, 8)
BATCH = 64
RATE = 2e-4


class RelabelledBuffer(ReplayBuffer):
    """A replay buffer of images whose chains go on under the labels of the batch, as in IGEBM's code.

    So no chain ever runs under a label of an earlier task. Made for one chain for each row.
    """

    def draw(self, x: Tensor | None, y: Tensor, generator: torch.Generator | None = None) -> Chains:
        return super().draw(None, y, generator)._replace(x=x)


def kept_chains(shape: Sequence[int] = SHAPE) -> Objective:
    """The energy of an image under its label, against that of a chain's image under the same label."""
    return _contrastive(RelabelledBuffer(_noise(shape), size=500, n_chains=BATCH, restart=0.05))


def fresh_chains(shape: Sequence[int] = SHAPE) -> Objective:
    """The same with chains that start in noise at every update, so nothing at all is left of earlier tasks."""
    return _contrastive(FromNoise(_noise(shape)))


def _noise(shape: Sequence[int]) -> UniformEnergy:
    return UniformEnergy(torch.zeros(*shape), torch.ones(*shape))


def _contrastive(start: Start) -> Objective:
    kernel = ColdLangevin(step_size=0.1, noise_scale=0.01, clip_grad=1.0, low=0.0, high=1.0)
    return ContrastiveDivergence(kernel, 20, start, energy_l2=0.1, resolution=1 / 16, bounds=(0.0, 1.0))


def network(shape: Sequence[int] = SHAPE) -> LabelledEnergy:
    """A perceptron of the pixels in [0, 1] as they are: centred to [-1, 1], more is forgotten."""
    layers = nn.Sequential(nn.Flatten(), mlp([math.prod(shape), 256, 256], nn.ReLU), nn.Linear(256, 10))
    return LabelledEnergy(layers, input_ndim=3, input_support=UNIT_IMAGES)


METHODS: dict[str, Callable[[Sequence[int]], Objective]] = {
    "energy": kept_chains,
    "energy, fresh chains": fresh_chains,
    "softmax": lambda shape: CrossEntropy(),
}


NOTES = (
    "'class': five tasks of two digits, the answer among all ten. 'task': the same, the answer among the two of "
    "the image's own task. 'domain': even or odd, an even and an odd digit in each task. 'permuted': five tasks "
    "of all digits, the pixels of each in an order of their own, which is not given. Accuracy after the last "
    "task on the test images of all. The seed draws tasks, orders, first weights and which images are stored.",
    "'growing' is one energy a class, normalised by itself and touched by no other class: a Gaussian, that is, "
    "quadratic discriminant analysis with a fixed ridge. 'separate' adds one for each class and task, 'mixtures' "
    "has up to five a class. No image is stored, and the order of the classes makes no difference. Of the rivals, "
    "LDA, QDA, naive Bayes and the means would need none either; the nearest neighbour stores all images, the two "
    "last networks 200 and 500, from which they start anew at the end.",
    "Published for split MNIST without stored images, mean of ten seeds (standard deviation): EWC 19.80 (.05), SI "
    "19.67 (.09), NAS 19.52 (.29), LwF 24.17 (.33), a VAE 40.04 (1.31), an energy 64.99 (4.27) %. There one "
    "network learns all classes, as 'energy' does here.",
)


def run(settings: Settings) -> Result:
    started = time.monotonic()
    n_steps = 5 if settings.quick else 100
    train, test = split_for(settings)
    assert test.labels is not None
    shape = train.pixels.shape[1:]
    accuracy: dict[str, list[float]] = {name: [] for name in METHODS}
    # For each method and seed: [after which task, of which task].
    courses: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    shares = np.bincount(test.labels // 2) / len(test.labels)
    divergences: list[float] = []
    for seed in settings.seeds:
        divergences.append(0.0)
        for name, objective in METHODS.items():
            course, messages = _one_run(objective(shape), train, test, n_steps, seed)
            accuracy[name].append(float(course[-1] @ shares))
            courses[name].append(course)
            divergences[-1] += len(messages)
            for text in messages:
                settings.tell(f"seed {seed}, {name}: {text}")
        settings.tell(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in accuracy.items()))
    ratio = [e / max(s, 1e-9) for e, s in zip(accuracy["energy"], accuracy["softmax"], strict=True)]
    applies = not settings.quick and shape == SHAPE
    targets: tuple[float | None, float | None] = (0.55, 3.0) if applies else (None, None)
    figures = [
        Figure("accuracy, energy (share)", accuracy["energy"], targets[0], False),
        Figure("accuracy, energy, fresh chains (share)", accuracy["energy, fresh chains"]),
        Figure("accuracy, softmax (share)", accuracy["softmax"]),
        Figure("energy's over softmax's (ratio)", ratio, targets[1], False),
        Figure("divergences, all methods", divergences, None if settings.quick else 0.0),
        Figure("tasks 1 to 4, energy (share)", [float(c[-1, :-1].mean()) for c in courses["energy"]]),
        Figure("tasks 1 to 4, softmax (share)", [float(c[-1, :-1].mean()) for c in courses["softmax"]]),
    ]
    notes = [
        "One network: digits 0 and 1, then 2 and 3, up to 8 and 9. A task's images are gone when the next begins; "
        "the answer to a test image is the label of lowest energy among all ten, the task is not given.",
        f"All train one perceptron {math.prod(shape)}-256-256-10 by {n_steps} updates of {BATCH} images a task "
        f"and one Adam at {RATE:g} whose moments go on from task to task. Pixels enter as [0, 1], not centred. "
        "Chains: 20 Langevin steps of 0.1, gradients clipped to 1; squared energies weighted 0.1.",
        "'energy' keeps a buffer of 500 chains from task to task: images that the model made, of earlier tasks "
        "too, which go on as counter-examples under the new labels. 'fresh chains' starts every chain in noise, "
        "so no image of any kind is kept.",
    ]
    rivals, pictures = compare(settings, train, test)
    pictures = {"Accuracy as the tasks go by": _picture(courses), **pictures}
    return Result([*rivals, *figures], pictures, [*notes, *NOTES], time.monotonic() - started)


def _one_run(
    objective: Objective, train: Images, test: Images, n_steps: int, seed: int
) -> tuple[np.ndarray, list[str]]:
    """Share of right answers to test images [after which task, of which task], and what went wrong."""
    assert train.labels is not None
    assert test.labels is not None
    truth, classifies = test.labels, isinstance(objective, CrossEntropy)
    torch.manual_seed(seed)
    energy, messages = network(train.pixels.shape[1:]), Messages()
    tasks = []
    for task in range(N_TASKS):
        rows = train.rows(np.flatnonzero(train.labels // 2 == task))
        labels, images = torch.as_tensor(rows.labels, dtype=torch.float32), torch.from_numpy(rows.pixels)
        tasks.append(Batch(images, labels) if classifies else Batch(labels, images))

    # The classifier models labels given images, the other two images given labels.
    learning = energy if classifies else energy.of_inputs()

    def answered(_: object) -> dict[str, float]:
        right = energy.energies(torch.from_numpy(test.pixels)).argmin(-1).numpy() == truth
        return {f"task {task + 1}": float(right[truth // 2 == task].mean()) for task in range(N_TASKS)}

    plan = Plan(
        max_epochs=n_steps, max_steps=n_steps, batch_size=BATCH, learning_rate=RATE, schedule="constant", seed=seed
    )
    history = Trainer(plan, progress=messages).fit(learning, objective, Stages(tasks), after_stage=answered)
    course = [[e[f"task {task + 1}"] for task in range(N_TASKS)] for e in history.epochs if "task 1" in e]
    return np.array(course), messages.texts


def _picture(courses: dict[str, list[np.ndarray]]) -> go.Figure:
    """After each task, the mean accuracy on the test images of all tasks so far, over the seeds."""
    figure = go.Figure()
    tasks = list(range(1, N_TASKS + 1))
    for name, runs in courses.items():
        mean = np.mean(runs, 0)
        figure.add_scatter(x=tasks, y=[float(mean[t - 1, :t].mean()) for t in tasks], name=name)
    figure.update_layout(
        height=350,
        margin={"l": 50, "r": 10, "t": 20, "b": 45},
        xaxis={"title": "tasks learned", "dtick": 1},
        yaxis={"title": "accuracy on the tasks so far", "range": [0, 1]},
    )
    return figure


RECIPE = Recipe(
    name="continual",
    title="Learning two digits after two others, with no image of the past",
    source="Du and Mordatch, Implicit Generation and Modeling with Energy-Based Models (2019), section 4.5",
    run=run,
    minutes=4,
)
