"""``RestrictedBoltzmannMachine``: features, likelihood, new rows, filled gaps, with scikit-learn's interface."""

from __future__ import annotations

import contextlib
import copy
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from thalweg._torch_state import seeded
from thalweg.data.states import StateEncoder
from thalweg.energies.machines.layered import LayeredMachine, RBMEnergy
from thalweg.estimators._base import RandomState, check_count, check_counts, count_weights, generator_of
from thalweg.estimators._normaliser import Normalised, Normaliser
from thalweg.estimators._states import StateRows
from thalweg.evaluation.row_checks import check_units, check_variety
from thalweg.evaluation.verdict import check_rows, check_swaps, check_training
from thalweg.objectives.base import Batch
from thalweg.sampling.annealing import resampled_ends
from thalweg.sampling.layered_annealing import anneal_machine, bracket_machine
from thalweg.training.loop import History, Trainer
from thalweg.training.moments import Encode, Moments, MomentStep, binary_draws, machine_plan
from thalweg.training.plan import Plan
from thalweg.training.progress import BarProgress

# Up to here enumeration takes about a second.
_MOST_ENUMERATED = 20
_MOST_ENUMERATED_IN_TRAINING = 12


class LogLikelihood(NamedTuple):
    """Mean log-likelihood of rows, in nats.

    Attributes:
        mean: with the best estimate of log Z.
        standard_error: over the rows.
        lower, upper: with log Z off by its error either way; both are the mean where log Z is exact.
        warning: why log Z may be further off than that, or None.
    """

    mean: float
    standard_error: float
    lower: float
    upper: float
    warning: str | None = None


