"""Deep Boltzmann machines, deep belief networks and a classifier from these, with scikit-learn's manners."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from thalweg.data.states import StateEncoder
from thalweg.energies.machines import belief
from thalweg.energies.machines.layered import DBMEnergy
from thalweg.estimators._states import IMPOSSIBLE, StateRows, check_count, kept_columns, restore_columns
from thalweg.estimators.regressor import suitable_threads, using_threads
from thalweg.objectives.base import AnyEnergy, Batch, Objective
from thalweg.sampling.layered_annealing import bracket_machine
from thalweg.training.loop import History, Plan, Trainer
from thalweg.training.moments import Moments, MomentStep, machine_plan
from thalweg.training.pretraining import grow_belief_network, pretrain, up_down
from thalweg.training.progress import BarProgress
from thalweg.training.saving import load_model, rebuilding, save_model, tensors_of

# Up to here enumeration takes about a second.
_MOST_ENUMERATED = 18
# Folders of a run.
PARTS = ("pretraining", "joint", "up-down", "labels")
_BINARY_RATE, _GAUSSIAN_RATE = 0.3, 0.02


class _Deep(StateRows):
    """What deep models of rows have in common: columns, settings, runs, files."""

    def __init__(
        self,
        hidden: Sequence[int] = (128, 64),
        *,
        visible: str = "auto",
        n_iter_pretraining: int = 50,
        n_iter: int = 100,
        learning_rate: float | None = None,
        batch_size: int = 64,
        n_gibbs: int = 1,
        n_threads: int | None = 1,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.hidden = hidden
        self.visible = visible
        self.n_iter_pretraining = n_iter_pretraining
        self.n_iter = n_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_gibbs = n_gibbs
        self.n_threads = n_threads
        self.verbose = verbose
        self.random_state = random_state

    energy_: Any

    def _check_settings(self) -> None:
        for name in ("n_iter_pretraining", "n_iter", "batch_size", "n_gibbs"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        widths = list(self.hidden) if isinstance(self.hidden, Iterable) else []
        if not widths or any(not isinstance(n, int | np.integer) or n < 1 for n in widths):
            raise ValueError(f"hidden must be whole numbers of at least 1, got {self.hidden!r}")

    def _prepared(self, X: np.ndarray) -> Tensor:
        """Draws the seed: the rows as states of the visible units."""
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = self._states(X).float()
        self.base_bias_ = self._base_bias(self._units(), rows).double()
        return rows

    def _plan(self, n_epochs: int, share: float = 1.0, checkpoint_seconds: float = 5.0) -> Plan:
        rate = self.learning_rate
        if rate is None:
            rate = _GAUSSIAN_RATE if len(self.encoder_.columns("gaussian")) else _BINARY_RATE
        return machine_plan(
            max_epochs=n_epochs,
            batch_size=self.batch_size,
            learning_rate=share * rate,
            checkpoint_seconds=checkpoint_seconds,
            seed=self._seed,
        )

    def _threads(self, rows: Tensor) -> int:
        sizes = [a * b for a, b in itertools.pairwise([rows.shape[1], *self.hidden])]
        return self.n_threads or suitable_threads(self.batch_size, sum(sizes))

    def _fresh(self, run_dir: str | os.PathLike[str] | None, resume: bool) -> None:
        # Parts that an earlier run had finished there would be taken for this one's.
        if run_dir is not None and not resume:
            for part in PARTS:
                shutil.rmtree(Path(run_dir) / part, ignore_errors=True)

    def _how(self, run_dir: str | os.PathLike[str] | None, part: str, resume: bool) -> dict[str, Any]:
        return {
            "run_dir": None if run_dir is None else Path(run_dir) / part,
            "progress": BarProgress(label=part) if self.verbose else None,
            "resume": resume,
        }

    # -- files ---------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Write the model as a folder of ``config.json`` and ``model.safetensors``.

        Args:
            extra: anything for JSON, kept beside the model and given back by :meth:`load`.
        """
        check_is_fitted(self, "energy_")
        params = {k: v for k, v in self.get_params().items() if k != "random_state"}
        params["hidden"] = [int(n) for n in self.hidden]
        config: dict[str, Any] = {
            "params": params,
            **kept_columns(self),
            "encoder": self.encoder_.state(),
            "seed": self._seed,
            "history": [asdict(h) for h in self.history_],
            "extra": extra or {},
            **self._more_config(),
        }
        tensors = {f"{name}.{k}": v for name, m in self._modules().items() for k, v in m.state_dict().items()}
        tensors["base_bias"] = self.base_bias_
        save_model(Path(folder), type(self).__name__, config, tensors)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Any:
        """Read a saved model. Nothing in the folder is run; ``extra_`` holds what was kept beside it.

        Raises:
            ValueError: if the folder is missing, damaged, foreign, or of a newer version.
        """
        config, tensors = load_model(Path(folder), cls.__name__)
        with rebuilding(folder):
            model = cls(**config["params"])
            restore_columns(model, config)
            model.encoder_, model._seed = StateEncoder.from_state(config["encoder"]), config["seed"]
            model.base_bias_ = tensors["base_bias"]
            model.history_ = [History(**h) for h in config["history"]]
            model.extra_ = config["extra"]
            model._rebuild(config)
            for name, module in model._modules().items():
                module.double().load_state_dict(tensors_of(name, tensors))
        return model

    history_: list[History]

    def _modules(self) -> dict[str, nn.Module]:
        return {"energy": self.energy_}

    def _more_config(self) -> dict[str, Any]:
        return {}

    def _rebuild(self, config: dict[str, Any]) -> None:
        """Modules of the right shapes."""
        raise NotImplementedError


