"""Finding faces: an energy of a patch and a pose, the pose minimised out, trained by losses with a margin."""

from __future__ import annotations

import importlib.util
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from plotly.subplots import make_subplots
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.data.rendered import box_iou
from thalweg.energies.base import Energy
from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks.features import mlp
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.evaluation.calibration import Estimate
from thalweg.evaluation.detection import auroc
from thalweg.inference.ascent import gradient_ascent
from thalweg.objectives.base import Batch
from thalweg.objectives.margin import Hinge, MarginLoss, Shape, SquareExponential
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.training.loop import Plan, Trainer

SIZE, FILE = 25, "faces_25.npz"
OTHER, FACE = 0, 1
# The face of the photograph "astronaut", by its eyes and mouth: centre x, centre y, width, height in pixels.
SCENE_BOX = (224.0, 116.0, 132.0, 132.0)
# Widths of the windows of a scan, as shares of the scene's, and the steps between them in pixels of a patch.
WINDOWS = tuple(0.1 * 1.25**i for i in range(8))
STRIDE = 3
N_ROUNDS, N_UPDATES, N_COPIES, N_POOL = 4, 300, 10, 4000
LOSSES: dict[str, Shape] = {"square-exponential": SquareExponential(5.0), "hinge": Hinge(1.0)}
# Figure: (target, whether it is an upper bound).
TARGETS: dict[str, tuple[float, bool]] = {
    "square-exponential: AUROC": (0.99, False),
    "square-exponential: IoU in the scene": (0.5, False),
    "square-exponential: false alarms": (0.0, True),
}


class Patches(NamedTuple):
    """Patches ``[n, 1, 25, 25]`` in [0, 1] and whether they show a face ``[n]``."""

    x: Tensor
    y: Tensor


class Data(NamedTuple):
    """What is learned from, what is tested with, and a photograph ``[H, W]`` in [0, 1] with its face's box."""

    train: Patches
    test: Patches
    scene: Tensor
    box: np.ndarray


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    for seed in settings.seeds:
        data = read(settings.data, seed)
        found: dict[str, float] = {}
        for name in LOSSES:
            energy = fit(settings, name, data.train, seed)
            with torch.no_grad():
                told = _told(-energy.of_face(data.test.x).numpy(), data.test.y)
                upright = energy.of_pose(data.test.x, torch.zeros(len(data.test.y), dtype=torch.long))
            found[f"{name}: AUROC"] = told.value
            found[f"{name}: standard error"] = told.standard_error
            found[f"{name}, one pose: AUROC"] = _told(-upright.numpy(), data.test.y).value
            places, chart = scan(energy, data.scene, settings.quick)
            overlap = box_iou(places.boxes, np.tile(data.box, (len(places.boxes), 1)))
            on_face = (np.abs(places.boxes[:, :2] - data.box[:2]) < data.box[2:] / 2).all(1)
            lowest_there = places.energies[on_face].min(initial=math.inf)
            found[f"{name}: IoU in the scene"] = float(overlap[0])
            found[f"{name}: false alarms"] = float((places.energies[~on_face] < lowest_there).sum())
            found[f"{name}: lead on the next place"] = _lead(places, on_face)
            if seed == settings.seeds[0]:
                pictures[f"The photograph by the {name} loss: found (green), next (orange), the face (white)"] = (
                    _picture(data, places, chart)
                )
        found |= _baselines(data, seed)
        for key, value in found.items():
            figures.setdefault(key, []).append(value)
        settings.tell(
            f"seed {seed}: "
            + ", ".join(
                f"{n} AUROC {found[f'{n}: AUROC']:.4f} IoU {found[f'{n}: IoU in the scene']:.2f}" for n in LOSSES
            )
        )
    bound = {} if settings.quick else TARGETS
    rows = [Figure(k, v, *bound.get(k, (None, True))) for k, v in figures.items()]
    return Result(rows, pictures, _notes(), time.monotonic() - started)


