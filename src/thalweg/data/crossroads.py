"""A ball at a crossroads: small pictures of two frames, and the next one, of which three are right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WAYS = ("left", "straight on", "right")


class Crossings(NamedTuple):
    """Frames of balls that come to a crossroads, and where they go.

    Attributes:
        frames: ``[N, 2, size, size]`` float32, the last two frames, about 0 (black) to 1.
        next_frame: ``[N, 1, size, size]`` float32, what followed.
        answers: ``[N, 3, 1, size, size]`` float32, without noise, what may follow: left, straight on, right.
        probabilities: ``[N, 3]`` of these; a bright ball turns left more often, a dark one right.
        way: ``[N]`` which of them followed.
    """

    frames: np.ndarray
    next_frame: np.ndarray
    answers: np.ndarray
    probabilities: np.ndarray
    way: np.ndarray


def render_crossings(n: int, seed: int = 0, size: int = 16, noise: float = 0.02) -> Crossings:
    """Balls from any of the four sides, of their own speed, brightness and distance from the middle of the road.

    Args:
        n: pictures.
        size: their height and width in pixels.
        noise: standard deviation of the camera's noise.
    """
    rng = np.random.default_rng(seed)
    angle = np.pi / 2 * rng.integers(4, size=n)
    ahead = np.stack([np.cos(angle), np.sin(angle)], 1).round()
    left = np.stack([ahead[:, 1], -ahead[:, 0]], 1)  # y points down
    speed, before = rng.uniform(0.34, 0.4, (n, 1)), rng.uniform(0.05, 0.1, (n, 1))
    aside = rng.uniform(-0.05, 0.05, (n, 1))
    share = rng.random(n)
    brightness = 0.5 + 0.5 * share
    probabilities = np.stack([0.2 + 0.4 * share, np.full(n, 0.2), 0.6 - 0.4 * share], 1)
    way = (rng.random((n, 1)) > probabilities.cumsum(1)[:, :2]).sum(1)

    last = 0.5 - before * ahead + aside * left
    beyond = speed - before
    after = [0.5 + beyond * left + aside * ahead, 0.5 + beyond * ahead + aside * left]
    after.append(0.5 - beyond * left + aside * ahead)
    pictures = np.stack([_draw(place, brightness, size) for place in (last - speed * ahead, last, *after)], 1)
    answers = pictures[:, 2:, None]
    followed = answers[np.arange(n), way]
    frames = pictures[:, :2] + noise * rng.normal(size=(n, 2, size, size))
    followed = followed + noise * rng.normal(size=followed.shape)
    as_floats = [array.astype(np.float32) for array in (frames, followed, answers)]
    return Crossings(as_floats[0], as_floats[1], as_floats[2], probabilities, way)


def _draw(place: np.ndarray, brightness: np.ndarray, size: int) -> np.ndarray:
    """Pictures ``[N, size, size]`` of the roads with a ball at each place ``[N, 2]`` (right, down)."""
    axis = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    road = np.where((np.abs(x - 0.5) < 0.19) | (np.abs(y - 0.5) < 0.19), 0.2, 0.05)
    distance = np.hypot(x - place[:, 0, None, None], y - place[:, 1, None, None])
    cover = np.clip((0.13 - distance) * size + 0.5, 0, 1)
    return road + cover * (brightness[:, None, None] - road)
