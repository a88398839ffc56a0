"""``EnergyRegressor``: p(y|x) from a table, with scikit-learn's interface."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted
from torch import Tensor, nn

from thalweg._torch_state import seeded
from thalweg.data.encoding import TableEncoder
from thalweg.data.target import (
    FINEST_GRID,
    TargetScale,
    check_target,
    find_atoms,
    find_resolution,
    location_and_scale,
)
from thalweg.energies.base import ConditionalEnergy, check_energy
from thalweg.energies.densities import MixtureDensity, TiltedEnergy, TiltedMixtureEnsemble
from thalweg.energies.networks import NetworkEnergy, mlp
from thalweg.estimators._base import (
    Estimator,
    RandomState,
    check_count,
    check_counts,
    check_widths,
    count_weights,
    draw_seed,
)
from thalweg.estimators._conditional import BroadProposal, HeldOutFigure, mlp_with_dropout
from thalweg.estimators._tables import TableInputs
from thalweg.estimators.distribution import MultivariateDistribution, PredictiveDistribution
from thalweg.evaluation.row_checks import check_folds
from thalweg.evaluation.verdict import Check, check_rows, check_training
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.catalogue import conditional_objective
from thalweg.objectives.names import CONDITIONAL
from thalweg.objectives.noise_contrastive import JointProposalNCE
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import BarProgress, Progress

OBJECTIVES = ("auto", *CONDITIONAL)
POINTS = ("mean", "median", "mode")
# In units of a target's scale; several targets have no point masses and are not curved.
_FARTHEST = 1000.0


class EnergyRegressor(RegressorMixin, TableInputs, Estimator):
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
        noise_stds: widths of the noise of nce, nce+, ml-is, kld-is and dsm (its first), in standard deviations of
            the target.
        n_samples: candidates for each row, for the objectives that draw them.
        learning_rate, weight_decay, batch_size, max_epochs, max_steps, patience: see
            :class:`~thalweg.training.loop.Plan`; batch_size "auto" grows with the rows.
        validation_fraction: rows held out to stop early, where the model is no ensemble.
        resolution: spacing of the grid that the target is rounded to; "auto" finds it, 0 is none.
        device, devices, num_nodes, strategy, precision: see :class:`lightning_fabric.Fabric`; ``device`` is its
            accelerator. Several processes share every batch.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the trained energy, over standardised targets.
        resolution_: spacing found, 0 if the target isn't rounded; of several targets one each ``[K]``.
        atoms_: values that the target takes with positive probability beside a continuous part.
        validation_nll_: mean held-out negative log-likelihood, nats per unit of the target. Each row is judged by
            a network that did not learn from it, at the epoch best on other rows held out; what all networks
            together gain over a single one is measured on the training rows, and added.
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
        *,
        sample_weight: np.ndarray | None = None,
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
        X, y = self._check_data(X, y)
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
        seed = draw_seed(rng)
        self.n_outputs_ = targets.shape[1]
        self.resolution_ = self._find_resolution(targets)
        self._find_scale(targets)
        scaled = self._standardised(targets).astype(np.float32)
        if self.n_outputs_ > 1:
            # One target is spread afresh at every step, by its objective.
            uniform = np.random.RandomState(seed).uniform(size=targets.shape)
            scaled += (self.resolution_ / self.scale_ * (uniform - 0.5)).astype(np.float32)
        # Where an energy that is normalised numerically lives: beyond the targets seen by three tenths of their
        # range, which is as far as the noise of its training reaches. Further out it has learned nothing.
        margin = 0.3 * float(np.ptp(scaled))
        self.bounds_ = (float(scaled.min()) - margin, float(scaled.max()) + margin)
        self.encoder_ = None if self.energy is not None else TableEncoder().fit(X)
        features = self._encode(X)
        held_out = self._hold_out(len(y), rng)
        self.architecture_ = self._architecture(features.shape[1], targets)

        with seeded(seed):
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
        validate = HeldOutFigure(objective, data, held_out, weight, seed, self.bounds_)
        offset = self.offset_of(targets, weight=weight) if validate.is_likelihood else 0.0
        with self._threads(plan.batch_size, count_weights(self.energy_)):
            trainer = Trainer(
                plan,
                self._make_fabric(),
                Path(run_dir) if run_dir is not None else None,
                self._progress(offset, held_out.shape[1]) if self.verbose else None,
            )
            self.history_ = trainer.fit(self.energy_, objective, data, validate, resume=resume)
            self.energy_.eval()
            self.proposal_ = self._proposal_of(objective)
            with torch.no_grad():
                validate(self.energy_)
        self.validation_nll_ = math.nan
        if validate.is_likelihood:
            gain = validate.gain_of_all(self.energy_, data.x, data.y)
            self.validation_nll_ = float(validate.nested().mean()) - gain + offset
            self._held_out_log_prob = gain - validate.nested_rows(len(y)).nanmean(1).numpy() + self._slopes(y)
        self._conclude(self._checks(features, targets, validate.is_likelihood))
        return self

    def _checks(self, features: Tensor, targets: np.ndarray, is_likelihood: bool) -> list[Check]:
        """What can be said of the model from its own held-out rows."""
        n_columns = getattr(self, "n_features_in_", None)
        found = [check_rows(len(targets), n_columns), check_training({"training": self.history_})]
        if is_likelihood and not self.atoms_:
            plain = features.double().numpy() if features.ndim == 2 else None
            found.append(check_folds(self._held_out_log_prob, targets, plain))
        return found

    def _progress(self, offset: float, n_members: int) -> Progress:
        return BarProgress(offset=offset, n_members=n_members)

    def _check_settings(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        if self.point not in POINTS:
            raise ValueError(f"point must be one of {', '.join(POINTS)}; got {self.point!r}")
        check_counts(self, "n_members", "n_components", "n_samples", "max_epochs")
        check_counts(self, "n_tilts", least=0)
        check_widths(self.hidden)
        self._check_training()
        for name, most in (("dropout", 1.0), ("roughness", math.inf), ("resolution", math.inf)):
            value = getattr(self, name)
            if value != "auto" and (isinstance(value, str) or not 0 <= value < most):
                bounds = "in [0, 1)" if name == "dropout" else "a number of at least 0"
                raise ValueError(f"{name} must be 'auto' or {bounds}, got {value!r}")
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise ValueError(f"batch_size must be 'auto' or a whole number, got {self.batch_size!r}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in (0, 1), got {self.validation_fraction!r}")

    def _find_resolution(self, targets: np.ndarray) -> Any:
        auto = self.resolution == "auto"
        found = np.array([find_resolution(y) if auto else float(self.resolution) for y in targets.T])
        return float(found[0]) if len(found) == 1 else found

    def _find_scale(self, targets: np.ndarray) -> None:
        """How targets are standardised, and the values that one target takes with positive probability.

        Raises:
            ValueError: if several targets have values too far out.
        """
        self.atoms_: list[float] = []
        self.curved_ = False
        if targets.shape[1] == 1:
            if self._is_ensemble:
                self.atoms_ = find_atoms(targets[:, 0])
            scale = TargetScale.of(targets[:, 0], self.atoms_)
            self.location_, self.scale_ = np.array([scale.location]), np.array([scale.scale])
            self.curved_ = scale.curved
            return
        self.location_, self.scale_ = location_and_scale(targets)
        far = np.abs((targets - self.location_) / self.scale_).max(0)
        if (far > _FARTHEST).any():
            k = int(far.argmax())
            raise ValueError(
                f"target {k} has values {far[k]:.0f} times its spread away from its median: transform it (by its "
                "logarithm, say), leave those rows out, or fit each target by itself"
            )

    def _limits(self, y: np.ndarray) -> tuple[float | None, float | None]:
        """The least and the largest value, standardised, where they are atoms; None where not."""
        ends = [float(end) if end in self.atoms_ else None for end in (y.min(), y.max())]
        low, high = (None if end is None else float(self.target_scale_.forth(np.array(end))) for end in ends)
        return low, high

    @property
    def _is_ensemble(self) -> bool:
        """Whether the model is the ensemble of tilted mixtures, which may have atoms."""
        return self.objective_name == "likelihood" and self.energy is None and self.n_outputs_ == 1

    @property
    def target_scale_(self) -> TargetScale:
        """How one target is standardised."""
        return TargetScale(self.location_[0], self.scale_[0], self.curved_)

    @property
    def _scaled_resolution(self) -> float:
        """The spacing of one standardised target; a grid finer than single precision tells apart is none."""
        spacing = float(self.resolution_) / float(self.scale_[0])
        return spacing if spacing >= FINEST_GRID else 0.0

    def _standardised(self, targets: np.ndarray) -> np.ndarray:
        if self.n_outputs_ == 1:
            return self.target_scale_.forth(targets)
        return (targets - self.location_) / self.scale_

    def offset_of(self, y: np.ndarray, *, weight: np.ndarray | None = None) -> float:
        """What the mean of -log p over standardised targets gains as one over the targets ``[rows]``."""
        if self.n_outputs_ > 1:
            return float(np.log(self.scale_).sum())
        return -float(np.average(self._slopes(np.reshape(y, -1)), weights=weight))

    def _slopes(self, y: np.ndarray) -> np.ndarray:
        """What a log density of one standardised target gains as one over the target, a log mass nothing."""
        slopes = self.target_scale_.log_slope(y)
        return slopes if self.resolution_ else np.where(np.isin(y, self.atoms_), 0.0, slopes)

    def _encode(self, X: Any) -> Tensor:
        if self.encoder_ is None:
            return torch.as_tensor(np.ascontiguousarray(X), dtype=torch.float32)
        return torch.from_numpy(self.encoder_.transform(X))

    @property
    def objective_name(self) -> str:
        """The objective that "auto" stands for, or the one that was asked for."""
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
        order = rng.permutation(n_rows)
        if self._is_ensemble and self.n_members > 1:
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
        resolution = self._scaled_resolution
        return {
            "n_inputs": n_inputs,
            "dropout": dropout,
            "roughness": (0.005 if wide else 0.2) if self.roughness == "auto" else float(self.roughness),
            "atoms": self.target_scale_.forth(np.array(self.atoms_)).tolist(),
            "limits": list(self._limits(targets[:, 0])),
            "log_std_floor": math.log(max(1e-3, 0.02 * resolution)),
        }

    def _build(self) -> tuple[ConditionalEnergy, Objective]:
        name, k, architecture = self.objective_name, self.n_outputs_, self.architecture_
        hidden = check_widths(self.hidden)
        n_inputs, width = architecture["n_inputs"], hidden[-1]
        resolution = self._scaled_resolution if k == 1 else 0.0
        stds = [float(s) for s in self.noise_stds]
        if self.energy is not None:
            energy = copy.deepcopy(self.energy)
        elif name == "likelihood":
            if k > 1:
                raise ValueError("objective 'likelihood' is for one target: use 'tilt-nce' (the default)")
            energy = TiltedMixtureEnsemble(
                n_inputs,
                self.n_members,
                hidden,
                self.n_components,
                self.n_tilts,
                architecture["dropout"],
                architecture["log_std_floor"],
                architecture["atoms"],
                architecture.get("limits", (None, None)),
            )
        elif name == "tilt-nce":
            trunk = mlp_with_dropout([n_inputs, *hidden], architecture["dropout"])
            proposal = MixtureDensity(trunk, width, k, self.n_components, log_std_floor=-6.0)
            residual = NetworkEnergy(nn.Identity(), width, k, hidden=width // 2, n_residual=1)
            energy = TiltedEnergy(proposal, residual)
        else:
            trunk = mlp_with_dropout([n_inputs, *hidden], architecture["dropout"])
            energy = NetworkEnergy(trunk, width, k, hidden=width, n_residual=1)
        if name == "proposal-nce":
            if self.energy is not None:
                raise ValueError("objective 'proposal-nce' builds its own networks: leave energy=None")
            mixture = MixtureDensity(mlp([n_inputs, *hidden]), width, k, self.n_components)
            return energy, JointProposalNCE(mixture, self.n_samples)
        roughness = architecture.get("roughness", 0.0)
        return energy, conditional_objective(name, stds, self.n_samples, resolution, roughness, self.curved_)

    def _proposal_of(self, objective: Objective) -> MixtureDensity:
        """What importance sampling over y in R^K draws from."""
        if isinstance(self.energy_, MixtureDensity):
            return self.energy_
        if isinstance(self.energy_, TiltedEnergy):
            return self.energy_.proposal
        if isinstance(objective, JointProposalNCE):
            return objective.proposal
        return BroadProposal(self.n_outputs_)

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
            return self._encode(check_array(X, allow_nd=True, dtype=np.float32)).to(self.device)
        return self._encode(self._check_table(X, reset=False)).to(self.device)

    def predict_distribution(self, X: Any) -> PredictiveDistribution | MultivariateDistribution:
        """p(y|x) of every row: ``log_prob``, ``cdf``, ``quantile``, ``interval``, ``sample``, ``modes``, ..."""
        x = self._inputs(X)
        if self.n_outputs_ == 1:
            return PredictiveDistribution(
                self.energy_, x, self.target_scale_, self.bounds_, self.resolution_, atoms=self.atoms_
            )
        return MultivariateDistribution(self.energy_, self.proposal_, x, self.location_, self.scale_)

    def predict(self, X: Any) -> np.ndarray:
        """The mean, median or mode (``point``) of each row: ``[rows]`` or ``[rows, K]``."""
        distribution = self.predict_distribution(X)
        return getattr(distribution, self.point)()

    def predict_interval(self, X: Any, *, coverage: float = 0.9) -> np.ndarray:
        """Central interval of this coverage: ``[rows, 2]`` (``[rows, 2, K]`` for K targets)."""
        return self.predict_distribution(X).interval(coverage)

    def sample(self, X: Any, *, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """Draws from p(y|x): ``[rows, n_samples]`` (``[rows, n_samples, K]`` for K targets)."""
        check_count("n_samples", n_samples)
        return self.predict_distribution(X).sample(n_samples, random_state)

    # -- saving --------------------------------------------------------------------------------------

    _not_saved = ("random_state", "energy")

    def _config(self) -> dict[str, Any]:
        assert self.encoder_ is not None
        return {
            "encoder": self.encoder_.state(),
            "n_outputs": self.n_outputs_,
            "location": self.location_.tolist(),
            "scale": self.scale_.tolist(),
            "bounds": list(self.bounds_),
            "resolution": self.resolution_ if self.n_outputs_ == 1 else list(self.resolution_),
            "curved": self.curved_,
            "atoms": self.atoms_,
            "architecture": self.architecture_,
            "validation_nll": None if math.isnan(self.validation_nll_) else self.validation_nll_,
        }

    def _modules(self) -> dict[str, nn.Module]:
        own = {"proposal": self.proposal_} if self.objective_name == "proposal-nce" else {}
        return {"energy": self.energy_, **own}

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.encoder_ = TableEncoder.from_state(config["encoder"])
        self.n_outputs_ = config["n_outputs"]
        self.location_ = np.array(config["location"])
        self.scale_ = np.array(config["scale"])
        self.bounds_ = tuple(config["bounds"])
        self.resolution_ = config["resolution"]
        if self.n_outputs_ > 1:
            # The first models of several targets took no account of rounding.
            self.resolution_ = np.broadcast_to(np.array(self.resolution_), self.n_outputs_).copy()
        self.curved_ = bool(config.get("curved", False))
        nll = config["validation_nll"]
        self.validation_nll_ = math.nan if nll is None else nll
        self.architecture_ = config["architecture"]
        # The first models kept the atoms in standard units only.
        standard = np.array(self.architecture_.get("atoms", []))
        self.atoms_ = config.get("atoms", self.target_scale_.back(standard).tolist())
        self.energy_, objective = self._build()
        self.proposal_ = self._proposal_of(objective)