def _notes() -> list[str]:
    return [
        f"E(x, z) is the length of what a perceptron makes of the oriented gradients of the patch, "
        f"moved by the pose z: one of {len(POSES)} shifts, sizes and mirrors, over which the energy is minimised. "
        "The other answer, no face, has a constant energy, so that the square-exponential loss is E^2 of a face "
        "and exp(-E) of anything else.",
        f"Negatives are mined in {N_ROUNDS} rounds from moved, mixed and inverted copies of the training patches "
        "without a face, and from training faces that are out of place, turned over or in pieces; those of lowest "
        "energy are learned from. Nothing of the photograph takes part in training, or in any choice "
        "of the energy. What counts as on the face was settled after a first scan: it had been an IoU above 0.3, "
        "and windows on the mouth, half as large as the face, counted as false alarms.",
        "The scan looks at the photograph through windows of "
        f"{len(WINDOWS)} sizes; the lowest places are refined by steps down the energy's gradient, and those that "
        "overlap a lower one are dropped. A place is on the face if its centre is within the face's box; a false "
        "alarm is one off the face with an energy below all on it. The lead is the energy of the lowest place off "
        "the face less that of the lowest on it. The box is that of the window in its lowest pose.",
        "The face's box was drawn by its eyes and mouth as the patches are framed, before any scan.",
    ]


# -- data -----------------------------------------------------------------------------------------------------


def read(path: Path | None, seed: int) -> Data:
    """Patches and a photograph, of a folder or file, or those that come with scikit-image where it is installed.

    Raises:
        ValueError: if there is neither, in words.
    """
    if path is None:
        return _of_scikit_image(seed)
    file = path if path.is_file() else path / FILE
    if not file.exists():
        raise ValueError(
            f"{path} holds no {FILE}: X_train, y_train, X_test, y_test (patches of 25 x 25 grey levels to 255; 1 "
            "a face, 0 none) and scene, a grey photograph with one face, its box in scene_box (centre, size)"
        )
    with np.load(file) as found:
        missing = {"X_train", "y_train", "X_test", "y_test", "scene"} - set(found)
        if missing:
            raise ValueError(f"{file} lacks {', '.join(sorted(missing))}")
        train, test = (_patches(found[f"X_{part}"], found[f"y_{part}"]) for part in ("train", "test"))
        box = np.asarray(found.get("scene_box", SCENE_BOX), np.float64)
        return Data(train, test, torch.from_numpy(found["scene"] / np.float32(255)), box)


