"""Data that are rendered, each with its truth: heads, boxed objects, point clouds of cars, and shells' ages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

# -- heads ---------------------------------------------------------------------------------------------

# Ellipsoids in the head's own frame (x to its left ear as we see it face on: right; y up; z out of the
# face): centre, semi-axes, reflectance. The skull comes first.
_SKULL = ((0.0, 0.0, 0.0), (0.72, 0.95, 0.85), 1.0)
_PARTS = (
    ((0.0, -0.10, 0.86), (0.13, 0.24, 0.24), 1.05),  # nose
    ((-0.29, 0.18, 0.69), (0.15, 0.10, 0.14), 0.12),  # eyes
    ((0.29, 0.18, 0.69), (0.15, 0.10, 0.14), 0.12),
    ((0.0, -0.50, 0.67), (0.27, 0.08, 0.13), 0.35),  # mouth
    ((-0.72, 0.02, 0.0), (0.10, 0.22, 0.16), 0.85),  # ears
    ((0.72, 0.02, 0.0), (0.10, 0.22, 0.16), 0.85),
)


class Heads(NamedTuple):
    """Pictures of heads.

    Attributes:
        images: ``[N, 1, size, size]`` float32, about 0 (black) to 1.
        pose: ``[N, 3]`` yaw, pitch and roll in degrees. Yaw turns the face to the viewer's right, pitch
            lifts it, roll tips it counter-clockwise.
        backlit: ``[N]``, whether the light comes from behind, so that little but the outline is seen.
    """

    images: np.ndarray
    pose: np.ndarray
    backlit: np.ndarray


def rotation(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Matrices ``[N, 3, 3]`` from the head's frame to the camera's (x right, y up, z to the viewer).

    Args:
        yaw, pitch, roll: ``[N]`` in degrees; yaw is applied first, roll last.
    """
    (cy, cp, cr), (sy, sp, sr) = (f(np.radians([yaw, pitch, roll])) for f in (np.cos, np.sin))
    zero, one = np.zeros_like(cy), np.ones_like(cy)

    def matrix(*entries: np.ndarray) -> np.ndarray:
        return np.stack(entries, -1).reshape(-1, 3, 3)

    turn = matrix(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    lift = matrix(one, zero, zero, zero, cp, sp, zero, -sp, cp)
    tip = matrix(cr, -sr, zero, sr, cr, zero, zero, zero, one)
    return tip @ lift @ turn


def render_heads(n: int, seed: int = 0, size: int = 32, backlit_share: float = 0.25) -> Heads:
    """Heads made of ellipsoids, lit by one lamp, seen in orthographic projection.

    Yaw is within 75 degrees, pitch 40, roll 30, uniformly. Place, size, lamp, background and the camera's
    noise differ from picture to picture, so some poses can be read well and others hardly.

    Args:
        n: pictures.
        size: their height and width in pixels.
        backlit_share: part of them with the light from behind.
    """
    rng = np.random.default_rng(seed)
    pose = rng.uniform(-1, 1, (n, 3)) * [75.0, 40.0, 30.0]
    backlit = rng.random(n) < backlit_share
    images = np.empty((n, size * size), np.float32)
    for start in range(0, n, 256):  # keeps the arrays of rays in the cache
        part = slice(start, start + 256)
        images[part] = _draw_heads(pose[part], backlit[part], size, rng)
    return Heads(images.reshape(n, 1, size, size), pose, backlit)


def _draw_heads(pose: np.ndarray, backlit: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    n = len(pose)
    to_camera = rotation(*pose.T).astype(np.float32)
    scale = rng.uniform(0.62, 0.75, (n, 1, 1)).astype(np.float32)
    offset = rng.uniform(-0.1, 0.1, (n, 1, 2)).astype(np.float32)
    lamp = rng.normal(size=(n, 3)) * [0.5, 0.4, 0.2] + [0, 0.4, 1.0]
    lamp /= np.linalg.norm(lamp, axis=1, keepdims=True)
    # A row vector times the matrix is its transpose times the column: camera to head.
    lamp_in_head = np.einsum("ni,nij->nj", lamp, to_camera).astype(np.float32)

    grid = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(grid, -grid)
    pixels = (np.stack([x.ravel(), y.ravel()], -1) - offset) / scale
    origin = pixels @ to_camera[:, :2]  # [n, pixels, 3], where the ray crosses the plane z = 0
    direction = to_camera[:, 2]

    depth = np.full(origin.shape[:2], -np.inf, np.float32)
    light = np.zeros_like(depth)
    hair = rng.uniform(0.1, 0.7, (n, 1)).astype(np.float32)
    for i, (centre, axes_, reflectance) in enumerate((_SKULL, *_PARTS)):
        axes = np.array(axes_, np.float32)
        u = (origin - np.array(centre, np.float32)) / axes
        v = direction / axes
        a = (v * v).sum(-1)[:, None]
        b = np.einsum("npi,ni->np", u, v)
        under_root = b * b - a * (np.einsum("npi,npi->np", u, u) - 1)
        t = (np.sqrt(np.maximum(under_root, 0)) - b) / a
        seen = (under_root > 0) & (t > depth)
        on_sphere = u + t[..., None] * v[:, None]
        normal = on_sphere / axes
        cosine = np.einsum("npi,ni->np", normal, lamp_in_head) / np.sqrt(np.einsum("npi,npi->np", normal, normal))
        shade = reflectance * (0.25 + 0.75 * np.maximum(cosine, 0))
        if i == 0:
            haired = (on_sphere[..., 1] > 0.55) | (on_sphere[..., 2] < -0.15 - 0.5 * on_sphere[..., 1])
            shade = np.where(haired, shade * hair, shade)
        depth = np.where(seen, t, depth)
        light = np.where(seen, shade, light)
    skin = rng.uniform(0.55, 1.0, (n, 1))
    contrast = np.where(backlit, 0.04, 1.0)[:, None]
    base = np.where(backlit, 0.12, 0.0)[:, None]
    background = np.where(backlit, rng.uniform(0.8, 1.0, n), rng.uniform(0.1, 0.5, n))[:, None]
    slope = rng.normal(0, 0.1, (n, 2)) @ np.stack([x.ravel(), y.ravel()])
    image = np.where(np.isfinite(depth), base + contrast * skin * light, background + slope)
    noise = np.exp(rng.uniform(np.log(0.01), np.log(0.15), (n, 1)))
    return (image + noise * rng.normal(size=image.shape)).astype(np.float32)


# -- two-dimensional boxes -----------------------------------------------------------------------------

SHAPES = ("ellipse", "rectangle", "diamond", "triangle", "cross")


@dataclass(frozen=True)
class Scenes:
    """Pictures with one object each, over a texture, often partly hidden behind a post.

    A scene is the unit square, y down; it is drawn afresh through any window. The object's box is that of
    the whole object, its hidden part included.

    Attributes:
        boxes: ``[N, 4]`` centre x, centre y, width, height.
        proposals: ``[N, 4]``, a rough detector's boxes.
        shape: ``[N]`` index into ``SHAPES``.
    """

    boxes: np.ndarray
    proposals: np.ndarray
    shape: np.ndarray
    brightness: np.ndarray
    post: np.ndarray
    waves: np.ndarray
    noise_seed: int

    def __len__(self) -> int:
        return len(self.boxes)

    def draw(self, windows: np.ndarray, size: int = 32) -> np.ndarray:
        """Pictures ``[N, 1, size, size]`` float32 of what each window ``[N, 4]`` (a box) shows."""
        n = len(self)
        rng = np.random.default_rng(self.noise_seed)
        grid = (np.arange(size) + 0.5) / size - 0.5
        x = windows[:, 0, None, None] + windows[:, 2, None, None] * grid[None, None, :]
        y = windows[:, 1, None, None] + windows[:, 3, None, None] * grid[None, :, None]
        pixel = np.maximum(windows[:, 2], windows[:, 3])[:, None, None] / size
        frequency_x, frequency_y, phase, strength = (w[..., None, None] for w in self.waves.transpose(2, 0, 1))
        wave = np.sin(frequency_x * x[:, None] + frequency_y * y[:, None] + phase)
        image = 0.45 + (strength * wave).sum(1)

        u = (x - self.boxes[:, 0, None, None]) / (self.boxes[:, 2, None, None] / 2)
        v = (y - self.boxes[:, 1, None, None]) / (self.boxes[:, 3, None, None] / 2)
        outside = _outside(u, v, self.shape)
        half = self.boxes[:, 2:].min(1)[:, None, None] / 2
        cover = np.clip(0.5 - outside * half / pixel, 0, 1)
        image = image + cover * (self.brightness[:, None, None] - image)
        hidden = np.abs(x - self.post[:, 0, None, None]) < self.post[:, 1, None, None]
        image = np.where(hidden, 0.25 + 0.1 * np.sin(60 * y), image)
        return (image + 0.05 * rng.normal(size=(n, size, size))).astype(np.float32)[:, None]

    def crops(self, size: int = 32, context: float = 2.0) -> np.ndarray:
        """What a network sees: the proposal enlarged ``context`` times, ``[N, 1, size, size]``."""
        return self.draw(self.proposals * [1, 1, context, context], size)


def render_scenes(n: int, seed: int = 0) -> Scenes:
    """Scenes with an object of 0.15 to 0.5 and a proposal that is off by about 15 % in place and 20 % in size."""
    rng = np.random.default_rng(seed)
    extent = np.exp(rng.uniform(np.log(0.15), np.log(0.5), (n, 2)))
    centre = rng.uniform(0.3, 0.7, (n, 2))
    boxes = np.concatenate([centre, extent], 1)
    relative = np.concatenate([rng.normal(0, 0.15, (n, 2)), rng.normal(0, 0.2, (n, 2))], 1)
    proposals = np.concatenate([centre + relative[:, :2] * extent, extent * np.exp(relative[:, 2:])], 1)
    # A post over one edge of every other object: how far the object goes on behind it is not seen.
    side = rng.choice([-0.5, 0.5], n) * rng.uniform(0.6, 1.1, n)
    width = np.where(rng.random(n) < 0.5, rng.uniform(0.15, 0.3, n) * extent[:, 0], 0.0)
    post = np.stack([centre[:, 0] + side * extent[:, 0], width], 1)
    waves = np.stack(
        [
            rng.normal(0, 25, (n, 4)),
            rng.normal(0, 25, (n, 4)),
            rng.uniform(0, 2 * np.pi, (n, 4)),
            rng.uniform(0.0, 0.08, (n, 4)),
        ],
        -1,
    )
    brightness = 0.45 + rng.choice([-1, 1], n) * rng.uniform(0.25, 0.5, n)
    shape = rng.integers(len(SHAPES), size=n)
    return Scenes(boxes, proposals, shape, brightness, post, waves, int(rng.integers(2**31)))


def _outside(u: np.ndarray, v: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Above 0 outside the shape, below inside; each touches all four sides of [-1, 1]^2."""
    a, b = np.abs(u), np.abs(v)
    square = np.maximum(a, b) - 1
    functions = (
        np.sqrt(u * u + v * v) - 1,
        square,
        a + b - 1,
        np.maximum(a - (v + 1) / 2, b - 1),
        np.minimum(np.maximum(a - 0.4, b - 1), np.maximum(a - 1, b - 0.4)),
    )
    return np.choose(shape[:, None, None], functions)


def encode_box(box: np.ndarray, proposal: np.ndarray) -> np.ndarray:
    """Boxes ``[..., 4]`` relative to proposals: offsets in proposal sizes, and log ratios of the sizes.

    Source: [Gustafsson 2020a, sec. 5.1].
    """
    return np.concatenate(
        [(box[..., :2] - proposal[..., :2]) / proposal[..., 2:], np.log(box[..., 2:] / proposal[..., 2:])], -1
    )


def decode_box(code: np.ndarray, proposal: np.ndarray) -> np.ndarray:
    """The box ``[..., 4]`` that :func:`encode_box` made the code of."""
    return np.concatenate(
        [proposal[..., :2] + code[..., :2] * proposal[..., 2:], proposal[..., 2:] * np.exp(code[..., 2:])], -1
    )


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union ``[...]`` of boxes ``[..., 4]`` given as centre, width, height."""
    low = np.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = np.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    common = np.maximum(high - low, 0).prod(-1)
    return common / (a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - common)


# -- three-dimensional boxes ---------------------------------------------------------------------------

# Faces of a car as parts of its length, width and height from its centre: centre, and the two half edges.
# A body, and a cabin on it that sits towards the back, which tells front from back.
_FACES = np.array(
    [
        [[0.5, 0, -0.2], [0, 0.5, 0], [0, 0, 0.3]],  # body: front, back, left, right
        [[-0.5, 0, -0.2], [0, -0.5, 0], [0, 0, 0.3]],
        [[0, 0.5, -0.2], [-0.5, 0, 0], [0, 0, 0.3]],
        [[0, -0.5, -0.2], [0.5, 0, 0], [0, 0, 0.3]],
        [[0.325, 0, 0.1], [0.175, 0, 0], [0, 0.5, 0]],  # bonnet, boot lid
        [[-0.45, 0, 0.1], [0.05, 0, 0], [0, 0.5, 0]],
        [[0.15, 0, 0.3], [0, 0.45, 0], [0, 0, 0.2]],  # cabin: front, back, left, right, roof
        [[-0.4, 0, 0.3], [0, -0.45, 0], [0, 0, 0.2]],
        [[-0.125, 0.45, 0.3], [-0.275, 0, 0], [0, 0, 0.2]],
        [[-0.125, -0.45, 0.3], [0.275, 0, 0], [0, 0, 0.2]],
        [[-0.125, 0, 0.5], [0.275, 0, 0], [0, 0.45, 0]],
    ]
)


class Clouds(NamedTuple):
    """Cars as a LiDAR sees them.

    Attributes:
        points: ``[N, n_points, 3]`` float32, metres, in the frame of the proposal: its centre is the
            origin, its heading the first axis.
        boxes: ``[N, 7]`` centre x, y, z, length, width, height (metres) and yaw (radians, counter-clockwise
            from the x axis), in the frame of the sensor.
        proposals: ``[N, 7]``, a rough detector's boxes.
    """

    points: np.ndarray
    boxes: np.ndarray
    proposals: np.ndarray


def render_clouds(n: int, seed: int = 0, n_points: int = 96) -> Clouds:
    """Cars 8 to 35 m away, of which a sensor at the origin sees the faces that are turned to it.

    The sensor is 1.7 m above the ground. Farther cars return fewer points (their points repeat, to fill the
    array); returns are off by 3 cm, and a tenth come from the ground round the car. The proposal is off by
    0.3 m, 10 % in size and 0.15 rad.
    """
    rng = np.random.default_rng(seed)
    extent = np.array([4.3, 1.8, 1.55]) * np.exp(rng.normal(0, [0.1, 0.06, 0.08], (n, 3)))
    distance, bearing = rng.uniform(8, 35, n), rng.uniform(-np.pi, np.pi, n)
    yaw = rng.uniform(-np.pi, np.pi, n)
    ground = -1.7 + rng.normal(0, 0.1, n)
    centre = np.stack([distance * np.cos(bearing), distance * np.sin(bearing), ground + extent[:, 2] / 2], 1)
    boxes = np.concatenate([centre, extent, yaw[:, None]], 1)

    # In the car's frame: where the sensor is, and how much of each face it sees.
    sensor = _turn(-centre, -yaw)
    faces = _FACES[None] * extent[:, None, None, :]
    normal = np.cross(faces[:, :, 1], faces[:, :, 2])
    towards = sensor[:, None] - faces[:, :, 0]
    seen = np.maximum((normal * towards).sum(-1), 0) / np.linalg.norm(towards, axis=-1) ** 3
    share = np.cumsum(seen / seen.sum(1, keepdims=True), 1)
    which = (rng.random((n, n_points, 1)) > share[:, None]).sum(-1).clip(max=len(_FACES) - 1)
    face = faces[np.arange(n)[:, None], which]
    along = rng.uniform(-1, 1, (n, n_points, 2))
    points = face[:, :, 0] + along[..., :1] * face[:, :, 1] + along[..., 1:] * face[:, :, 2]
    on_ground = rng.random((n, n_points)) < 0.1
    spot = rng.uniform(-0.8, 0.8, (n, n_points, 3)) * extent[:, None]
    spot[..., 2] = -extent[:, None, 2] / 2
    points = np.where(on_ground[..., None], spot, points)
    returned = np.clip(8000 / distance**2, 10, n_points).astype(int)
    index = np.arange(n_points) % returned[:, None]
    points = np.take_along_axis(points + rng.normal(0, 0.03, points.shape), index[..., None], 1)

    proposals = boxes + np.concatenate(
        [rng.normal(0, 0.3, (n, 3)), np.zeros((n, 3)), rng.normal(0, 0.15, (n, 1))], 1
    )
    proposals[:, 3:6] *= np.exp(rng.normal(0, 0.1, (n, 3)))
    world = _turn(points, yaw[:, None]) + centre[:, None]
    local = _turn(world - proposals[:, None, :3], -proposals[:, None, 6])
    return Clouds(local.astype(np.float32), boxes, proposals)


def _turn(points: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Points ``[..., 3]`` turned counter-clockwise about the third axis by angles ``[...]`` in radians."""
    c, s = np.cos(angle), np.sin(angle)
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack([c * x - s * y, s * x + c * y, np.broadcast_to(z, np.shape(c * x))], -1)


def encode_box_3d(box: np.ndarray, proposal: np.ndarray) -> np.ndarray:
    """Boxes ``[N, 7]`` relative to proposals.

    The offset is in metres along the proposal's own axes, the sizes are log ratios, and the yaw is the turn
    from the proposal's heading, in [-pi, pi). As a proposal's heading is never off by more than a right
    angle, that turn stays far from the seam at pi: one number says the yaw without ambiguity.

    Source: [Gustafsson 2021b, sec. 3.1], with the yaw relative as the other six are.
    """
    offset = _turn(box[:, :3] - proposal[:, :3], -proposal[:, 6])
    turn = (box[:, 6:] - proposal[:, 6:] + np.pi) % (2 * np.pi) - np.pi
    return np.concatenate([offset, np.log(box[:, 3:6] / proposal[:, 3:6]), turn], 1)


def decode_box_3d(code: np.ndarray, proposal: np.ndarray) -> np.ndarray:
    """The boxes ``[N, 7]`` that :func:`encode_box_3d` made the codes of (the yaw up to whole turns)."""
    centre = proposal[:, :3] + _turn(code[:, :3], proposal[:, 6])
    return np.concatenate([centre, proposal[:, 3:6] * np.exp(code[:, 3:6]), proposal[:, 6:] + code[:, 6:]], 1)


def box_corners(box: np.ndarray) -> np.ndarray:
    """The four corners ``[N, 4, 2]`` of boxes ``[N, 7]`` seen from above, counter-clockwise."""
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    flat = np.concatenate([signs * box[:, None, 3:5], np.zeros((len(box), 4, 1))], -1)
    return _turn(flat, box[:, None, 6])[..., :2] + box[:, None, :2]


def box_iou_3d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union ``[N]`` of boxes ``[N, 7]`` that stand upright, exact for any yaw."""
    area = np.array([_common_area(p, q) for p, q in zip(box_corners(a), box_corners(b), strict=True)])
    low = np.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
    high = np.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    common = area * np.maximum(high - low, 0)
    return common / (a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - common)


def _common_area(subject: np.ndarray, clip: np.ndarray) -> float:
    """Area that two convex polygons, counter-clockwise, have in common [Sutherland 1974]."""
    polygon: Sequence[np.ndarray] = list(subject)
    for start, end in zip(clip, np.roll(clip, -1, 0), strict=True):
        edge = end - start
        kept: list[np.ndarray] = []
        for p, q in zip(polygon, [*polygon[1:], *polygon[:1]], strict=True):
            side_p = edge[0] * (p[1] - start[1]) - edge[1] * (p[0] - start[0])
            side_q = edge[0] * (q[1] - start[1]) - edge[1] * (q[0] - start[0])
            if side_p >= 0:
                kept.append(p)
            if side_p * side_q < 0:
                kept.append(p + (q - p) * side_p / (side_p - side_q))
        polygon = kept
        if len(polygon) < 3:
            return 0.0
    x, y = np.array(polygon).T
    return float(0.5 * abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


# -- ages ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShellAges:
    """Shells with their age in whole years, and the distribution from which the ages were drawn.

    A shell grows quickly, then hardly at all: the length of an old one says little of its age, and the
    spread of the age is wide and leans to the right. At the exposed site some animals were stunted, which
    their shells do not show; there the age has two modes.

    Attributes:
        table: what is measured, one row a shell.
        age: ``[N]`` whole years, 1 at least.
    """

    table: pd.DataFrame
    age: np.ndarray
    log_median: np.ndarray
    log_std: np.ndarray
    stunted: np.ndarray

    stunting = 0.8

    def cdf(self, years: np.ndarray) -> np.ndarray:
        """P(age before rounding <= years) of every row: years ``[N]`` or ``[N, m]``."""
        years = np.asarray(years, np.float64)
        shape = (-1, *[1] * (years.ndim - 1))
        log_median, log_std, stunted = (a.reshape(shape) for a in (self.log_median, self.log_std, self.stunted))
        z = (np.log(np.maximum(years, 1e-9)) - log_median) / log_std
        return (1 - stunted) * norm.cdf(z) + stunted * norm.cdf(z - self.stunting / log_std)

    def log_mass(self, age: np.ndarray) -> np.ndarray:
        """log P(age | measurements) of whole years, under the true distribution: no model scores better."""
        age = np.asarray(age, np.float64)
        below = np.where(age <= 1, 0.0, self.cdf(age - 0.5))
        return np.log(np.maximum(self.cdf(age + 0.5) - below, 1e-300))

    def median(self, longest: int = 200) -> np.ndarray:
        """The median age of every row in whole years ``[N]``: no other point has a smaller expected error."""
        years = np.arange(1, longest)
        return 1.0 + (self.cdf(np.broadcast_to(years + 0.5, (len(self.age), longest - 1))) < 0.5).sum(1)


def shell_ages(n: int, seed: int = 0) -> ShellAges:
    """Shells of a simulated catch; their length follows von Bertalanffy's growth curve.

    Source: the growth curve: [Bertalanffy 1938].
    """
    rng = np.random.default_rng(seed)
    part = 0.12 + 0.83 * rng.beta(2.2, 1.5, n)  # length as a part of the greatest length
    thickness = rng.normal(size=n)
    exposed = rng.random(n) < 0.4
    log_median = np.log(0.8 - np.log1p(-0.95 * part) / np.where(exposed, 0.22, 0.26)) + 0.12 * thickness
    log_std = 0.06 + 0.16 * part**2
    stunted = np.where(exposed, 0.45, 0.0) * (part < 0.85)
    is_stunted = rng.random(n) < stunted
    age = np.exp(log_median + ShellAges.stunting * is_stunted + log_std * rng.normal(size=n))
    length = 160 * part
    weight = 1.9e-4 * length**3 * np.exp(rng.normal(0, 0.08, n))
    table = pd.DataFrame(
        {
            "site": np.where(exposed, "exposed", "sheltered"),
            "length_mm": length,
            "height_mm": 0.28 * length * np.exp(rng.normal(0, 0.07, n)),
            "whole_weight_g": weight,
            "shell_thickness_mm": 3.0 * np.exp(0.2 * thickness),
        }
    )
    return ShellAges(table, np.maximum(1.0, np.round(age)), log_median, log_std, stunted)
