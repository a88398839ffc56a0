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
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg._torch_state import seeded
from thalweg.energies.base import Energy
from thalweg.energies.networks.autoencoder import AutoencoderEnergy, autoencoder_energy, encoding_network
from thalweg.energies.networks.generator import Generator, NoisyGenerator, generating_network
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.energies.networks.module import ModuleEnergy
from thalweg.estimators._base import (
    RandomState,
    check_count,
    check_counts,
    check_widths,
    count_weights,
    draw_seed,
    generator_of,
)
from thalweg.estimators._generators import ROWS_AT_ONCE, GeneratingEstimator
from thalweg.estimators._rescaled import Standardised
from thalweg.evaluation.row_checks import check_balance
from thalweg.objectives.amortised_sampling import VERA
from thalweg.objectives.base import Adversarial, Batch
from thalweg.objectives.generative_adversarial import BEGAN, EBGAN, GAN, KALE, MAGAN
from thalweg.sampling.latent_space import LatentSampler
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import BarProgress


class _Kind(NamedTuple):
    """What suits one of the objectives.

    Attributes:
        distance: of a reconstruction; "" where there is no autoencoder.
        n_codes: numbers in a code where the user names none.
        options: settings that it has beside those of all, where the user names none.
        learning_rate: where the user names none.
        n_steps: of the chains in latent space that correct a draw, where the user names none.
    """

    distance: str
    n_codes: int
    options: dict[str, float | None]
    learning_rate: float = 5e-4
    n_steps: int = 0


# The squared distance would leave the energy without a gradient where a generator has found what is reconstructed
# perfectly: one training in ten by "magan" failed.
KINDS = {
    "ebgan": _Kind("euclidean", 16, {"margin": None, "pulling_away": 0.1}),
    "magan": _Kind("euclidean", 16, {"margin": None}),
    "began": _Kind("absolute", 8, {"gamma": 0.95, "k_rate": 0.01}),
    "gan": _Kind("", 0, {}),
    "vera": _Kind("", 0, {"entropy_weight": 1e-3, "penalty": 0.1}, 1e-3),
    "gebm": _Kind("", 0, {"penalty": 0.1}, 2e-3, 50),
}
OPTIONS = ("margin", "pulling_away", "gamma", "k_rate", "entropy_weight", "penalty")


