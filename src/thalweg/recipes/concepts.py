"""The joint of four energies of sprites, each given one concept: shape, place, size, rotation."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.data.shapes import SHAPES, render_sprites
from thalweg.energies.base import ConditionalEnergy, Energy
from thalweg.objectives.base import AnyEnergy, Batch, Objective, check_batch
from thalweg.recipes.noisy_sprites import (
    SIZE,
    Denoiser,
    DenoisingAtLevels,
    LevelFeatures,
    Modulated,
    draw_down_levels,
    noised,
    scaled,
    with_level,
)
from thalweg.training.loop import Plan, Trainer

AXIS = (0.3125, 0.4375, 0.5625, 0.6875)
SCALES = (0.16, 0.22, 0.28)
ROTATIONS = tuple(math.pi / 8 * i for i in range(4))
CONCEPTS = {"shape": len(SHAPES), "place": len(AXIS) ** 2, "size": len(SCALES), "rotation": len(ROTATIONS)}
N_UNSEEN = 48
# What the concepts say counts this many times, because learned conditionals are too mild. Chosen on seed 0.
WEIGHT = 5.0
N_CHAINS = 4


class Combinations(NamedTuple):
    """Every combination of the four concepts.

    Attributes:
        images: ``[n, SIZE * SIZE]``.
        labels: ``[n, 4]``, which value each concept has.
    """

    images: Tensor
    labels: Tensor

    def rows(self, index: Tensor) -> Combinations:
        return Combinations(self.images[index], self.labels[index])

    def nearest(self, images: Tensor) -> Tensor:
        """The labels ``[m, 4]`` of the rendering nearest to each image ``[m, SIZE * SIZE]``."""
        return self.labels[torch.cdist(images, self.images).argmin(1)]


def combinations() -> Combinations:
    labels = np.stack(np.meshgrid(*map(np.arange, CONCEPTS.values()), indexing="ij"), -1).reshape(-1, 4)
    shape, place, size, rotation = labels.T
    places = np.stack(np.meshgrid(AXIS, AXIS), -1).reshape(-1, 2)
    images = render_sprites(shape, places[place], np.array(SCALES)[size], np.array(ROTATIONS)[rotation], SIZE)
    return Combinations(torch.from_numpy(images).flatten(1), torch.from_numpy(labels))


# -- energies of noisy images -----------------------------------------------------------------------------


class NoisySprites(ConditionalEnergy):
    """E(level, image) = |image - D(image, level)|^2 / (2 level^2), the energy of sprites blurred by noise.

    Given levels ``[B, 1]``, images ``[B, SIZE * SIZE]``. D is a small convolutional autoencoder.

    Source: [Salimans 2021], whose form it is.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.level = LevelFeatures()
        self.denoiser = Denoiser(width)

    def denoised(self, level: Tensor, image: Tensor) -> Tensor:
        return self.denoiser(image, level, self.level(level))

    def head(self, features: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return (y - self.denoised(features, y)).square().sum(-1) / (2 * features.squeeze(-1).square())


class ConceptEnergy(ConditionalEnergy):
    """-log p(concept | image): what one concept adds to the energy of noisy images.

    Given ``[B, 2]``, the concept's value and the noise level; images ``[B, SIZE * SIZE]``. By Bayes's rule it is
    E(image | concept) - E(image), but for a constant.
    """

    def __init__(self, n_values: int, width: int = 32):
        super().__init__()
        self.level = LevelFeatures()
        self.down = Modulated(nn.Conv2d(1, width, 5, 2, 2), width)
        self.middle = Modulated(nn.Conv2d(width, 2 * width, 3, 1, 1), 2 * width)
        self.deeper = Modulated(nn.Conv2d(2 * width, 2 * width, 3, 1, 1), 2 * width)
        self.dense = Modulated(nn.Linear(32 * width, 128), 128)
        self.out = nn.Linear(128, n_values)

    def head(self, features: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        value, level = features[:, 0].long(), features[:, 1:]
        f = self.level(level)
        h = F.avg_pool2d(self.middle(self.down(scaled(y, level), f), f), 2)
        logits = self.out(self.dense(self.deeper(h, f).flatten(1), f))
        return F.cross_entropy(logits, value, reduction="none")


# -- training ---------------------------------------------------------------------------------------------


class ReadingAtLevels(Objective):
    """-log p(concept | noisy image), which is what a :class:`ConceptEnergy` is."""

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        level, _ = noised(batch.y, torch.Generator())
        check_batch(energy, batch._replace(x=with_level(batch.x, level)))

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        level, noise = noised(batch.y, generator)
        return energy(with_level(batch.x, level), batch.y + level * noise)


class SingleConcepts(NamedTuple):
    """An energy of images and, for each concept, what it adds."""

    images: NoisySprites
    concepts: list[ConceptEnergy]


def trained(seen: Combinations, seed: int, quick: bool) -> SingleConcepts:
    """Five networks: one sees no label, and each of the others the labels of one concept only."""
    torch.manual_seed(seed)
    parts = SingleConcepts(NoisySprites(), [ConceptEnergy(n) for n in CONCEPTS.values()])
    _fit(parts.images, DenoisingAtLevels(), Batch(None, seen.images), 4 if quick else 2500, seed)
    for k, concept in enumerate(parts.concepts):
        batch = Batch(seen.labels[:, k : k + 1].float(), seen.images)
        _fit(concept, ReadingAtLevels(), batch, 4 if quick else 1200, seed)
    return parts


def _fit(energy: ConditionalEnergy, objective: Objective, batch: Batch, n_steps: int, seed: int) -> None:
    plan = Plan(
        max_epochs=n_steps, max_steps=n_steps, batch_size=128, learning_rate=2e-3, warmup_steps=100,
        ema_decay=0.995, seed=seed,
    )  # fmt: skip
    Trainer(plan).fit(energy, objective, batch)


# -- the joint --------------------------------------------------------------------------------------------


def joint(parts: SingleConcepts, labels: Tensor, level: float, weight: float = WEIGHT) -> Energy:
    """E + weight * sum_k (E_k - E), the energy of images given all four concepts ``[B, 4]``.

    With weight 1 it is sum_k E_k - 3 E, the joint of concepts that are independent given the image: the sum
    alone would count four times what the E_k share, that an image is a sprite. ``ConceptEnergy`` is
    E_k - E, so nothing is computed only to be taken away.

    Source: [Du 2020, sec. 3]; [Liu 2022] for the weight and the shared part.
    """
    levels = torch.full((len(labels), 1), level)
    energy: Energy = parts.images.given(levels).detach()
    for k, concept in enumerate(parts.concepts):
        given = torch.cat([labels[:, k : k + 1].float(), levels], 1)
        energy = energy + weight * concept.given(given)
    return energy


def draw(
    parts: SingleConcepts, labels: Tensor, generator: torch.Generator, n_levels: int = 25, n_steps: int = 10
) -> Tensor:
    """Images ``[B, SIZE * SIZE]`` of the asked labels ``[B, 4]``, down the noise levels."""
    given = labels.repeat(N_CHAINS, 1)
    return draw_down_levels(
        lambda level: joint(parts, given, level), len(labels), N_CHAINS, generator, n_levels, n_steps
    )


def compose(seed: int, quick: bool) -> tuple[dict[str, float], list[np.ndarray]]:
    """Figures of what is drawn for combinations never seen, and images: asked for, drawn."""
    everything = combinations()
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(everything.labels)))
    unseen, seen = everything.rows(order[:N_UNSEEN]), everything.rows(order[N_UNSEEN:])
    parts = trained(seen, seed, quick)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, float] = {}
    pictures: list[np.ndarray] = []
    for name, asked in (("never seen", unseen), ("seen", seen.rows(torch.arange(N_UNSEEN)))):
        images = draw(parts, asked.labels, generator, *((2, 1) if quick else ()))
        found[f"four concepts, {name}: squared error"] = float((images - asked.images).square().mean())
        right = (everything.nearest(images) == asked.labels).float()
        for concept, share in zip(CONCEPTS, right.mean(0).tolist(), strict=True):
            found[f"four concepts, {name}: {concept} right"] = share
        if not pictures:
            pictures = [i[:16].reshape(-1, SIZE, SIZE).numpy() for i in (asked.images, images)]
    another = unseen.labels.clone()
    another[:, 0] = (another[:, 0] + 1) % len(SHAPES)
    place = another @ torch.tensor([np.prod(list(CONCEPTS.values())[k + 1 :], dtype=int) for k in range(4)])
    wrong = (everything.images[place] - unseen.images).square().mean()
    found["four concepts: squared error of a wrong shape"] = float(wrong)
    return found, pictures
