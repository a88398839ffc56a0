"""A run on images: read, hold some out, train, measure, save."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from thalweg.data.images import Images, outliers, read_images
from thalweg.estimators.images import ImageEBM
from thalweg.evaluation.generation import copying_ratio, frechet_distance, nearest_neighbours, pca_features
from thalweg.evaluation.row_checks import check_samples
from thalweg.evaluation.verdict import Check, check_held_out, check_ranking
from thalweg.runs.base import Run, Tell, TextTable
from thalweg.runs.kinds import ImageFigures
from thalweg.runs.settings import Settings
from thalweg.runs.settings.images import ImageSettings
from thalweg.runs.tables import beside, model_settings, places_of, split_rows

_MAX_MEASURED = 2000


@dataclass
class SplitImages:
    """Training images, those held out, and the fingerprint of them all."""

    training: Images
    test: Images
    fingerprint: str


class ImageRun(Run):
    """An energy of images, measured by what its chains make and how it ranks images held out and outsiders."""

    settings_class = ImageSettings
    figures_class = ImageFigures

    @cached_property
    def images(self) -> tuple[Images, Images]:
        """The training images and the held-out images.

        Raises:
            ValueError: if the images are missing, or have changed.
        """
        return self.data.training, self.data.test

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: Settings) -> SplitImages:
        images = read_images(Path(settings.data))
        rows, held_out = split_rows(len(images.pixels), settings.test_fraction, settings.seed)
        if len(held_out) < 2:
            raise ValueError(
                f"one of {len(images.pixels)} images would be held out, and nothing can be measured on it: give "
                "more images, or raise --test-fraction"
            )
        return SplitImages(images.rows(rows), images.rows(held_out), images.fingerprint())

    @classmethod
    def build(cls, settings: ImageSettings, data: SplitImages, verbose: bool) -> ImageEBM:
        return ImageEBM(
            objective=settings.objective,
            max_steps=settings.steps,
            n_snapshots=settings.snapshots,
            verbose=verbose,
            **model_settings(settings),
        )

    @classmethod
    def train(cls, model: ImageEBM, data: SplitImages, settings: ImageSettings, **how: Any) -> None:
        model.fit(data.training.pixels, data.training.labels if settings.labels else None, **how)

    @classmethod
    def measure(cls, model: ImageEBM, data: SplitImages, settings: ImageSettings, tell: Tell) -> dict[str, Any]:
        tell("Measuring the model: new images, and images of other kinds.")
        return {
            "images": Path(settings.data).name,
            "shape": list(model.image_shape_),
            "training_images": len(data.training.pixels),
            "test_images": len(data.test.pixels),
            "labels": model.n_labels_,
            "scores": _measured(model, data.training, data.test, settings.seed),
            "remarks": model.history_.events,
        }

    @classmethod
    def judge(
        cls, model: ImageEBM, data: SplitImages, figures: dict[str, Any], settings: ImageSettings
    ) -> list[Check]:
        n = len(data.test.pixels)
        fresh = model.sample(max(50, min(n, 200)), random_state=settings.seed + 1)
        what = "new images"
        return [
            check_held_out(n, n_known(data)),
            *_check_ranking(figures["scores"]),
            *check_samples(fresh, data.training.pixels, data.test.pixels, what),
        ]

    @classmethod
    def load_model(cls, folder: Path, settings: ImageSettings) -> ImageEBM:
        return ImageEBM.load(folder)

    # -- verbs ---------------------------------------------------------------------------------------

    def sample(self, n: int, seed: int = 0) -> np.ndarray:
        """n new images ``[n, C, H, W]``."""
        return self.model.sample(n, random_state=seed)

    def score(self, path: Path) -> pd.DataFrame:
        """``score`` of every image (not normalised; higher means more like the data) and its likeliest label.

        Each is after its file, or after its place in an array.
        """
        images = read_images(path)
        energies = self.model.energies(images.pixels)
        columns = {"score": -energies.min(1)}
        if self.model.n_labels_ > 1:
            columns["label"] = energies.argmin(1)
        return beside(places_of(images), pd.DataFrame(columns))

    # -- what is shown of it -------------------------------------------------------------------------

    def tables(self) -> list[TextTable]:
        figures = self.figures
        shape = " x ".join(map(str, figures["shape"]))
        title = f"{figures['images']}: {figures['training_images']} images of {shape}, "
        title += f"{figures['test_images']} held out"
        rows = [[name, f"{value:.4g}"] for name, value in figures["scores"].items()]
        return [TextTable(title, ["figure", "value"], rows, best=False)]

    def remarks(self) -> list[str]:
        n = self.settings.snapshots
        mean = [f"The energy is the mean of those of {n} snapshots of the weights."] if n > 1 else []
        return mean + super().remarks()


def _check_ranking(scores: dict[str, float]) -> list[Check]:
    found = {name.removeprefix("AUROC, "): value for name, value in scores.items() if name.startswith("AUROC, ")}
    training = found.pop("training against held-out images")
    return check_ranking(found, training)


def n_known(data: SplitImages) -> int:
    """How many of the held-out images are among the training images."""
    known = {image.tobytes() for image in data.training.pixels}
    return sum(image.tobytes() in known for image in data.test.pixels)


def _measured(model: ImageEBM, training: Images, test: Images, seed: int) -> dict[str, float]:
    rng = np.random.RandomState(seed)
    some = training.pixels[rng.permutation(len(training.pixels))[:_MAX_MEASURED]]
    n_components = min(20, len(some) - 1, some[0].size)
    features = pca_features(some, n_components)
    n = int(np.clip(len(some), 50, 1000))
    fresh = model.sample(n, random_state=seed)
    starts = model.starts(n, random_state=seed)
    scores = {
        "Frechet distance, new images": frechet_distance(fresh, some, features),
        "Frechet distance, where they start": frechet_distance(starts, some, features),
        "Frechet distance, images held out": frechet_distance(test.pixels, some, features),
    }
    if np.median(nearest_neighbours(test.pixels, some).distance) > 0:
        name = "nearest training image, new over held out (ratio of distances)"
        scores[name] = copying_ratio(fresh, some, test.pixels)
    inside = model.score_samples(test.pixels)
    for kind, images in outliers(test.pixels, len(test.pixels), rng).items():
        truth = np.r_[np.ones(len(inside)), np.zeros(len(images))]
        scores[f"AUROC, {kind}"] = float(roc_auc_score(truth, np.r_[inside, model.score_samples(images)]))
    seen = model.score_samples(some)
    truth = np.r_[np.ones(len(seen)), np.zeros(len(inside))]
    scores["AUROC, training against held-out images"] = float(roc_auc_score(truth, np.r_[seen, inside]))
    return scores