class EnergyGAN(GeneratingEstimator):
    """An energy, low at data and high at a generator's draws, and the generator, which makes what has low energy.

    Draws are one pass of the generator, independent of one another; there is no chain, but that by which the
    energy of "gebm" corrects each draw. The energy is that of an autoencoder, low where a row is reconstructed
    well: it ranks and finds outsiders, and is no density. "gan", "gebm" and "vera" have any network of one number
    in its place.

    Rows of tables are standardised within. Columns that are rounded (counts, whole years, two decimals) are
    recognised: they are spread over their rounding cells in training, and draws are rounded.

    Args:
        kind: "ebgan" (a margin, and draws that pull away from one another), "magan" (a margin that falls as the
            energy learns), "began" (draws are kept at a ratio of the energy of the data), "gan", "gebm" (an energy
            that corrects the generator by likelihood), or "vera" (a generator that follows the energy, which
            learns by likelihood). Only "gan" copes with images that are mostly empty.
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
        entropy_weight: of "vera", weight of the entropy of the draws; None is 1e-3. With 1 the energy is that of a
            density, and less makes draws sharper.
        penalty: of "vera" and "gebm", weight of half the squared gradient of the energy; None is 0.1.
        batch_size: rows of data, and draws, in an update.
        learning_rate: of both players; None is 5e-4, of "vera" and "gebm" 1e-3 and 2e-3.
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
        resolution_: spacing found for each column of a table, or one grey level; 0 where it is not rounded.
        history_: :class:`~thalweg.training.history.History`; "loss" is the energy's, "generator loss" the other's.
        n_features_in_, feature_names_in_: as in scikit-learn, for a table.

    Source: [Zhao 2017] for "ebgan", [Wang 2017] for "magan", [Berthelot 2017] for "began", [Goodfellow 2014] for
    "gan", [Arbel 2021] for "gebm", [Grathwohl 2021b] for "vera".

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data
        >>> model = EnergyGAN(max_steps=400, random_state=0).fit(X)
        >>> model.sample(5, random_state=0).shape, model.score_samples(X).shape
        ((5, 4), (150,))
    """

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
        entropy_weight: float | None = None,
        penalty: float | None = None,
        batch_size: int = 64,
        learning_rate: float | None = None,
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
        rows, _ = self._read(X, seed)
        batch_size = min(self.batch_size, len(rows))
        per_epoch = max(1, len(rows) // batch_size)
        with seeded(seed):
            inner, self.generator_ = self._build(tuple(rows.shape[1:]))
        objective = self._objective(options, float(rows.var(0, correction=0).sum()), per_epoch)
        plan = Plan(
            max_epochs=math.ceil(self.max_steps / per_epoch),
            max_steps=self.max_steps,
            batch_size=batch_size,
            learning_rate=self._kind.learning_rate if self.learning_rate is None else self.learning_rate,
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
        some = self._some(rows, numbers)
        with torch.no_grad():
            drawn = self._draw(len(some), numbers)
            checks = self._checks(len(rows), some, drawn)
            if isinstance(objective, BEGAN) and len(checks) > 3:
                checks.append(check_balance(objective.gamma, *(float(inner(x).mean()) for x in (some, drawn))))
        self._conclude(checks)
        return self

    def _check_settings(self) -> dict[str, float | None]:
        """The options of the kind.

        Raises:
            ValueError: for settings that can't be used.
        """
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        self._check_network()
        options = dict(self._kind.options)
        for name in OPTIONS:
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
        width, hidden = self._width(event), check_widths(self.hidden)
        network = generating_network(event, self.latent_dim, check_widths(self.generator_hidden), width)
        generator = Generator(network, self.latent_dim)
        if self.kind == "vera":
            # The published range is for images in [-1, 1].
            least, most = (0.005, 0.15) if len(event) == 3 else (0.01, 0.3)
            generator = NoisyGenerator(network, self.latent_dim, 4 * least, least, most)
        if not self._kind.distance:
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
        if self.kind == "vera":
            assert isinstance(self.generator_, NoisyGenerator)
            return VERA(self.generator_, **options)
        return {"began": BEGAN, "gebm": KALE, "gan": GAN}[self.kind](self.generator_, **options)

    @property
    def _kind(self) -> _Kind:
        return KINDS[self.kind]

    # -- use -----------------------------------------------------------------------------------------

    def sample(
        self, n_samples: int = 1, *, random_state: RandomState = None, n_steps: int | None = None
    ) -> np.ndarray:
        """New images ``[n_samples, C, H, W]`` in [0, 1], or new rows ``[n_samples, columns]``, all independent.

        Args:
            random_state: seed, or a ``RandomState``.
            n_steps: of chains in the latent space, one for each draw, that correct the draws by the energy (see
                :class:`~thalweg.sampling.LatentSampler`); of "gan" and "gebm", whose energies are ratios of
                densities. None is 50 of "gebm", which is a model of such draws, and 0 of all others.

        Raises:
            ValueError: for steps with another kind.
        """
        check_is_fitted(self, "energy_")
        steps = self._kind.n_steps if n_steps is None else n_steps
        check_count("n_steps", steps, least=0)
        if n_steps and self.kind not in ("gan", "gebm"):
            raise ValueError(
                f"n_steps is for kind='gan' and 'gebm': the energy of {self.kind!r} is no ratio of densities"
            )
        generator = generator_of(random_state)
        if not steps:
            return self._drawn(n_samples, lambda n: self._draw(n, generator))
        inner = self.energy_ if self.image_shape_ else self.energy_.inner
        sampler = LatentSampler(self.generator_, inner, self.latent_dim, n_steps=steps)
        return self._drawn(n_samples, lambda n: sampler.draw(n, generator))

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws of the generator; of images without the noise that they have in training."""
        if self.image_shape_ and isinstance(self.generator_, NoisyGenerator):
            return self.generator_.means(n, generator)
        return self.generator_.draw(n, generator)

    def score_samples(self, X: Any) -> np.ndarray:
        """-E ``[n]``: the higher, the more like the data. Not normalised, so no nats."""
        return -self._energies(X)

    def reconstruct(self, X: Any) -> np.ndarray:
        """What the autoencoder makes of images ``[n, C, H, W]``, or of rows ``[n, columns]`` in their own units.

        Raises:
            ValueError: for "gan", "vera" and "gebm", which have no autoencoder.
        """
        rows = self._rows(X)
        if not self._kind.distance:
            raise ValueError(f"kind={self.kind!r} has no autoencoder that could reconstruct: take another kind")
        with torch.no_grad():
            parts = [self._reconstructed(x) for x in rows.split(ROWS_AT_ONCE)]
        return torch.cat(parts).numpy()

    def _reconstructed(self, x: Tensor) -> Tensor:
        if self.image_shape_:
            assert isinstance(self.energy_, AutoencoderEnergy)
            return self.energy_.reconstruct(x)
        return self.energy_.back(self.energy_.inner.reconstruct(self.energy_.forth(x)))

    # -- saving --------------------------------------------------------------------------------------

    def _modules(self) -> dict[str, nn.Module]:
        return {"energy": self.energy_, "generator": self.generator_}

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.energy_, self.generator_ = self._build(self._read_config(config, tensors))
        if self.image_shape_ is None:
            self.energy_ = Standardised(self.energy_, self.location_, self.scale_)