class _DeepDensity(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Deep):
    """A deep model whose top layer makes features and whose log p has a lower bound."""

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> Any:
        """Fit the model to the rows of X.

        Args:
            X: ``[rows, columns]`` without gaps.
            y: ignored.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoints in run_dir; the result is that of a run never interrupted.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for settings or data that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        self._check_settings()
        rows = self._prepared(self._learn_columns(X, probabilities=False))
        self._log_z: tuple[float, float] | None = None
        self._fresh(run_dir, resume)
        with using_threads(self._threads(rows)), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self._learn(rows, run_dir, resume, checkpoint_seconds)
        with torch.no_grad():
            # Categories that a column does not have have learned that they are rare, not that there are none.
            self._visible_bias[torch.from_numpy(self.encoder_.impossible())] = IMPOSSIBLE
        # In double precision a row's figures do not depend on the rows beside it.
        self.energy_.double()
        return self

    def _learn(self, rows: Tensor, run_dir: Any, resume: bool, checkpoint_seconds: float) -> None:
        raise NotImplementedError

    @property
    def _normalised(self) -> Any:
        """The machine whose log Z is that of the model."""
        raise NotImplementedError

    @property
    def _visible_bias(self) -> Tensor:
        raise NotImplementedError

    def _bound(self, rows: Tensor) -> Tensor:
        """Of log p + log Z."""
        raise NotImplementedError

    @property
    def components_(self) -> np.ndarray:
        """The weights between the visible units and the first hidden layer ``[hidden[0], width]``."""
        check_is_fitted(self, "energy_")
        return self._first_weights.detach().numpy().T

    @property
    def _first_weights(self) -> Tensor:
        raise NotImplementedError

    @property
    def _n_features_out(self) -> int:
        return int(self.hidden[-1])

    @property
    def log_normaliser_(self) -> float:
        """log Z, in nats: exact where few units must be enumerated, else by annealing from both sides."""
        return self._normaliser()[0]

    @property
    def log_normaliser_error_(self) -> float:
        """0 where log Z is exact, else half the bracket or the standard error, whichever is more."""
        return self._normaliser()[1]

    def _normaliser(self) -> tuple[float, float]:
        """log Z and its error, found when first asked for."""
        check_is_fitted(self, "energy_")
        if self._log_z is None:
            machine = self._normalised
            if machine.n_enumerated <= _MOST_ENUMERATED:
                self._log_z = float(machine.log_normaliser()), 0.0
            else:
                found = bracket_machine(machine, generator=torch.Generator().manual_seed(self._seed))
                error = max(abs(found.width) / 2, found.lower.standard_error, found.upper.standard_error)
                self._log_z = found.estimate, error
        return self._log_z

    def score_samples(self, X: Any) -> np.ndarray:
        """A lower bound of log p of every row ``[rows]``, in nats; all off alike by ``log_normaliser_error_``."""
        rows = self._rows(X)
        bound = torch.cat([self._bound(part) for part in rows.split(4096)]).numpy()
        return bound - self.log_normaliser_ - self._log_volume()

    def score(self, X: Any, y: Any = None) -> float:
        """The sum of ``score_samples``, as of scikit-learn's ``KernelDensity``."""
        return float(self.score_samples(X).sum())

    def _more_config(self) -> dict[str, Any]:
        return {"log_normaliser": list(self._normaliser())}


