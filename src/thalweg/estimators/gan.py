"""``EnergyGAN``: an energy and a generator of images or of rows of numbers, trained against each other."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg._torch_state import seeded
from thalweg.data.images import as_images, pixels_like
from thalweg.data.target import find_resolution, location_and_scale, most_frequent, rounded
from thalweg.energies.base import Energy
from thalweg.energies.networks.autoencoder import AutoencoderEnergy, autoencoder_energy, encoding_network
from thalweg.energies.networks.generator import Generator, generating_network
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.energies.networks.module import ModuleEnergy
from thalweg.estimators._base import (
    Estimator,
    RandomState,
    check_count,
    check_counts,
    check_widths,
    count_weights,
    draw_seed,
    generator_of,
)
from thalweg.estimators._rescaled import Standardised
from thalweg.estimators._whole_rows import check_columns, table_of_numbers
from thalweg.evaluation.row_checks import check_balance, check_copies, check_modes, check_variety
from thalweg.evaluation.verdict import Check, check_rows, check_training
from thalweg.objectives.base import Adversarial, Batch
from thalweg.objectives.generative_adversarial import BEGAN, EBGAN, GAN, MAGAN
from thalweg.sampling.latent_space import LatentSampler
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import BarProgress

# More numbers than that in an image are left to convolutions.
_PIXELS_OF_A_PERCEPTRON = 400
_ROWS_AT_ONCE, _ROWS_JUDGED = 2048, 2000


class _Kind(NamedTuple):
    """What suits one of the objectives.

    Attributes:
        distance: of a reconstruction; "" where there is no autoencoder.
        n_codes: numbers in a code where the user names none.
        options: settings that it has beside those of all, where the user names none.
    """

    distance: str
    n_codes: int
    options: dict[str, float | None]


# The squared distance would leave the energy without a gradient where a generator has found what is reconstructed
# perfectly: one training in ten by "magan" failed.
KINDS = {
    "ebgan": _Kind("euclidean", 16, {"margin": None, "pulling_away": 0.1}),
    "magan": _Kind("euclidean", 16, {"margin": None}),
    "began": _Kind("absolute", 8, {"gamma": 0.95, "k_rate": 0.01}),
    "gan": _Kind("", 0, {}),
}


class EnergyGAN(Estimator):
    """An energy, low at data and high at a generator's draws, and the generator, which makes what has low energy.

    Draws are one pass of the generator, independent of one another; there is no chain. The energy is that of an
    autoencoder, low where a row is reconstructed well: it ranks and finds outsiders, and is no density. The plain
    "gan" has a classifier's logit in its place.

    Rows of tables are standardised within. Columns that are rounded (counts, whole years, two decimals) are
    recognised: they are spread over their rounding cells in training, and draws are rounded.

    Args:
        kind: "ebgan" (a margin, and draws that pull away from one another), "magan" (a margin that falls as the
            energy learns), "began" (draws are kept at a ratio of the energy of the data), or "gan", which alone
            copes with images that are mostly empty.
        network: "perceptron", "convolutional" (for images whose sides are multiples of 4), or "auto": a perceptron
            for tables and up to 400 numbers in an image.
        hidden: widths of the encoder's hidden layers, those of the decoder in reverse, of perceptrons.
        generator_hidden: widths of the generator's hidden layers, of a perceptron.
        width: channels of the finest layer of networks of convolutions.
        n_codes: numbers in a code of the autoencoder; None is 16 for images (8 of "began"), and half as many as
            there are columns for a table, at most so many.
        latent_dim: normal numbers from which the generator makes a draw.
        margin: of "magan" where it starts, None by a training of the energy alone; of "ebgan" the margin, None
            0.65 times the root of the variance of the data, summed over pixels or columns.
        pulling_away: of "ebgan", weight of the pulling-away term; None is 0.1.
        gamma: of "began", ratio of the energy of draws to that of the data; None is 0.95. Less makes the draws
            sharper, and at about 0.5 all alike.
        k_rate: of "began", how fast the weight of the draws follows the balance; None is 0.01.
        batch_size: rows of data, and draws, in an update.
        learning_rate: of both players.
        max_steps: updates, those of the energy and of the generator counted together.
        ema_decay: decay of the moving average of all weights that is kept in their place; None keeps the last.
        device, devices, num_nodes, strategy, precision: see :class:`lightning_fabric.Fabric`; ``device`` is its
            accelerator. One process trains.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the energy of images in [0, 1] ``[*batch, C, H, W]``, or of rows in their own units.
        generator_: the :class:`~thalweg.energies.networks.generator.Generator`, of images in [0, 1] or of
            standardised rows.
        image_shape_: (C, H, W), or None for a table.
        resolution_: spacing found for each column of a table, 0 where it is not rounded.
        history_: :class:`~thalweg.training.history.History`; "loss" is the energy's, "generator loss" the other's.
        n_features_in_, feature_names_in_: as in scikit-learn, for a table.

    Source: [Zhao 2017] for "ebgan", [Wang 2017] for "magan", [Berthelot 2017] for "began", [Goodfellow 2014] for
    "gan".

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data
        >>> model = EnergyGAN(max_steps=400, random_state=0).fit(X)
        >>> model.sample(5, random_state=0).shape, model.score_samples(X).shape
        ((5, 4), (150,))
    """

    image_shape_: tuple[int, ...] | None

    def __init__(
        self,
        kind: str = "ebgan",
        *,
        network: str = "auto",
        hidden: Sequence[int] = (128,),
        generator_hidden: Sequence[int] = (128, 128),
        width: int = 16,
        n_codes: int | None = None,
        latent_dim: int = 16,
        margin: float | None = None,
        pulling_away: float | None = None,
        gamma: float | None = None,
        k_rate: float | None = None,
        batch_size: int = 64,
        learning_rate: float = 5e-4,
        max_steps: int = 12000,
        ema_decay: float | None = 0.995,
        device: str = "cpu",
        devices: int = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "32-true",
        n_threads: int | None = None,
        verbose: bool = False,
        random_state: RandomState = None,
    ):
        self._keep(locals())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # -- fitting -------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> EnergyGAN:
        """Train the energy and the generator.

        Args:
            X: images ``[n, H, W]``, ``[n, H, W, C]`` or ``[n, C, H, W]``, bytes or numbers in [0, 1]; or a table
                ``[n, columns]`` of numbers without gaps, no column constant.
            y: ignored.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoint in run_dir; the result is that of a run never interrupted.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for data or settings that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        options = self._check_settings()
        seed = draw_seed(check_random_state(self.random_state))
        rows = self._read(X, seed)
        batch_size = min(self.batch_size, len(rows))
        per_epoch = max(1, len(rows) // batch_size)
        with seeded(seed):
            inner, self.generator_ = self._build(tuple(rows.shape[1:]))
        objective = self._objective(options, float(rows.var(0, correction=0).sum()), per_epoch)
        plan = Plan(
            max_epochs=math.ceil(self.max_steps / per_epoch),
            max_steps=self.max_steps,
            batch_size=batch_size,
            learning_rate=self.learning_rate,
            schedule="constant",
            ema_decay=self.ema_decay,
            checkpoint_seconds=checkpoint_seconds,
            seed=seed,
        )
        with self._threads(batch_size, count_weights(inner, self.generator_)):
            trainer = Trainer(
                plan,
                self._make_fabric(),
                None if run_dir is None else Path(run_dir),
                BarProgress() if self.verbose else None,
            )
            self.history_ = trainer.fit(inner, objective, Batch(None, rows), resume=resume)
        inner, self.generator_ = inner.cpu().eval(), self.generator_.cpu().eval()
        numbers = torch.Generator().manual_seed(seed)
        if self.ema_decay is not None:
            self.generator_.renew_statistics(batch_size, numbers)
        self.energy_ = inner if self.image_shape_ else Standardised(inner, self.location_, self.scale_)
        self._conclude(self._checks(inner, rows, numbers, options))
        return self

    def _read(self, X: Any, seed: int) -> Tensor:
        """The images in [0, 1], or the standardised rows, in single precision."""
        if np.ndim(X) >= 3:
            found = torch.from_numpy(as_images(np.asarray(X)).pixels)
            if len(found) < 2:
                raise ValueError("there is one image: a generator needs at least two")
            if not bool(torch.isfinite(found).all()):
                raise ValueError("the images contain NaN or infinity")
            self.image_shape_ = tuple(int(v) for v in found.shape[1:])
            return found
        X = validate_data(self, table_of_numbers(X), dtype=np.float64, ensure_min_samples=2)
        check_columns(X, getattr(self, "feature_names_in_", range(X.shape[1])))
        self.image_shape_ = None
        self.location_, self.scale_ = location_and_scale(X)
        self.resolution_ = np.array([find_resolution(column) for column in X.T])
        self.origin_ = np.array([most_frequent(column) for column in X.T])
        spread = self.resolution_ * (np.random.RandomState(seed).uniform(size=X.shape) - 0.5)
        return torch.as_tensor((X - self.location_ + spread) / self.scale_, dtype=torch.float32)

    def _check_settings(self) -> dict[str, float | None]:
        """The options of the kind.

        Raises:
            ValueError: for settings that can't be used.
        """
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if self.network not in ("auto", "perceptron", "convolutional"):
            raise ValueError(f"network must be auto, perceptron or convolutional, got {self.network!r}")
        options = dict(self._kind.options)
        for name in ("margin", "pulling_away", "gamma", "k_rate"):
            value = getattr(self, name)
            if value is not None and name not in options:
                raise ValueError(f"{name} is no setting of kind={self.kind!r}: leave it out")
            if value is not None:
                options[name] = float(value)
        check_counts(self, "width", "latent_dim", "max_steps")
        check_count("batch_size", self.batch_size, 2)
        if self.n_codes is not None:
            check_count("n_codes", self.n_codes)
        check_widths(self.hidden)
        check_widths(self.generator_hidden)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must be between 0 and 1, or None, got {self.ema_decay}")
        self._check_training(several_processes=False)
        return options

    def _build(self, event: tuple[int, ...]) -> tuple[Energy, Generator]:
        convolutional = self.network == "convolutional"
        if self.network == "auto":
            halves = len(event) == 3 and not (event[1] % 4 or event[2] % 4)
            convolutional = halves and math.prod(event) > _PIXELS_OF_A_PERCEPTRON
        width, hidden = self.width if convolutional else None, check_widths(self.hidden)
        network = generating_network(event, self.latent_dim, check_widths(self.generator_hidden), width)
        generator = Generator(network, self.latent_dim)
        if self.kind == "gan":
            logit = nn.Sequential(encoding_network(event, 1, hidden, width), nn.Flatten(0))
            support = UNIT_IMAGES if len(event) == 3 else constraints.real_vector
            return ModuleEnergy(logit, event_ndim=len(event), support=support), generator
        n_codes = self.n_codes
        if n_codes is None:
            most = self._kind.n_codes
            n_codes = most if len(event) == 3 else min(most, max(1, event[0] // 2))
        return autoencoder_energy(event, n_codes, hidden, width, self._kind.distance), generator

    def _objective(self, options: dict[str, Any], variance: float, per_epoch: int) -> Adversarial:
        if self.kind == "magan":
            return MAGAN(self.generator_, per_epoch, 0 if options["margin"] else 2 * per_epoch, options["margin"])
        if self.kind == "ebgan":
            margin = 0.65 * math.sqrt(variance) if options["margin"] is None else options["margin"]
            return EBGAN(self.generator_, margin, options["pulling_away"])
        return BEGAN(self.generator_, **options) if self.kind == "began" else GAN(self.generator_)

    def _checks(
        self, inner: Energy, rows: Tensor, numbers: torch.Generator, options: dict[str, Any]
    ) -> list[Check]:
        """What can be said of the model from its draws and the rows that it learned from."""
        some = rows[torch.randperm(len(rows), generator=numbers)[:_ROWS_JUDGED]]
        with torch.no_grad():
            drawn = self.generator_.draw(len(some), numbers)
        training = check_training({"training": self.history_}, by_held_out=False)
        is_image = self.image_shape_ is not None
        n_rows = check_rows(len(rows), None if is_image else rows.shape[1], "image" if is_image else "row")
        if not bool(torch.isfinite(drawn).all()):
            return [n_rows, training, Check("samples", "failed", "Some draws are not finite.")]
        pair = drawn.numpy(), some.numpy()
        found = [n_rows, training, check_variety(*pair), check_modes(*pair), check_copies(*pair)]
        if self.kind == "began":
            with torch.no_grad():
                found.append(check_balance(options["gamma"], *(float(inner(x).mean()) for x in (some, drawn))))
        return found

    @property
    def _kind(self) -> _Kind:
        return KINDS[self.kind]

    # -- use -----------------------------------------------------------------------------------------

    def sample(self, n_samples: int = 1, *, random_state: RandomState = None, n_steps: int = 0) -> np.ndarray:
        """New images ``[n_samples, C, H, W]`` in [0, 1], or new rows ``[n_samples, columns]``, all independent.

        Args:
            random_state: seed, or a ``RandomState``.
            n_steps: of chains in the latent space, one for each draw, that correct the draws by the energy (see
                :class:`~thalweg.sampling.LatentSampler`); only of "gan", whose energy is a ratio of densities.

        Raises:
            ValueError: for steps with another kind.
        """
        check_is_fitted(self, "energy_")
        check_count("n_samples", n_samples)
        check_count("n_steps", n_steps, least=0)
        if n_steps and self.kind != "gan":
            raise ValueError(f"n_steps is for kind='gan': the energy of {self.kind!r} is no ratio of densities")
        generator = generator_of(random_state)
        sizes = [len(part) for part in torch.arange(n_samples).split(_ROWS_AT_ONCE)]
        if n_steps:
            inner = self.energy_ if self.image_shape_ else self.energy_.inner
            sampler = LatentSampler(self.generator_, inner, self.latent_dim, n_steps=n_steps)
            drawn = torch.cat([sampler.draw(size, generator) for size in sizes])
        else:
            with torch.no_grad():
                drawn = torch.cat([self.generator_.draw(size, generator) for size in sizes])
        return drawn.numpy() if self.image_shape_ else self._on_grids(self.energy_.back(drawn).numpy())

    def score_samples(self, X: Any) -> np.ndarray:
        """-E ``[n]``: the higher, the more like the data. Not normalised, so no nats."""
        rows = self._rows(X)
        with torch.no_grad():
            parts = [self.energy_(x) for x in rows.split(_ROWS_AT_ONCE)]
        return -torch.cat(parts).double().numpy()

    def reconstruct(self, X: Any) -> np.ndarray:
        """What the autoencoder makes of images ``[n, C, H, W]``, or of rows ``[n, columns]`` in their own units.

        Raises:
            ValueError: for kind="gan", which has no autoencoder.
        """
        rows = self._rows(X)
        if self.kind == "gan":
            raise ValueError("kind='gan' has no autoencoder that could reconstruct: take another kind")
        with torch.no_grad():
            parts = [self._reconstructed(x) for x in rows.split(_ROWS_AT_ONCE)]
        return torch.cat(parts).numpy()

    def _reconstructed(self, x: Tensor) -> Tensor:
        if self.image_shape_:
            assert isinstance(self.energy_, AutoencoderEnergy)
            return self.energy_.reconstruct(x)
        return self.energy_.back(self.energy_.inner.reconstruct(self.energy_.forth(x)))

    def _rows(self, X: Any) -> Tensor:
        """Images in single precision, or rows in their own units in double."""
        check_is_fitted(self, "energy_")
        if self.image_shape_:
            return torch.from_numpy(pixels_like(X, self.image_shape_))
        return torch.from_numpy(validate_data(self, table_of_numbers(X), reset=False, dtype=np.float64))

    def _on_grids(self, x: np.ndarray) -> np.ndarray:
        """Rows with rounded columns on their grids."""
        for k in np.flatnonzero(self.resolution_):
            x[:, k] = rounded(x[:, k], self.origin_[k], self.resolution_[k])
        return x

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        if self.image_shape_:
            return {"image_shape": list(self.image_shape_)}
        return {"image_shape": None, "resolution": self.resolution_.tolist(), "origin": self.origin_.tolist()}

    def _modules(self) -> dict[str, nn.Module]:
        return {"energy": self.energy_, "generator": self.generator_}

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        shape = config["image_shape"]
        self.image_shape_ = None if shape is None else tuple(shape)
        event = self.image_shape_ or (self.n_features_in_,)
        self.energy_, self.generator_ = self._build(event)
        if self.image_shape_ is None:
            self.resolution_, self.origin_ = np.array(config["resolution"]), np.array(config["origin"])
            self.location_, self.scale_ = (tensors[f"energy.{name}"].numpy() for name in ("location", "scale"))
            self.energy_ = Standardised(self.energy_, self.location_, self.scale_)
