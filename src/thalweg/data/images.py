"""Images in: scikit-learn's digits, a folder of pictures, an ``.npz``, or a data set by name."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_WHITE_16 = 2**16 - 1
# Tags of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


class Images(NamedTuple):
    """Images and, where there are any, their labels.

    Attributes:
        pixels: ``[n, C, H, W]`` float32 in [0, 1].
        labels: ``[n]`` int64 from 0, or None.
        resolution: one grey level.
        files: the file of each picture in its folder, where they were read from one.
        classes: what each label is called, where labels were texts or subfolders.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    resolution: float
    files: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None

    def rows(self, index: np.ndarray | slice) -> Images:
        labels = None if self.labels is None else self.labels[index]
        files = None if self.files is None else tuple(np.array(self.files, object)[index])
        return Images(self.pixels[index], labels, self.resolution, files, self.classes)

    def fingerprint(self) -> str:
        """A hash of pixels and labels: it shows whether images are still those that a run was started on."""
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(self.pixels.data)
        if self.labels is not None:
            digest.update(self.labels.data)
        return digest.hexdigest()


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

    A folder whose pictures lie in subfolders takes these as labels; hidden files and folders are passed over.
    Pictures have 8 or 16 bits and no transparent pixel. Arrays are ``[n, H, W]``, ``[n, H, W, C]`` or
    ``[n, C, H, W]``; their values are those of :func:`as_images`. Labels that are texts, and subfolders, are
    numbered from 0 in the order of the alphabet, or of their numbers if they are all numbers.

    Raises:
        ValueError: if there is nothing to read, a picture has several pages, transparent pixels or values of which
            white is not known, the pictures are not alike, or only some lie in subfolders; in words.
    """
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    if path.is_dir():
        return _read_folder(path)
    pixels, labels = _load(path, ("X_train", "X", "images", "x"), ("y_train", "y", "labels"))
    return _named(path, pixels, labels, labels)


def read_split(path: Path) -> tuple[Images, Images]:
    """Training and test images of an ``.npz`` with ``X_train`` and ``X_test`` (and ``y_train``, ``y_test``).

    Raises:
        ValueError: if it lacks either, or they can't be used; in words.
    """
    pixels, labels = _load(path, ("X_train",), ("y_train",))
    test_pixels, test_labels = _load(path, ("X_test",), ("y_test",))
    return _named(path, pixels, labels, labels), _named(path, test_pixels, test_labels, labels)


def as_images(pixels: np.ndarray, labels: np.ndarray | None = None) -> Images:
    """Arrays as images; see :func:`read_images` for the shapes.

    Args:
        pixels: numbers in [0, 1]; bytes from 0 to 255, also as whole numbers of another type if the largest is
            above 127; ``uint16`` from 0 to 65535; or whole numbers that are all 0 or 1, which are black and white.
        labels: ``[n]``.

    Raises:
        ValueError: for other shapes or values.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[-1] in (1, 3) and pixels.shape[1] not in (1, 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.size == 0:
        raise ValueError(f"images must be [n, H, W], [n, H, W, C] or [n, C, H, W], got {pixels.shape}")
    return _scaled(*with_white(pixels), labels)


def pixels_with_gaps(images: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Images of which not all pixels need be known, in the units in which a model takes them.

    Args:
        images: ``[n, C, H, W]``, or ``[n, H, W]`` of one channel; numbers as they are, bytes divided by white. NaN
            and infinities are let pass.
        shape: (C, H, W).

    Raises:
        ValueError: for no image, or another shape.
    """
    found, shape = np.asarray(images), tuple(shape)
    shapes = (shape, shape[1:]) if shape[0] == 1 else (shape,)
    if found.shape[1:] not in shapes or not len(found):
        raise ValueError(f"images with gaps must be [n, {', '.join(map(str, shape))}], got {found.shape}")
    if found.dtype.kind in "iu":
        found, white = with_white(found)
        found = found / np.float32(white)
    return found if found.dtype.kind == "f" else found.astype(np.float64)


def pixels_like(images: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Images of a shape that is known, as float32 ``[n, C, H, W]`` in the units in which a model takes them.

    Args:
        images: ``[n, C, H, W]`` or ``[n, H, W]``, numbers or bytes.
        shape: (C, H, W).

    Raises:
        ValueError: for another shape, NaN or infinities.
    """
    found = np.asarray(images)
    if found.dtype.kind in "iu":
        found, white = with_white(found)
        found = found / np.float32(white)
    found = found.astype(np.float32)
    if found.ndim == 3:
        found = found[:, None]
    elif found.ndim == 4 and found.shape[1:] != tuple(shape):
        moved = found.transpose(0, 3, 1, 2)
        found = moved if moved.shape[1:] == tuple(shape) else found
    if found.shape[1:] != tuple(shape):
        raise ValueError(f"images must be [n, {', '.join(map(str, shape))}], got {np.shape(images)}")
    if not np.isfinite(found).all():
        raise ValueError("the images contain NaN or infinity")
    return np.ascontiguousarray(found)


def with_white(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """The pixels as float32, uint8 or uint16, and the value that is white.

    Raises:
        ValueError: if that value is not known.
    """
    kind, words = pixels.dtype.kind, str(pixels.dtype)
    is_byte, is_deep = (kind == "u" and pixels.dtype.itemsize == size for size in (1, 2))
    if kind == "f":
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32, copy=False)
    if kind in "buif":
        low, high = pixels.min(), pixels.max()
        if low >= 0 and high <= 1:
            return pixels if kind == "f" else pixels.astype(np.uint8), 1
        is_whole = kind != "f" or bool((pixels == np.floor(pixels)).all())
        # Bytes in another type are known by values above 127: a largest value of 16 or 100 may be white itself.
        if is_byte or (not is_deep and is_whole and low >= 0 and 127 < high <= 255):
            return pixels.astype(np.uint8), 255
        if is_deep and high > 255:
            return pixels.astype(np.uint16), _WHITE_16
        words += f" from {low:g} to {high:g}"
    raise ValueError(
        "pixels must be bytes from 0 to 255, 16-bit numbers (uint16) from 0 to 65535, or numbers in [0, 1] "
        f"without NaN; these are {words}: divide them by the value that is white"
    )


def _scaled(pixels: np.ndarray, white: int, labels: np.ndarray | None) -> Images:
    """Images of pixels ``[n, C, H, W]`` from 0 to ``white``."""
    high = pixels.max()
    if pixels.min() == high:
        raise ValueError("all pixels are the same: there is nothing to learn")
    if labels is not None and len(labels) != len(pixels):
        raise ValueError(f"there are {len(pixels)} images and {len(labels)} labels")
    if pixels.dtype.kind != "f" and high == 1:
        white = 1
    scaled = pixels.astype(np.float32, order="C")
    scaled /= white
    return Images(scaled, labels, _smallest_gap(pixels) / white)


def _smallest_gap(pixels: np.ndarray) -> float:
    """The smallest gap between two values; 0 for floating-point numbers with so many that they have no grid."""
    values = pixels[:0].ravel()
    for start in range(0, len(pixels), 200):
        values = np.union1d(values, pixels[start : start + 200])
        if pixels.dtype.kind == "f" and len(values) > 300:
            return 0.0
    return float(np.diff(values).min())


# -- arrays -----------------------------------------------------------------------------------------------


def _load(path: Path, x_names: Sequence[str], y_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """The first array of an ``.npz`` that has one of the names: of the pixels, and of the labels if any."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz: images come as a folder of pictures or as an .npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            present = list(file)
            found = [next((file[n] for n in names if n in present), None) for names in (x_names, y_names)]
    except Exception as error:  # a damaged zip file has errors of its own
        raise ValueError(f"{path} can't be read as .npz: {error}") from error
    if found[0] is None:
        raise ValueError(f"{path} holds no array {' or '.join(x_names[:2])}: it has {', '.join(present)}")
    return found[0], found[1]


def _named(path: Path, pixels: np.ndarray, labels: np.ndarray | None, known: np.ndarray | None) -> Images:
    """Images, or an error that names the file; ``known`` are the labels by which texts are numbered."""
    try:
        found = as_images(pixels, None if labels is None else _numbered(labels, known))
        if known is not None and known.dtype.kind == "U":
            return found._replace(classes=tuple(_in_order(known.ravel().tolist())))
        return found
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _numbered(labels: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """Labels as whole numbers ``[n]``.

    Raises:
        ValueError: for labels that are neither whole numbers nor texts that are known.
    """
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    kind, texts_are_known = labels.dtype.kind, known is not None and known.dtype.kind == "U"
    is_whole = kind in "biu" or (
        kind == "f" and np.isfinite(labels).all() and bool((labels == np.floor(labels)).all())
    )
    if labels.ndim != 1 or not (kind == "U" if texts_are_known else is_whole):
        raise ValueError(
            "labels must be one whole number or one text for each image, without NaN, and alike for training and "
            f"test, got {labels.dtype} {list(labels.shape)}"
        )
    if known is None or not texts_are_known:
        return labels.astype(np.int64)
    classes = _in_order(known.ravel().tolist())
    unknown = sorted(set(labels.tolist()) - set(classes))
    if unknown:
        raise ValueError(f"no training image has the label {unknown[0]!r}")
    return _positions(labels.tolist(), classes)


def _in_order(names: Iterable[str]) -> list[str]:
    """The distinct names in the order of the alphabet, or by number if they are all numbers: 2 before 10."""
    distinct = sorted(set(names))
    return sorted(distinct, key=int) if all(name.isdecimal() for name in distinct) else distinct


def _positions(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    numbers = {name: k for k, name in enumerate(classes)}
    return np.array([numbers[name] for name in names], np.int64)


# -- pictures ---------------------------------------------------------------------------------------------


class _Picture(NamedTuple):
    """A picture: its pixels ``[H, W]`` or ``[H, W, 3]``, the value of white, and whether it had a palette."""

    pixels: np.ndarray
    white: int
    has_palette: bool = False

    @property
    def is_grey(self) -> bool:
        """Whether it has no colour; RGB is colour even if it shows none."""
        return self.pixels.ndim == 2 or (self.has_palette and not np.ptp(self.pixels, -1).any())


def _read_folder(folder: Path) -> Images:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES)
    files = [f for f in files if not any(map(_is_hidden, f.relative_to(folder).parts))]
    if not files:
        raise ValueError(f"{folder} holds no pictures")
    pictures = [_read_picture(file) for file in files]
    if all(picture.is_grey for picture in pictures):
        # A palette is no sign of colour: GIF and small PNG files of grey pictures have one too.
        pictures = [p._replace(pixels=p.pixels if p.pixels.ndim == 2 else p.pixels[..., 0]) for p in pictures]
    shapes = {p.pixels.shape: f.relative_to(folder) for f, p in zip(files, pictures, strict=True)}
    if len(shapes) > 1:
        some = [f"{f} is {s[0]} x {s[1]} in {'colour' if s[2:] else 'grey'}" for s, f in shapes.items()]
        raise ValueError(
            f"the pictures in {folder} differ in size or colour: {', '.join(some[:3])}; make them alike"
        )
    if len({picture.white for picture in pictures}) == 1:
        white, pixels = pictures[0].white, np.stack([p.pixels for p in pictures])
    else:
        white, pixels = 1, np.stack([p.pixels.astype(np.float32) / p.white for p in pictures])
    names = [file.parent.relative_to(folder).as_posix() for file in files]
    classes = _in_order(names)
    if len(classes) > 1 and "." in classes:
        beside = files[names.index(".")].name
        raise ValueError(
            f"in {folder} some pictures lie in subfolders, which are labels, and {beside} lies beside these: put "
            "it into the subfolder of its label, or all pictures into one folder"
        )
    labels = _positions(names, classes) if len(classes) > 1 else None
    try:
        found = _scaled(pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2), white, labels)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    paths = tuple(file.relative_to(folder).as_posix() for file in files)
    return found._replace(files=paths, classes=None if labels is None else tuple(classes))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _read_picture(file: Path) -> _Picture:
    """A picture, upright.

    Raises:
        ValueError: if it can't be read, has several pages or transparent pixels, or it is not known what is white.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        # Pillow maps a file that it opens by name into memory, and scrambles a grey TIFF that is to be turned.
        with file.open("rb") as stream, Image.open(stream) as opened:
            # The further pictures in an MPO, as phones save JPEG, are previews of the first.
            n_pages = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
            tags = getattr(opened, "tag_v2", {})
            n_bits, is_negative = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_PHOTOMETRIC) == 0
            picture = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        raise ValueError(f"{file} can't be read as a picture: mend or remove it") from error
    except Exception as error:  # a damaged picture has errors of many kinds
        reason = str(error) or type(error).__name__
        raise ValueError(f"{file} can't be read as a picture ({reason}): mend or remove it") from error
    if n_pages > 1:
        raise ValueError(f"{file} has {n_pages} pages or frames: save each as a picture of its own")
    if picture.mode == "F" or picture.mode.startswith("I"):
        found = _deep_picture(file, np.asarray(picture), n_bits)
        clear = np.asarray(picture) == picture.info.get("transparency", -1)
        # Pillow turns a negative (white is 0) round for 8 bits, and not for more.
        found = found._replace(pixels=found.white - found.pixels) if is_negative else found
    else:
        has_alpha = picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info
        clear = np.asarray(picture.convert("RGBA"))[..., 3] < 255 if has_alpha else np.zeros(1, bool)
        picture.info.pop("transparency", None)
        is_grey = picture.mode in ("1", "L", "LA")
        pixels = np.asarray(picture.convert("L" if is_grey else "RGB"))
        found = _Picture(pixels, 255, picture.mode in ("P", "PA"))
    if clear.any():
        raise ValueError(f"{file} has transparent pixels: flatten it on a background first")
    return found


def _deep_picture(file: Path, values: np.ndarray, n_bits: int) -> _Picture:
    """A grey picture of more than 8 bits, of values ``[H, W]``."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{file} has floating-point values from {low:g} to {high:g}: scale them to [0, 1], or save it "
                "with 8 or 16 bits"
            )
        return _Picture(values, 1)
    if low < 0 or high > _WHITE_16:
        raise ValueError(f"{file} has whole numbers from {low} to {high}: save it with 8 or 16 bits")
    if n_bits == 32 and 0 < high <= 255:
        raise ValueError(
            f"{file} has 32 bits and values up to {high}, which may be those of 8 or 16 bits: save it with either"
        )
    return _Picture(values.astype(np.uint16), 2 ** min(n_bits, 16) - 1)


# -- images out -------------------------------------------------------------------------------------------


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
