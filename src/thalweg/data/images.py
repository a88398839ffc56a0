"""Images in: scikit-learn's digits, a folder of pictures, an ``.npz``, or a data set by name."""

from __future__ import annotations

import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """Images and, where there are any, their labels.

    Attributes:
        pixels: ``[n, C, H, W]`` float32 in [0, 1].
        labels: ``[n]`` int64 from 0, or None.
        resolution: one grey level.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    resolution: float

    def rows(self, index: np.ndarray | slice) -> Images:
        labels = None if self.labels is None else self.labels[index]
        return Images(self.pixels[index], labels, self.resolution)


def digits(seed: int = 0, n_train: int = 1400) -> tuple[Images, Images]:
    """scikit-learn's 8 x 8 digits with 17 grey levels: training and test images."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = np.random.RandomState(seed).permutation(len(raw.target))
    pixels = (raw.images[order, None] / 16).astype(np.float32)
    everything = Images(pixels, raw.target[order].astype(np.int64), 1 / 16)
    return everything.rows(slice(0, n_train)), everything.rows(slice(n_train, None))


def cifar10() -> tuple[Images, Images]:
    """CIFAR-10, 32 x 32 in colour, ten labels: 50 000 training images and 10 000 test images.

    scikit-learn downloads it from openml.org once (data set CIFAR_10, version 1) and keeps it in its own folder;
    the last 10 000 rows there are the test images.

    Raises:
        OSError: if it can't be downloaded.
    """
    from sklearn.datasets import fetch_openml

    try:
        found = fetch_openml("CIFAR_10", version=1, as_frame=False)
    except (OSError, ValueError, HTTPException) as error:
        raise OSError(
            f"CIFAR-10 could not be downloaded from openml.org ({error}): run once where there is a network, or "
            "read images of your own"
        ) from error
    pixels = np.asarray(found.data).astype(np.uint8).reshape(-1, 3, 32, 32)
    everything = as_images(pixels, np.asarray(found.target).astype(np.int64))
    n_test = len(pixels) // 6
    return everything.rows(slice(0, -n_test)), everything.rows(slice(-n_test, None))


def read_images(path: Path) -> Images:
    """A folder of pictures of one size (PNG, JPEG, ...), or an ``.npz`` with ``X`` or ``X_train`` (and ``y``...).

    A folder whose pictures lie in subfolders takes these as labels. Arrays are ``[n, H, W]``, ``[n, H, W, C]`` or
    ``[n, C, H, W]``, bytes from 0 to 255 or numbers in [0, 1].

    Raises:
        ValueError: if there is nothing to read, or the pictures are not alike; in words.
    """
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    return _read_folder(path) if path.is_dir() else _read_arrays(path, "train")


def read_split(path: Path) -> tuple[Images, Images]:
    """Training and test images of an ``.npz`` with ``X_train`` and ``X_test``."""
    return _read_arrays(path, "train"), _read_arrays(path, "test")


def _read_arrays(path: Path, part: str) -> Images:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz: images come as a folder of pictures or as an .npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = {"x": [f"X_{part}", "X", "images", "x"], "y": [f"y_{part}", "y", "labels"]}
            found = {k: next((n for n in v if n in file), None) for k, v in names.items()}
            if found["x"] is None:
                raise ValueError(f"{path} holds no array X_{part} or X: it has {', '.join(file)}")
            pixels = file[found["x"]]
            labels = None if found["y"] is None else np.asarray(file[found["y"]]).astype(np.int64)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} can't be read as .npz: {error}") from error
    return as_images(pixels, labels)


