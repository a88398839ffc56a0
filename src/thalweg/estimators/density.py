"""``EnergyDensity``: p(x) of the rows of a table, with scikit-learn's interface.

The file is long because the class is: it trains in two ways (conditionals of every column given any others, or one
energy of the whole row), and draws, fills gaps and denoises with either.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from thalweg._torch_state import seeded
from thalweg.data.rows import RowCoder
from thalweg.data.target import TargetScale, find_resolution, location_and_scale, most_frequent, rounded
from thalweg.energies.base import Energy, check_energy
from thalweg.energies.conditioning import ClampedEnergy
from thalweg.energies.densities import Density, GaussianMixtureEnergy
from thalweg.energies.densities.any_order import AnyOrderDensity, Column
from thalweg.energies.networks import PerceptronEnergy
from thalweg.estimators._any_order import build, empty_mixture, fit_any_order
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
from thalweg.estimators._normaliser import Normalised, Normaliser
from thalweg.estimators._rescaled import Rescaled, Whitened
from thalweg.estimators._tables import TableInputs
from thalweg.estimators._whole_rows import (
    HeldOutLikelihood,
    check_columns,
    estimate_normaliser,
    mixture_proposal,
    resampled,
    table_of_numbers,
)
from thalweg.estimators.distribution import PredictiveDistribution
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
# So many draws are made before a relation counts as one that too few meet.
_MOST_DRAWS = 100_000


def _has_conditionals(model: EnergyDensity) -> bool:
    return model.objective == "auto"


class EnergyDensity(DensityMixin, Normalised, TableInputs, Estimator):
    """An energy-based model of p(x), x a row of a table of numbers, categories, truth values and dates, with gaps.

    By default there is a conditional of every column given any of the others. Each is an ensemble of networks (of
    a number with tilted mixtures, normalised exactly), trained by maximum likelihood, and of a number mixed with a
    Gaussian mixture's conditional in the share that held-out rows like best. The joint density is the chain of
    them in the order of the columns, p(x_1) p(x_2|x_1) ...: log Z is 0, draws are independent. A gap is a value
    that is not known: it is no factor of a row's density, and nothing is concluded from it.

    With any other objective the rows are numbers without gaps, E(x) is a perceptron on top of a Gaussian with the
    data's moments, trained by that objective, and log Z is estimated: by importance sampling where that is sure,
    else by annealed importance sampling from both sides.

    Numbers that are rounded (counts, whole years, two decimals) are recognised: they are spread over their
    rounding cells in training, ``score_samples`` is the density of the values so spread, and draws are rounded.
    Numbers of which there are only a few, texts and truth values are levels with a probability each, and so is any
    text that training did not show, with the probability of one row in n + 2.

    Args:
        objective: "auto" (see above), or a key of :data:`~thalweg.objectives.catalogue.METHODS`: "nce", "cnce",
            "fce", "ml-is", "sm", "ssm", "ssm-vr", "dsm", "ed", "lsd", "cd", "pcd", "icd".
        energy: an energy of one's own over standardised rows, for the other objectives. It is copied.
        n_members: networks in each ensemble.
        hidden: widths of the hidden layers.
        learning_rate: None is 2e-3 for "auto" and 3e-3 for the others.
        batch_size: rows in a step; "auto" grows with the rows.
        max_epochs, max_steps, patience: see :class:`~thalweg.training.loop.Plan`; of "auto" for each few columns.
        validation_fraction: rows held out to stop early (by "auto" every member holds out a fold instead).
        resolution: spacing of the grid that columns are rounded to; "auto" finds it for each, 0 is none.
        device, devices, num_nodes, strategy, precision: see :class:`lightning_fabric.Fabric`; ``device`` is its
            accelerator. Several processes share every batch.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the energy of rows in their own units (best given in double precision), levels counted from 0 and
            gaps NaN; ``energy_(x) + log_normaliser_`` is -log p(x).
        coder_: by "auto" the :class:`~thalweg.data.rows.RowCoder` that makes rows into such numbers.
        log_normaliser_: log Z, in nats; 0 where it is exact.
        log_normaliser_error_: how far it may be off, two standard errors or more; 0 where it is exact.
        log_normaliser_warning_: why it may be further off than that, or None.
        validation_nll_: mean held-out negative log-likelihood, in nats: that of ``held_out_log_prob_``.
        held_out_log_prob_: log p of the training rows ``[rows]``, each by weights that neither learned from the
            row nor were chosen by it: what new rows compare with. NaN of rows that all networks learned from; by
            "auto" with several members there are none. A model that was loaded has it not.
        column_nll_: by "auto" what a known cell of each column contributes to -log p on average ``[D]``, on
            held-out rows: what :meth:`score_columns` compares with.
        resolution_: spacing found for each column ``[D]``, 0 where it is not rounded.
        atoms_: of each column the numbers that it takes with positive probability beside others.
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = tags.input_tags.string = self.objective == "auto"
        return tags

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
            X: table ``[rows, columns]`` (DataFrame or array); by an objective other than "auto" of numbers without
                gaps, no column constant.
            y: ignored.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoints in run_dir; the result is that of a run never interrupted.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for settings or data that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        self._check_settings()
        folder = None if run_dir is None else Path(run_dir)
        if folder is not None and not resume:
            # Checkpoints of columns that an earlier run had there would be taken for this one's.
            for old in folder.glob("column-*"):
                shutil.rmtree(old)
        rng = check_random_state(self.random_state)
        seed = draw_seed(rng)
        self._fabric = self._make_fabric()
        how = {"resume": resume, "checkpoint_seconds": checkpoint_seconds}
        if self.objective == "auto":
            codes = self._fit_columns(self._check_table(X, reset=True), seed, folder, **how)
            kinds = {column["kind"] for column in self.coder_.columns}
            self.takes_frames_ = isinstance(X, pd.DataFrame) and kinds != {"number"}
        else:
            codes = self._fit_whole_rows(X, seed, folder, **how)
            self.takes_frames_ = False
        del self._fabric
        known = self.held_out_log_prob_[~np.isnan(self.held_out_log_prob_)]
        self.validation_nll_ = -float(known.mean()) if len(known) else math.nan
        self._conclude(self._checks(codes))
        return self

    def _checks(self, X: np.ndarray) -> list[Check]:
        """What can be said of the model from its own held-out rows."""
        found = [
            check_rows(*X.shape),
            check_training(self.history_.parts or {"training": self.history_}),
            check_normaliser(self.log_normaliser_error_, self.log_normaliser_warning_),
        ]
        only_numbers = self.objective != "auto" or all(c["levels"] is None for c in self.coder_.columns)
        if only_numbers and not any(self.atoms_) and not np.isnan(X).any():
            found.append(check_folds(self.held_out_log_prob_, X))
        return found

    def _check_settings(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        if self.energy is not None and self.objective == "auto":
            raise ValueError("an energy of your own needs an objective: 'nce' or 'cnce', for instance")
        check_counts(self, "n_members", "max_epochs")
        check_widths(self.hidden)
        self._check_training()
        resolution = self.resolution
        if resolution != "auto" and (isinstance(resolution, str) or not 0 <= resolution < math.inf):
            raise ValueError(f"resolution must be 'auto' or a number of at least 0, got {resolution!r}")
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise ValueError(f"batch_size must be 'auto' or a whole number, got {self.batch_size!r}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in (0, 1), got {self.validation_fraction!r}")

    def _fit_columns(self, table: pd.DataFrame, seed: int, folder: Path | None, **how: Any) -> np.ndarray:
        """Conditionals of every column given any others; the rows as codes."""
        if len(table) < 2:
            raise ValueError(
                f"Found array with n_samples={len(table)}: at least 2 rows are needed to fit a density"
            )
        self.coder_ = RowCoder(self.resolution).fit(table)
        codes = self.coder_.codes(table)
        location, scale = self.coder_.locations, self.coder_.scales
        # Differences of large numbers are lost in single precision: the columns are standardised in double.
        z = (codes - location) / scale
        n, n_columns = z.shape
        plan = Plan(
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            batch_size=min(512, max(32, n // 10)) if self.batch_size == "auto" else int(self.batch_size),
            learning_rate=2e-3 if self.learning_rate is None else self.learning_rate,
            weight_decay=0.1,
            warmup_steps=50,
            patience=self.patience,
            clip_norm=None,
            checkpoint_seconds=how["checkpoint_seconds"],
            seed=seed,
        )

        def progress(which: Sequence[int]) -> BarProgress:
            first, last = which[0] + 1, which[-1] + 1
            label = f"column {first}" if first == last else f"columns {first} to {last}"
            return BarProgress(
                offset=float(np.log(scale[list(which)]).mean()),
                n_members=self.n_members * len(which),
                label=f"{label} of {n_columns}" if len(which) == last - first + 1 else f"{len(which)} columns",
            )

        widths = check_widths(self.hidden)
        with self._threads(plan.batch_size, 8 * self.n_members * widths[0] * 256):
            density, held_out, histories = fit_any_order(
                z,
                self.coder_,
                plan,
                n_members=self.n_members,
                hidden=widths,
                validation_fraction=self.validation_fraction,
                seed=seed,
                fabric=self._fabric,
                folder=folder,
                resume=how["resume"],
                progress=progress if self.verbose else None,
            )
        self.history_ = History.joined(histories)
        self._log_z = Normaliser(0.0)
        self.energy_ = Rescaled(density.eval(), location, scale)
        volume = density.column_log_volume(torch.from_numpy(z).float(), self.energy_.scale.log()).numpy()
        shares = self.coder_.log_shares(table)
        of_cells = held_out - volume + np.where(np.isnan(z), 0.0, shares)
        self.held_out_log_prob_ = of_cells.sum(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a column that no held-out row has
            usual = -np.nanmean(np.where(np.isnan(z), np.nan, of_cells), axis=0)
        self.column_nll_ = np.nan_to_num(usual)
        self._name_columns()
        return codes

    def _name_columns(self) -> None:
        """What is told of the columns one by one."""
        columns = self.coder_.columns
        self.resolution_ = np.array([float(c["resolution"]) for c in columns])
        self.atoms_ = [
            list(c["atoms"]) if c["levels"] is None else list(c["levels"]) if c["kind"] == "number" else []
            for c in columns
        ]

    def _fit_whole_rows(self, X: Any, seed: int, folder: Path | None, **how: Any) -> np.ndarray:
        """One energy of the whole row; the rows as they are."""
        X = validate_data(self, table_of_numbers(X), dtype=np.float64, ensure_min_samples=2)
        check_columns(X, getattr(self, "feature_names_in_", range(X.shape[1])))
        self.resolution_ = np.array(
            [find_resolution(c) if self.resolution == "auto" else float(self.resolution) for c in X.T]
        )
        self.origin_ = np.array([most_frequent(c) for c in X.T])
        self.atoms_ = [[] for _ in X.T]
        location, scale = location_and_scale(X)
        spread = self.resolution_ / scale * (np.random.RandomState(seed).uniform(size=X.shape) - 0.5)
        z = torch.as_tensor((X - location) / scale + spread, dtype=torch.float32)
        inner = self._fit_network(z, scale, seed, folder, **how)
        self.energy_ = Rescaled(inner.cpu().eval(), location, scale)
        return X

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

    @property
    def _of_columns(self) -> AnyOrderDensity | None:
        """The density by "auto", None of any other objective."""
        check_is_fitted(self, "energy_")
        inner = self.energy_.inner
        return inner if isinstance(inner, AnyOrderDensity) else None

    def _rows(self, X: Any, gaps: bool = False) -> np.ndarray:
        """Rows as numbers, for an energy of whole rows."""
        if isinstance(X, pd.DataFrame) and hasattr(self, "feature_names_in_"):
            X = table_of_numbers(X)
            if set(X.columns) == set(self.feature_names_in_):
                X = X[list(self.feature_names_in_)]
        finite = "allow-nan" if gaps else True
        X = validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite=finite)
        return np.ascontiguousarray(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p of every row ``[rows]``, normalised, in nats; all off alike by ``log_normaliser_error_``.

        Of a row with gaps it is log p of what is known of it. Where a column is rounded it is the density of the
        values spread over their rounding cells. A level, and a value that a column takes with positive probability
        beside others (``atoms_``), counts with its log mass.
        """
        if self._of_columns is not None:
            return -self.score_columns(X).sum(1)
        x = torch.from_numpy(self._rows(X))
        with torch.no_grad():
            energy = torch.cat([self.energy_(piece) for piece in x.split(8192)])
        return -energy.double().numpy() - self.log_normaliser_

    def score_columns(self, X: Any) -> np.ndarray:
        """What each cell contributes to -log p of its row ``[rows, columns]``; 0 where it is a gap.

        It is -log p(cell | the cells before it) in nats: large where the cell is odd given those. The sum over a
        row is minus :meth:`score_samples`.

        Raises:
            ValueError: if the objective is not "auto": an energy of whole rows has no such parts.
        """
        density = self._need_columns("score_columns")
        table = self._check_table(X, reset=False)
        codes = torch.from_numpy(self.coder_.codes(table))
        shares = self.coder_.log_shares(table)
        found = []
        with torch.no_grad():
            for piece in codes.split(8192):
                z = self.energy_.forth(piece)
                log_prob = density.column_log_prob(z).double()
                found.append(log_prob - density.column_log_volume(z, self.energy_.scale.log()))
        return -(torch.cat(found).numpy() + np.where(np.isnan(codes.numpy()), 0.0, shares))

    def _need_columns(self, asked: str) -> AnyOrderDensity:
        density = self._of_columns
        if density is None:
            raise ValueError(
                f"{asked} needs the conditionals of the columns, and the objective {self.objective!r} has an "
                "energy of whole rows: take objective='auto'"
            )
        return density

    def score(self, X: Any, y: None = None) -> float:
        """Total log-likelihood of the rows, as scikit-learn's ``KernelDensity`` has it."""
        return float(self.score_samples(X).sum())

    def sample(
        self,
        n_samples: int = 1,
        *,
        given: Mapping[Any, Any] | None = None,
        where: str | None = None,
        random_state: RandomState = None,
    ) -> Any:
        """Draws ``[n_samples, columns]``: independent by "auto", else by importance resampling and HMC.

        A DataFrame if the model was fitted to one with other columns than numbers, else an array.

        Args:
            given: values of columns that all draws have, as {"species": "setosa"}; others are drawn given them.
            where: a relation that all draws meet, as "petal_width < petal_length" (see
                :meth:`pandas.DataFrame.eval`): an energy that is infinite elsewhere. Draws that do not meet it are
                drawn again, so that those that are left have exactly the density given it.
            random_state: seed, or a ``RandomState``.

        Raises:
            ValueError: if a given value or the relation can't be used, or too few of 100,000 draws meet it;
                for either by an objective other than "auto".

        Warns:
            UserWarning: if fewer than one draw in a hundred meets the relation.
        """
        density = self._of_columns
        check_count("n_samples", n_samples)
        generator = generator_of(random_state)
        if density is None and (given or where):
            self._need_columns("a condition on draws")
        if density is not None:
            rows, acceptance = self._drawn(density, n_samples, given or {}, where, generator)
            if acceptance < 0.01:
                warnings.warn(f"{acceptance:.2g} of the draws meet {where!r}", stacklevel=2)
            return self._as_given(rows)
        inner = self.energy_.inner
        if isinstance(inner, Density):
            return self._rounded(self.energy_.back(inner.sample(n_samples, generator)))
        candidates = self.proposal_.sample(max(20_000, 10 * n_samples), generator)
        white = Whitened(inner, self.proposal_.scales[-1])
        start = white.forth(resampled(inner, self.proposal_, candidates, n_samples, generator))
        kernel = adapt_step_size(HMC(0.1), white, start[:256], 50, generator=generator).kernel
        end = white.back(run_chain(kernel, white, start, 40, generator).position)
        return self._rounded(self.energy_.back(end))

    def _drawn(
        self,
        density: AnyOrderDensity,
        n: int,
        given: Mapping[Any, Any],
        where: str | None,
        generator: torch.Generator,
    ) -> tuple[pd.DataFrame, float]:
        """n draws that have what is given and meet a relation, and the share of all draws that met it."""
        start = self._start(density, given)
        rng, kept, n_drawn, n_met = self._choices(generator), [], 0, 0
        names = list(getattr(self, "feature_names_in_", range(density.n_dims)))
        while n_met < n:
            size = n if where is None else max(n, 1000)
            with torch.no_grad():
                drawn = self.energy_.back(density.complete(start.repeat(size, 1), generator)).numpy()
            rows = self.coder_.values(drawn, rng).set_axis(names, axis=1)
            for name, value in given.items():
                rows[name] = value
            n_drawn += size
            if where is not None:
                rows = rows[_meets(rows, where)]
            kept.append(rows)
            n_met += len(rows)
            if n_met < n and n_drawn >= max(_MOST_DRAWS, 10 * n) and n_met < n * n_drawn / (100 * _MOST_DRAWS):
                raise ValueError(
                    f"{n_met} of {n_drawn} draws meet {where!r}, and {n} were asked for: the relation is too rare "
                    "for the model, or can't be met"
                )
        return pd.concat(kept, ignore_index=True).iloc[:n], n_met / n_drawn

    def _start(self, density: AnyOrderDensity, given: Mapping[Any, Any]) -> Tensor:
        """A standardised row ``[1, D]`` with what is given, unknown elsewhere."""
        names = list(getattr(self, "feature_names_in_", range(density.n_dims)))
        for name in given:
            self._place(name)
        row = pd.DataFrame({name: pd.Series([given.get(name)], dtype=object) for name in names})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            codes = self.coder_.codes(row.infer_objects())
        for d, name in enumerate(names):
            if name in given and np.isnan(codes[0, d]):
                raise ValueError(f"column {name!r} is given as a gap: leave it out")
            if name in given and density.columns[d].n_levels and codes[0, d] < 0:
                raise ValueError(
                    f"column {name!r} is given as {given[name]!r}, which no training row had: nothing is known of "
                    "such rows"
                )
        return self.energy_.forth(torch.from_numpy(codes))

    @staticmethod
    def _choices(generator: torch.Generator) -> np.random.RandomState:
        return np.random.RandomState(int(torch.randint(2**31 - 1, (1,), generator=generator)))

    def _as_given(self, rows: Any) -> Any:
        """Rows as a DataFrame where there are other columns than numbers, else as an array."""
        if isinstance(rows, pd.DataFrame):
            names = list(getattr(self, "feature_names_in_", range(rows.shape[1])))
            return rows.set_axis(names, axis=1) if self.takes_frames_ else rows.to_numpy()
        return rows

    @available_if(_has_conditionals)
    def predict(self, X: Any, columns: Any = None) -> Any:
        """p(cell | the other cells of the row) of the columns asked for; of none, what to expect in every cell.

        Only by the objective "auto".

        Args:
            X: ``[rows, columns]``, with gaps where nothing is known; what a column that is asked for holds is not
                looked at.
            columns: a column's name, or its number where the model was fitted to an array; or several of them.

        Returns:
            of a number a :class:`~thalweg.estimators.distribution.PredictiveDistribution`, of levels a DataFrame
            with the probability of each ``[rows, levels]``; where several columns are asked for a dictionary of
            these. Each is given what X has of the columns that are not asked for. Where no column is asked for,
            rows like X: in every cell the mean of a number, or the most probable level, given the other cells.

        Raises:
            ValueError: if there is no such column.
        """
        density = self._need_columns("predict")
        table = self._check_table(X, reset=False)
        if columns is None:
            return self._expected(density, table)
        several = isinstance(columns, list | tuple | np.ndarray | pd.Index)
        asked = [self._place(c) for c in (columns if several else [columns])]
        given = torch.ones(density.n_dims, dtype=torch.bool)
        given[asked] = False
        table = table.copy()
        for d in asked:
            table.isetitem(d, pd.Series([None] * len(table), index=table.index, dtype=object))
        z = self.energy_.forth(torch.from_numpy(self.coder_.codes(table)))
        with torch.no_grad():
            found = [self._cells(density, z, d, given) for d in asked]
        return dict(zip(columns, found, strict=True)) if several else found[0]

    def _expected(self, density: AnyOrderDensity, table: pd.DataFrame) -> Any:
        codes = self.coder_.codes(table)
        z, everything = self.energy_.forth(torch.from_numpy(codes)), torch.ones(density.n_dims, dtype=torch.bool)
        out = np.empty(codes.shape)
        with torch.no_grad():
            for d, column in enumerate(density.columns):
                if column.n_levels:
                    out[:, d] = density.masses(z, d, everything).argmax(1).numpy()
                else:
                    out[:, d] = self._cells(density, z, d, everything).mean()
        return self._as_given(self.coder_.values(out, np.random.RandomState(0), round_numbers=False))

    def _place(self, column: Any) -> int:
        names = list(getattr(self, "feature_names_in_", range(self.n_features_in_)))
        if column not in names:
            raise ValueError(f"there is no column {column!r}: the model has {', '.join(map(repr, names))}")
        return names.index(column)

    def _cells(self, density: AnyOrderDensity, z: Tensor, d: int, given: Tensor) -> Any:
        column = self.coder_.columns[d]
        if column["levels"] is not None:
            masses = density.masses(z, d, given).double().numpy()
            rare = {text: n / sum(column["rare"].values()) for text, n in column["rare"].items()}
            found = pd.DataFrame(masses[:, : len(column["levels"])], columns=column["levels"])
            return found.assign(**{text: share * masses[:, -1] for text, share in rare.items()}) if rare else found
        cell, inputs = density.cell(z, d, given)
        target = TargetScale(column["location"], column["scale"], column["curved"])
        return PredictiveDistribution(
            cell, inputs, target, (-10.0, 10.0), column["resolution"], atoms=column["atoms"]
        )

    def impute(
        self,
        X: Any,
        *,
        n_draws: int | None = None,
        random_state: RandomState = None,
        n_candidates: int = 256,
    ) -> Any:
        """Fill gaps given what is known of each row.

        Args:
            X: ``[rows, columns]``; what is known is returned as it is.
            n_draws: None gives the conditional mean of a number and the most probable level; a number that many
                draws from p(missing | known), each of all gaps of a row together.
            random_state: seed, or a ``RandomState``.
            n_candidates: draws for each row over which the mean is; by an objective other than "auto" also those
                that draws are chosen from, by weight.

        Returns:
            ``[rows, columns]``, or ``[n_draws, rows, columns]``. A model that was fitted to a DataFrame with other
            columns than numbers gives a DataFrame, or a list of them.
        """
        density = self._of_columns
        if n_draws is not None:
            check_count("n_draws", n_draws)
        check_count("n_candidates", n_candidates)
        if density is None:
            filled = self._impute_whole_rows(X, n_draws, random_state, n_candidates)
            return filled
        table = self._check_table(X, reset=False)
        codes = self.coder_.codes(table)
        generator = generator_of(random_state)
        found = self._filled(density, codes, n_draws, generator, n_candidates)
        rng = self._choices(generator)
        tables = [self._put_in(table, codes, one, rng, n_draws is not None) for one in found]
        given = [self._as_given(one) for one in tables]
        if n_draws is None:
            return given[0]
        return given if self.takes_frames_ else np.stack(given)

    def _filled(
        self,
        density: AnyOrderDensity,
        codes: np.ndarray,
        n_draws: int | None,
        generator: torch.Generator,
        n_candidates: int,
    ) -> np.ndarray:
        """Codes with the gaps drawn, or at their mean or most probable level: ``[n, rows, columns]``."""
        out = np.repeat(codes[None], n_draws or 1, 0)
        rows, n = np.flatnonzero(np.isnan(codes).any(1)), n_draws or n_candidates
        for piece in np.array_split(rows, max(1, len(rows) * n // 32768)):
            if not len(piece):
                continue
            z = self.energy_.forth(torch.from_numpy(codes[piece]))
            drawn = density.complete(z.repeat(n, 1), generator).unflatten(0, (n, -1))
            if n_draws is None:
                levels = torch.tensor([bool(c.n_levels) for c in density.columns])
                drawn = torch.where(levels, torch.mode(drawn, 0).values, drawn.mean(0))[None]
            filled = self.energy_.back(drawn).numpy()
            out[:, piece] = np.where(np.isnan(codes[piece]), filled, codes[piece])
        return out

    def _put_in(
        self, table: pd.DataFrame, codes: np.ndarray, filled: np.ndarray, rng: np.random.RandomState, drawn: bool
    ) -> pd.DataFrame:
        """The table with values in its gaps; all else stays as it is."""
        values, out = self.coder_.values(filled, rng, round_numbers=drawn), {}
        for d, name in enumerate(table.columns):
            gaps, column = np.isnan(codes[:, d]), table.iloc[:, d]
            new = values.iloc[:, d]
            if gaps.all():
                column = new
            elif gaps.any():
                if pd.api.types.is_bool_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype):
                    column = column.astype(object)
                column = column.where(~gaps, new)
            out[name] = column
        return pd.DataFrame(out)

    def _impute_whole_rows(
        self, X: Any, n_draws: int | None, random_state: RandomState, n_candidates: int
    ) -> np.ndarray:
        X = self._rows(X, gaps=True)
        generator = generator_of(random_state)
        inner = self.energy_.inner
        out = np.repeat(X[None], n_draws or 1, 0)
        rows = np.flatnonzero(np.isnan(X).any(1))
        for piece in np.array_split(rows, max(1, len(rows) * n_candidates // 32768)):
            if not len(piece):
                continue
            mask = torch.from_numpy(~np.isnan(X[piece]))
            known = torch.nan_to_num(self.energy_.forth(torch.from_numpy(X[piece])))
            found = completion.complete(inner, self.proposal_, known, mask, n_candidates, generator)
            if n_draws is None:
                filled = self.energy_.back(found.mean()[None]).numpy()
            else:
                filled = self._rounded(
                    self.energy_.back(self._moved(found.draw(n_draws, generator), known, mask, generator))
                )
            out[:, piece] = np.where(mask.numpy(), X[piece], filled)
        return out[0] if n_draws is None else out

    def _moved(self, filled: Tensor, known: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Draws taken off the candidates by a few steps of HMC."""
        inner = self.energy_.inner
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
        density = self._of_columns
        if density is not None:
            X, proposal = self._numbers(density, X)
        else:
            X, proposal = self._rows(X), self.proposal_
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
                self.energy_.inner, proposal, self.energy_.forth(piece), scaled, n_candidates, generator
            ).mean()
            for piece in torch.from_numpy(X).split(max(1, 32768 // n_candidates))
        ]
        return self.energy_.back(torch.cat(cleaned)).numpy()

    def _numbers(self, density: AnyOrderDensity, X: Any) -> tuple[np.ndarray, GaussianMixtureEnergy]:
        """Rows to denoise as numbers, and a mixture like them."""
        codes = self.coder_.codes(self._check_table(X, reset=False))
        if any(c.n_levels for c in density.columns) or np.isnan(codes).any() or density.mixture is None:
            raise ValueError(
                "noise can be taken off rows of numbers without gaps only, by a model of 20 such rows or more: "
                "leave out columns of levels, fill gaps first (impute)"
            )
        return codes, density.mixture

    def _rounded(self, x: Tensor) -> np.ndarray:
        """Draws of an energy of whole rows, of rounded columns on their grids."""
        out = x.numpy()
        for k in np.flatnonzero(self.resolution_):
            out[..., k] = rounded(out[..., k], self.origin_[k], self.resolution_[k])
        return out

    # -- saving --------------------------------------------------------------------------------------

    _not_saved = ("random_state", "energy")

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "log_normaliser": self.log_normaliser_,
            "log_normaliser_error": self.log_normaliser_error_,
            "log_normaliser_warning": self.log_normaliser_warning_,
            "validation_nll": None if math.isnan(self.validation_nll_) else self.validation_nll_,
            "takes_frames": self.takes_frames_,
        }
        density = self._of_columns
        if density is None:
            return config | {
                "resolution": self.resolution_.tolist(),
                "origin": self.origin_.tolist(),
                "n_components": len(self.proposal_.means),
            }
        return config | {
            "coder": self.coder_.state(),
            "column_nll": self.column_nll_.tolist(),
            "columns": [
                column._asdict() | {"log_unseen": _plain(column.log_unseen)} for column in density.columns
            ],
            "mixture": None if density.mixture is None else list(density.mixture.scales.shape),
        }

    def _modules(self) -> dict[str, nn.Module]:
        return {"energy": self.energy_} | ({} if self._of_columns else {"proposal": self.proposal_})

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        d = self.n_features_in_
        found = (config["log_normaliser"], config["log_normaliser_error"], config.get("log_normaliser_warning"))
        self._log_z = Normaliser(*found)
        nll = config["validation_nll"]
        self.validation_nll_ = math.nan if nll is None else nll
        self.takes_frames_ = config["takes_frames"]
        widths = check_widths(self.hidden)
        inner: Energy
        if self.objective == "auto":
            self.coder_ = RowCoder.from_state(config["coder"])
            columns = [Column(**_column(entry)) for entry in config["columns"]]
            if len(columns) != d or len(self.coder_.columns) != d:
                raise ValueError(f"{len(columns)} columns are described, and the model has {d}")
            inner = build(columns, self.n_members, widths)
            mixture = config["mixture"]
            if mixture is not None:
                inner.mixture = empty_mixture(mixture[0], mixture[1], full=len(mixture) == 3).double()
            self.column_nll_ = np.array(config["column_nll"])
            self._name_columns()
        else:
            self.resolution_, self.origin_ = np.array(config["resolution"]), np.array(config["origin"])
            self.atoms_ = [[] for _ in range(d)]
            self.proposal_ = empty_mixture(config["n_components"], d)
            inner = PerceptronEnergy(d, widths) + empty_mixture(1, d)
        self.energy_ = Rescaled(inner, np.zeros(d), np.ones(d))


def _plain(log_unseen: float) -> float | None:
    """JSON has no infinity."""
    return None if math.isinf(log_unseen) else log_unseen


def _column(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of a :class:`Column` from JSON."""
    lists = {name: tuple(entry[name]) for name in ("atoms", "limits", "edges")}
    log_unseen = entry["log_unseen"]
    return entry | lists | {"log_unseen": -math.inf if log_unseen is None else log_unseen}


def _meets(rows: pd.DataFrame, where: str) -> np.ndarray:
    """Which rows meet a relation between columns.

    Raises:
        ValueError: if it can't be read, or is no relation.
    """
    if "@" in where or "__" in where:
        raise ValueError(f"{where!r} is no relation between columns")
    try:
        met = rows.eval(where, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # whatever pandas has to say of it
        raise ValueError(f"{where!r} is no relation between columns: {error}") from error
    if not isinstance(met, pd.Series) or met.dtype != bool:
        raise ValueError(f"{where!r} is no relation between columns: it must be true or false of each row")
    return met.to_numpy()
