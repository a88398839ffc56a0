"""What the recipes of classifiers share: images with few or wrong labels, one network, and what is measured."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from thalweg.data.images import Images, cifar10, digits, outliers, read_split
from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.energies.networks.labelled_perceptron import LabelledPerceptron
from thalweg.energies.networks.residual import residual_network
from thalweg.evaluation.calibration import expected_calibration_error, mean_log_loss
from thalweg.evaluation.detection import auroc, energy, false_positive_rate, max_softmax
from thalweg.evaluation.robustness import projected_gradient
from thalweg.objectives.base import Batch, Objective
from thalweg.recipes.base import Settings
from thalweg.training.history import History
from thalweg.training.loop import Plan, Trainer

N_LABELS = 10
# What an adversary may add to each pixel in [0, 1]: 0.2 of inputs in [-1, 1].
ATTACK = 0.1


class Rows(NamedTuple):
    """Images ``[n, C, H, W]`` in [0, 1] and their labels ``[n]``, -1 where a row has none."""

    x: Tensor
    y: Tensor

    def where(self, chosen: Tensor) -> Rows:
        return Rows(self.x[chosen], self.y[chosen])


def images(settings: Settings, seed: int) -> tuple[Rows, Rows, str]:
    """Images to train and to test with, and what they are called. The split of the digits is drawn by the seed.

    Raises:
        ValueError: if there are no such images, or they have no labels.
    """
    if settings.data is not None:
        path = settings.data if settings.data.is_file() else settings.data / "mnist_12k.npz"
        if not path.exists():
            raise ValueError(
                f"{settings.data} holds no {path.name} (X_train, y_train, X_test, y_test): name another .npz"
            )
        (train, test), name = read_split(path), path.name
    elif settings.paper_scale:
        (train, test), name = cifar10(), "CIFAR-10"
    else:
        (train, test), name = digits(seed), "digits"
    if train.labels is None or test.labels is None:
        raise ValueError(f"the images of {name} have no labels (y_train, y_test)")
    if set(np.unique(train.labels)) != set(range(N_LABELS)):
        raise ValueError(f"the images of {name} must have the labels 0 to {N_LABELS - 1}")
    if settings.quick:
        train, test = train.rows(slice(0, 300)), test.rows(slice(0, 100))
    return _rows(train), _rows(test), name


def _rows(found: Images) -> Rows:
    assert found.labels is not None
    return Rows(torch.from_numpy(found.pixels), torch.from_numpy(found.labels).long())


def few_labels(rows: Rows, n_each: int, seed: int) -> Rows:
    """The same rows, of which as many of each class keep their label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full_like(rows.y, -1)
    for k in range(N_LABELS):
        of_class = (rows.y == k).nonzero()[:, 0]
        kept = of_class[torch.randperm(len(of_class), generator=generator)[:n_each]]
        labels[kept] = k
    return Rows(rows.x, labels)


def wrong_labels(rows: Rows, share: float, seed: int) -> Rows:
    """The same rows, of which a share has another label than its own."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(1, N_LABELS, rows.y.shape, generator=generator)
    wrong = torch.rand(rows.y.shape, generator=generator) < share
    return Rows(rows.x, torch.where(wrong, (rows.y + shift) % N_LABELS, rows.y))


def network(settings: Settings, shape: torch.Size, seed: int, n_labels: int = N_LABELS) -> LabelledEnergy:
    """Two layers of 256 units; residual blocks at paper scale."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.paper_scale:
            blocks = residual_network(shape[0], n_labels, 128, 3)
            return LabelledEnergy(blocks, input_ndim=3, input_support=UNIT_IMAGES)
        return LabelledPerceptron(shape, n_labels, (32,) if settings.quick else (256, 256))


class Trained(NamedTuple):
    """A classifier, how its training went, and the seconds that it took."""

    energy: LabelledEnergy
    history: History
    seconds: float


def train(settings: Settings, objective: Objective, rows: Rows, plan: Plan, n_labels: int = N_LABELS) -> Trained:
    """One network from the seed of the plan, trained by an objective."""
    began = time.process_time()
    model = network(settings, rows.x.shape[1:], plan.seed, n_labels)
    fabric = Fabric(accelerator="auto", devices=1) if settings.paper_scale else None
    history = Trainer(plan, fabric).fit(model, objective, Batch(rows.x, rows.y))
    return Trained(model.cpu(), history, time.process_time() - began)


def logits(model: LabelledEnergy, x: Tensor) -> np.ndarray:
    """Scores ``[n, C]``."""
    with torch.no_grad():
        return -torch.cat([model.energies(part) for part in x.split(1000)]).numpy()


def classified(model: LabelledEnergy, test: Rows) -> dict[str, float]:
    """Accuracy, mean negative log-likelihood and calibration error over 20 bins, of test images."""
    scores, labels = logits(model, test.x), test.y.numpy()
    probabilities = torch.softmax(torch.from_numpy(scores).double(), 1).numpy()
    return {
        "accuracy": float((scores.argmax(1) == labels).mean()),
        "NLL (nats)": mean_log_loss(probabilities, labels).value,
        "ECE": expected_calibration_error(probabilities, labels),
    }


def robust_accuracy(
    model: LabelledEnergy, test: Rows, seed: int, radius: float = ATTACK, n_steps: int = 40
) -> float:
    """Accuracy under an attack by projected gradients that may change each pixel by the radius."""
    generator = torch.Generator().manual_seed(seed)
    moved = projected_gradient(model, test.x, test.y, radius, "inf", n_steps=n_steps, generator=generator)
    return float((logits(model, moved).argmax(1) == test.y.numpy()).mean())


def detected(model: LabelledEnergy, inside: Tensor, outside: Tensor) -> dict[str, float]:
    """Outliers told from test images by the energy and by the largest probability."""
    ins, outs = logits(model, inside), logits(model, outside)
    return {
        "AUROC by energy": auroc(energy(ins), energy(outs)).value,
        "FPR95 by energy": false_positive_rate(energy(ins), energy(outs)).value,
        "AUROC by probability": auroc(max_softmax(ins), max_softmax(outs)).value,
    }


def strange_images(test: Rows, seed: int) -> dict[str, Tensor]:
    """Images that show nothing, made of the test images: kind -> ``[n, C, H, W]``."""
    found = outliers(test.x.numpy(), len(test.x), np.random.RandomState(seed))
    return {kind: torch.from_numpy(found[kind]).float() for kind in ("shuffled", "uniform noise", "inverted")}