class DeepBoltzmannMachine(_DeepDensity):
    """A deep Boltzmann machine: pre-trained by layers, then trained as a whole.

    Columns of 0 and 1 have binary units, texts categorical ones, numbers Gaussian ones with learned spreads,
    standardised inside.

    Args:
        hidden: numbers of hidden units, from below; two layers at least.
        visible: "binary", "gaussian", "categorical", or column by column: "mixed" or "auto".
        n_iter_pretraining: passes over the data for each layer, by CD-1.
        n_iter: passes of the joint training, by mean field and persistent chains, with Gaussian units at five
            temperatures.
        learning_rate: of the first pass, falling to 0; None is 0.3, with Gaussian units 0.02; of the pre-training
            a third of it.
        batch_size: rows of an update, and number of chains.
        n_gibbs: sweeps of the chains before an update.
        n_threads: of PyTorch while fitting; None chooses by the size of the work.
        verbose: show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the :class:`~thalweg.energies.DBMEnergy` of encoded rows.
        encoder_: how rows become visible states.
        base_bias_: of independent visible units with the data's means ``[width]``.
        history_: one :class:`~thalweg.training.loop.History` for each layer, and one of the joint training.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X = (load_digits().data > 7).astype(float)
        >>> model = DeepBoltzmannMachine((16, 8), n_iter_pretraining=2, n_iter=2, random_state=0).fit(X)
        >>> model.transform(X).shape, model.sample(5, random_state=0).shape
        ((1797, 8), (5, 64))

    Source: [Salakhutdinov 2009].
    """

    def _learn(self, rows: Tensor, run_dir: Any, resume: bool, checkpoint_seconds: float) -> None:
        if len(self.hidden) < 2:
            raise ValueError(f"a deep Boltzmann machine has at least two hidden layers, got {list(self.hidden)}")
        self.energy_ = DBMEnergy(self._units(), self.hidden)
        with torch.no_grad():
            self.energy_.biases[0].copy_(self.base_bias_)
        first = self._plan(self.n_iter_pretraining, 1 / 3, checkpoint_seconds)
        parts = pretrain(
            self.energy_, rows, first, Moments(persistent=False), **self._how(run_dir, "pretraining", resume)
        )
        how = self._how(run_dir, "joint", resume)
        trainer = Trainer(self._plan(self.n_iter, 1.0, checkpoint_seconds), None, how["run_dir"], how["progress"])
        moments = Moments(n_gibbs=self.n_gibbs, n_temperatures=self._suitable_levels())
        step = MomentStep(self.energy_, moments, base_bias=self.base_bias_)
        self.history_ = [*parts, trainer.run(step, Batch(None, rows), resume=resume)]

    @property
    def _normalised(self) -> Any:
        return self.energy_

    @property
    def _visible_bias(self) -> Tensor:
        return self.energy_.biases[0]

    @property
    def _first_weights(self) -> Tensor:
        return self.energy_.weights[0]

    def _bound(self, rows: Tensor) -> Tensor:
        return self.energy_.evidence_bound(rows, 50, 0.0)

    def transform(self, X: Any) -> np.ndarray:
        """Means of the top layer under the mean field ``[rows, hidden[-1]]``."""
        rows = self._rows(X)
        return self.energy_.mean_field(rows, 50, 0.0)[-1].numpy()

    def reconstruct(self, X: Any, encoded: bool = False) -> np.ndarray:
        """Means of the columns given the mean field's means of the hidden units ``[rows, columns]``.

        Args:
            encoded: give the means of the states ``[rows, width]`` instead, as ``encoder_`` has them.
        """
        rows = self._rows(X)
        layers = self.energy_.mean_field(rows, 50, 0.0)
        with torch.no_grad():
            means = self.energy_.visible.mean(self.energy_.field(layers, 0))
        return means.numpy() if encoded else self._decoded(means)

    def sample(
        self,
        n_samples: int = 1,
        n_steps: int = 1000,
        random_state: int | np.random.RandomState | None = None,
    ) -> np.ndarray:
        """Draws ``[n_samples, columns]``, each by a chain of its own of n_steps sweeps."""
        check_is_fitted(self, "energy_")
        check_count(n_samples)
        machine, generator = self.energy_, self._generator(random_state)
        with torch.no_grad():
            layers = [
                unit.sample(bias.expand(n_samples, -1).clone(), generator)
                for unit, bias in zip(machine.units, machine.biases, strict=True)
            ]
            for _ in range(n_steps):
                layers = machine.resample(machine.resample(layers, 1, generator), 0, generator)
        return self._decoded(layers[0], draws=True)

    def impute(
        self,
        X: Any,
        n_imputations: int | None = None,
        n_chains: int = 32,
        n_steps: int = 200,
        random_state: int | np.random.RandomState | None = None,
    ) -> np.ndarray:
        """Fill gaps (NaN) by block Gibbs over all layers with all known entries held fast.

        Args, Returns: as :meth:`RestrictedBoltzmannMachine.impute`.
        """
        check_is_fitted(self, "energy_")
        return self._filled(self.energy_, self.base_bias_, X, n_imputations, n_chains, n_steps, random_state)

    def _rebuild(self, config: dict[str, Any]) -> None:
        self.energy_ = DBMEnergy(self._units(), self.hidden)
        self._log_z = tuple(config["log_normaliser"])


