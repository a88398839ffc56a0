"""``EnergyRegressor``: p(y|x) from a table, with scikit-learn's manners."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _check_sample_weight,
    check_array,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from torch import Tensor, nn

from thalweg.data.encoding import TableEncoder
from thalweg.data.target import check_target, find_atoms, find_resolution, location_and_scale
from thalweg.energies.base import ConditionalEnergy, check_energy
from thalweg.energies.densities.tilted import MixtureDensity, TiltedEnergy, TiltedMixtureEnsemble
from thalweg.energies.networks import NetworkEnergy, mlp
from thalweg.estimators._states import kept_columns, restore_columns
from thalweg.estimators.distribution import MultivariateDistribution, PredictiveDistribution
from thalweg.inference.quadrature import normalise
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.contrastive_divergence import LangevinML
from thalweg.objectives.importance_sampling import ImportanceSampling, KLDivergenceImportanceSampling
from thalweg.objectives.likelihood import MaximumLikelihood, dequantise
from thalweg.objectives.noise_contrastive import JointProposalNCE, RankingNCE, TiltNCE
from thalweg.objectives.score_matching import DenoisingScoreMatching, ScoreMatching
from thalweg.training.loop import History, Plan, Trainer
from thalweg.training.progress import BarProgress, Progress
from thalweg.training.saving import load_model, rebuilding, save_model, tensors_of

OBJECTIVES = ("auto", "likelihood", "tilt-nce", "proposal-nce", "nce", "nce+", "ml-is", "kld-is", "ml-mcmc",
              "sm", "dsm")  # fmt: skip
POINTS = ("mean", "median", "mode")


class EnergyRegressor(RegressorMixin, BaseEstimator):
    """A conditional energy-based model of p(y|x), for one target or several.

    By default one target is modelled by an ensemble of tilted mixtures, normalised exactly and trained by
    maximum likelihood; several targets by a tilted mixture trained by ranking NCE. Each member of the
    ensemble is trained without one fold of the rows and stops where its likelihood on that fold is best.

    Columns of X may be numbers, categories and dates, with gaps. A target that is rounded (grades, ages in
    years, two decimals) is recognised, and dequantised in training; ``resolution_`` says so.

    Args:
        objective: "auto" (see above), "likelihood", "tilt-nce", "proposal-nce", "nce", "nce+", "ml-is",
            "kld-is", "ml-mcmc", "sm" or "dsm".
        energy: a conditional energy of one's own, for the objectives that need no mixture; X may then have
            any shape ``[rows, ...]`` and is given to it as it is. It is copied, never changed.
        point: what ``predict`` returns: "mean", "median" or "mode".
        n_members: networks in the ensemble, and folds of the data.
        hidden: widths of the hidden layers.
        n_components: Gaussians in a mixture.
        n_tilts: cosines in a member's tilt.
        dropout: probability of dropping a hidden unit; "auto" is 0.1, and 0 for fewer than four columns, where
            there is little to overfit and sharp shapes are lost.
        roughness: weight of the penalty on the members' tilts; "auto" is 0.005, and 0.2 for fewer than four
            columns.
        noise_stds: of the noise of nce, nce+, ml-is, kld-is and dsm (its first), in standard deviations of
            the target.
        n_samples: candidates for each row, for the objectives that draw them.
        learning_rate, weight_decay, batch_size, max_epochs, max_steps, patience: see
            :class:`~thalweg.training.loop.Plan`; batch_size "auto" grows with the rows.
        validation_fraction: rows held out to stop early, where the model is no ensemble.
        resolution: spacing of the grid that the target is rounded to; "auto" finds it, 0 is none.
        device, precision: for Lightning Fabric.
        n_threads: of PyTorch while fitting; None chooses by the size of the work.
        verbose: show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the trained energy, over standardised targets.
        resolution_: spacing found, 0 if the target isn't rounded.
        validation_nll_: mean held-out negative log-likelihood, nats per unit of the target.
        history_: :class:`~thalweg.training.loop.History` of the fit.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> model = EnergyRegressor(max_epochs=5, random_state=0).fit(X, y)
        >>> model.predict_interval(X[:2], coverage=0.9).shape
        (2, 2)
    """

    def __init__(
        self,
        objective: str = "auto",
        *,
        energy: ConditionalEnergy | None = None,
        point: str = "mean",
        n_members: int = 8,
        hidden: Sequence[int] = (128, 128),
        n_components: int = 5,
        n_tilts: int = 8,
        dropout: float | str = "auto",
        roughness: float | str = "auto",
        noise_stds: Sequence[float] = (0.1, 0.8),
        n_samples: int = 128,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.1,
        batch_size: int | str = "auto",
        max_epochs: int = 200,
        max_steps: int | None = 3000,
        patience: int | None = 20,
        validation_fraction: float = 0.1,
        resolution: float | str = "auto",
        device: str = "cpu",
        precision: str = "32-true",
        n_threads: int | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.objective = objective
        self.energy = energy
        self.point = point
        self.n_members = n_members
        self.hidden = hidden
        self.n_components = n_components
        self.n_tilts = n_tilts
        self.dropout = dropout
        self.roughness = roughness
        self.noise_stds = noise_stds
        self.n_samples = n_samples
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.resolution = resolution
        self.device = device
        self.precision = precision
        self.n_threads = n_threads
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.target_tags.multi_output = True
        tags.non_deterministic = False
        return tags

    # -- fitting -------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: np.ndarray | None = None,
        *,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> EnergyRegressor:
        """Fit the density of y given X.

        Args:
            X: table ``[rows, columns]`` (DataFrame or array).
            y: ``[rows]`` or ``[rows, K]``.
            sample_weight: ``[rows]``, not negative; rows of weight 0 are left out.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoint in run_dir; the result is that of a run never interrupted.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for settings or data that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        self._check_settings()
        X, y = self._check_training(X, y)
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, y, ensure_non_negative=True)
            kept = weight > 0
            if not kept.any():
                raise ValueError("all sample weights are zero")
            X, y, weight = X[kept], y[kept], weight[kept] / weight[kept].mean()
        targets = y.reshape(len(y), -1)
        check_target(targets)
        if len(y) < 2:
            raise ValueError(f"Found array with n_samples={len(y)}: at least 2 rows are needed to fit a density")

        rng = check_random_state(self.random_state)
        seed = int(rng.randint(2**31 - 1))
        self.n_outputs_ = targets.shape[1]
        self.location_, self.scale_ = location_and_scale(targets)
        self.resolution_ = self._find_resolution(targets)
        scaled = ((targets - self.location_) / self.scale_).astype(np.float32)
        # Where an energy that is normalised numerically lives: beyond the targets seen by three tenths of their
        # range, which is as far as the noise of its training reaches. Further out it was never told anything.
        margin = 0.3 * float(np.ptp(scaled))
        self.bounds_ = (float(scaled.min()) - margin, float(scaled.max()) + margin)
        self.encoder_ = None if self.energy is not None else TableEncoder().fit(X)
        features = self._encode(X)
        held_out = self._hold_out(len(y), rng)
        self.architecture_ = self._architecture(features.shape[1], targets)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.energy_, objective = self._build()
        with torch.no_grad():
            candidates = torch.from_numpy(scaled[:2, None]).expand(-1, 3, -1)
            check_energy(self.energy_.eval().given(features[:2]), candidates)
        plan = self._plan(len(y), seed, checkpoint_seconds)
        mask = torch.from_numpy(~held_out).float()
        mask = mask / mask.mean(0)
        if weight is not None:
            mask = mask * torch.as_tensor(weight, dtype=torch.float32)[:, None]
        data = Batch(features, torch.from_numpy(scaled), mask if mask.shape[1] > 1 else mask[:, 0])
        validate = _Validation(objective, data, held_out, weight, seed, self.bounds_)
        offset = float(np.log(self.scale_).sum()) if validate.is_likelihood else 0.0
        with using_threads(self.n_threads or suitable_threads(plan.batch_size, n_weights(self.energy_))):
            trainer = Trainer(
                plan,
                Fabric(accelerator=self.device, devices=1, precision=self.precision),  # type: ignore[arg-type]
                Path(run_dir) if run_dir is not None else None,
                self._progress(offset, held_out.shape[1]) if self.verbose else None,
            )
            self.history_ = trainer.fit(self.energy_, objective, data, validate, resume=resume)
            self.energy_.eval()
            self.proposal_ = self._proposal_of(objective)
            with torch.no_grad():
                figure = validate(self.energy_)
        self.validation_nll_ = float(figure.mean()) + offset if validate.is_likelihood else math.nan
        return self

    def _progress(self, offset: float, n_members: int) -> Progress:
        return BarProgress(offset=offset, n_members=n_members)

    def _check_settings(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        if self.point not in POINTS:
            raise ValueError(f"point must be one of {', '.join(POINTS)}; got {self.point!r}")
        for name in ("n_members", "n_components", "n_samples", "max_epochs"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, least in (("n_tilts", 0), ("n_threads", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | np.integer) or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        widths = list(self.hidden) if isinstance(self.hidden, Sequence | np.ndarray) else []
        if not widths or not all(isinstance(w, int | np.integer) and w > 0 for w in widths):
            raise ValueError(
                f"hidden must be whole numbers, one for each layer, as (128, 128); got {self.hidden!r}"
            )
        for name, most in (("dropout", 1.0), ("roughness", math.inf), ("resolution", math.inf)):
            value = getattr(self, name)
            if value != "auto" and (isinstance(value, str) or not 0 <= value < most):
                bounds = "in [0, 1)" if name == "dropout" else "a number of at least 0"
                raise ValueError(f"{name} must be 'auto' or {bounds}, got {value!r}")
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise ValueError(f"batch_size must be 'auto' or a whole number, got {self.batch_size!r}")
        if self.precision.startswith("64"):
            raise ValueError(f"precision {self.precision!r} is of no use here: the data are kept in 32 bits")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in (0, 1), got {self.validation_fraction!r}")

    def _check_training(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        if self.energy is not None:
            X = _as_array(X)
            self.n_features_in_ = int(np.prod(X.shape[1:]))
        else:
            X = self._check_table(X, reset=True)
        if y is None:
            raise ValueError("This EnergyRegressor estimator requires y to be passed, but the target y is None")
        y = np.asarray(y)
        if y.dtype == object or y.dtype.kind in "US":
            try:
                y = y.astype(np.float64)
            except (ValueError, TypeError) as error:
                raise ValueError(f"Unknown label type: the target must be numbers ({error})") from error
        y = check_array(
            y, ensure_2d=False, allow_nd=True, dtype=np.float64, ensure_all_finite=False, input_name="y"
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if y.ndim > 2:
            raise ValueError(f"y must be [rows] or [rows, K], got {y.shape}")
        if len(y) != len(X):
            raise ValueError(f"X has {len(X)} rows, y has {len(y)}: Found input variables with inconsistent "
                             "numbers of samples")  # fmt: skip
        if np.isnan(y).any() or np.isinf(y).any():
            check_target(y.reshape(len(y), -1))
        return X, y

    def _check_table(self, X: Any, reset: bool) -> pd.DataFrame:
        """X as a table whose columns are those of the training table."""
        if isinstance(X, pd.DataFrame):
            if X.shape[1] == 0 or len(X) == 0:
                raise ValueError(f"X has shape {X.shape}: it needs rows and columns")
            if not reset and hasattr(self, "feature_names_in_"):
                missing = [c for c in self.feature_names_in_ if c not in X.columns]
                if not missing and set(X.columns) >= set(self.feature_names_in_):
                    X = X[list(self.feature_names_in_)]
            _check_feature_names(self, X, reset=reset)
            _check_n_features(self, X, reset=reset)
            return X.reset_index(drop=True)
        if _has_text(X):
            # Categories in an object array: columns become numbers where all their values are.
            array = np.asarray(X, dtype=object)
            if array.ndim != 2:
                raise ValueError(f"Expected 2D array, got {array.ndim}D array: Reshape your data")
            _check_n_features(self, array, reset=reset)
            return pd.DataFrame(array).infer_objects()
        array = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite=False)
        if np.isinf(array).any():
            raise ValueError("Input X contains infinity or a value too large for dtype('float64').")
        return pd.DataFrame(array)

    def _find_resolution(self, targets: np.ndarray) -> float:
        if self.resolution != "auto":
            return float(self.resolution)
        return find_resolution(targets[:, 0]) if targets.shape[1] == 1 else 0.0

    def _encode(self, X: Any) -> Tensor:
        if self.encoder_ is None:
            return torch.as_tensor(np.ascontiguousarray(X), dtype=torch.float32)
        return torch.from_numpy(self.encoder_.transform(X))

    def _objective_name(self) -> str:
        if self.objective != "auto":
            return self.objective
        if isinstance(self.energy, TiltedEnergy):
            return "tilt-nce"
        if isinstance(self.energy, TiltedMixtureEnsemble | MixtureDensity):
            return "likelihood"
        if self.energy is not None:
            return "nce"
        return "likelihood" if self.n_outputs_ == 1 else "tilt-nce"

    def _hold_out(self, n_rows: int, rng: np.random.RandomState) -> np.ndarray:
        """Which rows each member does not learn from: bool ``[rows, members]``, at least one each."""
        ensemble = self._objective_name() == "likelihood" and self.energy is None and self.n_outputs_ == 1
        order = rng.permutation(n_rows)
        if ensemble and self.n_members > 1:
            fold = np.empty(n_rows, dtype=int)
            fold[order] = np.arange(n_rows) % min(self.n_members, n_rows)
            member_fold = np.arange(self.n_members) % min(self.n_members, n_rows)
            return fold[:, None] == member_fold
        held_out = np.zeros((n_rows, 1), dtype=bool)
        held_out[order[: max(1, round(self.validation_fraction * n_rows))]] = True
        return held_out

    def _architecture(self, n_inputs: int, targets: np.ndarray) -> dict[str, Any]:
        """What ``_build`` needs beside the parameters; kept in the saved model."""
        wide = self.n_features_in_ >= 4
        dropout = (0.1 if wide else 0.0) if self.dropout == "auto" else float(self.dropout)
        if self.energy is not None or self.n_outputs_ > 1:
            return {"n_inputs": n_inputs, "dropout": dropout}
        resolution = self.resolution_ / float(self.scale_[0])
        atoms = find_atoms(targets[:, 0])
        return {
            "n_inputs": n_inputs,
            "dropout": dropout,
            "roughness": (0.005 if wide else 0.2) if self.roughness == "auto" else float(self.roughness),
            "atoms": [(a - float(self.location_[0])) / float(self.scale_[0]) for a in atoms],
            "atom_std": max(resolution / math.sqrt(12), 1e-4),
            "log_std_floor": math.log(max(1e-3, 0.02 * resolution)),
        }

    def _build(self) -> tuple[ConditionalEnergy, Objective]:
        name, k, architecture = self._objective_name(), self.n_outputs_, self.architecture_
        n_inputs, width = architecture["n_inputs"], self.hidden[-1]
        resolution = self.resolution_ / float(self.scale_[0])
        stds = [float(s) for s in self.noise_stds]
        if self.energy is not None:
            energy = copy.deepcopy(self.energy)
        elif name == "likelihood":
            if k > 1:
                raise ValueError("objective 'likelihood' is for one target: use 'tilt-nce' (the default)")
            energy = TiltedMixtureEnsemble(
                n_inputs,
                self.n_members,
                self.hidden,
                self.n_components,
                self.n_tilts,
                architecture["dropout"],
                architecture["log_std_floor"],
                architecture["atoms"],
                architecture["atom_std"],
            )
        elif name == "tilt-nce":
            trunk = _dropped_mlp([n_inputs, *self.hidden], architecture["dropout"])
            proposal = MixtureDensity(trunk, width, k, self.n_components, log_std_floor=-6.0)
            residual = NetworkEnergy(nn.Identity(), width, k, hidden=width // 2, n_residual=1)
            energy = TiltedEnergy(proposal, residual)
        else:
            trunk = _dropped_mlp([n_inputs, *self.hidden], architecture["dropout"])
            energy = NetworkEnergy(trunk, width, k, hidden=width, n_residual=1)
        if name == "proposal-nce":
            if self.energy is not None:
                raise ValueError("objective 'proposal-nce' builds its own networks: leave energy=None")
            mixture = MixtureDensity(mlp([n_inputs, *self.hidden]), width, k, self.n_components)
            return energy, JointProposalNCE(mixture, self.n_samples)
        wide = [2 * s for s in stds]
        objectives: dict[str, Callable[[], Objective]] = {
            "likelihood": lambda: MaximumLikelihood(resolution, architecture.get("roughness", 0.0)),
            "tilt-nce": lambda: TiltNCE(self.n_samples),
            "nce": lambda: RankingNCE(stds, self.n_samples),
            "nce+": lambda: RankingNCE(stds, self.n_samples, label_noise=0.025),
            "ml-is": lambda: ImportanceSampling(wide, self.n_samples),
            "kld-is": lambda: KLDivergenceImportanceSampling(stds[0] / 4, wide, self.n_samples),
            "ml-mcmc": lambda: LangevinML(stds[0] / 2, 16, self.n_samples),
            "sm": lambda: ScoreMatching(),
            "dsm": lambda: DenoisingScoreMatching(stds[0], self.n_samples),
        }
        return energy, objectives[name]()

    def _proposal_of(self, objective: Objective) -> MixtureDensity:
        """What importance sampling over y in R^K draws from."""
        if isinstance(self.energy_, MixtureDensity):
            return self.energy_
        if isinstance(self.energy_, TiltedEnergy):
            return self.energy_.proposal
        if isinstance(objective, JointProposalNCE):
            return objective.proposal
        return _BroadProposal(self.n_outputs_)

    def _plan(self, n_rows: int, seed: int, checkpoint_seconds: float) -> Plan:
        size = self.batch_size
        batch = int(min(512, max(32, n_rows // 10))) if size == "auto" else int(size)
        return Plan(
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            batch_size=batch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_steps=50,
            patience=self.patience,
            clip_norm=5.0 * math.sqrt(self.n_members),
            checkpoint_seconds=checkpoint_seconds,
            seed=seed,
        )

    # -- prediction ----------------------------------------------------------------------------------

    def _inputs(self, X: Any) -> Tensor:
        check_is_fitted(self, "energy_")
        if self.encoder_ is None:
            return self._encode(_as_array(X)).to(self.device)
        return self._encode(self._check_table(X, reset=False)).to(self.device)

    def predict_distribution(self, X: Any) -> PredictiveDistribution | MultivariateDistribution:
        """p(y|x) of every row: ``log_prob``, ``cdf``, ``quantile``, ``interval``, ``sample``, ``modes``, ..."""
        x = self._inputs(X)
        if self.n_outputs_ == 1:
            return PredictiveDistribution(
                self.energy_,
                x,
                float(self.location_[0]),
                float(self.scale_[0]),
                self.bounds_,
                self.resolution_,
            )
        return MultivariateDistribution(self.energy_, self.proposal_, x, self.location_, self.scale_)

    def predict(self, X: Any) -> np.ndarray:
        """The mean, median or mode (``point``) of each row: ``[rows]`` or ``[rows, K]``."""
        distribution = self.predict_distribution(X)
        return getattr(distribution, self.point)()

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Central interval of this coverage: ``[rows, 2]`` (``[rows, 2, K]`` for K targets)."""
        return self.predict_distribution(X).interval(coverage)

    def sample(
        self, X: Any, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Draws from p(y|x): ``[rows, n_samples]`` (``[rows, n_samples, K]`` for K targets)."""
        return self.predict_distribution(X).sample(n_samples, random_state)

    # -- saving --------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Write the model as a folder with ``config.json`` and ``model.safetensors``.

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
        params["noise_stds"] = list(self.noise_stds)
        assert self.encoder_ is not None
        config = {
            "params": params,
            "encoder": self.encoder_.state(),
            "n_outputs": self.n_outputs_,
            **kept_columns(self),
            "location": self.location_.tolist(),
            "scale": self.scale_.tolist(),
            "bounds": list(self.bounds_),
            "resolution": self.resolution_,
            "architecture": self.architecture_,
            "validation_nll": None if math.isnan(self.validation_nll_) else self.validation_nll_,
            "history": asdict(self.history_),
            "extra": extra or {},
        }
        tensors = {f"energy.{k}": v for k, v in self.energy_.state_dict().items()}
        if self._objective_name() == "proposal-nce":
            tensors |= {f"proposal.{k}": v for k, v in self.proposal_.state_dict().items()}
        save_model(Path(folder), "EnergyRegressor", config, tensors)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> EnergyRegressor:
        """Read a saved model. Nothing in the folder is run; ``extra_`` holds what was kept beside it.

        Raises:
            ValueError: if the folder is missing, damaged, foreign, or of a newer version.
        """
        config, tensors = load_model(Path(folder), "EnergyRegressor")
        with rebuilding(folder):
            model = cls(**config["params"])
            model.encoder_ = TableEncoder.from_state(config["encoder"])
            model.n_outputs_ = config["n_outputs"]
            restore_columns(model, config)
            model.location_ = np.array(config["location"])
            model.scale_ = np.array(config["scale"])
            model.bounds_ = tuple(config["bounds"])
            model.resolution_ = config["resolution"]
            nll = config["validation_nll"]
            model.validation_nll_ = math.nan if nll is None else nll
            model.history_ = History(**config["history"])
            model.extra_ = config["extra"]
            model.architecture_ = config["architecture"]
            model.energy_, objective = model._build()
            model.energy_.load_state_dict(tensors_of("energy", tensors))
            model.energy_.eval()
            model.proposal_ = model._proposal_of(objective)
            if any(k.startswith("proposal.") for k in tensors):
                model.proposal_.load_state_dict(tensors_of("proposal", tensors))
        return model


class _Validation:
    """The held-out figure of an energy: one number, or one for each member of an ensemble.

    It is the negative log-likelihood, exact, where y is one-dimensional; else the objective's own value
    with noise that is the same every time.
    """

    max_rows = 1000

    def __init__(
        self,
        objective: Objective,
        data: Batch,
        held_out: np.ndarray,
        weight: np.ndarray | None,
        seed: int,
        bounds: tuple[float, float],
    ):
        self.objective = objective
        self.seed = seed
        self.bounds = bounds
        # [members, rows of each]: folds may differ by one row, so short ones repeat a row at weight 0.
        index = [np.flatnonzero(h) for h in held_out.T]
        longest = max(len(i) for i in index)
        rows = torch.from_numpy(np.stack([np.resize(i, longest) for i in index]))
        weights = np.ones(len(held_out)) if weight is None else weight
        weights = np.stack([np.where(np.arange(longest) < len(i), weights[np.resize(i, longest)], 0.0)
                            for i in index])  # fmt: skip
        self.weights = torch.from_numpy(weights / weights.sum(1, keepdims=True)).float()
        self.x, self.y = data.x[rows], data.y[rows]
        self.is_likelihood = data.y.shape[1] == 1

    def __call__(self, energy: nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        resolution = getattr(self.objective, "resolution", 0.0)
        y = dequantise(self.y, resolution, generator)
        if isinstance(energy, TiltedMixtureEnsemble) and len(self.x) == energy.n_members > 1:
            # Each member on the rows it does not learn from: [rows, members] at once, in pieces.
            parts = [
                energy.member_log_prob(energy.features(x), yy.squeeze(-1).T)
                for x, yy in zip(self.x.split(4096, 1), y.split(4096, 1), strict=True)
            ]
            return -(torch.cat(parts).T * self.weights).sum(1)
        assert isinstance(energy, ConditionalEnergy)
        x, y, weights = self.x[0], y[0], self.weights[0]
        if self.is_likelihood:
            x, y, weights = x[: self.max_rows], y[: self.max_rows], weights[: self.max_rows]
            given = energy.given(x)
            log_prob = -given(y.unsqueeze(1)).squeeze(1)
            if not isinstance(energy, TiltedMixtureEnsemble | MixtureDensity):
                log_prob = log_prob - normalise(given, *self.bounds, tolerance=1e-3).log_normaliser
            return -(log_prob * weights).sum() / weights.sum()
        pieces = zip(x.split(512), y.split(512), strict=True)
        loss = torch.cat([self.objective.per_row(energy, Batch(*piece), generator) for piece in pieces])
        return (loss * weights).sum()


class _BroadProposal(MixtureDensity):
    """Two Gaussians over all standardised targets, the same for every x."""

    scales: Tensor

    def __init__(self, n_targets: int):
        ConditionalEnergy.__init__(self)
        self.n_targets = n_targets
        self.register_buffer("scales", torch.tensor([1.0, 2.0]), persistent=False)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (len(x), 2, self.n_targets)
        log_weights = torch.full((len(x), 2), math.log(0.5), device=x.device)
        return log_weights, torch.zeros(shape, device=x.device), self.scales.log()[:, None].expand(shape)


def _dropped_mlp(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.SiLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _as_array(X: Any) -> np.ndarray:
    """X of any shape ``[rows, ...]`` for an energy of the user's own."""
    return check_array(X, allow_nd=True, dtype=np.float32)


def _has_text(X: Any) -> bool:
    dtype = getattr(X, "dtype", None)
    return dtype is not None and getattr(dtype, "kind", "") in "OUS" and not hasattr(X, "toarray")


def suitable_threads(batch_size: int, n_weights: int) -> int:
    """One thread for small work, where handing it over costs more than it saves."""
    return 1 if batch_size * n_weights < 30_000_000 else torch.get_num_threads()


def n_weights(energy: nn.Module) -> int:
    return sum(p.numel() for p in energy.parameters())


@contextlib.contextmanager
def using_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
