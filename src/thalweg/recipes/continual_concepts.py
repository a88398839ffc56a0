"""Concepts learned one after another: energies of place, shape and size, each with those before it fixed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.data.shapes import SHAPES, render_sprites
from thalweg.energies.base import ConditionalEnergy, Energy, Features
from thalweg.objectives.base import Batch
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.noisy_sprites import (
    SIZE,
    Denoiser,
    DenoisingAtLevels,
    LevelFeatures,
    Modulated,
    draw_down_levels,
    scaled,
    with_level,
)
from thalweg.recipes.refinement import gallery
from thalweg.training.loop import Plan, Trainer

SCALES = (0.16, 0.22, 0.28)
FIRST_SHAPE, FIRST_SIZE = 0, 1
N_ROWS, N_ASKED, N_STEPS = 4000, 48, 500
# Quadrants of the image: top left, top right, bottom left, bottom right.
SEEN, UNSEEN = (0, 3), (1, 2)
# Columns of what is given: right, down, shape, size; the noise level follows.
CONCEPTS = {"place": 2, "shape": len(SHAPES), "size": len(SCALES)}
TARGET = 1.5
NAMES = {
    "continual": "energies learned in turn",
    "alone": "in turn, each sees the noisy image alone",
    "joint": "one energy, everything at once",
    "tuned": "one energy, fine-tuned in turn",
}
NOTES = [
    "First sprites of one shape and size anywhere, then of three shapes and one size, then of three shapes and "
    "three sizes. The second and third set have sprites in the top left and the bottom right of the image only. "
    "Never seen together: another shape or another size than the first, in the two other quadrants.",
    "'continual': an energy for each concept, trained with those before it fixed; images come from the sum. An "
    "energy of shape or size sees, beside the noisy image, what the energies before it make of that image, and is "
    "convolutional all through, so that it does the same everywhere. 'alone': it sees the noisy image only; "
    "trained for the first seed.",
    "'joint': one energy given all three concepts, which learned from all combinations, those included that the "
    "others never saw. 'tuned': the same one, trained on the three sets one after another. Each had as many "
    "updates and rows in all.",
    "A shape and a size are right if the rendering nearest to the drawn image, of all nine at the place asked "
    "for, has them. The settings were chosen on seed 0.",
]


# -- energies ----------------------------------------------------------------------------------------------------


class _Asked(nn.Module):
    """Features ``[B, 64]`` of the noise level and of some of the concepts, from ``[B, 5]``."""

    def __init__(self, concepts: Sequence[str]):
        super().__init__()
        self.concepts = tuple(concepts)
        self.level = LevelFeatures()
        n_codes = sum(CONCEPTS[name] for name in concepts)
        self.value = nn.Sequential(nn.Linear(n_codes, 64), nn.SiLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        codes = {
            "place": (x[:, :2] - 0.5) / 0.2,
            "shape": F.one_hot(x[:, 2].long(), len(SHAPES)).to(x.dtype),
            "size": F.one_hot(x[:, 3].long(), len(SCALES)).to(x.dtype),
        }
        return self.level(x[:, 4:]) + self.value(torch.cat([codes[name] for name in self.concepts], 1))


class Sketch(nn.Module):
    """D_1, a noisy image denoised, given some concepts: what the first energy is made of."""

    def __init__(self, concepts: Sequence[str], width: int = 32):
        super().__init__()
        self.asked, self.denoiser = _Asked(concepts), Denoiser(width)

    def forward(self, image: Tensor, level: Tensor, features: Tensor) -> Tensor:
        return self.denoiser(image, level, features)


class Revision(nn.Module):
    """D_k - D_(k-1), what one more concept changes: convolutions only, so that it is the same everywhere.

    Args:
        concept: which one.
        alone: whether only the noisy image is seen, and not D_(k-1).
    """

    def __init__(self, concept: str, alone: bool = False, width: int = 16):
        super().__init__()
        self.asked, self.alone = _Asked([concept]), alone
        self.down = Modulated(nn.Conv2d(1 if alone else 2, width, 5, 2, 2), width)
        self.deeper = Modulated(nn.Conv2d(width, 2 * width, 3, 1, 1), 2 * width)
        self.middle = Modulated(nn.Conv2d(2 * width, 2 * width, 3, 1, 1), 2 * width)
        self.up = Modulated(nn.Conv2d(2 * width, width, 3, 1, 1), width)
        self.out = nn.ConvTranspose2d(2 * width, 1, 4, 2, 1)
        # At first it changes nothing: learning begins where the energies before it are.
        for weight in self.out.parameters():
            nn.init.zeros_(weight)

    def forward(self, image: Tensor, level: Tensor, features: Tensor, before: Tensor) -> Tensor:
        seen = scaled(image, level)
        if not self.alone:
            seen = torch.cat([seen, ((before - 0.1) / 0.25).reshape(seen.shape)], 1)
        fine = self.down(seen, features)
        coarse = self.deeper(fine, features)
        coarse = coarse + self.middle(coarse, features)
        return self.out(torch.cat([self.up(coarse, features), fine], 1)).flatten(1)


class ConceptsInTurn(ConditionalEnergy):
    """E_1 + E_2 + ..., energies of one concept each, given ``[B, 5]``: the concepts and the noise level.

    With R_k = D_k - D_(k-1) the revision of concept k,

        E_1(y) = |y - D_1|^2 / (2 level^2),  E_k(y) = (|R_k|^2 - 2 R_k . (y - D_(k-1))) / (2 level^2),

    so that the sum of all is |y - D_K|^2 / (2 level^2). A revision that sees the noisy image alone knows no
    D_(k-1), and its energy is (|R_k|^2 - 2 R_k . y) / (2 level^2).

    Source: energies of concepts in turn [Du 2020, sec. 3.4]; the form of the first [Salimans 2021].
    """

    def __init__(self, sketch: Sketch, revisions: Sequence[Revision] = ()):
        super().__init__()
        self.sketch, self.revisions = sketch, nn.ModuleList(revisions)

    def features(self, x: Tensor) -> Features:
        asked = [part.asked(x) for part in (self.sketch, *self.revisions)]
        return (x[:, 4:], *asked)

    def head(self, features: Features, y: Tensor) -> Tensor:
        return torch.stack(self.energies(features, y)).sum(0)

    def energies(self, features: Features, y: Tensor) -> list[Tensor]:
        """E_1, E_2, ... of images ``[B, SIZE * SIZE]``, each ``[B]``."""
        level, first, *others = features
        found = self.sketch(y, level, first)
        numerators = [(y - found).square().sum(-1)]
        for revision, asked in zip(self.revisions, others, strict=True):
            change = revision(y, level, asked, found)
            off = y if revision.alone else y - found
            numerators.append((change * (change - 2 * off)).sum(-1))
            found = found + change
        return [numerator / (2 * level.squeeze(-1).square()) for numerator in numerators]

    def before_next(self, revision: Revision) -> ConceptsInTurn:
        """These energies, their weights fixed, and one more that learns."""
        self.requires_grad_(False)
        return ConceptsInTurn(self.sketch, [*self.revisions, revision])


# -- images ------------------------------------------------------------------------------------------------------


def render(x: Tensor) -> Tensor:
    """The images ``[n, SIZE * SIZE]`` of concepts ``[n, 4]``."""
    place, shape, size = x[:, :2].numpy(), x[:, 2].long().numpy(), x[:, 3].long().numpy()
    images = render_sprites(shape, place, np.array(SCALES)[size], np.zeros(len(x)), SIZE)
    return torch.from_numpy(images).flatten(1)


def rows(
    n: int, rng: np.random.RandomState, shapes: Sequence[int], sizes: Sequence[int], quadrants: Sequence[int]
) -> Batch:
    """Images of concepts drawn at random from these."""
    quadrant = rng.choice(quadrants, n)
    corner = np.stack([quadrant % 2, quadrant // 2], 1)
    place = 0.3 + 0.2 * (corner + rng.uniform(size=(n, 2)))
    x = np.column_stack([place, rng.choice(shapes, n), rng.choice(sizes, n)])
    given = torch.as_tensor(x, dtype=torch.float32)
    return Batch(given, render(given))


class Sets(NamedTuple):
    """Three training sets, one for each concept in turn, and one of everything."""

    place: Batch
    shape: Batch
    size: Batch
    everything: Batch


ALL = range(3)


def training_sets(n: int, rng: np.random.RandomState) -> Sets:
    return Sets(
        rows(n, rng, [FIRST_SHAPE], [FIRST_SIZE], range(4)),
        rows(n, rng, ALL, [FIRST_SIZE], SEEN),
        rows(n, rng, ALL, ALL, SEEN),
        rows(3 * n, rng, ALL, ALL, range(4)),
    )


def asked_for(n: int, rng: np.random.RandomState) -> dict[str, Batch]:
    """Images to draw: never seen together; seen; of the first set, where the other sets show nothing."""
    new = rows(8 * n, rng, ALL, ALL, UNSEEN)
    other = (new.x[:, 2] != FIRST_SHAPE) | (new.x[:, 3] != FIRST_SIZE)
    return {
        "never seen": new.rows(other.nonzero()[:n, 0]),
        "seen": rows(n, rng, ALL, ALL, SEEN),
        "the first set": rows(n, rng, [FIRST_SHAPE], [FIRST_SIZE], UNSEEN),
    }


# -- training ----------------------------------------------------------------------------------------------------


def in_turn(sets: Sets, seed: int, n_steps: int, alone: bool = False) -> ConceptsInTurn:
    """One energy after another, those before it fixed."""
    torch.manual_seed(seed)
    energy = ConceptsInTurn(Sketch(["place"]))
    _fit(energy, sets.place, seed, n_steps)
    for concept, batch in (("shape", sets.shape), ("size", sets.size)):
        energy = energy.before_next(Revision(concept, alone))
        _fit(energy, batch, seed, n_steps)
    return energy


def all_in_one(stages: Sequence[Batch], seed: int, n_steps: int) -> ConceptsInTurn:
    """One energy that is given all concepts, trained on these sets one after another."""
    torch.manual_seed(seed)
    energy = ConceptsInTurn(Sketch(list(CONCEPTS)))
    for batch in stages:
        _fit(energy, batch, seed, n_steps)
    return energy


def _fit(energy: ConceptsInTurn, batch: Batch, seed: int, n_steps: int) -> None:
    plan = Plan(
        max_epochs=n_steps, max_steps=n_steps, batch_size=64, learning_rate=2e-3, warmup_steps=50, ema_decay=0.99,
        seed=seed,
    )  # fmt: skip
    Trainer(plan).fit(energy, DenoisingAtLevels(), batch)


# -- figures -----------------------------------------------------------------------------------------------------


def draw(energy: ConceptsInTurn, asked: Tensor, seed: int, quick: bool) -> Tensor:
    """Images ``[n, SIZE * SIZE]`` of the concepts ``[n, 4]``."""
    n_chains, n_levels, n_steps = (1, 2, 1) if quick else (2, 15, 5)
    given = asked.repeat(n_chains, 1)

    def energy_at(level: float) -> Energy:
        return energy.given(with_level(given, torch.full((len(given), 1), level))).detach()

    generator = torch.Generator().manual_seed(seed)
    return draw_down_levels(energy_at, len(asked), n_chains, generator, n_levels, n_steps, 0.5)


def judge(images: Tensor, asked: Batch) -> dict[str, float]:
    """Squared error, and how often shape and size are right."""
    choices = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    every = torch.cat([asked.x[:, None, :2].expand(-1, 9, -1), choices.expand(len(images), -1, -1)], 2)
    rendered = render(every.flatten(0, 1)).reshape(len(images), 9, -1)
    nearest = choices[(rendered - images.unsqueeze(1)).square().sum(-1).argmin(1)]
    right = (nearest == asked.x[:, 2:]).float().mean(0)
    return {
        "squared error": float((images - asked.y).square().mean()),
        "shape right": float(right[0]),
        "size right": float(right[1]),
    }


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, go.Figure] = {}
    n_steps = 2 if settings.quick else N_STEPS
    for seed in settings.seeds:
        rng = np.random.RandomState(seed)
        sets = training_sets(200 if settings.quick else N_ROWS, rng)
        asked = asked_for(8 if settings.quick else N_ASKED, rng)
        models = {
            "continual": in_turn(sets, seed, n_steps),
            "joint": all_in_one([sets.everything], seed, 3 * n_steps),
            "tuned": all_in_one([sets.place, sets.shape, sets.size], seed, n_steps),
        }
        if seed == settings.seeds[0]:
            models["alone"] = in_turn(sets, seed, n_steps, alone=True)
        drawn = {
            (model, name): draw(energy, batch.x, seed, settings.quick)
            for model, energy in models.items()
            for name, batch in asked.items()
        }
        for (model, name), images in drawn.items():
            for what, value in judge(images, asked[name]).items():
                if what == "squared error" or name == "never seen":
                    figures.setdefault(f"{model}, {name}: {what}", []).append(value)
        error = {model: figures[f"{model}, never seen: squared error"][-1] for model in models}
        for model in ("continual", "tuned"):
            ratio = error[model] / error["joint"]
            figures.setdefault(f"never seen, {model} over joint (ratio)", []).append(ratio)
        line = ", ".join(f"{model} {value:.4f}" for model, value in error.items())
        settings.tell(f"seed {seed}, error where never seen: {line}")
        pictures = pictures or {
            "Never seen together: asked for, and drawn by each model": _picture(
                asked["never seen"].y, {model: drawn[model, "never seen"] for model in models}
            )
        }
    bounds = {} if settings.quick else {"never seen, continual over joint (ratio)": TARGET}
    found = [Figure(name, values, bounds.get(name)) for name, values in sorted(figures.items())]
    return Result(found, pictures, NOTES, time.monotonic() - started)


def _picture(asked: Tensor, drawn: dict[str, Tensor], n: int = 8) -> go.Figure:
    """A row of what was asked for, and one of what each model drew."""
    images = torch.cat([asked[:n], *(made[:n] for made in drawn.values())]).reshape(-1, SIZE, SIZE)
    titles = ["asked for", *[""] * (len(asked[:n]) - 1)]
    for model in drawn:
        titles += [NAMES[model], *[""] * (len(asked[:n]) - 1)]
    return gallery(images.numpy(), len(asked[:n]), titles, height=110)


RECIPE = Recipe(
    name="continual-concepts",
    title="Energies of place, shape and size learned one after another, and combined as never seen",
    source="Du, Li and Mordatch, Compositional Visual Generation with Energy Based Models (2020), section 3.4",
    run=run,
    minutes=13,
)
