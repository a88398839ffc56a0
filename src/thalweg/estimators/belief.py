"""``DeepBeliefNetwork``, and ``DeepBeliefClassifier``, which starts from one, with scikit-learn's interface."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from thalweg._torch_state import seeded
from thalweg.data.states import StateEncoder
from thalweg.energies.machines import belief
from thalweg.estimators._base import RandomState, check_count, check_widths, clear_parts, generator_of
from thalweg.estimators._deep import PARTS, Deep, DeepDensity, layers_of
from thalweg.estimators._labels import check_kind_of_labels
from thalweg.objectives.base import Batch
from thalweg.objectives.classification import CrossEntropy
from thalweg.training.history import History
from thalweg.training.loop import Plan, Trainer
from thalweg.training.moments import Moments
from thalweg.training.pretraining import grow_belief_network, up_down


class DeepBeliefNetwork(DeepDensity):
    """A deep belief network: layer upon layer, then fine-tuned as a whole by the up-down algorithm.

    Columns of 0 and 1 have binary units, texts categorical ones, numbers Gaussian ones with learned spreads,
    standardised inside.

    Args:
        hidden: numbers of hidden units, from below.
        visible: "binary", "gaussian", "categorical", or column by column: "mixed" or "auto".
        max_epochs_pretraining: passes over the data for each layer, by persistent chains.
        max_epochs: passes of the fine-tuning.
        learning_rate: step size of the first pass, falling to 0; None is 0.3, with Gaussian units 0.02; of the
            fine-tuning a sixth of it.
        batch_size: rows of an update, and number of chains.
        n_gibbs: sweeps of the chains before an update.
        device: where to train, as Lightning Fabric's accelerator.
        devices, num_nodes, strategy, precision: as in the other estimators; a machine is trained by one process in
            full precision.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the :class:`~thalweg.energies.DeepBeliefNetwork` of encoded rows.
        encoder_: how rows become visible states.
        base_bias_: of independent visible units with the data's means ``[width]``.
        history_: the :class:`~thalweg.training.history.History` of all layers and of the fine-tuning.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X = (load_digits().data > 7).astype(float)
        >>> model = DeepBeliefNetwork((16, 16), max_epochs_pretraining=2, max_epochs=2, random_state=0).fit(X)
        >>> model.transform(X).shape, model.sample(5, random_state=0).shape
        ((1797, 16), (5, 64))

    Source: [Hinton 2006].
    """

    def _learn(self, rows: Tensor, run_dir: Any, resume: bool, checkpoint_seconds: float) -> None:
        self.energy_, parts = grow_belief_network(
            self._units(),
            check_widths(self.hidden),
            rows,
            self._plan(self.max_epochs_pretraining, 1.0, checkpoint_seconds),
            Moments(n_gibbs=self.n_gibbs),
            **self._how(run_dir, "pretraining", resume),
        )
        histories = layers_of(parts)
        if len(check_widths(self.hidden)) > 1:
            plan = self._plan(self.max_epochs, 1 / 6, checkpoint_seconds)
            how, moments = self._how(run_dir, "up-down", resume), Moments(n_gibbs=self.n_gibbs)
            histories["the whole"] = up_down(self.energy_, rows, plan, moments, **how)
        self.history_ = History.joined(histories)

    @property
    def _normalised(self) -> Any:
        return self.energy_.top

    @property
    def _annealing_bias(self) -> Tensor:
        return self._inner_bias

    def _odd_states(self, rows: Tensor) -> Tensor:
        generator, top = torch.Generator().manual_seed(self._seed), self.energy_.top
        inner = self.energy_.draw_up(rows, generator)[0][-1]
        self._inner_bias = top.visible.bias_of(inner) if len(self.energy_.lower) else self.base_bias_
        return top.units[1].sample(top.field([inner, None], 1).detach(), generator)

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

    def reconstruct(self, X: Any, *, encoded: bool = False) -> np.ndarray:
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
        *,
        random_state: RandomState = None,
        n_steps: int = 1000,
    ) -> np.ndarray:
        """Draws ``[n_samples, columns]``, each by a chain of n_steps sweeps on top and once down."""
        check_is_fitted(self, "energy_")
        check_count("n_samples", n_samples)
        return self._decoded(self._drawn_states(n_samples, n_steps, generator_of(random_state)), draws=True)

    def _drawn_states(self, n: int, n_steps: int, generator: torch.Generator) -> Tensor:
        self.energy_.n_sweeps = n_steps
        return self.energy_.sample(n, generator)

    def _empty(self) -> belief.DeepBeliefNetwork:
        network = belief.DeepBeliefNetwork(self._units(), check_widths(self.hidden))
        if len(check_widths(self.hidden)) > 1:
            network.untie()
        return network


class DeepBeliefClassifier(ClassifierMixin, Deep):
    """A network of sigmoid layers that starts from a deep belief network of rows without labels.

    Columns of 0 and 1 have binary units, others Gaussian ones with learned spreads, standardised inside.

    Args:
        hidden: numbers of hidden units, from below.
        visible: "binary", "gaussian", or column by column, "mixed" or "auto": binary if all values are 0 or 1.
        max_epochs_pretraining: passes over the rows for each layer, by persistent chains.
        max_epochs: passes over the labelled rows, by AdamW; twenty rows a step.
        learning_rate: step size of the pre-training's first pass, falling to 0; None is 0.3, with Gaussian units
            0.02.
        fine_rate: the highest learning rate of the network.
        batch_size: rows of an update of the pre-training, and number of chains.
        n_gibbs: sweeps of the chains before an update.
        device: where to train, as Lightning Fabric's accelerator.
        devices, num_nodes, strategy, precision: as in the other estimators; a machine is trained by one process in
            full precision.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the :class:`~thalweg.energies.DeepBeliefNetwork` of encoded rows, as pre-trained.
        network_: the network from encoded rows to scores of classes.
        classes_: the labels.
        history_: the :class:`~thalweg.training.history.History` of all layers and of the network.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> X = (X > 7).astype(float)
        >>> model = DeepBeliefClassifier((16,), max_epochs_pretraining=2, max_epochs=2, random_state=0)
        >>> model.fit(X[:100], y[:100], unlabelled=X[100:]).predict_proba(X[:3]).shape
        (3, 10)

    Source: [Hinton 2006b].
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        *,
        visible: str = "auto",
        max_epochs_pretraining: int = 200,
        max_epochs: int = 200,
        learning_rate: float | None = None,
        fine_rate: float = 3e-3,
        batch_size: int = 64,
        n_gibbs: int = 1,
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
        check_kind_of_labels(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        n_labelled = len(X)
        if unlabelled is not None:
            X = np.concatenate([X, validate_data(self, unlabelled, dtype=np.float64, reset=False)])
        self._check_settings()
        self.encoder_ = StateEncoder(self.visible, probabilities=False).fit(X, self._names())
        rows = self._prepared(X)
        clear_parts(run_dir, resume, PARTS)
        with self._own_threads(rows), seeded(self._seed):
            self.energy_, parts = grow_belief_network(
                self._units(),
                check_widths(self.hidden),
                rows,
                self._plan(self.max_epochs_pretraining, 1.0, checkpoint_seconds),
                Moments(n_gibbs=self.n_gibbs),
                **self._how(run_dir, "pretraining", resume),
            )
            self.network_ = self.energy_.classifier(len(self.classes_))
            plan = Plan(
                self.max_epochs,
                batch_size=20,
                learning_rate=self.fine_rate,
                checkpoint_seconds=checkpoint_seconds,
                seed=self._seed,
            )
            how = self._how(run_dir, "labels", resume)
            trainer = Trainer(plan, how["fabric"], how["run_dir"], how["progress"])
            data = Batch(self._inputs(rows[:n_labelled]), torch.from_numpy(labels))
            history = trainer.fit(self.network_, CrossEntropy(), data, resume=resume)
        self.history_ = History.joined({**layers_of(parts), "labels": history})
        self.energy_.cpu().double()
        self.network_.cpu().double().eval()
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

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "classes": self.classes_.tolist()}

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super()._rebuild(config, tensors)
        self.classes_ = np.array(config["classes"])
        self.energy_ = belief.DeepBeliefNetwork(self._units(), check_widths(self.hidden)).double()
        self.network_ = self.energy_.classifier(len(self.classes_)).double()
