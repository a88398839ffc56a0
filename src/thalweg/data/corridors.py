"""A corridor with obstacles seen by a moving robot, and an expert who passes each on the left or on the right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Lengths in half-widths of the corridor; the robot moves STEP in each time step and turns by at most TURN radians.
STEP, TURN = 0.15, 0.35
OBSTACLE, ROBOT = 0.3, 0.1  # radii
LENGTH, FIRST, SPACING = 12.0, 2.5, 3.0  # of the corridor, to the first obstacle, from one to the next
SIGHT, DECISION = 1.8, 1.1  # how far the robot sees, and how near an obstacle is when the expert turns
# So near to the middle of an obstacle both sides are right.
UNDECIDED = 0.2


class Courses(NamedTuple):
    """Corridors along x from 0 to ``LENGTH``, walls at y = -1 and 1, with obstacles near the middle.

    Attributes:
        obstacles: centres ``[N, M, 2]``.
        start: places and headings ``[N, 3]`` of robots at the start.
    """

    obstacles: np.ndarray
    start: np.ndarray

    def rows(self, index: np.ndarray | slice) -> Courses:
        """The courses of these numbers."""
        return Courses(self.obstacles[index], self.start[index])


def make_courses(n: int, rng: np.random.Generator) -> Courses:
    """Courses with an obstacle every ``SPACING``, a little off the middle of the corridor."""
    along = np.arange(FIRST, LENGTH - 1, SPACING)
    obstacles = np.stack(
        [along + rng.uniform(-0.3, 0.3, (n, len(along))), rng.uniform(-0.15, 0.15, (n, len(along)))], -1
    )
    start = np.stack([np.zeros(n), rng.uniform(-0.4, 0.4, n), rng.uniform(-0.3, 0.3, n)], 1)
    return Courses(obstacles, start)


def moved(pose: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Poses ``[N, 3]`` after one time step with steering ``[N]`` from -1 (right) to 1 (left)."""
    heading = pose[:, 2] + TURN * np.clip(action, -1, 1)
    return np.stack([pose[:, 0] + STEP * np.cos(heading), pose[:, 1] + STEP * np.sin(heading), heading], 1)


def crashed(pose: np.ndarray, courses: Courses) -> np.ndarray:
    """Whether robots ``[N, 3]`` touch a wall or an obstacle."""
    distance = np.hypot(*np.moveaxis(courses.obstacles - pose[:, None, :2], -1, 0))
    return (np.abs(pose[:, 1]) > 1 - ROBOT) | (distance.min(1) < OBSTACLE + ROBOT)


def expert_actions(pose: np.ndarray, courses: Courses) -> tuple[np.ndarray, np.ndarray]:
    """The steerings that are right ``[N, 2]`` and the probability of the first ``[N]``.

    Far from obstacles the expert steers to the middle of the corridor. Near one it aims past its left or its right
    side: past the one to which it is heading, or either with equal probability if it is heading to the middle.
    Where one steering is right both are equal.
    """
    x, y, heading = pose.T
    ahead = courses.obstacles[..., 0] - x[:, None]
    # The nearest that is not passed yet.
    ahead = np.where(ahead > -0.1, ahead, np.inf)
    which = ahead.argmin(1)
    rows = np.arange(len(pose))
    distance, centre = ahead[rows, which], courses.obstacles[rows, which, 1]
    near = distance < DECISION
    reach = np.clip(distance, 0.25, DECISION)
    passing = y + reach * np.tan(np.clip(heading, -1.2, 1.2)) - centre
    undecided = near & (np.abs(passing) < UNDECIDED)
    side = np.where(passing >= 0, 1.0, -1.0)
    gap = OBSTACLE + ROBOT + 0.15
    actions = []
    for own in (np.where(undecided, 1.0, side), np.where(undecided, -1.0, side)):
        target = np.where(near, np.clip(centre + gap * own, -0.8, 0.8), 0.0)
        wanted = np.arctan2(target - y, np.where(near, reach, 1.0))
        actions.append(np.clip((wanted - heading) / TURN, -1, 1))
    return np.stack(actions, 1), np.where(undecided, 0.5, 1.0)


def view(pose: np.ndarray, courses: Courses, size: int = 20) -> np.ndarray:
    """What robots see: pictures ``[N, 1, size, size]`` of the ground before them from above.

    The robot is at the middle of the lower edge and heads up; walls and obstacles are 1, free ground 0.
    """
    ahead = SIGHT * (1 - (np.arange(size) + 0.5) / size)
    aside = SIGHT * ((np.arange(size) + 0.5) / size - 0.5)
    u, v = np.meshgrid(ahead, aside, indexing="ij")
    cos, sin = np.cos(pose[:, 2])[:, None, None], np.sin(pose[:, 2])[:, None, None]
    x = pose[:, 0, None, None] + cos * u + sin * v  # the right of the picture is the robot's right
    y = pose[:, 1, None, None] + sin * u - cos * v
    pixel = SIGHT / size
    wall = np.clip((np.abs(y) - 1) / pixel + 0.5, 0, 1)
    centres = courses.obstacles[:, :, :, None, None]
    distance = np.hypot(x[:, None] - centres[:, :, 0], y[:, None] - centres[:, :, 1]).min(1)
    return np.maximum(wall, np.clip((OBSTACLE - distance) / pixel + 0.5, 0, 1)).astype(np.float32)[:, None]


class Demonstrations(NamedTuple):
    """What an expert saw and did.

    Attributes:
        images: ``[N, 1, size, size]``.
        action: ``[N]`` in [-1, 1].
        right: ``[N, 2]``, both steerings that were right.
    """

    images: np.ndarray
    action: np.ndarray
    right: np.ndarray


def demonstrate(n_courses: int, seed: int, noise: float = 0.05) -> Demonstrations:
    """An expert's drives along new courses.

    Args:
        noise: standard deviation of what is added to each steering, which also shows how to get back on the way.
    """
    rng = np.random.default_rng(seed)
    courses = make_courses(n_courses, rng)
    pose, index = courses.start, np.arange(n_courses)
    seen: list[tuple[np.ndarray, ...]] = []
    while len(index):
        here = courses.rows(index)
        right, first = expert_actions(pose, here)
        action = right[np.arange(len(index)), (rng.random(len(index)) > first).astype(int)]
        action = np.clip(action + noise * rng.normal(size=len(action)), -1, 1)
        seen.append((view(pose, here), action, right))
        pose = moved(pose, action)
        going = (pose[:, 0] < LENGTH) & ~crashed(pose, here)
        pose, index = pose[going], index[going]
    return Demonstrations(*(np.concatenate(parts) for parts in zip(*seen, strict=True)))