def _of_scikit_image(seed: int) -> Data:
    """Its 100 faces and 100 other patches, of which 30 each are to test with, and its astronaut."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError(
            f"faces needs data: give --data FOLDER with {FILE}, or install scikit-image, which brings such patches"
        )
    from PIL import Image

    folder = Path(spec.origin).parent / "data"
    pixels = np.load(folder / "lfw_subset.npy") * 255
    labels = np.repeat([FACE, OTHER], len(pixels) // 2)
    order = np.random.RandomState(seed).permutation(len(pixels) // 2)
    train, test = (np.concatenate([part, part + len(order)]) for part in (order[30:], order[:30]))
    with Image.open(folder / "astronaut.png") as image:
        scene = torch.from_numpy(np.asarray(image.convert("L")) / np.float32(255))
    first, second = (_patches(pixels[rows], labels[rows]) for rows in (train, test))
    return Data(first, second, scene, np.array(SCENE_BOX))


def _patches(pixels: np.ndarray, labels: np.ndarray) -> Patches:
    if pixels.shape[1:] != (SIZE, SIZE):
        raise ValueError(f"patches must be {SIZE} x {SIZE}, got {' x '.join(map(str, pixels.shape[1:]))}")
    return Patches(torch.from_numpy(pixels[:, None] / 255).float(), torch.from_numpy(np.asarray(labels)).long())


# -- the energy -----------------------------------------------------------------------------------------------

# (mirrored, right, down in pixels, size): the first is the patch as it is.
POSES = tuple(
    (mirrored, right, down, size)
    for mirrored in (1, -1)
    for right, down, size in (
        (0, 0, 1.0),
        (2, 0, 1.0),
        (-2, 0, 1.0),
        (0, 2, 1.0),
        (0, -2, 1.0),
        (0, 0, 0.85),
        (0, 0, 1.18),
    )
)


class FaceEnergy(LabelledEnergy):
    """E(x, face) = min over poses z of |G(x moved by z)|, and E(x, no face) a constant.

    The gradient is that at the lowest pose, and so exact wherever one pose is lowest.

    Args:
        network: G, maps patches ``[N, 1, 25, 25]`` of mean 0 and standard deviation 1 to vectors.
        threshold: the energy of the answer that there is no face.

    Source: [Osadchy 2007, sec. 2].
    """

    poses: Tensor

    def __init__(self, network: nn.Module, threshold: float = 1.0):
        super().__init__(network, input_ndim=3, input_support=UNIT_IMAGES)
        self.threshold = threshold
        rows = [
            [[size * mirrored, 0, 2 * right / SIZE], [0, size, 2 * down / SIZE]]
            for mirrored, right, down, size in POSES
        ]
        self.register_buffer("poses", torch.tensor(rows), persistent=False)

    def of_pose(self, x: Tensor, pose: Tensor) -> Tensor:
        """E(x, z) ``[N]`` of patches in poses ``[N]``, by their number."""
        assert self.network is not None
        return (self.network(standardised(moved(x, self.poses[pose]))).square().sum(1) + 1e-6).sqrt()

    def lowest_pose(self, x: Tensor) -> Tensor:
        """The number of the pose of lowest energy ``[N]``, by going through all."""
        n = len(self.poses)
        with torch.no_grad():
            every = self.of_pose(x.repeat_interleave(n, 0), torch.arange(n, device=x.device).repeat(len(x)))
            return every.reshape(len(x), n).argmin(1)

    def of_face(self, x: Tensor) -> Tensor:
        """min over z of E(x, z) ``[N]``."""
        return torch.cat([self.of_pose(part, self.lowest_pose(part)) for part in x.split(32)])  # fits the cache

    def energies(self, x: Tensor) -> Tensor:
        face = self.of_face(x)
        return torch.stack([torch.full_like(face, self.threshold), face], 1)


class OrientedGradients(nn.Module):
    """Strength of gradients of 8 directions in 7 x 7 cells that overlap, over that of the cells around.

    From few faces a network learns more of edges than of grey levels, and of where they are, within a cell, less.

    Source: histograms of oriented gradients [Dalal 2005], with a smooth share for each direction.
    """

    n_features = 8 * 7 * 7
    directions: Tensor

    def __init__(self) -> None:
        super().__init__()
        twice = torch.arange(8) * (2 * math.pi / 8)
        self.register_buffer(
            "directions", torch.stack([twice.cos(), twice.sin()])[..., None, None], persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        around = F.pad(x, (1, 1, 1, 1), mode="replicate")
        across = (around[:, :, 1:-1, 2:] - around[:, :, 1:-1, :-2]) / 2
        down = (around[:, :, 2:, 1:-1] - around[:, :, :-2, 1:-1]) / 2
        size = (across.square() + down.square() + 1e-4).sqrt()
        # The cosine of twice the angle to a direction: dark to light counts as light to dark.
        cos, sin = (across.square() - down.square()) / size, 2 * across * down / size
        # In place: these are the largest arrays.
        along = (cos * self.directions[0]).addcmul_(sin, self.directions[1]).relu_()
        cells = F.avg_pool2d(along, 5, stride=3)
        strength = F.avg_pool2d(cells.square().sum(1, keepdim=True), 3, 1, 1, count_include_pad=False)
        return (cells / (strength + 0.01).sqrt()).flatten(1)


def moved(x: Tensor, how: Tensor) -> Tensor:
    """Patches ``[N, 1, H, W]`` under affine maps ``[N, 2, 3]`` of what is seen; edges go on as they are."""
    grid = F.affine_grid(how, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def standardised(x: Tensor) -> Tensor:
    """Patches of mean 0 and standard deviation 1; a patch with hardly any contrast stays one."""
    centred = x - x.mean((1, 2, 3), keepdim=True)
    return centred / centred.square().mean((1, 2, 3), keepdim=True).add(2e-3**2).sqrt().clamp_min(0.02)


# -- learning -------------------------------------------------------------------------------------------------


def fit(settings: Settings, name: str, train: Patches, seed: int) -> FaceEnergy:
    """An energy trained by a loss; each round mines the negatives that the last one finds hardest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gradients = OrientedGradients()
        layers = mlp([gradients.n_features, 128], nn.SiLU)
        energy = FaceEnergy(nn.Sequential(gradients, nn.Dropout(0.3), layers, nn.Linear(128, 32)))
    generator = torch.Generator().manual_seed(seed)
    faces, others = train.x[train.y == FACE], train.x[train.y == OTHER]
    n_rounds, n_updates, n_pool = (2, 3, 100) if settings.quick else (N_ROUNDS, N_UPDATES, N_POOL)
    hard = negatives(faces, others, len(faces) * N_COPIES, generator)
    for i in range(n_rounds):
        if i:
            pool = negatives(faces, others, n_pool, generator)
            with torch.no_grad():
                lowest = energy.of_face(pool).argsort()[: n_pool // 8]
            hard = torch.cat([hard, pool[lowest]])
        shown = torch.cat([faces, jittered(faces.repeat(N_COPIES, 1, 1, 1), generator)])
        x = torch.cat([shown, others, hard])
        y = torch.full((len(x),), OTHER)
        y[: len(shown)] = FACE
        plan = Plan(
            10**6, max_steps=n_updates, batch_size=32, learning_rate=2e-3, weight_decay=1e-2, seed=seed + i
        )
        Trainer(plan).fit(energy, MarginLoss(LOSSES[name]), Batch(x, y))
    return energy.eval()


def affine(turn: Tensor, size: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Maps ``[N, 2, 3]`` that turn (radians), scale and shift (halves of a patch)."""
    cos, sin = size * turn.cos(), size * turn.sin()
    return torch.stack([torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)], 1)


def jittered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Faces turned by up to 10 degrees, scaled, shifted by a pixel, mirrored, lit from a side, with noise."""
    turn, size, right, down, slope = (2 * torch.rand(5, len(x), generator=generator) - 1).unbind()
    how = affine(0.17 * turn, 1 + 0.08 * size, 0.08 * right, 0.08 * down)
    mirror = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    light = 1 + 0.3 * slope[:, None, None, None] * torch.linspace(-1, 1, x.shape[3])
    return moved(x, how) * light + 0.02 * torch.randn(x.shape, generator=generator)


def negatives(faces: Tensor, others: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Patches without a face in its place ``[n, 1, 25, 25]``, of the training patches alone.

    Others moved, mixed with each other, pasted into each other or inverted; and faces shifted by a third and more,
    half or twice as large, turned by a right angle and more, or in pieces.
    """

    def draw(m: int) -> Tensor:
        return torch.rand(m, generator=generator)

    def some(x: Tensor, m: int) -> Tensor:
        return x[torch.randint(len(x), (m,), generator=generator)]

    m = n // 7
    angle = 2 * math.pi
    still, one = torch.zeros(m), torch.ones(m)

    def clutter() -> Tensor:
        how = affine(angle * draw(m), 0.4 + draw(m), draw(m) - 0.5, draw(m) - 0.5)
        return (
            standardised(moved(some(others, m), how)) * (draw(m) < 0.5).float().mul(2).sub(1)[:, None, None, None]
        )

    def edges() -> Tensor:
        return (torch.linspace(-1, 1, SIZE)[:, None, None] * (angle * draw(m)).cos() > draw(m) - 0.5).permute(
            2, 0, 1
        )

    plain = clutter()
    mixed = clutter() + draw(m)[:, None, None, None] * clutter()
    pasted = torch.where(edges()[:, None] & edges()[:, None].transpose(2, 3), clutter(), clutter())
    direction, distance = angle * draw(m), 0.6 + 0.6 * draw(m)
    shifted = affine(still, 0.8 + 0.4 * draw(m), distance * direction.cos(), distance * direction.sin())
    zoom = torch.where(draw(m) < 0.5, 0.35 + 0.2 * draw(m), 1.8 + draw(m))
    sized = affine(still, zoom, draw(m) - 0.5, draw(m) - 0.5)
    turned = affine(math.pi / 2 + math.pi * draw(m), one, 0.3 * draw(m) - 0.15, 0.3 * draw(m) - 0.15)
    misplaced = [moved(some(faces, m), how) for how in (shifted, sized, turned)]
    return torch.cat([plain, mixed, pasted, *misplaced, _in_pieces(some(faces, n - 6 * m), generator)])


def _in_pieces(x: Tensor, generator: torch.Generator) -> Tensor:
    """Patches whose pieces of 5 x 5 pixels, or quarters, are in another order."""
    n = len(x)
    blocks = x.reshape(n, 5, 5, 5, 5).transpose(2, 3).reshape(n, 25, 5, 5)
    order = torch.rand(n, 25, generator=generator).argsort(1)
    blocks = blocks.gather(1, order[:, :, None, None].expand(-1, -1, 5, 5))
    pieces = blocks.reshape(n, 5, 5, 5, 5).transpose(2, 3).reshape(n, 1, SIZE, SIZE)
    half = torch.rand(n, generator=generator) < 0.5
    return torch.where(half[:, None, None, None], pieces, x.roll((SIZE // 2, SIZE // 2), (2, 3)))


# -- the scan -------------------------------------------------------------------------------------------------


class Places(NamedTuple):
    """Boxes ``[n, 4]`` (centre x, y, width, height in the scene's pixels) and energies ``[n]``, lowest first."""

    boxes: np.ndarray
    energies: np.ndarray


class PlaceEnergy(Energy):
    """The energy of a window of a picture, by its centre x, y and the logarithm of its size, in patches.

    Args:
        energy: of patches.
        picture: ``[1, 1, H, W]``, at the scale at which a window of size 1 has as many pixels as a patch.
    """

    event_ndim = 1
    support = constraints.real_vector

    def __init__(self, energy: FaceEnergy, picture: Tensor):
        super().__init__()
        self.energy, self.picture = energy, picture

    def forward(self, x: Tensor) -> Tensor:
        return self.energy.of_face(self.patches(x))

    def patches(self, x: Tensor) -> Tensor:
        """What the windows show ``[N, 1, 25, 25]``."""
        height, width = self.picture.shape[2:]
        size, zero = x[:, 2].exp(), torch.zeros(len(x))
        across = torch.stack([size * SIZE / width, zero, 2 * SIZE * x[:, 0] / width - 1], 1)
        down = torch.stack([zero, size * SIZE / height, 2 * SIZE * x[:, 1] / height - 1], 1)
        grid = F.affine_grid(torch.stack([across, down], 1), [len(x), 1, SIZE, SIZE], align_corners=False)
        picture = self.picture.expand(len(x), -1, -1, -1)
        return F.grid_sample(picture, grid, padding_mode="border", align_corners=False)

    def posed(self, x: Tensor) -> Tensor:
        """The windows ``[N, 3]`` in their lowest pose: the answer is the place and the pose together."""
        poses = self.energy.poses[self.energy.lowest_pose(self.patches(x))]
        shift = poses[:, :, 2] / 2 * x[:, 2:].exp()
        return torch.cat([x[:, :2] + shift, x[:, 2:] + poses[:, 1, 1:2].log()], 1)


def scan(energy: FaceEnergy, scene: Tensor, quick: bool = False, n_refined: int = 12) -> tuple[Places, np.ndarray]:
    """Places of low energy, and the lowest energy over sizes on a grid ``[64, 64]`` of the scene.

    The lowest windows of each size are refined by steps down the gradient in place and size.
    """
    height, width = scene.shape
    boxes, values = [], []
    chart = np.full((64, 64), np.inf, np.float32)
    for share in WINDOWS[3::2] if quick else WINDOWS:
        scale = SIZE / (share * width)
        shape = [round(scale * height), round(scale * width)]
        picture = F.interpolate(scene[None, None], size=shape, mode="bilinear", antialias=True)
        patches = picture.unfold(2, SIZE, STRIDE).unfold(3, SIZE, STRIDE)[0, 0]
        n_down, n_across = patches.shape[:2]
        with torch.no_grad():
            found = energy.of_face(patches.reshape(-1, 1, SIZE, SIZE))
        y, x = (np.indices((n_down, n_across)).reshape(2, -1) * STRIDE + SIZE / 2) / SIZE
        _chart(chart, x * SIZE / shape[1], y * SIZE / shape[0], found.numpy(), STRIDE / shape[1])
        windows = np.stack([x, y, np.zeros(len(x))], 1)
        rows = kept(_boxes(windows, share, width), found.numpy(), n_refined)
        start = torch.as_tensor(windows[rows], dtype=torch.float32)
        place = PlaceEnergy(energy, picture)
        end = gradient_ascent(place, start, n_steps=10, step_size=0.01)
        with torch.no_grad():
            values.append(place(end).numpy())
        boxes.append(_boxes(place.posed(end).double().numpy(), share, width))
    every, of_every = np.concatenate(boxes), np.concatenate(values)
    rows = kept(every, of_every, n_refined)
    return Places(every[rows], of_every[rows]), chart


def _boxes(places: np.ndarray, share: float, width: int) -> np.ndarray:
    """Boxes of places ``[n, 3]``: centre x, y and log size, in patches that are a share of the width."""
    patch = share * width
    size = patch * np.exp(places[:, 2])
    return np.stack([places[:, 0] * patch, places[:, 1] * patch, size, size], 1)


def kept(boxes: np.ndarray, energies: np.ndarray, n: int, overlap: float = 0.3) -> np.ndarray:
    """Rows of the n lowest boxes, lowest first, none of which overlaps a lower one by more than an IoU."""
    rows: list[int] = []
    for i in np.argsort(energies):
        if not rows or box_iou(boxes[rows], np.tile(boxes[i], (len(rows), 1))).max() <= overlap:
            rows.append(int(i))
        if len(rows) == n:
            break
    return np.array(rows)


def _chart(chart: np.ndarray, x: np.ndarray, y: np.ndarray, energies: np.ndarray, step: float) -> None:
    """Lower the cells round each place (in shares of the scene) to its energy, where that is lower."""
    n = len(chart)
    reach = max(1, math.ceil(step * n / 2))
    column, row = (np.clip((v * n).astype(int), 0, n - 1) for v in (x, y))
    for right in range(-reach, reach + 1):
        for down in range(-reach, reach + 1):
            at = np.clip(row + down, 0, n - 1), np.clip(column + right, 0, n - 1)
            np.minimum.at(chart, at, energies)


# -- what is measured -----------------------------------------------------------------------------------------


def _told(scores: np.ndarray, labels: Tensor) -> Estimate:
    face = labels.numpy() == FACE
    return auroc(scores[face], scores[~face])


def _lead(places: Places, on_face: np.ndarray) -> float:
    """The energy of the lowest place off the face less that of the lowest on it: above 0 if it is found."""
    worst = float(places.energies.max())
    on, off = (float(places.energies[which].min(initial=worst)) for which in (on_face, ~on_face))
    return off - on


def _baselines(data: Data, seed: int) -> dict[str, float]:
    """AUROC of linear models of standardised pixels and of oriented gradients, and of the nearest neighbours."""

    def pixels(x: Tensor) -> np.ndarray:
        return standardised(x).flatten(1).numpy()

    labels = data.train.y.numpy()
    train, test = pixels(data.train.x), pixels(data.test.x)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    scores = {
        "logistic regression": logistic.fit(train, labels).decision_function(test),
        "linear discriminant": discriminant.fit(train, labels).decision_function(test),
        "nearest neighbour": _nearest(train[labels == OTHER], test) - _nearest(train[labels == FACE], test),
    }
    if importlib.util.find_spec("skimage") is not None:
        gradients = [_gradients(part.x) for part in (data.train, data.test)]
        scores["logistic regression of HOG"] = logistic.fit(gradients[0], labels).decision_function(gradients[1])
    return {f"{name}: AUROC": _told(values, data.test.y).value for name, values in scores.items()}


def _nearest(rows: np.ndarray, test: np.ndarray) -> np.ndarray:
    return NearestNeighbors(n_neighbors=1).fit(rows).kneighbors(test)[0][:, 0]


def _gradients(x: Tensor) -> np.ndarray:
    from skimage.feature import hog

    return np.stack([hog(image, pixels_per_cell=(5, 5), cells_per_block=(2, 2)) for image in x[:, 0].numpy()])


def _picture(data: Data, places: Places, chart: np.ndarray) -> go.Figure:
    height, width = data.scene.shape
    figure = make_subplots(1, 2, subplot_titles=["found", "lowest energy over sizes"], horizontal_spacing=0.04)
    step = max(1, width // 256)
    small = F.avg_pool2d(data.scene[None, None], step)[0, 0].numpy() if step > 1 else data.scene.numpy()
    cells = (np.arange(len(chart)) + 0.5) / len(chart)
    figure.add_heatmap(
        x=(np.arange(small.shape[1]) + 0.5) * step, y=(np.arange(small.shape[0]) + 0.5) * step, z=small.round(2),
        colorscale="gray", showscale=False, hoverinfo="skip", row=1, col=1,
    )  # fmt: skip
    figure.add_heatmap(
        x=cells * width, y=cells * height, z=np.where(np.isfinite(chart), chart, np.nan).round(3),
        colorscale="Viridis", showscale=False, row=1, col=2,
    )  # fmt: skip
    shown = [(data.box, "white", "dash", 1), *((box, "orange", "dot", 1) for box in places.boxes[1:4])]
    for box, color, dash, line_width in [*shown, (places.boxes[0], "#3ddc84", "solid", 3)]:
        x, y, w, h = box
        outline = {
            "x": x + np.array([-w, w, w, -w, -w]) / 2, "y": y + np.array([-h, -h, h, h, -h]) / 2, "mode": "lines",
            "line": {"color": color, "dash": dash, "width": line_width}, "showlegend": False,
        }  # fmt: skip
        for column in (1, 2):
            figure.add_scatter(**outline, row=1, col=column)
    figure.update_xaxes(visible=False, range=[0, width], constrain="domain")
    figure.update_yaxes(visible=False, range=[height, 0], constrain="domain")
    figure.update_yaxes(scaleanchor="x", col=1).update_yaxes(scaleanchor="x2", col=2)
    figure.update_layout(height=480, margin={"l": 10, "r": 10, "t": 30, "b": 10})
    return figure


RECIPE = Recipe(
    name="faces",
    title="Faces found by an energy whose pose is minimised out; --data FOLDER with faces_25.npz",
    source="Osadchy, Le Cun, Miller, Synergistic Face Detection and Pose Estimation (2007)",
    run=run,
    minutes=5,
)
