"""What estimators with a generator share: images or tables in, draws in their units out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from thalweg.data.images import as_images, pixels_like
from thalweg.data.target import find_resolution, location_and_scale, most_frequent, rounded
from thalweg.estimators._base import Estimator, check_count, count_weights
from thalweg.estimators._whole_rows import check_columns, table_of_numbers
from thalweg.evaluation.row_checks import check_copies, check_modes, check_variety
from thalweg.evaluation.verdict import Check, check_rows, check_training

ROWS_AT_ONCE, _ROWS_JUDGED = 2048, 2000
NETWORKS = ("auto", "perceptron", "convolutional")
# More numbers than that in an image are left to convolutions.
_PIXELS_OF_A_PERCEPTRON = 400


class GeneratingEstimator(Estimator):
    """A model of images in [0, 1], or of standardised rows, that draws by a network."""

    image_shape_: tuple[int, ...] | None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _read(self, X: Any, seed: int) -> tuple[Tensor, float]:
        """The images in [0, 1] and one grey level, or the standardised rows and 0, in single precision."""
        if np.ndim(X) >= 3:
            found = as_images(np.asarray(X))
            images = torch.from_numpy(found.pixels)
            if len(images) < 2:
                raise ValueError("there is one image: a generator needs at least two")
            if not bool(torch.isfinite(images).all()):
                raise ValueError("the images contain NaN or infinity")
            if bool((images == images[0]).all()):
                raise ValueError("all images are the same: there is nothing to learn")
            self.image_shape_ = tuple(int(v) for v in images.shape[1:])
            self.resolution_ = np.array(found.resolution)
            return images, found.resolution
        X = validate_data(self, table_of_numbers(X), dtype=np.float64, ensure_min_samples=2)
        check_columns(X, getattr(self, "feature_names_in_", range(X.shape[1])))
        self.image_shape_ = None
        self.location_, self.scale_ = location_and_scale(X)
        self.resolution_ = np.array([find_resolution(column) for column in X.T])
        self.origin_ = np.array([most_frequent(column) for column in X.T])
        spread = self.resolution_ * (np.random.RandomState(seed).uniform(size=X.shape) - 0.5)
        return torch.as_tensor((X - self.location_ + spread) / self.scale_, dtype=torch.float32), 0.0

    def _width(self, event: tuple[int, ...]) -> int | None:
        """Channels of the finest layer of convolutions, or None where perceptrons suit."""
        convolutional = self.network == "convolutional"
        if self.network == "auto":
            halves = len(event) == 3 and not (event[1] % 4 or event[2] % 4)
            convolutional = halves and math.prod(event) > _PIXELS_OF_A_PERCEPTRON
        return self.width if convolutional else None

    @property
    def n_weights_(self) -> int:
        """Number of weights of all networks."""
        return count_weights(*self._modules().values())

    def _check_network(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {self.network!r}")

    def _checks(self, n_rows: int, some: Tensor, drawn: Tensor) -> list[Check]:
        """What can be said of the model from its draws and some of the rows that it learned from."""
        training = check_training({"training": self.history_}, by_held_out=False)
        is_image = self.image_shape_ is not None
        enough = check_rows(n_rows, None if is_image else some.shape[1], "image" if is_image else "row")
        if not bool(torch.isfinite(drawn).all()):
            return [enough, training, Check("samples", "failed", "Some draws are not finite.")]
        pair = drawn.numpy(), some.numpy()
        return [enough, training, check_variety(*pair), check_modes(*pair), check_copies(*pair)]

    @staticmethod
    def _some(rows: Tensor, numbers: torch.Generator) -> Tensor:
        """Rows that are compared with draws."""
        return rows[torch.randperm(len(rows), generator=numbers)[:_ROWS_JUDGED]]

    def _drawn(self, n_samples: int, draw: Callable[[int], Tensor]) -> np.ndarray:
        """Draws in the units of the data, from what draws some of them in those of the networks."""
        check_is_fitted(self, "energy_")
        check_count("n_samples", n_samples)
        sizes = [len(part) for part in torch.arange(n_samples).split(ROWS_AT_ONCE)]
        with torch.no_grad():
            drawn = torch.cat([draw(size) for size in sizes])
        return drawn.numpy() if self.image_shape_ else self._on_grids(self.energy_.back(drawn).numpy())

    def _rows(self, X: Any) -> Tensor:
        """Images in single precision, or rows in their own units in double."""
        check_is_fitted(self, "energy_")
        if self.image_shape_:
            return torch.from_numpy(pixels_like(X, self.image_shape_))
        return torch.from_numpy(validate_data(self, table_of_numbers(X), reset=False, dtype=np.float64))

    def _energies(self, X: Any) -> np.ndarray:
        """E of images or rows ``[n]``."""
        with torch.no_grad():
            parts = [self.energy_(x) for x in self._rows(X).split(ROWS_AT_ONCE)]
        return torch.cat(parts).double().numpy()

    def _on_grids(self, x: np.ndarray) -> np.ndarray:
        """Rows with rounded columns on their grids."""
        for k in np.flatnonzero(self.resolution_):
            x[:, k] = rounded(x[:, k], self.origin_[k], self.resolution_[k])
        return x

    def _config(self) -> dict[str, Any]:
        if self.image_shape_:
            return {"image_shape": list(self.image_shape_), "resolution": float(self.resolution_)}
        return {"image_shape": None, "resolution": self.resolution_.tolist(), "origin": self.origin_.tolist()}

    def _read_config(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[int, ...]:
        """Take back what :meth:`_config` gave; the shape of an event."""
        shape = config["image_shape"]
        self.image_shape_ = None if shape is None else tuple(shape)
        # Older models of images do not say it.
        self.resolution_ = np.array(config.get("resolution", 0.0))
        if self.image_shape_ is None:
            self.origin_ = np.array(config["origin"])
            self.location_, self.scale_ = (tensors[f"energy.{name}"].numpy() for name in ("location", "scale"))
        return self.image_shape_ or (self.n_features_in_,)
