"""``EnergyDensity``: p(x) of the rows of a table, with scikit-learn's interface.

The file is long because the class is: it trains in two ways (a chain of conditionals, or one energy of the whole
row), and draws, fills gaps and denoises with either.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from thalweg._torch_state import seeded
from thalweg.data.target import FINEST_GRID, find_resolution, location_and_scale, most_frequent, rounded
from thalweg.energies.base import Energy, check_energy
from thalweg.energies.conditioning import ClampedEnergy
from thalweg.energies.densities import AutoregressiveEnergy, Density, GaussianMixtureEnergy, NumericEncoding
from thalweg.energies.networks import PerceptronEnergy
from thalweg.estimators._base import (
    Estimator,
    RandomState,
    check_count,
    check_widths,
    count_weights,
    draw_seed,
    generator_of,
)
from thalweg.estimators._chain import Conditional, conditionals_of_mixture, empty_chain, empty_mixture, stacked
from thalweg.estimators._normaliser import Normalised, Normaliser
from thalweg.estimators._rescaled import Rescaled, Whitened
from thalweg.estimators._whole_rows import (
    HeldOutLikelihood,
    check_columns,
    estimate_normaliser,
    mixture_proposal,
    resampled,
    table_of_numbers,
)
from thalweg.evaluation.row_checks import check_folds
from thalweg.evaluation.verdict import Check, check_normaliser, check_rows, check_training
from thalweg.inference import completion
from thalweg.objectives.base import Batch
from thalweg.objectives.catalogue import METHODS
from thalweg.objectives.names import DENSITY
from thalweg.sampling.adaptation import adapt_step_size
from thalweg.sampling.chain import run_chain
from thalweg.sampling.hmc import HMC
from thalweg.training.history import History
from thalweg.training.loop import DivergenceError, Plan, Trainer
from thalweg.training.progress import BarProgress

OBJECTIVES = ("auto", *DENSITY)


class EnergyDensity(DensityMixin, Normalised, Estimator):
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
        device, devices, num_nodes, strategy, precision: see :class:`lightning_fabric.Fabric`; ``device`` is its
            accelerator. Several processes share every batch.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the energy of rows in their own units (best given in double precision);
            ``energy_(x) + log_normaliser_`` is -log p(x).
        log_normaliser_: log Z, in nats; 0 where it is exact.
        log_normaliser_error_: how far it may be off, two standard errors or more; 0 where it is exact.
        log_normaliser_warning_: why it may be further off than that, or None.
        validation_nll_: mean held-out negative log-likelihood, in nats: that of ``held_out_log_prob_``.
        held_out_log_prob_: log p of the training rows ``[rows]``, each by weights that neither learned from the
            row nor were chosen by it: what new rows compare with. NaN of rows that all networks learned from; by
            "auto" with several members there are none. A model that was loaded has it not.
        resolution_: spacing found for each column ``[D]``, 0 where it is not rounded.
        history_: the :class:`~thalweg.training.history.History`; by "auto" it joins those of the columns.
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
        devices: int = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "32-true",
        n_threads: int | None = None,
        verbose: bool = False,
        random_state: RandomState = None,
    ):
        self._keep(locals())

    _fabric: Fabric
    _log_z: Normaliser

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
        X = validate_data(self, table_of_numbers(X), dtype=np.float64, ensure_min_samples=2)
        check_columns(X, getattr(self, "feature_names_in_", range(X.shape[1])))
        rng = check_random_state(self.random_state)
        seed = draw_seed(rng)
        self.resolution_ = np.array(
            [find_resolution(c) if self.resolution == "auto" else float(self.resolution) for c in X.T]
        )
        self.origin_ = np.array([most_frequent(c) for c in X.T])
        self.atoms_: list[list[float]] = [[] for _ in X.T]
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
        self._fabric = self._make_fabric()
        how = {"resume": resume, "checkpoint_seconds": checkpoint_seconds}
        if self.objective == "auto":
            self.proposal_ = mixture_proposal(z, seed)
            inner: Energy = self._fit_chain(Z, z, scale, seed, folder, **how)
            self.atoms_ = [
                sorted({float(x) for x in column[np.isin(standard, model.atoms_)]})
                for column, standard, model in zip(X.T, Z.T, self.conditionals_, strict=True)
            ]
        else:
            inner = self._fit_network(z, scale, seed, folder, **how)
        del self._fabric
        self.energy_ = Rescaled(inner.cpu().eval(), location, scale)
        known = self.held_out_log_prob_[~np.isnan(self.held_out_log_prob_)]
        self.validation_nll_ = -float(known.mean()) if len(known) else math.nan
        self._conclude(self._checks(X))
        return self

    def _checks(self, X: np.ndarray) -> list[Check]:
        """What can be said of the model from its own held-out rows."""
        found = [
            check_rows(*X.shape),
            check_training(self.history_.parts or {"training": self.history_}),
            check_normaliser(self.log_normaliser_error_, self.log_normaliser_warning_),
        ]
        if not any(self.atoms_):
            found.append(check_folds(self.held_out_log_prob_, X))
        return found

    def _check_settings(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        if self.energy is not None and self.objective == "auto":
            raise ValueError("an energy of your own needs an objective: 'nce' or 'cnce', for instance")
        # What both estimators take has the same bounds.
        self._conditional(0.0, None)._check_settings()

    def _conditional(self, resolution: float | str, seed: int | None, label: str = "fit") -> Conditional:
        model = Conditional(
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
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=self.strategy,
            precision=self.precision,
            n_threads=self.n_threads,
            verbose=self.verbose,
            random_state=seed,
        )
        model.label, model.fabric = label, getattr(self, "_fabric", None)
        return model

    def _fit_chain(
        self, Z: np.ndarray, z: Tensor, scale: np.ndarray, seed: int, folder: Path | None, **how: Any
    ) -> AutoregressiveEnergy:
        """One conditional after the other, each from the columns before it; then a mixture's share in each.

        Args:
            Z: standardised rows.
            z: the same, spread over their rounding cells.
        """
        self.conditionals_, histories = [], {}
        own = np.empty(Z.shape)
        # A grid finer than single precision tells apart is none to a network.
        cells = np.where(self.resolution_ < FINEST_GRID * scale, 0.0, self.resolution_ / scale)
        for d in range(Z.shape[1]):
            model = self._conditional(float(cells[d]), seed + d, f"column {d + 1} of {Z.shape[1]}")
            model.shift, model.fold_seed = float(np.log(scale[d])), seed
            given = Z[:, :d] if d else np.zeros((len(Z), 1))
            model.fit(given, Z[:, d], run_dir=None if folder is None else folder / f"column-{d}", **how)
            own[:, d] = model.held_out_log_prob
            self.conditionals_.append(model)
            histories[f"column {d + 1}"] = model.history_
        self.history_ = History.joined(histories)
        mixture, others = conditionals_of_mixture(z, seed)
        # Where a log mass counts; the mixture has a density, and no mass on atoms.
        masses = np.column_stack(
            [np.isin(z, m.atoms_) & (not m.resolution_) for z, m in zip(Z.T, self.conditionals_, strict=True)]
        )
        others[masses] = -np.inf
        shares, log_prob = stacked(own, others, seed)
        self.held_out_log_prob_ = (log_prob - np.where(masses, 0.0, np.log(scale))).sum(1)
        self._log_z = Normaliser(0.0)
        return AutoregressiveEnergy(
            [m.energy_ for m in self.conditionals_],
            [NumericEncoding(m.encoder_.columns) for m in self.conditionals_],  # type: ignore[union-attr]
            torch.tensor([float(m.location_[0]) for m in self.conditionals_]),
            torch.tensor([float(m.scale_[0]) for m in self.conditionals_]),
            mixture,
            torch.as_tensor(shares),
            [m.curved_ for m in self.conditionals_],
            [m.resolution_ for m in self.conditionals_],
        )

    def _fit_network(self, z: Tensor, scale: np.ndarray, seed: int, folder: Path | None, **how: Any) -> Energy:
        order = np.random.RandomState(seed).permutation(len(z))
        n_held_out = max(1, round(self.validation_fraction * len(z)))
        training = z[order[n_held_out:]]
        with seeded(seed):
            network = self._network(z)
            objective = METHODS[self.objective].build(training)
        check_energy(network, z[:2])
        proposal = mixture_proposal(training, seed)
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
        validate = HeldOutLikelihood(z, order[:n_held_out], proposal, seed)
        with self._threads(plan.batch_size, count_weights(network)):
            trainer = Trainer(
                plan,
                self._fabric,
                folder,
                BarProgress(offset=shift) if self.verbose else None,
            )
            self.history_ = trainer.fit(network, objective, Batch(None, training), validate, resume=how["resume"])
            network = network.eval()
            with torch.no_grad():
                validate(network)
        network = network.cpu()
        try:
            self._log_z = estimate_normaliser(network, proposal, training, seed)
        except ValueError as error:
            raise DivergenceError(
                f"training by {self.objective!r} ended with an energy that can't be normalised ({error}): lower "
                "the learning rate, or take another objective"
            ) from error
        self.held_out_log_prob_ = validate.log_prob_of_rows(network, self._log_z.estimate, len(z)) - shift
        return network

    def _network(self, z: Tensor) -> Energy:
        if self.energy is not None:
            return copy.deepcopy(self.energy)
        return PerceptronEnergy(z.shape[1], check_widths(self.hidden)) + GaussianMixtureEnergy.from_moments(z, 1.3)

    # -- use -----------------------------------------------------------------------------------------

    def _normaliser(self) -> Normaliser:
        check_is_fitted(self, "energy_")
        return self._log_z

    def _rows(self, X: Any, gaps: bool = False) -> np.ndarray:
        check_is_fitted(self, "energy_")
        if isinstance(X, pd.DataFrame) and hasattr(self, "feature_names_in_"):
            X = table_of_numbers(X)
            if set(X.columns) == set(self.feature_names_in_):
                X = X[list(self.feature_names_in_)]
        finite = "allow-nan" if gaps else True
        X = validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite=finite)
        return np.ascontiguousarray(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p of every row ``[rows]``, normalised, in nats; all off alike by ``log_normaliser_error_``.

        Where a column is rounded it is the density of the values spread over their rounding cells. A value that a
        column takes with positive probability beside others (``atoms_``) counts with its log mass.
        """
        x = torch.from_numpy(self._rows(X))
        with torch.no_grad():
            energy = torch.cat([self.energy_(piece) for piece in x.split(8192)])
        return -energy.double().numpy() - self.log_normaliser_

    def score(self, X: Any, y: None = None) -> float:
        """Total log-likelihood of the rows, as scikit-learn's ``KernelDensity`` has it."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, *, random_state: RandomState = None) -> np.ndarray:
        """Draws ``[n_samples, columns]``: independent by "auto", else by importance resampling and HMC."""
        check_is_fitted(self, "energy_")
        check_count("n_samples", n_samples)
        generator = generator_of(random_state)
        inner = self.energy_.inner
        if isinstance(inner, Density):
            return self._rounded(self.energy_.back(inner.sample(n_samples, generator)))
        candidates = self.proposal_.sample(max(20_000, 10 * n_samples), generator)
        white = Whitened(inner, self.proposal_.scales[-1])
        start = white.forth(resampled(inner, self.proposal_, candidates, n_samples, generator))
        kernel = adapt_step_size(HMC(0.1), white, start[:256], 50, generator=generator).kernel
        end = white.back(run_chain(kernel, white, start, 40, generator).position)
        return self._rounded(self.energy_.back(end))

    def impute(
        self,
        X: Any,
        *,
        n_draws: int | None = None,
        random_state: RandomState = None,
        n_candidates: int = 256,
    ) -> np.ndarray:
        """Fill gaps (NaN) given what is known of each row.

        Args:
            X: ``[rows, columns]``; what is known is returned bit for bit.
            n_draws: None gives the conditional mean; a number that many draws from p(missing | known).
            random_state: seed, or a ``RandomState``.
            n_candidates: weighted draws for each row, from which the draws are taken, or over which the mean is.

        Warns:
            UserWarning: if rows lack so much that few of the candidates fit.

        Returns:
            ``[rows, columns]``, or ``[n_draws, rows, columns]``.
        """
        X = self._rows(X, gaps=True)
        if n_draws is not None:
            check_count("n_draws", n_draws)
        check_count("n_candidates", n_candidates)
        generator = generator_of(random_state)
        inner = self.energy_.inner
        n_candidates += n_candidates % 2
        out = np.repeat(X[None], n_draws or 1, 0)
        rows = np.flatnonzero(np.isnan(X).any(1))
        n_poor = 0
        for piece in np.array_split(rows, max(1, len(rows) * n_candidates // 32768)):
            if not len(piece):
                continue
            mask = torch.from_numpy(~np.isnan(X[piece]))
            known = torch.nan_to_num(self.energy_.forth(torch.from_numpy(X[piece])))
            found = completion.complete(inner, self.proposal_, known, mask, n_candidates, generator)
            if isinstance(inner, AutoregressiveEnergy):
                n_poor += int((found.effective_sample_size < 4).sum())
            if n_draws is None:
                filled = self.energy_.back(found.mean()[None]).numpy()
            else:
                filled = self._rounded(
                    self.energy_.back(self._moved(found.draw(n_draws, generator), known, mask, generator))
                )
            out[:, piece] = np.where(mask.numpy(), X[piece], filled)
        if n_poor:
            warnings.warn(
                f"in {n_poor} of {len(rows)} rows with gaps so much is missing that fewer than 4 of "
                f"{n_candidates} candidates fit what is known: their completions vary too little; more "
                "candidates help",
                stacklevel=2,
            )
        return out[0] if n_draws is None else out

    def _moved(self, filled: Tensor, known: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Draws taken off the candidates by a few steps of HMC, where these are not the model's own."""
        inner = self.energy_.inner
        if isinstance(inner, AutoregressiveEnergy):
            return filled
        clamped = ClampedEnergy(inner, known.expand_as(filled), mask)
        few = ClampedEnergy(inner, known.expand_as(filled[:4]), mask)
        kernel = adapt_step_size(HMC(0.1, 5), few, filled[:4], 30, generator=generator).kernel
        return run_chain(kernel, clamped, filled, 10, generator).position

    def denoise(
        self,
        X: Any,
        noise_std: float | Sequence[float],
        *,
        random_state: RandomState = None,
        n_candidates: int = 512,
    ) -> np.ndarray:
        """Posterior mean of rows that were seen with Gaussian noise: of x ~ p(x) N(seen; x, noise_std^2).

        Args:
            X: ``[rows, columns]``.
            noise_std: standard deviation of the noise, one number or one for each column, in the columns' units.
            n_candidates: weighted draws for each row, which are averaged.
        """
        X = self._rows(X)
        std = np.asarray(noise_std, np.float64)
        if std.shape not in ((), (X.shape[1],)):
            raise ValueError(f"noise_std must be one number or {X.shape[1]}, got an array of shape {std.shape}")
        if not ((std > 0) & np.isfinite(std)).all():
            raise ValueError(f"noise_std must be positive, got {noise_std}")
        check_count("n_candidates", n_candidates)
        generator = generator_of(random_state)
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
        """Draws, of rounded columns on their grids, and atoms exactly as they are in the data."""
        out = x.numpy()
        for k in np.flatnonzero(self.resolution_):
            out[..., k] = rounded(out[..., k], self.origin_[k], self.resolution_[k])
        # On the way through standardised single precision an atom may have moved by a rounding error.
        slack = 1e-6 * (self.energy_.scale.numpy() + np.abs(self.energy_.location.numpy()))
        for d, atoms in enumerate(self.atoms_):
            for atom in atoms:
                near = np.abs(out[..., d] - atom) <= slack[d] + 1e-6 * abs(atom)
                out[..., d] = np.where(near, atom, out[..., d])
        return out

    # -- saving --------------------------------------------------------------------------------------

    _not_saved = ("random_state", "energy")

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "resolution": self.resolution_.tolist(),
            "origin": self.origin_.tolist(),
            "atoms": self.atoms_,
            "log_normaliser": self.log_normaliser_,
            "log_normaliser_error": self.log_normaliser_error_,
            "log_normaliser_warning": self.log_normaliser_warning_,
            "validation_nll": None if math.isnan(self.validation_nll_) else self.validation_nll_,
            "n_components": len(self.proposal_.means),
        }
        if isinstance(self.energy_.inner, AutoregressiveEnergy):
            assert self.energy_.inner.mixture is not None
            config["conditionals"] = self._architecture()
            config["mixture"] = list(self.energy_.inner.mixture.scales.shape)
        return config

    def _modules(self) -> dict[str, nn.Module]:
        return {"energy": self.energy_, "proposal": self.proposal_}

    def _architecture(self) -> list[dict[str, Any]]:
        """The shape of each conditional, as JSON."""
        if not hasattr(self, "conditionals_"):
            return self.architecture_
        return [
            {
                "encoder": m.encoder_.state(),  # type: ignore[union-attr]
                "architecture": m.architecture_,
                "curved": m.curved_,
                "cell": m.resolution_,
            }
            for m in self.conditionals_
        ]

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        d = self.n_features_in_
        self.resolution_ = np.array(config["resolution"])
        self.origin_ = np.array(config["origin"])
        self.atoms_ = config.get("atoms", [[] for _ in range(d)])
        found = (config["log_normaliser"], config["log_normaliser_error"], config.get("log_normaliser_warning"))
        self._log_z = Normaliser(*found)
        nll = config["validation_nll"]
        self.validation_nll_ = math.nan if nll is None else nll
        self.proposal_ = empty_mixture(config["n_components"], d)
        inner: Energy
        if self.objective == "auto":
            self.architecture_ = config["conditionals"]
            inner = empty_chain(self.architecture_, config["mixture"], self.n_members, check_widths(self.hidden))
        else:
            inner = PerceptronEnergy(d, check_widths(self.hidden)) + empty_mixture(1, d)
        self.energy_ = Rescaled(inner, np.zeros(d), np.ones(d))
