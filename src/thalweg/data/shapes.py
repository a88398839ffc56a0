"""Sprites with known concepts: one shape, its place, its size, its rotation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SHAPES = ("rectangle", "triangle", "cross")


class Sprites(NamedTuple):
    """Images and what is in them.

    Attributes:
        images: ``[n, size, size]`` float32 in [0, 1].
        shape: ``[n]``, an index into :data:`SHAPES`.
        place: ``[n, 2]``, the centre (right, down) in units of the image, in [0.3, 0.7].
        scale: ``[n]``, half the longest side, in [0.15, 0.28].
        rotation: ``[n]`` in radians, in [0, pi / 2].
    """

    images: np.ndarray
    shape: np.ndarray
    place: np.ndarray
    scale: np.ndarray
    rotation: np.ndarray


def render_sprites(
    shape: np.ndarray, place: np.ndarray, scale: np.ndarray, rotation: np.ndarray, size: int = 16, fine: int = 4
) -> np.ndarray:
    """Images ``[n, size, size]`` of sprites with these concepts; fine x fine points a pixel smooth edges."""
    axis = (np.arange(size * fine) + 0.5) / (size * fine)
    right, down = np.meshgrid(axis, axis)
    points = np.stack([right, down], -1)[None] - place[:, None, None]
    cos, sin = np.cos(rotation)[:, None, None], np.sin(rotation)[:, None, None]
    u = (cos * points[..., 0] + sin * points[..., 1]) / scale[:, None, None]
    v = (-sin * points[..., 0] + cos * points[..., 1]) / scale[:, None, None]
    rectangle = (np.abs(u) < 1) & (np.abs(v) < 0.5)
    triangle = (v > -0.7) & (v < 1 - 1.7 * np.abs(u))
    cross = ((np.abs(u) < 1) & (np.abs(v) < 0.3)) | ((np.abs(v) < 1) & (np.abs(u) < 0.3))
    inside = np.choose(shape[:, None, None], [rectangle, triangle, cross])
    return inside.reshape(len(shape), size, fine, size, fine).mean((2, 4)).astype(np.float32)


def draw_sprites(n: int, rng: np.random.RandomState, size: int = 16) -> Sprites:
    """Sprites whose concepts are all drawn at random, independently."""
    shape = rng.randint(len(SHAPES), size=n)
    place = rng.uniform(0.3, 0.7, (n, 2))
    scale = rng.uniform(0.15, 0.28, n)
    rotation = rng.uniform(0, np.pi / 2, n)
    return Sprites(render_sprites(shape, place, scale, rotation, size), shape, place, scale, rotation)
