"""A run on images: read, hold some out, train, measure, save."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from thalweg.data.images import Images, outliers, read_images
from thalweg.estimators.images import ImageEBM
from thalweg.evaluation.generation import copying_ratio, frechet_distance, pca_features
from thalweg.runs.folder import (
    begin_run,
    check_run,
    check_unchanged,
    finish_run,
    read_figures,
    read_run_settings,
    split_rows,
    versions,
)

TASK = "images"
_MAX_MEASURED = 2000
_FIGURES = {
    "images", "shape", "training_images", "test_images", "labels", "scores", "seconds", "events", "made_with",
}  # fmt: skip


@dataclass(frozen=True)
class ImageSettings:
    """What decides a run's result.

    Attributes:
        images: path of a folder of pictures or an ``.npz``.
        labels: whether to use the labels, where there are any.
        test_fraction: part of the images held out, in [0, 1).
        steps: updates.
        snapshots: of the weights, whose energies are averaged.
        seed: of the split and the training.
        threads: of PyTorch.
        checkpoint_seconds: least time between two checkpoints.
    """

    images: str
    labels: bool = True
    test_fraction: float = 0.1
    steps: int = 3000
    seed: int = 0
    threads: int | None = None
    checkpoint_seconds: float = 5.0
    snapshots: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"the test fraction must be above 0 and below 1, got {self.test_fraction}")


@dataclass
class FinishedImageRun:
    """A finished run: its settings, figures and model; the images are read again where they are asked for."""

    folder: Path
    settings: ImageSettings
    figures: dict[str, Any]
    model: ImageEBM

    @cached_property
    def images(self) -> tuple[Images, Images]:
        """Those it was trained on, and those held out.

        Raises:
            ValueError: if the images are gone, or others.
        """
        training, test, fingerprint = _split(self.settings)
        check_unchanged(self.folder, self.settings.images, fingerprint)
        return training, test


def fit_image_run(
    folder: Path,
    settings: ImageSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> FinishedImageRun:
    """Train an energy of images, measure it on images held out, and save it all.

    Raises:
        ValueError: for images or settings that can't be used, or a folder that holds another run.
        DivergenceError: if training can't be kept from diverging.
    """
    if check_run(folder, TASK, settings, resume=resume, overwrite=overwrite):
        tell("This run is finished already.")
        return load_image_run(folder)
    training, test, fingerprint = _split(settings)
    begin_run(folder, TASK, settings, settings.images, fingerprint, resume=resume)
    model = ImageEBM(
        max_steps=settings.steps,
        n_snapshots=settings.snapshots,
        n_threads=settings.threads,
        verbose=verbose,
        random_state=settings.seed,
    )
    model.fit(
        training.pixels,
        training.labels if settings.labels else None,
        run_dir=folder / "training",
        resume=resume,
        checkpoint_seconds=settings.checkpoint_seconds,
    )
    tell("Measuring the model: fresh chains, outsiders.")
    figures = {
        "images": Path(settings.images).name,
        "shape": list(model.image_shape_),
        "training_images": len(training.pixels),
        "test_images": len(test.pixels),
        "labels": model.n_labels_,
        "scores": _measured(model, training, test, settings.seed),
        "seconds": model.history_.seconds,
        "events": model.history_.events,
        "made_with": versions(),
    }
    model.save(folder / "model")
    finish_run(folder, figures)
    return FinishedImageRun(folder, settings, figures, model)


def _split(settings: ImageSettings) -> tuple[Images, Images, str]:
    """Training and test images, and the fingerprint of them all."""
    images = read_images(Path(settings.images))
    digest = hashlib.sha256(repr(images.pixels.shape).encode())
    digest.update(images.pixels.data)
    if images.labels is not None:
        digest.update(images.labels.data)
    rows, held_out = split_rows(len(images.pixels), settings.test_fraction, settings.seed)
    return images.rows(rows), images.rows(held_out), digest.hexdigest()


def _measured(model: ImageEBM, training: Images, test: Images, seed: int) -> dict[str, float]:
    rng = np.random.RandomState(seed)
    some = training.pixels[rng.permutation(len(training.pixels))[:_MAX_MEASURED]]
    n_components = min(20, len(some) - 1, some[0].size)
    features = pca_features(some, n_components)
    n = int(np.clip(len(some), 50, 1000))
    fresh = model.sample(n, n_steps=300, random_state=seed)
    copying = copying_ratio(fresh, some, test.pixels)
    scores = {
        "Frechet distance, fresh chains": frechet_distance(fresh, some, features),
        "Frechet distance, chains of the buffer": frechet_distance(model.buffer_[0].numpy(), some, features),
        "Frechet distance, images held out": frechet_distance(test.pixels, some, features),
        "nearest training image, fresh over held out (ratio of distances)": copying,
    }
    inside = model.score_samples(test.pixels)
    for kind, images in outliers(test.pixels, len(test.pixels), rng).items():
        truth = np.r_[np.ones(len(inside)), np.zeros(len(images))]
        scores[f"AUROC, {kind}"] = float(roc_auc_score(truth, np.r_[inside, model.score_samples(images)]))
    seen = model.score_samples(some)
    truth = np.r_[np.ones(len(seen)), np.zeros(len(inside))]
    scores["AUROC, training against held-out images"] = float(roc_auc_score(truth, np.r_[seen, inside]))
    return scores


def read_image_settings(folder: Path) -> ImageSettings:
    """The settings of a run on images.

    Raises:
        ValueError: if the folder holds no such run, or a damaged one.
    """
    return read_run_settings(folder, TASK, ImageSettings)


def score_images(folder: Path, path: Path) -> pd.DataFrame:
    """The score of every image (the higher, the more like the data; not normalised) and its likeliest label."""
    model = load_image_run(folder).model
    energies = model.energies(read_images(path).pixels)
    columns = {"score": -energies.min(1)}
    if model.n_labels_ > 1:
        columns["label"] = energies.argmin(1)
    return pd.DataFrame(columns)


def load_image_run(folder: Path) -> FinishedImageRun:
    """Read a finished run.

    Raises:
        ValueError: if the folder holds no run on images, an unfinished or a damaged one.
    """
    settings = read_image_settings(folder)
    figures = read_figures(folder, TASK, _FIGURES)
    return FinishedImageRun(folder, settings, figures, ImageEBM.load(folder / "model"))
