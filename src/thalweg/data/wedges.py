"""A ball that bounces off the edge of a wedge: short films, half of whose futures go left and half right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WAYS = ("left", "right")
RADIUS, TIP = 0.11, 0.1  # of the ball; how far the edge of the wedge lies behind the middle of the picture
# Where the ball's centre turns, ahead of the edge: its radius away from a face of the wedge at 45 degrees.
REACH = 2**0.5 * RADIUS
N_PAST, N_FUTURE = 3, 3
GREY, DARK = 0.35, 0.05  # of the wedge and of the ground


class Bounces(NamedTuple):
    """Films of balls that hit a wedge, and where they go.

    Attributes:
        past: ``[N, 3, size, size]`` float32, the last frames before the bounce, about 0 (black) to 1.
        future: ``[N, 3, size, size]`` float32, the frames that followed.
        branches: ``[N, 2, 3, size, size]`` float32, without noise, the future to the left and to the right.
        probabilities: ``[N, 2]`` of these: 1/2 each where the ball hits the edge, else 1 and 0. A future of
            probability 0 shows the ball pass through the edge.
        way: ``[N]`` which of them followed.
        scene: ``[N, size, size]`` float32, the wedge alone, without noise.
        places: ``[N, 2, 6, 2]`` the centre of the ball (right, down) in all frames, to the left and to the right.
    """

    past: np.ndarray
    future: np.ndarray
    branches: np.ndarray
    probabilities: np.ndarray
    way: np.ndarray
    scene: np.ndarray
    places: np.ndarray


def render_bounces(n: int, seed: int = 0, size: int = 16, one_sided: float = 0.25, noise: float = 0.01) -> Bounces:
    """Balls from any of the four sides, of their own speed and brightness, and a wedge of its own place.

    The wedge's faces stand at 45 degrees to the ball's way, so that it turns by 90 degrees and keeps its speed.
    A ball that hits the edge exactly goes either way with probability 1/2; one that hits a face goes to its side.

    Args:
        n: films.
        size: height and width of a frame in pixels.
        one_sided: share of the balls that hit a face.
        noise: standard deviation of the camera's noise.
    """
    rng = np.random.default_rng(seed)
    angle = np.pi / 2 * rng.integers(4, size=n)
    ahead = np.stack([np.cos(angle), np.sin(angle)], 1).round()
    left = np.stack([ahead[:, 1], -ahead[:, 0]], 1)  # y points down
    speed = rng.uniform(0.11, 0.14, n)
    before = speed * rng.uniform(0.1, 0.5, n)  # from the last frame to the bounce
    brightness = rng.uniform(0.6, 1.0, n)
    edge = 0.5 + TIP * ahead + rng.uniform(-0.03, 0.03, (n, 2))
    aside = rng.choice([-1.0, 1.0], n) * rng.uniform(0.07, 0.12, n) * (rng.random(n) < one_sided)
    to_left = (1 + np.sign(aside)) / 2
    probabilities = np.stack([to_left, 1 - to_left], 1)
    way = (rng.random(n) >= to_left).astype(int)

    turn = edge + (np.abs(aside) - REACH)[:, None] * ahead + aside[:, None] * left
    # How far beyond the bounce the ball is in each frame, along its way.
    beyond = speed[:, None] * np.arange(1 - N_PAST, N_FUTURE + 1) - before[:, None]
    straight = turn[:, None] + np.minimum(beyond, 0)[..., None] * ahead[:, None]
    turned = np.maximum(beyond, 0)[..., None] * left[:, None]
    places = np.stack([straight + turned, straight - turned], 1)

    scene = _wedge(edge, ahead, size)
    films = _with_ball(scene[:, None, None], places, brightness[:, None, None], size)
    branches = films[:, :, N_PAST:]
    past, future = films[:, 0, :N_PAST], branches[np.arange(n), way]
    past = past + noise * rng.normal(size=past.shape)
    future = future + noise * rng.normal(size=future.shape)
    arrays = [array.astype(np.float32) for array in (past, future, branches, scene)]
    return Bounces(arrays[0], arrays[1], arrays[2], probabilities, way, arrays[3], places)


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    return x, y


def _wedge(edge: np.ndarray, ahead: np.ndarray, size: int) -> np.ndarray:
    """Pictures ``[N, size, size]`` of wedges whose edge is at a place ``[N, 2]`` and that widen ahead."""
    x, y = (axis - place[:, None, None] for axis, place in zip(_axes(size), edge.T, strict=True))
    forward = x * ahead[:, 0, None, None] + y * ahead[:, 1, None, None]
    aside = np.abs(x * ahead[:, 1, None, None] - y * ahead[:, 0, None, None])
    return DARK + (GREY - DARK) * np.clip((forward - aside) / 2**0.5 * size + 0.5, 0, 1)


def _with_ball(scene: np.ndarray, places: np.ndarray, brightness: np.ndarray, size: int) -> np.ndarray:
    """The scene with a ball at each place ``[..., 2]`` (right, down) as pictures ``[..., size, size]``."""
    x, y = _axes(size)
    distance = np.hypot(x - places[..., 0, None, None], y - places[..., 1, None, None])
    cover = np.clip((RADIUS - distance) * size + 0.5, 0, 1)
    return scene + cover * (brightness[..., None, None] - scene)
