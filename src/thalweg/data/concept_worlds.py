"""Small worlds of entities in the plane, some of which fulfil a spatial concept; every concept can be checked."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

N_ENTITIES = 5
N_MARKS = 3  # entity 0 is red, entity 1 is blue, the others are grey
RADIUS = 0.3
TURNS = np.pi / 2 * np.arange(4)
# A demonstration fulfils its concept clearly, and no other entities of its world do nearly.
CLEAR, FAR = 0.8, 1.3


class Worlds(NamedTuple):
    """Worlds, each a row.

    Attributes:
        places: ``[n, N_ENTITIES, 2]`` in [-1, 1], to the right and up.
        attention: ``[n, N_ENTITIES]``, True for the entities that fulfil the concept.
    """

    places: np.ndarray
    attention: np.ndarray


class Concept:
    """A concept of a few entities: which sets of them may fulfil it, and how far they are from doing so.

    Attributes:
        name: in a word or two.
        sets: ``[S, N_ENTITIES]``, True for the entities of each set that may fulfil it.
        generates: whether it says anything about where the attended entities are.
        has_new: whether some variants are kept apart, to be met for the first time in a test.
    """

    name: str
    sets: np.ndarray
    generates = True
    has_new = False

    def variants(self, n: int, rng: np.random.Generator, new: bool = False) -> np.ndarray:
        """``[n, 2]``: what tells concepts of this kind apart, such as where a region is. Zeros if nothing does.

        Args:
            new: whether to draw from the variants that are kept apart.
        """
        return np.zeros((n, 2))

    def arrange(self, variant: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Places ``[n, attended, 2]`` that mostly fulfil the concept."""
        raise NotImplementedError

    def distance(self, variant: np.ndarray, points: np.ndarray, others: np.ndarray) -> np.ndarray:
        """How far points ``[n, attended, 2]`` are from fulfilling the concept ``[n]``; at 1 they just do.

        Args:
            others: ``[n, N_ENTITIES - attended, 2]``, where all other entities are.
        """
        raise NotImplementedError

    def distances(self, variant: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The same for all sets of entities of worlds ``[n, N_ENTITIES, 2]``: ``[n, S]``."""
        return np.stack([self.distance(variant, places[:, s], places[:, ~s]) for s in self.sets], 1)

    def fulfilled(self, variant: np.ndarray, worlds: Worlds) -> np.ndarray:
        """Whether the attended entities fulfil the concept ``[n]``; a wrong number of them does not."""
        is_set = (worlds.attention[:, None] == self.sets).all(2)
        return is_set.any(1) & (np.where(is_set, self.distances(variant, worlds.places), 0).sum(1) <= 1)

    def draw(self, variant: np.ndarray, rng: np.random.Generator) -> Worlds:
        """A demonstration for each variant ``[n, 2]``: one set of entities fulfils the concept, and only one."""
        n = len(variant)
        places, which = np.empty((n, N_ENTITIES, 2)), np.empty(n, int)
        left = np.arange(n)
        while len(left):
            here = variant[left]
            new, target = (
                rng.uniform(-1, 1, (len(left), N_ENTITIES, 2)),
                rng.integers(len(self.sets), size=len(left)),
            )
            new[self.sets[target]] = self.arrange(here, rng).reshape(-1, 2)
            far = self.distances(here, new)
            own = far[np.arange(len(left)), target]
            far[np.arange(len(left)), target] = np.inf
            good = (own <= CLEAR) & (far.min(1) >= FAR) & (np.abs(new) <= 1).all((1, 2))
            places[left[good]], which[left[good]] = new[good], target[good]
            left = left[~good]
        return Worlds(places, self.sets[which])


def _sets(*members: tuple[int, ...]) -> np.ndarray:
    return np.stack([np.isin(np.arange(N_ENTITIES), m) for m in members])


_GREYS = range(2, N_ENTITIES)
_TRIPLES = _sets(*itertools.combinations(range(N_ENTITIES), 3))


class Region(Concept):
    """One entity is within a disc; the variant is its centre, kept apart where it is above and to the right."""

    name = "region"
    sets = _sets(*((i,) for i in range(N_ENTITIES)))
    has_new = True

    def variants(self, n: int, rng: np.random.Generator, new: bool = False) -> np.ndarray:
        centres = rng.uniform(-0.7, 0.7, (8 * n + 100, 2))
        return centres[(centres > 0.1).all(1) == new][:n]

    def arrange(self, variant: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (variant + rng.uniform(-RADIUS, RADIUS, variant.shape))[:, None]

    def distance(self, variant: np.ndarray, points: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points[:, 0] - variant, axis=1) / RADIUS


class Line(Concept):
    """Three entities are on a line; the variant is its direction, kept apart between 50 and 80 degrees."""

    name = "line"
    sets = _TRIPLES
    has_new = True

    def variants(self, n: int, rng: np.random.Generator, new: bool = False) -> np.ndarray:
        angle = np.radians(rng.uniform(50, 80, n) if new else rng.uniform(80, 230, n))
        return np.stack([np.cos(angle), np.sin(angle)], 1)

    def arrange(self, variant: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        along = rng.uniform(-1, 1, (len(variant), 3, 1))
        points = rng.uniform(-0.7, 0.7, (len(variant), 1, 2)) + along * variant[:, None]
        return points + rng.normal(0, 0.03, points.shape)

    def distance(self, variant: np.ndarray, points: np.ndarray, others: np.ndarray) -> np.ndarray:
        normal = np.stack([-variant[:, 1], variant[:, 0]], 1)
        across = np.ptp((points * normal[:, None]).sum(2), axis=1)
        along = np.ptp((points * variant[:, None]).sum(2), axis=1)
        return np.maximum(across / 0.25, 0.5 / np.maximum(along, 1e-9))


class Triangle(Concept):
    """Three entities are the corners of a triangle of equal sides, turned any way.

    The variant is the length of its sides, kept apart between .85 and 1.
    """

    name = "triangle"
    sets = _TRIPLES
    has_new = True

    def variants(self, n: int, rng: np.random.Generator, new: bool = False) -> np.ndarray:
        side = rng.uniform(0.6, 1.1, n)
        side = np.where(side > 0.85, side + 0.15, side)
        return np.stack([rng.uniform(0.85, 1.0, n) if new else side, np.zeros(n)], 1)

    def arrange(self, variant: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n = len(variant)
        angle = rng.uniform(0, 2 * np.pi, (n, 1)) + 2 * np.pi / 3 * np.arange(3)
        corners = np.stack([np.cos(angle), np.sin(angle)], 2) * variant[:, :1, None] / np.sqrt(3)
        return corners + rng.uniform(-0.6, 0.6, (n, 1, 2)) + rng.normal(0, 0.03, corners.shape)

    def distance(self, variant: np.ndarray, points: np.ndarray, others: np.ndarray) -> np.ndarray:
        sides = np.linalg.norm(points - np.roll(points, 1, 1), axis=2)
        return np.abs(sides / variant[:, :1] - 1).max(1) / 0.25


class Nearest(Concept):
    """A grey entity is nearer to the red one than the other grey ones are."""

    name = "nearest"
    sets = _sets(*((0, i) for i in _GREYS))

    def arrange(self, variant: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        red = rng.uniform(-1, 1, (len(variant), 2))
        return np.stack([red, red + rng.uniform(-0.5, 0.5, red.shape)], 1)

    def distance(self, variant: np.ndarray, points: np.ndarray, others: np.ndarray) -> np.ndarray:
        own = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)
        rivals = np.linalg.norm(others[:, 1:] - points[:, :1], axis=2).min(1)  # the first other one is blue
        return own / np.maximum(rivals, 1e-9)


class Beside(Concept):
    """A grey entity is to the right of the red one, above it, to its left or below; the variant says which."""

    name = "beside"
    sets = Nearest.sets

    def variants(self, n: int, rng: np.random.Generator, new: bool = False) -> np.ndarray:
        turn = rng.choice(TURNS, n)
        return np.stack([np.cos(turn), np.sin(turn)], 1).round()

    def arrange(self, variant: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        red = rng.uniform(-1, 1, variant.shape)
        across = np.stack([-variant[:, 1], variant[:, 0]], 1)
        ahead = rng.uniform(0.25, 1.4, (len(variant), 1))
        return np.stack([red, red + ahead * (variant + rng.uniform(-0.6, 0.6, ahead.shape) * across)], 1)

    def distance(self, variant: np.ndarray, points: np.ndarray, others: np.ndarray) -> np.ndarray:
        offset = points[:, 1] - points[:, 0]
        ahead = np.maximum((offset * variant).sum(1), 1e-9)
        across = np.abs(offset[:, 1] * variant[:, 0] - offset[:, 0] * variant[:, 1])
        return np.maximum(across / ahead / 0.7, 0.2 / ahead)


class Between(Concept):
    """A grey entity is about half-way between the red one and the blue one."""

    name = "between"
    sets = _sets(*((0, 1, i) for i in _GREYS))

    def arrange(self, variant: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n = len(variant)
        ends = rng.uniform(-1, 1, (n, 2, 2))
        part = rng.uniform(0.3, 0.7, (n, 1))
        middle = part * ends[:, 0] + (1 - part) * ends[:, 1] + rng.uniform(-0.1, 0.1, (n, 2))
        return np.concatenate([ends, middle[:, None]], 1)

    def distance(self, variant: np.ndarray, points: np.ndarray, others: np.ndarray) -> np.ndarray:
        line, offset = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
        length = np.maximum(np.linalg.norm(line, axis=1), 1e-9)
        part = (offset * line).sum(1) / length**2
        across = np.abs(offset[:, 0] * line[:, 1] - offset[:, 1] * line[:, 0]) / length
        return np.maximum.reduce([np.abs(part - 0.5) / 0.3, across / 0.15, 0.5 / length])


class Quantity(Concept):
    """So many entities, whichever they are: one, two or three; the variant says how many."""

    name = "quantity"
    sets = _sets(*(s for k in (1, 2, 3) for s in itertools.combinations(range(N_ENTITIES), k)))
    generates = False

    def variants(self, n: int, rng: np.random.Generator, new: bool = False) -> np.ndarray:
        return np.stack([rng.integers(1, 4, n), np.zeros(n)], 1).astype(float)

    def distances(self, variant: np.ndarray, places: np.ndarray) -> np.ndarray:
        return np.where(self.sets.sum(1) == variant[:, :1], 0.0, np.inf)

    def draw(self, variant: np.ndarray, rng: np.random.Generator) -> Worlds:
        n = len(variant)
        order = rng.random((n, N_ENTITIES)).argsort(1)
        return Worlds(rng.uniform(-1, 1, (n, N_ENTITIES, 2)), order < variant[:, :1])


CONCEPTS: tuple[Concept, ...] = (Region(), Line(), Triangle(), Nearest(), Beside(), Between(), Quantity())