class DeepBeliefNetwork(_DeepDensity):
    """A deep belief network: layer upon layer, then fine-tuned as a whole by the up-down algorithm.

    Columns of 0 and 1 have binary units, texts categorical ones, numbers Gaussian ones with learned spreads,
    standardised inside.

    Args:
        hidden: numbers of hidden units, from below.
        visible: "binary", "gaussian", "categorical", or column by column: "mixed" or "auto".
        n_iter_pretraining: passes over the data for each layer, by persistent chains.
        n_iter: passes of the fine-tuning.
        learning_rate: of the first pass, falling to 0; None is 0.3, with Gaussian units 0.02; of the fine-tuning a
            sixth of it.
        batch_size: rows of an update, and number of chains.
        n_gibbs: sweeps of the chains before an update.
        n_threads: of PyTorch while fitting; None chooses by the size of the work.
        verbose: show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the :class:`~thalweg.energies.DeepBeliefNetwork` of encoded rows.
        encoder_: how rows become visible states.
        base_bias_: of independent visible units with the data's means ``[width]``.
        history_: one :class:`~thalweg.training.loop.History` for each layer, and one of the fine-tuning.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X = (load_digits().data > 7).astype(float)
        >>> model = DeepBeliefNetwork((16, 16), n_iter_pretraining=2, n_iter=2, random_state=0).fit(X)
        >>> model.transform(X).shape, model.sample(5, random_state=0).shape
        ((1797, 16), (5, 64))

    Source: [Hinton 2006].
    """

    def _learn(self, rows: Tensor, run_dir: Any, resume: bool, checkpoint_seconds: float) -> None:
        self.energy_, parts = grow_belief_network(
            self._units(),
            self.hidden,
            rows,
            self._plan(self.n_iter_pretraining, 1.0, checkpoint_seconds),
            Moments(n_gibbs=self.n_gibbs),
            **self._how(run_dir, "pretraining", resume),
        )
        self.history_ = parts
        if len(self.hidden) > 1:
            plan = self._plan(self.n_iter, 1 / 6, checkpoint_seconds)
            self.history_ = [
                *parts,
                up_down(
                    self.energy_,
                    rows,
                    plan,
                    Moments(n_gibbs=self.n_gibbs),
                    **self._how(run_dir, "up-down", resume),
                ),
            ]

    @property
    def _normalised(self) -> Any:
        return self.energy_.top

    @property
    def _visible_bias(self) -> Tensor:
        lower = self.energy_.lower
        return lower[0].bias if len(lower) else self.energy_.top.biases[0]

    @property
    def _first_weights(self) -> Tensor:
        lower = self.energy_.lower
        return lower[0].weight if len(lower) else self.energy_.top.weights[0]

    def _bound(self, rows: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed)
        return self.energy_.importance_bound(rows, 100, generator, common=True)

    def transform(self, X: Any) -> np.ndarray:
        """Means of the top layer, layer by layer upward ``[rows, hidden[-1]]``."""
        rows = self._rows(X)
        return self.energy_.means_up(rows)[-1].numpy()

    def reconstruct(self, X: Any, encoded: bool = False) -> np.ndarray:
        """Means of the columns after means of every layer up and down again ``[rows, columns]``.

        Args:
            encoded: give the means of the states ``[rows, width]`` instead, as ``encoder_`` has them.
        """
        rows, network = self._rows(X), self.energy_
        with torch.no_grad():
            top = network.means_up(rows)[-1]
            back = network.top.visible.mean(network.top.field([None, top], 0))
            for layer in reversed(network.lower):
                back = layer.unit.mean(layer.field(back))
        return back.numpy() if encoded else self._decoded(back)

    def sample(
        self,
        n_samples: int = 1,
        n_steps: int = 1000,
        random_state: int | np.random.RandomState | None = None,
    ) -> np.ndarray:
        """Draws ``[n_samples, columns]``, each by a chain of n_steps sweeps on top and once down."""
        check_is_fitted(self, "energy_")
        check_count(n_samples)
        self.energy_.n_sweeps = n_steps
        return self._decoded(self.energy_.sample(n_samples, self._generator(random_state)), draws=True)

    def _rebuild(self, config: dict[str, Any]) -> None:
        self.energy_ = belief.DeepBeliefNetwork(self._units(), self.hidden)
        if len(self.hidden) > 1:
            self.energy_.untie()
        self._log_z = tuple(config["log_normaliser"])