class RestrictedBoltzmannMachine(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Normalised, StateRows):
    """A restricted Boltzmann machine, to be put where scikit-learn's ``BernoulliRBM`` stands.

    Beside features it gives what that does not: a normalised log-likelihood, draws, gaps filled in, Gaussian and
    categorical columns.

    Grey values between 0 and 1 are taken as probabilities: binary states are drawn from them anew in every update,
    and it is the distribution of these states that is learned. Where such rows are asked about, the probabilities
    themselves enter the free energy; by Jensen's inequality ``score_samples`` is then at most the mean over the
    states.

    Args:
        hidden: number of hidden units.
        visible: the kind of the visible units: "binary" (values in [0, 1]), "gaussian" (any numbers, standardised
            inside, with learned standard deviations), "categorical" (each column's values are its categories),
            "mixed" (column by column: categorical for texts, binary for 0 and 1, else Gaussian), or "auto":
            binary if all are numbers in [0, 1], else as mixed. Where it is found column by column or by "auto",
            columns of 0 and 1 side by side of which every row has exactly one 1 are one categorical unit.
        learning_rate: step size of the first epoch; None is 0.3, less where a row has over 64 states (Gaussian
            units: 0.1, less with over 64 hidden units).
        final_rate: step size of the last epoch; between the two it falls on a straight line.
        n_temperatures: number of temperatures of the persistent chains; None is 5 with Gaussian units and
            10 with 17 to 256 states in a row, whose groups often lie far apart, else 1.
        batch_size, momentum, weight_decay, n_gibbs, persistent, centred, fast_rate, sparsity_target,
            sparsity_cost: see :class:`~thalweg.training.moments.Moments`.
        max_epochs: passes over the data; a table of few rows has few updates in each, and takes more of them.
        device: where to train, as Lightning Fabric's accelerator.
        devices, num_nodes, strategy, precision: as of the other estimators; a machine is trained by one process in
            full precision.
        n_threads: number of PyTorch threads; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the :class:`~thalweg.energies.RBMEnergy` of encoded rows.
        encoder_: how rows become visible states.
        base_bias_: of independent visible units with the data's means ``[width]``: where annealing starts.
        chains_: the chains at the end of training, ``[n, width]`` of the visible layer and ``[n, hidden]``
            of the hidden one; with several temperatures ``[n_temperatures, n, ...]``, the machine's own first.
        history_: :class:`~thalweg.training.loop.History`.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X = (load_digits().data > 7).astype(float)
        >>> model = RestrictedBoltzmannMachine(16, max_epochs=3, random_state=0).fit(X)
        >>> model.transform(X).shape, model.sample(5, random_state=0).shape
        ((1797, 16), (5, 64))

    Source: [Smolensky 1986]; [Hinton 2002]; [Tieleman 2008]; tempered chains [Desjardins 2010]; Gaussian units
    [Cho 2011].
    """

    def __init__(
        self,
        hidden: int = 256,
        *,
        visible: str = "auto",
        learning_rate: float | None = None,
        final_rate: float = 0.0,
        batch_size: int = 64,
        max_epochs: int = 100,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        n_gibbs: int = 1,
        persistent: bool = True,
        n_temperatures: int | None = None,
        centred: bool = False,
        fast_rate: float = 0.0,
        sparsity_target: float | None = None,
        sparsity_cost: float = 1.0,
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
        held_out: Any = None,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> RestrictedBoltzmannMachine:
        """Fit the machine to the rows of X.

        Args:
            X: ``[rows, columns]`` without gaps.
            y: ignored.
            held_out: rows whose mean log-likelihood is reported about a hundred times (estimated by short
                annealing where log Z can't be summed up quickly); nothing is learned from them.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoint in run_dir; the result is that of a run never interrupted.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for settings or data that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        X = self._learn_columns(X)
        self._seed = self._draw_seed()
        plan = self._plan(self.max_epochs, self.final_rate, self._seed, checkpoint_seconds)
        data = self._states(X).float()
        self._build(data)
        trainer = Trainer(
            plan,
            self._make_fabric(),
            None if run_dir is None else Path(run_dir),
            BarProgress("held-out NLL", with_best=False) if self.verbose else None,
        )
        step = self._step()
        validate = None if held_out is None else self._likelihood_of(self._validated(held_out))
        with self._own_threads():
            self.history_ = trainer.run(step, Batch(None, data), validate, resume)
        self._take(step)
        self._n_calls = 0
        self._conclude(
            [
                check_rows(len(X), self._n_free_columns),
                check_training({"training": self.history_}, by_held_out=False),
                check_units(self.components_),
                check_swaps(self.history_.epochs[-1].get("swaps")),
                check_variety(self._own_chains(0).numpy(), data.numpy(), "chains of the training"),
            ]
        )
        return self

    def partial_fit(self, X: Any, y: Any = None) -> RestrictedBoltzmannMachine:
        """One pass over X at the first epoch's rate; persistent chains go on from call to call.

        The first call decides the kind of the visible units, and their scales or categories; groups of one-hot
        columns are not looked for.

        Raises:
            ValueError: for settings or data that can't be used, in words.
        """
        first = not hasattr(self, "energy_")
        # What the first rows have in common is no rule for those to come.
        X = self._learn_columns(X, grouped=False) if first else self._validated(X)
        if first:
            self._seed = self._draw_seed()
            self._n_calls = 0
            self._build(self._states(X).float())
            self.history_ = History()
        self._n_calls += 1
        data = self._states(X).float()
        # Rows that come later may be grey where the first were not.
        encoder = self.encoder_
        encoder.grey = encoder.grey or bool(encoder.kind == "binary" and ((data > 0) & (data < 1)).any())
        plan = self._plan(1, self._rate(), self._seed + self._n_calls)
        step = self._step(None if first else self.chains_)
        with self._own_threads():
            record = Trainer(plan, self._make_fabric()).run(step, Batch(None, data))
        self._take(step)
        self.history_.epochs += [{**e, "epoch": float(self._n_calls)} for e in record.epochs]
        self._log_z = None
        return self

    def _plan(self, n_epochs: int, final_rate: float, seed: int, checkpoint_seconds: float = 5.0) -> Plan:
        check_counts(self, "hidden", "max_epochs", "batch_size", "n_gibbs")
        if self.n_temperatures is not None:
            check_counts(self, "n_temperatures")
        self._check_training(several_processes=False)
        return machine_plan(
            max_epochs=int(n_epochs),
            batch_size=int(self.batch_size),
            learning_rate=self._rate(),
            final_rate=final_rate,
            weight_decay=self.weight_decay,
            validate_every=max(1, int(n_epochs) // 100),
            checkpoint_seconds=checkpoint_seconds,
            seed=seed,
        )

    def _step(self, chains: list[Tensor] | None = None) -> MomentStep:
        moments = Moments(
            momentum=self.momentum,
            n_gibbs=int(self.n_gibbs),
            persistent=self.persistent,
            n_temperatures=self._n_levels(),
            fast_rate=self.fast_rate,
            centred=self.centred,
            sparsity_target=self.sparsity_target,
            sparsity_cost=self.sparsity_cost,
        )
        encode, base_bias = self._encode(), self.base_bias_
        return MomentStep(self.energy_, moments, chains=chains, encode=encode, base_bias=base_bias)

    def _take(self, step: MomentStep) -> None:
        """Bring home what was trained on another device."""
        self.energy_.cpu()
        self.chains_ = [x.cpu() for x in step.all_chains]

    def _own_chains(self, layer: int) -> Tensor:
        """The chains' states of a layer ``[n, units]`` at the machine's own temperature."""
        states = self.chains_[layer]
        return states if states.dim() == 2 else states[0]

    def _n_levels(self) -> int:
        if self.n_temperatures is not None:
            return int(self.n_temperatures)
        return self._suitable_levels() if self.persistent and not self.fast_rate else 1

    def _encode(self) -> Encode | None:
        return binary_draws if self.encoder_.grey else None

    def _rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        # Gaussian units answer to the sum of what all hidden units learn, and run away if that is too much.
        if len(self.encoder_.columns("gaussian")):
            return 0.1 * min(1.0, 64 / self.hidden)
        # With many units each step changes much at once, and the chains do not follow.
        return 0.3 * min(1.0, 64 / self.encoder_.width)

    def _build(self, data: Tensor) -> None:
        with seeded(self._seed):
            self.energy_ = RBMEnergy(self._units(), self.hidden)
        if len(self.encoder_.columns("gaussian")):
            # At zero weights the gradient is zero, and with rates that Gaussian units bear it is long left.
            self.energy_.weights[0].data.mul_(40.0 / sum(self.energy_.weights[0].shape) ** 0.5)
        bias = self._base_bias(self.energy_.visible, data)
        self.energy_.biases[0].data.copy_(bias)
        self.base_bias_ = bias
        self._log_z = None

    def _own_threads(self) -> contextlib.AbstractContextManager[None]:
        return self._threads(self.batch_size, count_weights(self.energy_))

    def _likelihood_of(self, X: np.ndarray) -> Any:
        """The figure by which training on rows held out is judged."""
        rows, shift, seed = self._states(X).float(), self._log_volume(), self._seed

        def validate(machine: LayeredMachine) -> Tensor:
            if machine.n_enumerated <= _MOST_ENUMERATED_IN_TRAINING:
                log_z = float(machine.log_normaliser())
            else:
                generator = torch.Generator().manual_seed(seed)
                log_z = anneal_machine(machine, self.base_bias_, 32, 100, generator=generator).estimate
            return machine(rows).mean() + log_z + shift

        return validate

    # -- features ------------------------------------------------------------------------------------

    @property
    def components_(self) -> np.ndarray:
        """The weights ``[hidden, width]``."""
        return self._machine().weights[0].detach().numpy().T

    @property
    def intercept_visible_(self) -> np.ndarray:
        """``[width]``."""
        return self._machine().biases[0].detach().numpy()

    @property
    def intercept_hidden_(self) -> np.ndarray:
        """``[hidden]``."""
        return self._machine().biases[1].detach().numpy()

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def transform(self, X: Any) -> np.ndarray:
        """Means of the hidden units given the rows ``[rows, hidden]``."""
        kind = getattr(X, "dtype", None)
        exact, x = self._exact(), self._rows(X)
        with torch.no_grad():
            hidden = torch.cat([torch.sigmoid(exact.field([part, None], 1)) for part in x.split(8192)])
        return hidden.numpy().astype(np.float32 if kind == np.float32 else np.float64, copy=False)

    def gibbs(self, v: Any, *, random_state: RandomState = None) -> np.ndarray:
        """New rows after one sweep from v ``[rows, columns]``: all hidden units, then all visible ones.

        Without a seed of its own it draws from ``random_state`` of the estimator, if that is a ``RandomState``.
        """
        machine, x = self._machine(), self._rows(v)
        return self._decoded(machine.sweep(x.float(), generator_of(random_state)), draws=True)

    def reconstruct(self, X: Any, *, encoded: bool = False) -> np.ndarray:
        """Means of the visible units given the means of the hidden ones; of categories the likeliest.

        Args:
            encoded: give the means of the states ``[rows, width]`` instead, as ``encoder_`` has them.
        """
        exact, x = self._exact(), self._rows(X)
        with torch.no_grad():
            hidden = torch.sigmoid(exact.field([x, None], 1))
            means = exact.visible.mean(exact.field([None, hidden], 0))
        return means.numpy() if encoded else self._decoded(means)

    # -- likelihood ----------------------------------------------------------------------------------

    def _normaliser(self) -> Normaliser:
        machine = self._machine()
        if self._log_z is None:
            if machine.n_enumerated <= _MOST_ENUMERATED:
                self._log_z = Normaliser(float(self._exact().log_normaliser()))
            else:
                generator = torch.Generator().manual_seed(self._seed)
                with self._own_threads():
                    found = bracket_machine(
                        machine, self.base_bias_, samples=self._own_chains(1), generator=generator
                    )
                self._log_z = Normaliser.of(found)
        return self._log_z

    def free_energy(self, X: Any) -> np.ndarray:
        """-log of the unnormalised probability (in Gaussian columns: density in their own units) ``[rows]``."""
        exact, x = self._exact(), self._rows(X)
        with torch.no_grad():
            energy = torch.cat([exact(part) for part in x.split(8192)])
        return energy.numpy() + self._log_volume()

    def score_samples(self, X: Any) -> np.ndarray:
        """log p of every row ``[rows]``, normalised, in nats; all off alike by ``log_normaliser_error_``."""
        return -self.free_energy(X) - self.log_normaliser_

    def score(self, X: Any, y: Any = None) -> float:
        """Total log-likelihood of the rows, as scikit-learn's ``KernelDensity`` has it."""
        return float(self.score_samples(X).sum())

    def log_likelihood(self, X: Any) -> LogLikelihood:
        """The rows' mean log-likelihood, and how well it is known."""
        log_prob = self.score_samples(X)
        mean, off = float(log_prob.mean()), self.log_normaliser_error_
        error = float(log_prob.std(ddof=1) / np.sqrt(len(log_prob))) if len(log_prob) > 1 else float("nan")
        return LogLikelihood(mean, error, mean - off, mean + off, self.log_normaliser_warning_)

    # -- draws ---------------------------------------------------------------------------------------

    def sample(
        self,
        n_samples: int = 1,
        *,
        random_state: RandomState = None,
        n_steps: int = 500,
    ) -> np.ndarray:
        """Draws ``[n_samples, columns]``: chains annealed from independent columns, resampled by their weights.

        Columns that are rounded come rounded; beside texts every column comes in its own type.

        Args:
            random_state: seed, or a ``RandomState``.
            n_steps: bridges; with few of them, and a machine whose modes are far apart, draws recur.
        """
        machine, generator = self._machine(), generator_of(random_state)
        check_count("n_samples", n_samples)
        with self._own_threads():
            ends = anneal_machine(machine, self.base_bias_, max(100, n_samples), n_steps, generator=generator)
            layers: list[Tensor | None] = [None, resampled_ends(ends, n_samples, generator)]
            for _ in range(10):
                layers = machine.resample(machine.resample(layers, 0, generator), 1, generator)
        visible = layers[0]
        assert visible is not None
        return self._decoded(visible, draws=True)

    def impute(
        self,
        X: Any,
        *,
        n_draws: int | None = None,
        random_state: RandomState = None,
        n_chains: int = 32,
        n_steps: int = 200,
    ) -> np.ndarray:
        """Fill gaps (NaN) by block Gibbs with all known entries held fast, which come back as they were.

        Args:
            X: ``[rows, columns]``.
            n_draws: None gives the conditional mean (of binary columns the probability of 1, of categories the
                likeliest); a number that many draws.
            random_state: seed, or a ``RandomState``.
            n_chains: of each row, over which the mean is taken.
            n_steps: sweeps; the mean is over their second half.

        Returns:
            ``[rows, columns]``, or ``[n_draws, rows, columns]``.
        """
        machine = self._machine()
        with self._own_threads():
            return self._filled(machine, self.base_bias_, X, n_draws, n_chains, n_steps, random_state)

    # -- in and out ----------------------------------------------------------------------------------

    def _machine(self) -> RBMEnergy:
        check_is_fitted(self, "energy_")
        return self.energy_

    def _exact(self) -> RBMEnergy:
        """In double precision: a row's figure then doesn't depend on the rows beside it."""
        return copy.deepcopy(self._machine()).double()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder_.state(),
            "seed": self._seed,
            "n_calls": self._n_calls,
            "log_normaliser": self._log_z,
        }

    def _tensors(self) -> dict[str, Tensor]:
        return {"base_bias": self.base_bias_, **{f"chains.{k}": v for k, v in enumerate(self.chains_)}}

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.encoder_ = StateEncoder.from_state(config["encoder"])
        self._seed, self._n_calls = config["seed"], config["n_calls"]
        self._build(torch.zeros(1, self.encoder_.width))
        self.base_bias_ = tensors["base_bias"]
        self.chains_ = [tensors["chains.0"], tensors["chains.1"]]
        self._log_z = Normaliser.from_saved(config["log_normaliser"])
