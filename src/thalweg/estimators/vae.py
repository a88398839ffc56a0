"""``EnergyVAE``: a variational autoencoder of images or of rows of numbers, corrected by an energy."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg._torch_state import seeded
from thalweg.data.images import pixels_with_gaps
from thalweg.energies.base import Energy
from thalweg.energies.composition import WeightedSum
from thalweg.energies.densities import GaussianMixtureEnergy
from thalweg.energies.networks.convolutional import smooth_network
from thalweg.energies.networks.features import mlp
from thalweg.energies.networks.generator import FromBothNoises
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.energies.networks.module import ModuleEnergy
from thalweg.energies.networks.residual import Centre
from thalweg.energies.networks.variational import VariationalAutoencoder, variational_autoencoder
from thalweg.estimators._base import (
    RandomState,
    check_count,
    check_counts,
    check_widths,
    clear_parts,
    count_weights,
    draw_seed,
    generator_of,
    which_known,
)
from thalweg.estimators._generators import ROWS_AT_ONCE, GeneratingEstimator
from thalweg.estimators._normaliser import Normalised, Normaliser
from thalweg.estimators._rescaled import Rescaled
from thalweg.estimators._whole_rows import table_of_numbers
from thalweg.evaluation.row_checks import check_folds
from thalweg.evaluation.verdict import Check, check_normaliser
from thalweg.inference.behind_draws import complete_draws
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.evidence_bound import EvidenceBound
from thalweg.objectives.latent_contrast import LatentContrastiveDivergence
from thalweg.objectives.likelihood import dequantise
from thalweg.sampling.annealing import bracket_log_normaliser, summarised
from thalweg.sampling.buffer import ReplayBuffer
from thalweg.sampling.diagnostics import LARGEST_PARETO_K
from thalweg.sampling.langevin import Langevin
from thalweg.sampling.latent_space import LatentSampler
from thalweg.training.history import History
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import BarProgress

# Draws of the autoencoder by which log Z is estimated, the least effective number of them that is trusted, and the
# chains that are annealed where there are fewer.
_N_WEIGHED, _FEWEST_EFFECTIVE, _N_ANNEALED = 20_000, 1000, 256
# Fewest rows that are held out, from three times as many on.
_FEWEST_HELD_OUT = 20
# Looks at the held-out rows in a training.
_N_LOOKS = 100
# Chains that are kept, and the share of those of an update that start anew.
_N_KEPT, _RESTART = 2000, 0.1
# Steps of the chain behind a draw. More than in training: the chains of the buffer have taken many more as well.
_STEPS_OF_A_DRAW = 100
_PARTS = ("autoencoder", "energy")


class EnergyVAE(Normalised, GeneratingEstimator):
    """A variational autoencoder p_G(x), and an energy on top of it: p(x) = p_G(x) exp(-E(x)) / Z.

    The autoencoder covers all of the data and blurs it; the energy, which learns by contrastive divergence while
    the autoencoder stays as it is, takes away what is not like the data. Draws are chains over the noise that the
    autoencoder's draws are made of, where they move easily. Unlike an adversarial model it has a density.

    A tenth of the rows, 20 at least, are held out of both trainings, and the autoencoder keeps the weights that
    were best on them. Of fewer than 60 rows none are held out, and it keeps its last weights.

    Rows of tables are standardised within. Columns that are rounded (counts, whole years, two decimals) are
    recognised: they are spread over their rounding cells in training, and draws are rounded.

    Args:
        network: "perceptron", "convolutional" (for images whose sides are multiples of 4), or "auto": a perceptron
            for tables and up to 400 numbers in an image.
        hidden: widths of the encoder's hidden layers, those of the decoder in reverse, and of the energy's, of
            perceptrons; the last is that of the convolutional energy's dense layer.
        width: channels of the finest layer of networks of convolutions.
        latent_dim: normal numbers z from which the decoder makes the mean of a draw; None is 16 for images, and
            as many as there are columns for a table, at most 8.
        n_steps: steps of the chains for each update of the energy.
        step_size: of these Langevin chains, over noise of variance 1.
        batch_size: rows in an update, and number of chains.
        learning_rate: of both trainings.
        max_steps_pretraining: updates of the autoencoder.
        max_steps: updates of the energy; with 0 there is none, and the model is the autoencoder alone.
        ema_decay: decay of the moving average of all weights that is kept in their place; None keeps the last.
        device, devices, num_nodes, strategy, precision: see :class:`lightning_fabric.Fabric`; ``device`` is its
            accelerator. One process trains.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: -log p + log Z of images in [0, 1] ``[*batch, C, H, W]``, or of rows in their own units.
        autoencoder_: the :class:`~thalweg.energies.VariationalAutoencoder`, of images or of standardised rows.
        tilt_: the energy on top of it, or None.
        log_normaliser_, log_normaliser_error_, log_normaliser_warning_: log Z of exp(-E) under the autoencoder.
        image_shape_: (C, H, W), or None for a table.
        resolution_: spacing found for each column of a table, or one grey level; 0 where it is not rounded.
        history_: :class:`~thalweg.training.history.History` of both trainings.
        n_features_in_, feature_names_in_: as in scikit-learn, for a table.

    Source: [Xiao 2021], in the space of independent noise; the autoencoder [Kingma 2014].

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data
        >>> model = EnergyVAE(max_steps_pretraining=300, max_steps=50, random_state=0).fit(X)
        >>> model.sample(5, random_state=0).shape, model.score_samples(X).shape
        ((5, 4), (150,))
    """

    def __init__(
        self,
        *,
        network: str = "auto",
        hidden: Sequence[int] = (128, 128),
        width: int = 16,
        latent_dim: int | None = None,
        n_steps: int = 20,
        step_size: float = 0.025,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        max_steps_pretraining: int = 4000,
        max_steps: int = 1500,
        ema_decay: float | None = 0.99,
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
    ) -> EnergyVAE:
        """Train the autoencoder, and then the energy.

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
        self._check_settings()
        self._seed = draw_seed(check_random_state(self.random_state))
        rows, level = self._read(X, self._seed)
        held_out, rows = self._split(rows)
        held_out = dequantise(held_out, level, torch.Generator().manual_seed(self._seed))
        with seeded(self._seed):
            self.autoencoder_, self.tilt_ = self._build(tuple(rows.shape[1:]))
        clear_parts(run_dir, resume, _PARTS)

        def train(part: str, energy: Energy, objective: Objective, plan: Plan, validate: Any = None) -> History:
            folder = None if run_dir is None else Path(run_dir) / part
            trainer = Trainer(plan, self._make_fabric(), folder, BarProgress(label=part) if self.verbose else None)
            return trainer.fit(energy, objective, Batch(None, rows), validate, resume=resume)

        with self._threads(min(self.batch_size, len(rows)), count_weights(self.autoencoder_)):
            plan = self._plan(len(rows), self.max_steps_pretraining, checkpoint_seconds)
            bound = EvidenceBound(level)
            parts = {"autoencoder": train("autoencoder", self.autoencoder_, bound, plan, self._bound_of(held_out))}
            self.autoencoder_.cpu().eval()
            if self.tilt_ is not None:
                plan = self._plan(len(rows), self.max_steps, checkpoint_seconds)
                parts["energy"] = train("energy", self.tilt_, self._contrast(rows, level), plan)
                self.tilt_.cpu().eval()
                self.autoencoder_.cpu()
        self.history_ = History.joined(parts)
        self._log_z = None
        self.energy_ = self._whole()
        numbers = torch.Generator().manual_seed(self._seed)
        some = self._some(rows, numbers)
        checks = self._checks(len(rows), some, self._draw(len(some), self._n_steps, numbers))
        self._conclude([*checks, *self._beside(held_out)])
        return self

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that are held out, perhaps none, and the others."""
        n = max(_FEWEST_HELD_OUT, len(rows) // 10) if len(rows) >= 3 * _FEWEST_HELD_OUT else 0
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self._seed))
        return rows[order[:n].sort().values], rows[order[n:].sort().values]

    def _bound_of(self, held_out: Tensor) -> Callable[[VariationalAutoencoder], Tensor] | None:
        """The bound on held-out rows, with the same noise every time."""
        if not len(held_out):
            return None

        def mean(autoencoder: VariationalAutoencoder) -> Tensor:
            rows = held_out.to(autoencoder.noise.device)
            return autoencoder.negative_bound(rows, torch.Generator(rows.device).manual_seed(self._seed)).mean()

        return mean

    @torch.no_grad()
    def _beside(self, held_out: Tensor) -> list[Check]:
        """Whether held-out rows are likelier than under one Gaussian, and by the energy than without it."""
        if not len(held_out):
            return []
        plain = -self.autoencoder_(held_out).double()
        log_prob, found = plain, []
        if self.tilt_ is not None:
            with warnings.catch_warnings():
                # The verdict says it, and whoever asks for log Z.
                warnings.simplefilter("ignore", UserWarning)
                log_prob = plain - self.tilt_(held_out).double() - self.log_normaliser_
            found = [
                check_normaliser(self.log_normaliser_error_, self.log_normaliser_warning_),
                _check_gain(log_prob - plain, self.log_normaliser_error_),
            ]
        if self.image_shape_ is None:
            found.append(check_folds(log_prob.numpy(), held_out.double().numpy()))
        return found

    def _check_settings(self) -> None:
        self._check_network()
        check_counts(self, "width", "n_steps", "max_steps_pretraining")
        check_count("max_steps", self.max_steps, least=0)
        check_count("batch_size", self.batch_size, 2)
        if self.latent_dim is not None:
            check_count("latent_dim", self.latent_dim)
        check_widths(self.hidden)
        if not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must be between 0 and 1, or None, got {self.ema_decay}")
        self._check_training(several_processes=False)

    def _build(self, event: tuple[int, ...]) -> tuple[VariationalAutoencoder, Energy | None]:
        width, hidden = self._width(event), check_widths(self.hidden)
        is_image = len(event) == 3
        latent_dim = self.latent_dim or (16 if is_image else min(8, event[0]))
        autoencoder = variational_autoencoder(event, latent_dim, hidden, width, 0.2 if is_image else 0.5)
        if not self.max_steps:
            return autoencoder, None
        if width is None:
            centre: list[nn.Module] = [Centre(), nn.Flatten(1)] if is_image else []
            layers = [*centre, mlp([math.prod(event), *hidden]), nn.Linear(hidden[-1], 1)]
        else:
            layers = [smooth_network(event, 1, width, hidden[-1])]
        support = UNIT_IMAGES if is_image else constraints.real_vector
        tilt = ModuleEnergy(nn.Sequential(*layers, nn.Flatten(0)), event_ndim=len(event), support=support)
        return autoencoder, tilt

    def _plan(self, n_rows: int, n_steps: int, checkpoint_seconds: float) -> Plan:
        batch_size = min(self.batch_size, n_rows)
        n_epochs = math.ceil(n_steps / max(1, n_rows // batch_size))
        return Plan(
            max_epochs=n_epochs,
            max_steps=n_steps,
            batch_size=batch_size,
            learning_rate=self.learning_rate,
            ema_decay=self.ema_decay,
            validate_every=max(1, n_epochs // _N_LOOKS),
            checkpoint_seconds=checkpoint_seconds,
            seed=self._seed,
        )

    def _contrast(self, rows: Tensor, level: float) -> LatentContrastiveDivergence:
        n_chains = min(self.batch_size, len(rows))
        buffer = ReplayBuffer(self._noise(), max(_N_KEPT, n_chains), n_chains, _RESTART)
        both = FromBothNoises(self.autoencoder_.decoder)
        return LatentContrastiveDivergence(both, Langevin(self.step_size), self.n_steps, buffer, resolution=level)

    @property
    def _n_noises(self) -> int:
        """How many normal numbers are behind a draw."""
        return self.autoencoder_.decoder.latent_dim + math.prod(self.image_shape_ or (self.n_features_in_,))

    def _noise(self) -> GaussianMixtureEnergy:
        return GaussianMixtureEnergy(torch.zeros(1, self._n_noises), torch.ones(1, self._n_noises))

    def _sampler(self, tilt: Energy, n_steps: int) -> LatentSampler:
        both, kernel = FromBothNoises(self.autoencoder_.decoder), Langevin(self.step_size)
        return LatentSampler(both, tilt, self._n_noises, n_steps=n_steps, kernel=kernel)

    @property
    def _n_steps(self) -> int:
        """Steps of the chains behind a draw, where the user names none."""
        return 0 if self.tilt_ is None else _STEPS_OF_A_DRAW

    def _whole(self) -> Energy:
        """The energy of images, or of rows in their own units."""
        inner: Energy = self.autoencoder_
        if self.tilt_ is not None:
            inner = WeightedSum([self.autoencoder_, self.tilt_], [1.0, 1.0])
        return inner if self.image_shape_ else Rescaled(inner, self.location_, self.scale_)

    # -- use -----------------------------------------------------------------------------------------

    def sample(
        self, n_samples: int = 1, *, random_state: RandomState = None, n_steps: int | None = None
    ) -> np.ndarray:
        """New images ``[n_samples, C, H, W]`` in [0, 1], or new rows ``[n_samples, columns]``, all independent.

        Images are the means of the decoder, without its noise.

        Args:
            random_state: seed, or a ``RandomState``.
            n_steps: of the chains, one for each draw; 0 gives draws of the autoencoder alone. None is 100, or 0
                where there is no energy.

        Raises:
            ValueError: for steps without an energy.
        """
        check_is_fitted(self, "energy_")
        steps = self._n_steps if n_steps is None else n_steps
        check_count("n_steps", steps, least=0)
        if steps and self.tilt_ is None:
            raise ValueError("there is no energy on top of this autoencoder: leave out n_steps")
        generator = generator_of(random_state)
        return self._drawn(n_samples, lambda n: self._draw(n, steps, generator))

    @torch.no_grad()
    def _draw(self, n: int, n_steps: int, generator: torch.Generator) -> Tensor:
        """Images, or standardised rows."""
        decoder = self.autoencoder_.decoder
        if not n_steps:
            return decoder.means(n, generator) if self.image_shape_ else decoder.draw(n, generator)
        assert self.tilt_ is not None
        sampler = self._sampler(self.tilt_, n_steps)
        noise = sampler.chains(n, generator).position
        return decoder(noise[:, : decoder.latent_dim]) if self.image_shape_ else sampler.energy.made(noise)

    def score_samples(self, X: Any) -> np.ndarray:
        """An estimate of log p ``[n]`` in nats, which on average is too low, the less so the better the encoder.

        Its other error, one constant for all rows, is ``log_normaliser_error_``.
        """
        return -self._energies(X) - self.log_normaliser_

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of :meth:`score_samples`, for images after noise of one grey level, as in the training.

        On whole grey levels a density can be as high as one likes. With the noise the mean of log p plus, for each
        pixel, the logarithm of one grey level is at most the log probability of the levels.
        """
        if self.image_shape_:
            level = float(self.resolution_)
            X = dequantise(self._rows(X), level, torch.Generator().manual_seed(self._seed)).numpy()
        return float(self.score_samples(X).mean())

    def impute(
        self,
        X: Any,
        *,
        n_draws: int | None = None,
        random_state: RandomState = None,
        known: np.ndarray | None = None,
        n_chains: int = 16,
        n_steps: int = 50,
    ) -> np.ndarray:
        """Fill in what is not known of images or rows; what is known comes back bit for bit.

        Chains run over what is behind a draw, given the known entries (see
        :func:`~thalweg.inference.complete_draws`). What they fill into images are means of the decoder, without
        its noise.

        Args:
            X: images ``[n, C, H, W]`` or rows ``[n, columns]``.
            n_draws: None gives the mean over chains; a number that many completions.
            random_state: seed, or a ``RandomState``.
            known: bool, broadcasting against X; unknown entries may then hold anything. None takes NaN as unknown.
            n_chains: chains of each row, over which the mean is taken.
            n_steps: steps of each chain, of HMC, after a warm-up of as many that chooses their size.

        Returns:
            As X, or ``[n_draws, *X.shape]``; in [0, 1] where X holds bytes.

        Raises:
            ValueError: for X that does not fit the model, ``known`` that does not fit X, or numbers that can't be.
        """
        check_is_fitted(self, "energy_")
        if n_draws is not None:
            check_count("n_draws", n_draws)
        check_count("n_chains", n_chains)
        check_count("n_steps", n_steps)
        original = self._with_gaps(X)
        is_known = which_known(original, known)
        x = torch.from_numpy(np.where(is_known, original, 0.5 if self.image_shape_ else self.location_))
        if not bool(torch.isfinite(x).all()):
            raise ValueError("what is known contains NaN or infinity")
        inner = x.reshape(-1, *self.image_shape_).float() if self.image_shape_ else self.energy_.forth(x)
        mask, generator = torch.from_numpy(is_known.copy()).reshape(inner.shape), generator_of(random_state)
        n, at_once = n_draws or n_chains, max(1, ROWS_AT_ONCE // (n_draws or n_chains))
        parts, noisy = [], self.image_shape_ is None
        for rows, own in zip(inner.split(at_once), mask.split(at_once), strict=True):
            copies, given = (t.unsqueeze(1).expand(-1, n, *t.shape[1:]).flatten(0, 1) for t in (rows, own))
            ends = complete_draws(self.autoencoder_, copies, given, self.tilt_, n_steps, noisy, generator)
            ends = ends.reshape(len(rows), n, *rows.shape[1:])
            filled = ends if self.image_shape_ else self.energy_.back(ends)
            parts.append(filled.mean(1, keepdim=True) if n_draws is None else filled)
        found = torch.cat(parts).movedim(1, 0).numpy()
        if n_draws is not None and not self.image_shape_:
            found = np.stack([self._on_grids(draw) for draw in found])
        result: np.ndarray = np.where(is_known, original, found.reshape(-1, *original.shape))
        result = result.astype(original.dtype)
        return result[0] if n_draws is None else result

    def _with_gaps(self, X: Any) -> np.ndarray:
        """Images in the units of the model, or rows in their own; NaN and infinities are let pass."""
        if self.image_shape_:
            return pixels_with_gaps(X, self.image_shape_)
        return validate_data(self, table_of_numbers(X), reset=False, dtype=np.float64, ensure_all_finite=False)

    def reconstruct(self, X: Any) -> np.ndarray:
        """What the autoencoder makes of images ``[n, C, H, W]``, or of rows ``[n, columns]`` in their units."""
        rows = self._rows(X)
        inner = rows if self.image_shape_ else self.energy_.forth(rows)
        with torch.no_grad():
            made = torch.cat([self.autoencoder_.reconstruct(x) for x in inner.split(ROWS_AT_ONCE)])
        return (made if self.image_shape_ else self.energy_.back(made)).numpy()

    def _normaliser(self) -> Normaliser:
        check_is_fitted(self, "energy_")
        if self._log_z is None:
            self._log_z = Normaliser(0.0) if self.tilt_ is None else self._weighed(self.tilt_)
        return self._log_z

    @torch.no_grad()
    def _weighed(self, tilt: Energy) -> Normaliser:
        """log Z from the weights exp(-E) of draws of the autoencoder, or where these are poor by annealing."""
        generator = torch.Generator().manual_seed(self._seed)
        sizes = [ROWS_AT_ONCE] * (_N_WEIGHED // ROWS_AT_ONCE)
        drawn = [-tilt(self.autoencoder_.decoder.draw(n, generator)) for n in sizes]
        simple = summarised(torch.cat(drawn), drawn[0])
        if simple.effective_sample_size >= _FEWEST_EFFECTIVE and simple.pareto_k <= LARGEST_PARETO_K:
            return Normaliser(simple.estimate, 2 * simple.standard_error)
        sampler, noise = self._sampler(tilt, _STEPS_OF_A_DRAW), self._noise()
        starts = sampler.chains(_N_ANNEALED, generator).position
        bracket = bracket_log_normaliser(sampler.energy, noise, starts, _N_ANNEALED, 300, 0, generator)
        found = Normaliser.of(bracket)
        # Without the constant of the normal distribution, which the energy of the noise leaves out.
        return found._replace(estimate=found.estimate - 0.5 * self._n_noises * math.log(2 * math.pi))

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "seed": self._seed, "log_normaliser": list(self._normaliser())}

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self._seed = config["seed"]
        self.autoencoder_, self.tilt_ = self._build(self._read_config(config, tensors))
        self._log_z = Normaliser.from_saved(config["log_normaliser"])
        self.energy_ = self._whole()


def _check_gain(gains: Tensor, error: float) -> Check:
    """Whether the energy makes held-out rows likelier.

    Args:
        gains: log p of each with the energy minus that without ``[n]``.
        error: of log Z.
    """
    mean, off = float(gains.mean()), error + 2 * float(gains.std()) / math.sqrt(len(gains))
    direction = "lower" if mean < 0 else "higher"
    found = f"With the energy log p of held-out rows is {abs(mean):.2f} ± {off:.2f} nats {direction} than without"
    if mean < -off:
        text = f"{found}: take fewer updates of it (max_steps), or the autoencoder alone."
        return Check("energy", "doubtful", text)
    return Check("energy", "passed", f"{found}.")
