"""``EnergyDensity``: p(x) of the rows of a table, with scikit-learn's manners."""

from __future__ import annotations

import copy
import math
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from scipy.special import expit
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from thalweg.data.encoding import is_number
from thalweg.data.target import find_resolution, location_and_scale, most_frequent, rounded
from thalweg.energies.base import Energy, check_energy
from thalweg.energies.conditioning import ClampedEnergy
from thalweg.energies.densities import (
    Density,
    GaussianMixtureEnergy,
    choose_gaussian_mixture,
    fit_gaussian_mixture,
)
from thalweg.energies.densities.autoregressive import AutoregressiveEnergy, NumericEncoding
from thalweg.energies.densities.tilted import TiltedMixtureEnsemble
from thalweg.energies.networks.perceptron import PerceptronEnergy
from thalweg.estimators._states import kept_columns, restore_columns
from thalweg.estimators.regressor import EnergyRegressor, n_weights, suitable_threads, using_threads
from thalweg.inference import completion
from thalweg.inference.importance import log_normaliser
from thalweg.objectives.base import Batch
from thalweg.objectives.catalogue import METHODS
from thalweg.sampling.adaptation import adapt_step_size
from thalweg.sampling.annealing import bracket_log_normaliser
from thalweg.sampling.chain import run_chain
from thalweg.sampling.hmc import HMC
from thalweg.training.loop import DivergenceError, History, Plan, Trainer
from thalweg.training.progress import BarProgress, Progress
from thalweg.training.saving import load_model, rebuilding, save_model, tensors_of

OBJECTIVES = ("auto", *METHODS)