class DeepBeliefClassifier(ClassifierMixin, _Deep):
    """A network of sigmoid layers that starts from a deep belief network of rows without labels.

    Columns of 0 and 1 have binary units, others Gaussian ones with learned spreads, standardised inside.

    Args:
        hidden: numbers of hidden units, from below.
        visible: "binary", "gaussian", or column by column, "mixed" or "auto": binary if all values are 0 or 1.
        n_iter_pretraining: passes over the rows for each layer, by persistent chains.
        n_iter: passes over the labelled rows, by AdamW; twenty rows a step.
        learning_rate: of the pre-training's first pass, falling to 0; None is 0.3, with Gaussian units 0.02.
        fine_rate: the highest learning rate of the network.
        batch_size: rows of an update of the pre-training, and number of chains.
        n_gibbs: sweeps of the chains before an update.
        n_threads: of PyTorch while fitting; None chooses by the size of the work.
        verbose: show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the :class:`~thalweg.energies.DeepBeliefNetwork` of encoded rows, as pre-trained.
        network_: the network from encoded rows to scores of classes.
        classes_: the labels.
        history_: one :class:`~thalweg.training.loop.History` for each layer, and one of the network's training.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> X = (X > 7).astype(float)
        >>> model = DeepBeliefClassifier((16,), n_iter_pretraining=2, n_iter=2, random_state=0)
        >>> model.fit(X[:100], y[:100], unlabelled=X[100:]).predict_proba(X[:3]).shape
        (3, 10)

    Source: [Hinton 2006b].
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        *,
        visible: str = "auto",
        n_iter_pretraining: int = 200,
        n_iter: int = 200,
        learning_rate: float | None = None,
        fine_rate: float = 3e-3,
        batch_size: int = 64,
        n_gibbs: int = 1,
        n_threads: int | None = 1,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ):
        super().__init__(
            hidden, visible=visible, n_iter_pretraining=n_iter_pretraining, n_iter=n_iter,
            learning_rate=learning_rate, batch_size=batch_size, n_gibbs=n_gibbs, n_threads=n_threads,
            verbose=verbose, random_state=random_state,
        )  # fmt: skip
        self.fine_rate = fine_rate

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        unlabelled: Any = None,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> DeepBeliefClassifier:
        """Learn the rows, then their labels.

        Args:
            X: labelled rows ``[rows, columns]``.
            y: their labels ``[rows]``.
            unlabelled: more rows ``[any, columns]``, for the pre-training.
            run_dir, resume, checkpoint_seconds: as :meth:`DeepBeliefNetwork.fit`.

        Raises:
            ValueError: for settings or data that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        n_labelled = len(X)
        if unlabelled is not None:
            X = np.concatenate([X, validate_data(self, unlabelled, dtype=np.float64, reset=False)])
        self._check_settings()
        self.encoder_ = StateEncoder(self.visible, probabilities=False).fit(X, self._names())
        rows = self._prepared(X)
        self._fresh(run_dir, resume)
        with using_threads(self._threads(rows)), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self.energy_, parts = grow_belief_network(
                self._units(),
                self.hidden,
                rows,
                self._plan(self.n_iter_pretraining, 1.0, checkpoint_seconds),
                Moments(n_gibbs=self.n_gibbs),
                **self._how(run_dir, "pretraining", resume),
            )
            self.network_ = self.energy_.classifier(len(self.classes_))
            plan = Plan(
                self.n_iter, batch_size=20, learning_rate=self.fine_rate, checkpoint_seconds=checkpoint_seconds,
                seed=self._seed,
            )  # fmt: skip
            how = self._how(run_dir, "labels", resume)
            trainer = Trainer(plan, None, how["run_dir"], how["progress"])
            data = Batch(torch.from_numpy(labels).float(), self._inputs(rows[:n_labelled]))
            history = trainer.fit(self.network_, CrossEntropy(), data, resume=resume)
        self.history_ = [*parts, history]
        self.energy_.double()
        self.network_.double().eval()
        return self

    def _inputs(self, states: Tensor) -> Tensor:
        """What couples to the first layer."""
        with torch.no_grad():
            return self.energy_.visible.feature(states)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes ``[rows, classes]``."""
        rows = self._rows(X)
        with torch.no_grad():
            return torch.softmax(self.network_(self._inputs(rows)), -1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of every row ``[rows]``."""
        check_is_fitted(self, "energy_")
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _modules(self) -> dict[str, nn.Module]:
        return {"energy": self.energy_, "network": self.network_}

    def _more_config(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist()}

    def _rebuild(self, config: dict[str, Any]) -> None:
        self.classes_ = np.array(config["classes"])
        self.energy_ = belief.DeepBeliefNetwork(self._units(), self.hidden)
        self.network_ = self.energy_.classifier(len(self.classes_)).eval()


class CrossEntropy(Objective):
    """-log softmax of a network's scores ``[B, classes]``: a batch's y are rows, its x are numbers of classes."""

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        return F.cross_entropy(energy(batch.y), batch.x.long(), reduction="none")