def as_images(pixels: np.ndarray, labels: np.ndarray | None = None) -> Images:
    """Arrays as images; see :func:`read_images` for the shapes.

    Raises:
        ValueError: for other shapes or values.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[-1] in (1, 3) and pixels.shape[1] not in (1, 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or len(pixels) == 0:
        raise ValueError(f"images must be [n, H, W], [n, H, W, C] or [n, C, H, W], got {pixels.shape}")
    if pixels.dtype == np.uint8:
        pixels = pixels.astype(np.float32) / 255
    pixels = pixels.astype(np.float32)
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        raise ValueError("pixels must be bytes from 0 to 255, or numbers in [0, 1] without NaN")
    if np.ptp(pixels) == 0:
        raise ValueError("all pixels are the same: there is nothing to learn")
    if labels is not None and len(labels) != len(pixels):
        raise ValueError(f"there are {len(pixels)} images and {len(labels)} labels")
    values = np.unique(pixels[: min(len(pixels), 200)])
    gaps = np.diff(values)
    resolution = float(gaps.min()) if 0 < len(gaps) < 300 else 0.0
    return Images(np.ascontiguousarray(pixels), labels, resolution)


def _read_folder(folder: Path) -> Images:
    from PIL import Image, UnidentifiedImageError

    kinds = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in kinds)
    if not files:
        raise ValueError(f"{folder} holds no pictures")
    pixels, names = [], []
    for file in files:
        try:
            with Image.open(file) as picture:
                grey = picture.mode in ("1", "L", "I;16", "I")
                pixels.append(np.asarray(picture.convert("L" if grey else "RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file} can't be read as a picture ({error}): mend or remove it") from error
        names.append(file.parent.relative_to(folder).as_posix())
    shapes = {p.shape for p in pixels}
    if len(shapes) > 1:
        raise ValueError(
            f"the pictures in {folder} differ in size or colour: {sorted(shapes)[:3]}; make them alike"
        )
    labels = None
    if len(set(names)) > 1:
        known = sorted(set(names))
        labels = np.array([known.index(n) for n in names], np.int64)
    return as_images(np.stack(pixels), labels)


def write_images(pixels: np.ndarray, path: Path) -> None:
    """Images ``[n, C, H, W]`` in [0, 1] as bytes: into an ``.npz`` (``X``), or as PNG files into a folder."""
    found = (255 * np.asarray(pixels).clip(0, 1)).round().astype(np.uint8).transpose(0, 2, 3, 1)
    found = found[..., 0] if found.shape[-1] == 1 else found
    if path.suffix.lower() == ".npz":
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, X=found)
        return
    if path.suffix:
        raise ValueError(f"images are written to an .npz or into a folder, not to {path}")
    from PIL import Image

    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(found):
        Image.fromarray(image).save(path / f"{i:05d}.png")


def tile(images: np.ndarray, n_columns: int) -> np.ndarray:
    """Images ``[n, C, H, W]`` side by side, with a white line between, as bytes ``[rows, columns, 3]``."""
    n, channels, height, width = images.shape
    n_rows = -(-n // n_columns)
    wall = np.ones((n_rows * (height + 1), n_columns * (width + 1), channels))
    for i, image in enumerate(images):
        top, left = (i // n_columns) * (height + 1), (i % n_columns) * (width + 1)
        wall[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    pixels = (255 * wall.clip(0, 1)).astype(np.uint8)
    return np.repeat(pixels, 3, 2) if channels == 1 else pixels


def outliers(images: np.ndarray, n: int, rng: np.random.RandomState) -> dict[str, np.ndarray]:
    """Images that are none of the data, made from them: kind -> ``[n, C, H, W]``.

    Uniform noise, constant grey, pixels shuffled, inverted, and the midpoint of two images.

    Source: [Du 2019, sec. 4.4], whose interpolations these are.
    """
    shape = images.shape[1:]
    some = images[rng.randint(len(images), size=n)]
    other = images[rng.randint(len(images), size=n)]
    flat = some.reshape(n, -1)
    shuffled = np.stack([row[rng.permutation(flat.shape[1])] for row in flat]).reshape(n, *shape)
    return {
        "uniform noise": rng.uniform(size=(n, *shape)).astype(np.float32),
        "constant": np.broadcast_to(rng.uniform(size=(n, shape[0], 1, 1)).astype(np.float32), (n, *shape)).copy(),
        "shuffled": shuffled,
        "inverted": 1 - some,
        "interpolated": 0.5 * (some + other),
    }