class EnergyDensity(DensityMixin, BaseEstimator):
    """An energy-based model of p(x), x a row of numbers.

    By default the joint density is a chain of conditionals, p(x_1) p(x_2|x_1) ..., each an ensemble of tilted
    mixtures that is normalised exactly and trained by maximum likelihood, mixed with a Gaussian mixture's
    conditional in the shares that held-out rows like best: log Z is 0, draws are independent.
    With any other objective E(x) is a perceptron on top of a Gaussian with the data's moments, trained by that
    objective, and log Z is estimated: by importance sampling where that is sure, else by annealed importance
    sampling from both sides.

    Columns that are rounded (counts, whole years, two decimals) are recognised: they are spread over their
    rounding cells in training, ``score_samples`` is the density of the values so spread, and draws are rounded.

    Args:
        objective: "auto" (see above), or a key of :data:`~thalweg.objectives.catalogue.METHODS`: "nce", "cnce",
            "fce", "ml-is", "sm", "ssm", "ssm-vr", "dsm", "ed", "lsd", "cd", "pcd", "icd".
        energy: an energy of one's own over standardised rows, for the other objectives. It is copied.
        n_members: networks in each ensemble.
        hidden: widths of the hidden layers.
        learning_rate: None is 2e-3 for "auto" and 3e-3 for the others.
        batch_size: rows in a step; "auto" grows with the rows.
        max_epochs, max_steps, patience: see :class:`~thalweg.training.loop.Plan`; of "auto", for each column.
        validation_fraction: rows held out to stop early (by "auto" every member holds out a fold instead).
        resolution: spacing of the grid that columns are rounded to; "auto" finds it for each, 0 is none.
        device: for Lightning Fabric, of the training.
        n_threads: of PyTorch while fitting; None chooses by the size of the work.
        verbose: show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the energy of rows in their own units (best given in double precision);
            ``energy_(x) + log_normaliser_`` is -log p(x).
        log_normaliser_: log Z, in nats; 0 where it is exact.
        log_normaliser_error_: its standard error; 0 where it is exact.
        validation_nll_: mean held-out negative log-likelihood, in nats.
        training_log_prob_: log p of the training rows ``[rows]``, by "auto" from those networks that did not learn
            from the row: what new rows compare with. A model that was loaded has it not.
        resolution_: spacing found for each column ``[D]``, 0 where it is not rounded.
        history_: one :class:`~thalweg.training.loop.History` for each network trained.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data
        >>> model = EnergyDensity(max_epochs=3, random_state=0).fit(X)
        >>> model.score_samples(X[:2]).shape, model.sample(5, random_state=0).shape
        ((2,), (5, 4))
    """

    def __init__(
        self,
        objective: str = "auto",
        *,
        energy: Energy | None = None,
        n_members: int = 8,
        hidden: Sequence[int] = (128, 128),
        learning_rate: float | None = None,
        batch_size: int | str = "auto",
        max_epochs: int = 200,
        max_steps: int | None = 3000,
        patience: int | None = 20,
        validation_fraction: float = 0.1,
        resolution: float | str = "auto",
        device: str = "cpu",
        n_threads: int | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.objective = objective
        self.energy = energy
        self.n_members = n_members
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.resolution = resolution
        self.device = device
        self.n_threads = n_threads
        self.verbose = verbose
        self.random_state = random_state

    # -- fitting -------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> EnergyDensity:
        """Fit the density of the rows of X.

        Args:
            X: numbers without gaps ``[rows, columns]``, no column constant.
            y: ignored.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoints in run_dir; the result is that of a run never interrupted.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for settings or data that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        self._check_settings()
        _check_numbers(X)
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self._check_columns(X)
        rng = check_random_state(self.random_state)
        seed = int(rng.randint(2**31 - 1))
        self.resolution_ = np.array(
            [find_resolution(c) if self.resolution == "auto" else float(self.resolution) for c in X.T]
        )
        self.origin_ = np.array([most_frequent(c) for c in X.T])
        folder = None if run_dir is None else Path(run_dir)
        if folder is not None and not resume:
            # Checkpoints of columns that an earlier run had there would be taken for this one's.
            for old in folder.glob("column-*"):
                shutil.rmtree(old)
        # Differences of large numbers are lost in single precision: the columns are standardised in double.
        location, scale = location_and_scale(X)
        Z = (X - location) / scale
        spread = self.resolution_ / scale * (np.random.RandomState(seed).uniform(size=X.shape) - 0.5)
        z = torch.as_tensor(Z + spread, dtype=torch.float32)
        how = {"resume": resume, "checkpoint_seconds": checkpoint_seconds}
        if self.objective == "auto":
            self.proposal_ = _proposal(z, seed)
            inner: Energy = self._fit_chain(Z, z, scale, seed, folder, **how)
        else:
            inner = self._fit_network(z, scale, seed, folder, **how)
        self.energy_ = Rescaled(inner.cpu().eval(), location, scale)
        if self.objective != "auto":
            self.training_log_prob_ = self._log_prob(X)
        return self

    def _check_settings(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        if self.energy is not None and self.objective == "auto":
            raise ValueError("an energy of your own needs an objective: 'nce' or 'cnce', for instance")
        # What both estimators take has the same bounds.
        self._conditional(0.0, None)._check_settings()

    def _check_columns(self, X: np.ndarray) -> None:
        for k, name in enumerate(getattr(self, "feature_names_in_", range(X.shape[1]))):
            if np.ptp(X[:, k]) == 0:
                raise ValueError(
                    f"column {name!r} is constant ({X[0, k]:g} in all rows): it has no density; leave it out"
                )
            with np.errstate(over="ignore", under="ignore"):
                variance = X[:, k].var()
            if not (np.isfinite(variance) and variance > 0):
                raise ValueError(f"column {name!r} is too large or too fine for double precision: rescale it")

    def _conditional(self, resolution: float | str, seed: int | None, label: str = "fit") -> _Conditional:
        model = _Conditional(
            n_members=self.n_members,
            hidden=self.hidden,
            learning_rate=2e-3 if self.learning_rate is None else self.learning_rate,
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            patience=self.patience,
            validation_fraction=self.validation_fraction,
            resolution=self.resolution if seed is None else resolution,
            device=self.device,
            n_threads=self.n_threads,
            verbose=self.verbose,
            random_state=seed,
        )
        model.label = label
        return model

    def _fit_chain(
        self, Z: np.ndarray, z: Tensor, scale: np.ndarray, seed: int, folder: Path | None, **how: Any
    ) -> AutoregressiveEnergy:
        """One conditional after the other, each from the columns before it; then a mixture's share in each.

        Args:
            Z: standardised rows.
            z: the same, spread over their rounding cells.
        """
        self.conditionals_, self.history_ = [], []
        held_out = np.empty(Z.shape)
        for d in range(Z.shape[1]):
            model = self._conditional(
                float(self.resolution_[d] / scale[d]), seed + d, f"column {d + 1} of {Z.shape[1]}"
            )
            model.shift = float(np.log(scale[d]))
            given = Z[:, :d] if d else np.zeros((len(Z), 1))
            model.fit(given, Z[:, d], run_dir=None if folder is None else folder / f"column-{d}", **how)
            held_out[:, d] = model.held_out_log_prob(given, Z[:, d])
            self.conditionals_.append(model)
            self.history_.append(model.history_)
        mixture, others = _mixture_of(z, torch.as_tensor(Z), seed)
        shares = np.array([_share(own, other) for own, other in zip(held_out.T, others.T, strict=True)])
        log_prob = np.logaddexp(np.log1p(-shares) + held_out, np.log(shares) + others).sum(1)
        self.training_log_prob_ = log_prob - np.log(scale).sum()
        self.log_normaliser_, self.log_normaliser_error_ = 0.0, 0.0
        self.validation_nll_ = -float(self.training_log_prob_.mean())
        return AutoregressiveEnergy(
            [m.energy_ for m in self.conditionals_],  # type: ignore[misc]
            [NumericEncoding(m.encoder_.columns) for m in self.conditionals_],  # type: ignore[union-attr]
            torch.tensor([float(m.location_[0]) for m in self.conditionals_]),
            torch.tensor([float(m.scale_[0]) for m in self.conditionals_]),
            mixture,
            torch.as_tensor(shares),
        )

    def _fit_network(self, z: Tensor, scale: np.ndarray, seed: int, folder: Path | None, **how: Any) -> Energy:
        order = np.random.RandomState(seed).permutation(len(z))
        n_held_out = max(1, round(self.validation_fraction * len(z)))
        held_out, training = z[order[:n_held_out]], z[order[n_held_out:]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._network(z)
            objective = METHODS[self.objective].build(training)
        check_energy(network, z[:2])
        proposal = _proposal(training, seed)
        self.proposal_ = proposal
        size = self.batch_size
        plan = Plan(
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            batch_size=min(512, max(32, len(z) // 10)) if size == "auto" else int(size),
            learning_rate=3e-3 if self.learning_rate is None else self.learning_rate,
            patience=self.patience,
            clip_norm=10.0,
            ema_decay=0.99,
            checkpoint_seconds=how["checkpoint_seconds"],
            seed=seed,
        )
        shift = float(np.log(scale).sum())
        validate = _HeldOut(held_out, proposal, seed)
        with using_threads(self.n_threads or suitable_threads(plan.batch_size, n_weights(network))):
            trainer = Trainer(
                plan,
                Fabric(accelerator=self.device, devices=1),
                folder,
                BarProgress(offset=shift) if self.verbose else None,
            )
            history = trainer.fit(network, objective, Batch(None, training), validate, resume=how["resume"])
        network = network.cpu().eval()
        self.history_ = [history]
        try:
            self._normalise(network, seed)
        except ValueError as error:
            raise DivergenceError(
                f"training by {self.objective!r} ended with an energy that can't be normalised ({error}): lower "
                "the learning rate, or take another objective"
            ) from error
        nll = history.epochs[-1]["best"] if history.epochs else math.nan
        self.validation_nll_ = nll + shift
        return network

    def _normalise(self, network: Energy, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        simple = log_normaliser(network, self.proposal_, 100_000, generator)
        self.log_normaliser_ = simple.estimate
        self.log_normaliser_error_ = simple.standard_error
        if simple.effective_sample_size < 1000:
            # Few of the samples lie where the energy is low: the estimate and its error are not to be trusted.
            white = _Whitened(network, self.proposal_.scales[-1])
            bracket = bracket_log_normaliser(white, white.of_mixture(self.proposal_), None, 256, 300, generator)
            self.log_normaliser_ = bracket.estimate + white.log_volume
            self.log_normaliser_error_ = max(
                abs(bracket.width) / 2, bracket.lower.standard_error, bracket.upper.standard_error
            )

    def _network(self, z: Tensor) -> Energy:
        if self.energy is not None:
            return copy.deepcopy(self.energy)
        return PerceptronEnergy(z.shape[1], self.hidden) + GaussianMixtureEnergy.from_moments(z, 1.3)

    # -- use -----------------------------------------------------------------------------------------

    def _rows(self, X: Any, gaps: bool = False) -> np.ndarray:
        check_is_fitted(self, "energy_")
        if isinstance(X, pd.DataFrame) and hasattr(self, "feature_names_in_"):
            _check_numbers(X)
            if set(X.columns) == set(self.feature_names_in_):
                X = X[list(self.feature_names_in_)]
        finite = "allow-nan" if gaps else True
        X = validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite=finite)
        return np.ascontiguousarray(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p of every row ``[rows]``, normalised, in nats; all off alike by ``log_normaliser_error_``.

        Where a column is rounded it is the density of the values spread over their rounding cells.
        """
        return self._log_prob(self._rows(X))

    def _log_prob(self, X: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(X)
        with torch.no_grad():
            energy = torch.cat([self.energy_(piece) for piece in x.split(8192)])
        return -energy.double().numpy() - self.log_normaliser_

    def score(self, X: Any, y: None = None) -> float:
        """Total log-likelihood of the rows, as scikit-learn's ``KernelDensity`` has it."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> np.ndarray:
        """Draws ``[n_samples, columns]``: independent by "auto", else by importance resampling and HMC."""
        check_is_fitted(self, "energy_")
        _check_count("n_samples", n_samples)
        generator = self._generator(random_state)
        inner = self.energy_.inner
        if isinstance(inner, Density):
            return self._rounded(self.energy_.back(inner.sample(n_samples, generator)))
        candidates = self.proposal_.sample(max(20_000, 10 * n_samples), generator)
        white = _Whitened(inner, self.proposal_.scales[-1])
        start = white.forth(_resampled(inner, self.proposal_, candidates, n_samples, generator))
        kernel = adapt_step_size(HMC(0.1), white, start[:256], 50, generator=generator).kernel
        end = white.back(run_chain(kernel, white, start, 40, generator).position)
        return self._rounded(self.energy_.back(end))

    def impute(
        self,
        X: Any,
        n_imputations: int = 1,
        random_state: int | np.random.RandomState | None = None,
        *,
        n_candidates: int = 256,
    ) -> np.ndarray:
        """Fill gaps (NaN) with draws from p(missing | known) of each row.

        Args:
            X: ``[rows, columns]``; what is known is returned bit for bit.
            n_imputations: completions of each row.
            n_candidates: weighted draws for each row, of which the completions are taken.

        Warns:
            UserWarning: if rows lack so much that few of the candidates fit.

        Returns:
            ``[rows, columns]`` for one imputation, else ``[n_imputations, rows, columns]``. Their mean over
            the imputations is the conditional mean, their spread its uncertainty.
        """
        X = self._rows(X, gaps=True)
        _check_count("n_imputations", n_imputations)
        _check_count("n_candidates", n_candidates)
        generator = self._generator(random_state)
        inner = self.energy_.inner
        n_candidates += n_candidates % 2
        out = np.repeat(X[None], n_imputations, 0)
        rows = np.flatnonzero(np.isnan(X).any(1))
        n_poor = 0
        for piece in np.array_split(rows, max(1, len(rows) * n_candidates // 32768)):
            if not len(piece):
                continue
            mask = torch.from_numpy(~np.isnan(X[piece]))
            known = torch.nan_to_num(self.energy_.forth(torch.from_numpy(X[piece])))
            found = completion.complete(inner, self.proposal_, known, mask, n_candidates, generator)
            filled = found.draw(n_imputations, generator)
            if isinstance(inner, AutoregressiveEnergy):
                n_poor += int((found.effective_sample_size < 4).sum())
            else:
                # A few steps of HMC take the draws off the candidates.
                clamped = ClampedEnergy(inner, known.expand_as(filled), mask)
                few = ClampedEnergy(inner, known.expand_as(filled[:4]), mask)
                kernel = adapt_step_size(HMC(0.1, 5), few, filled[:4], 30, generator=generator).kernel
                filled = run_chain(kernel, clamped, filled, 10, generator).position
            out[:, piece] = np.where(mask.numpy(), X[piece], self._rounded(self.energy_.back(filled)))
        if n_poor:
            warnings.warn(
                f"in {n_poor} of {len(rows)} rows with gaps so much is missing that fewer than 4 of "
                f"{n_candidates} candidates fit what is known: their completions vary too little; more "
                "candidates help",
                stacklevel=2,
            )
        return out[0] if n_imputations == 1 else out

    def denoise(
        self,
        X: Any,
        noise_std: float | Sequence[float],
        random_state: int | np.random.RandomState | None = None,
        *,
        n_candidates: int = 512,
    ) -> np.ndarray:
        """Posterior mean of rows that were seen with Gaussian noise: of x ~ p(x) N(seen; x, noise_std^2).

        Args:
            X: ``[rows, columns]``.
            noise_std: of the noise, one number or one for each column, in the columns' units.
            n_candidates: weighted draws for each row, which are averaged.
        """
        X = self._rows(X)
        std = np.asarray(noise_std, np.float64)
        if std.shape not in ((), (X.shape[1],)):
            raise ValueError(f"noise_std must be one number or {X.shape[1]}, got an array of shape {std.shape}")
        if not ((std > 0) & np.isfinite(std)).all():
            raise ValueError(f"noise_std must be positive, got {noise_std}")
        _check_count("n_candidates", n_candidates)
        generator = self._generator(random_state)
        n_candidates += n_candidates % 2
        scaled = (torch.from_numpy(np.broadcast_to(std, X.shape[1]).copy()) / self.energy_.scale).float()
        cleaned = [
            completion.denoise(
                self.energy_.inner, self.proposal_, self.energy_.forth(piece), scaled, n_candidates, generator
            ).mean()
            for piece in torch.from_numpy(X).split(max(1, 32768 // n_candidates))
        ]
        return self.energy_.back(torch.cat(cleaned)).numpy()

    def _rounded(self, x: Tensor) -> np.ndarray:
        """Draws, of rounded columns on their grids."""
        out = x.numpy()
        for k in np.flatnonzero(self.resolution_):
            out[..., k] = rounded(out[..., k], self.origin_[k], self.resolution_[k])
        return out

    def _generator(self, random_state: Any) -> torch.Generator:
        return torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))

    # -- saving --------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Write the model as a folder of ``config.json`` and ``model.safetensors``.

        Args:
            extra: anything for JSON, kept beside the model and given back by :meth:`load`.

        Raises:
            ValueError: if the model has an energy of the user's own: save that with torch instead.
        """
        check_is_fitted(self, "energy_")
        if self.energy is not None:
            raise ValueError(
                "a model with an energy of your own can't be rebuilt from a file: save its state_dict"
            )
        params = {k: v for k, v in self.get_params().items() if k not in ("energy", "random_state")}
        params["hidden"] = list(self.hidden)
        config: dict[str, Any] = {
            "params": params,
            **kept_columns(self),
            "resolution": self.resolution_.tolist(),
            "origin": self.origin_.tolist(),
            "log_normaliser": self.log_normaliser_,
            "log_normaliser_error": self.log_normaliser_error_,
            "validation_nll": None if math.isnan(self.validation_nll_) else self.validation_nll_,
            "n_components": len(self.proposal_.means),
            "history": [asdict(h) for h in self.history_],
            "extra": extra or {},
        }
        if self.objective == "auto":
            config["conditionals"] = self._architecture()
            assert isinstance(self.energy_.inner, AutoregressiveEnergy)
            assert self.energy_.inner.mixture is not None
            config["mixture"] = list(self.energy_.inner.mixture.scales.shape)
        tensors = {f"energy.{k}": v for k, v in self.energy_.state_dict().items()}
        tensors |= {f"proposal.{k}": v for k, v in self.proposal_.state_dict().items()}
        save_model(Path(folder), "EnergyDensity", config, tensors)

    def _architecture(self) -> list[dict[str, Any]]:
        """The shape of each conditional, as JSON."""
        if not hasattr(self, "conditionals_"):
            return self.architecture_
        return [
            {"encoder": m.encoder_.state(), "architecture": m.architecture_}  # type: ignore[union-attr]
            for m in self.conditionals_
        ]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> EnergyDensity:
        """Read a saved model. Nothing in the folder is run; ``extra_`` holds what was kept beside it.

        Raises:
            ValueError: if the folder is missing, damaged, foreign, or of a newer version.
        """
        config, tensors = load_model(Path(folder), "EnergyDensity")
        with rebuilding(folder):
            model = cls(**config["params"])
            restore_columns(model, config)
            d = model.n_features_in_
            model.resolution_ = np.array(config["resolution"])
            model.origin_ = np.array(config["origin"])
            model.log_normaliser_ = float(config["log_normaliser"])
            model.log_normaliser_error_ = float(config["log_normaliser_error"])
            nll = config["validation_nll"]
            model.validation_nll_ = math.nan if nll is None else nll
            model.history_ = [History(**h) for h in config["history"]]
            model.extra_ = config["extra"]
            model.proposal_ = _empty_mixture(config["n_components"], d)
            model.proposal_.load_state_dict(tensors_of("proposal", tensors))
            inner: Energy
            if model.objective == "auto":
                model.architecture_ = config["conditionals"]
                inner = _chain_of(model.architecture_, config["mixture"], model)
            else:
                inner = PerceptronEnergy(d, model.hidden) + _empty_mixture(1, d)
            model.energy_ = Rescaled(inner, np.zeros(d), np.ones(d))
            model.energy_.load_state_dict(tensors_of("energy", tensors))
            model.energy_.eval()
        return model


class Rescaled(Energy):
    """The energy of rows in their own units, from one over (x - location) / scale.

    Rows in double precision are standardised in it, and handed on in single precision.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, inner: Energy, location: Any, scale: Any):
        super().__init__()
        self.inner = inner
        self.register_buffer("location", torch.as_tensor(location, dtype=torch.float64))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float64))

    def forth(self, x: Tensor) -> Tensor:
        return ((x - self.location) / self.scale).float()

    def back(self, z: Tensor) -> Tensor:
        return self.location + self.scale * z.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.forth(x)) + self.scale.log().sum()


class _Whitened(Energy):
    """The energy of u where x = L u: chains move freely where the columns hang together closely.

    Args:
        factor: L, lower triangular ``[D, D]``.
    """

    def __init__(self, inner: Energy, factor: Tensor):
        super().__init__()
        object.__setattr__(self, "inner", inner)
        self.factor = factor
        self.log_volume = float(factor.diagonal().log().sum())

    inner: Energy

    def forth(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, x.T, upper=False).T

    def back(self, u: Tensor) -> Tensor:
        return u @ self.factor.T

    def of_mixture(self, mixture: GaussianMixtureEnergy) -> GaussianMixtureEnergy:
        """The same mixture, of u."""
        scales = torch.linalg.solve_triangular(self.factor, mixture.scales, upper=False)
        return GaussianMixtureEnergy(self.forth(mixture.means), scales, mixture.log_weights.exp())

    def forward(self, u: Tensor) -> Tensor:
        return self.inner(self.back(u))

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = self.inner.value_and_grad(self.back(u))
        return value, grad @ self.factor


class _Conditional(EnergyRegressor):
    """One link of the chain; its bar says which."""

    label = "fit"
    shift = 0.0

    def _progress(self, offset: float, n_members: int) -> Progress:
        return BarProgress(offset=offset + self.shift, n_members=n_members, label=self.label)

    def held_out_log_prob(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """log p(y|x) of the training rows ``[rows]``, each by the members that did not learn from it.

        A row that all have learned from, as there are with one member, is told by that.
        """
        rng = check_random_state(self.random_state)
        rng.randint(2**31 - 1)  # as in ``fit``, which drew its seed first
        asked = torch.from_numpy(self._hold_out(len(y), rng))
        asked = torch.where(asked.any(1, keepdim=True), asked, True)
        assert isinstance(self.energy_, TiltedMixtureEnsemble)
        x = self._inputs(X)
        z = torch.as_tensor((y - self.location_[0]) / self.scale_[0], dtype=torch.float32).to(x.device)
        parts = []
        with torch.no_grad():
            for rows in torch.arange(len(y)).split(8192):
                features = self.energy_.features(x[rows])
                log_prob = self.energy_.member_log_prob(features, z[rows, None]).cpu()
                log_prob = torch.where(asked[rows], log_prob, -torch.inf)
                parts.append(torch.logsumexp(log_prob, 1) - asked[rows].sum(1).log())
        return torch.cat(parts).double().numpy() - math.log(self.scale_[0])


class _HeldOut:
    """Held-out negative log-likelihood, log Z by the same importance samples every time."""

    def __init__(self, rows: Tensor, proposal: Density, seed: int, n_samples: int = 4096):
        self.n_rows = len(rows[:4096])
        samples = proposal.sample(n_samples, torch.Generator().manual_seed(seed))
        self.places = torch.cat([rows[:4096], samples])
        with torch.no_grad():
            self.log_proposal = proposal.log_prob(samples)

    def __call__(self, energy: nn.Module) -> Tensor:
        device = next((p.device for p in energy.parameters()), self.places.device)
        self.places, self.log_proposal = self.places.to(device), self.log_proposal.to(device)
        values = energy(self.places)
        log_weights = -values[self.n_rows :] - self.log_proposal
        log_z = torch.logsumexp(log_weights, 0) - math.log(len(log_weights))
        return values[: self.n_rows].mean() + log_z


def _check_numbers(X: Any) -> None:
    """Refuse columns that hold no numbers, by name."""
    if not isinstance(X, pd.DataFrame):
        return
    for name in X.columns:
        column = X[name]
        if not is_number(column) or pd.api.types.is_datetime64_any_dtype(column):
            what = "dates" if pd.api.types.is_datetime64_any_dtype(column) else "texts"
            known = column.dropna()
            example = f" ({known.iloc[0]!r})" if len(known) and what == "texts" else ""
            raise ValueError(f"column {name!r} holds {what}{example}: a density is over numbers; leave it out")


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _proposal(data: Tensor, seed: int) -> GaussianMixtureEnergy:
    """Where importance samples come from: a mixture fitted to the data, and one wide Gaussian as a safety net."""
    n_components = max(1, min(10, len(data) // (10 * data.shape[1])))
    wide = GaussianMixtureEnergy.from_moments(data, 1.5)
    if len(data) < 2:
        return wide
    mixture = fit_gaussian_mixture(data, n_components, seed)
    weights = torch.cat([0.8 * mixture.log_weights.exp(), torch.tensor([0.2])])
    return GaussianMixtureEnergy(
        torch.cat([mixture.means, wide.means]), torch.cat([1.1 * mixture.scales, wide.scales]), weights
    )


def _mixture_of(z: Tensor, places: Tensor, seed: int) -> tuple[GaussianMixtureEnergy, np.ndarray]:
    """A Gaussian mixture of rows z ``[n, D]``, and what mixtures say of each row that have not learned from it.

    Returns the mixture and log p(x_d | x_1..x_{d-1}) ``[n, D]`` at the places, or minus infinity if there are too
    few rows to tell.
    """
    z, places = z.double(), places.double()
    held_out = torch.full_like(z, -torch.inf)
    if len(z) < 20:
        return GaussianMixtureEnergy.from_moments(z), held_out.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        settings = choose_gaussian_mixture(z, seed)
        mixture = fit_gaussian_mixture(z, seed=seed, n_init=3, **settings)
        for kept, left in KFold(5, shuffle=True, random_state=seed).split(z):
            part = fit_gaussian_mixture(z[kept], seed=seed, **settings)
            for d in range(z.shape[1]):
                held_out[left, d] = part.conditional_log_prob(places[left], d)
    return mixture, held_out.numpy()


def _share(own: np.ndarray, other: np.ndarray, n_steps: int = 100) -> float:
    """The share of the other density in a mixture of the two that held-out rows like best, by EM.

    Args:
        own, other: log densities of rows ``[n]``.
    """
    share = 0.5
    for _ in range(n_steps):
        share = float(expit(np.log(share) + other - np.log1p(-share) - own).mean())
        share = min(max(share, 1e-6), 1 - 1e-6)
    return share


def _resampled(
    energy: Energy, proposal: Density, candidates: Tensor, n: int, generator: torch.Generator
) -> Tensor:
    """Candidates drawn by their weights: by a power of these, if few would have nearly all the weight."""
    with torch.no_grad():
        log_weights = -energy(candidates) - proposal.log_prob(candidates)
    low, high = 0.0, 1.0
    for power in [1.0, *([None] * 12)]:
        middle = 0.5 * (low + high) if power is None else power
        weights = torch.softmax(middle * log_weights, 0)
        enough = 1 / weights.square().sum() >= min(n, 1000)
        if enough and middle == 1.0:
            break
        low, high = (middle, high) if enough else (low, middle)
    return candidates[torch.multinomial(weights, n, replacement=True, generator=generator)]


def _chain_of(
    conditionals: Sequence[dict[str, Any]], mixture: Sequence[int], model: EnergyDensity
) -> AutoregressiveEnergy:
    """The chain's shape, to be filled with tensors."""
    defaults = EnergyRegressor()
    members = []
    for entry in conditionals:
        a = entry["architecture"]
        members.append(
            TiltedMixtureEnsemble(
                a["n_inputs"], model.n_members, model.hidden, defaults.n_components, defaults.n_tilts,
                a["dropout"], a["log_std_floor"], a["atoms"], a["atom_std"],
            )
        )  # fmt: skip
    encodings = [NumericEncoding(entry["encoder"]["columns"]) for entry in conditionals]
    part = _empty_mixture(mixture[0], mixture[1], full=len(mixture) == 3).double()
    return AutoregressiveEnergy(members, encodings, torch.zeros(len(members)), torch.ones(len(members)), part)


def _empty_mixture(n_components: int, d: int, full: bool = True) -> GaussianMixtureEnergy:
    """To be filled with tensors."""
    scales = torch.eye(d).repeat(n_components, 1, 1) if full else torch.ones(n_components, d)
    return GaussianMixtureEnergy(torch.zeros(n_components, d), scales)
