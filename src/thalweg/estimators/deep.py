"""``DeepBoltzmannMachine``: a deep machine of rows, with scikit-learn's interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from thalweg.energies.machines import DBMEnergy
from thalweg.estimators._base import RandomState, check_count, check_widths, generator_of
from thalweg.estimators._deep import DeepDensity, layers_of
from thalweg.objectives.base import Batch
from thalweg.training.history import History
from thalweg.training.loop import Trainer
from thalweg.training.moments import Moments, MomentStep, binary_draws
from thalweg.training.pretraining import pretrain


class DeepBoltzmannMachine(DeepDensity):
    """A deep Boltzmann machine: pre-trained by layers, then trained as a whole.

    Columns of 0 and 1 have binary units, texts categorical ones, numbers Gaussian ones with learned spreads,
    standardised inside.

    Args:
        hidden: numbers of hidden units, from below; two layers at least.
        visible: "binary", "gaussian", "categorical", or column by column: "mixed" or "auto".
        max_epochs_pretraining: passes over the data for each layer, by CD-1.
        max_epochs: passes of the joint training, by mean field and persistent chains, with Gaussian units at five
            temperatures.
        learning_rate: step size of the first pass, falling to 0; None is 0.3, with Gaussian units 0.02; of the
            pre-training a third of it.
        batch_size: rows of an update, and number of chains.
        n_gibbs: sweeps of the chains before an update.
        device: where to train, as Lightning Fabric's accelerator.
        devices, num_nodes, strategy, precision: as in the other estimators; a machine is trained by one process in
            full precision.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the :class:`~thalweg.energies.DBMEnergy` of encoded rows.
        encoder_: how rows become visible states.
        base_bias_: of independent visible units with the data's means ``[width]``.
        history_: the :class:`~thalweg.training.history.History` of all layers and of the joint training.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X = (load_digits().data > 7).astype(float)
        >>> model = DeepBoltzmannMachine((16, 8), max_epochs_pretraining=2, max_epochs=2, random_state=0).fit(X)
        >>> model.transform(X).shape, model.sample(5, random_state=0).shape
        ((1797, 8), (5, 64))

    Source: [Salakhutdinov 2009].
    """

    def _learn(self, rows: Tensor, run_dir: Any, resume: bool, checkpoint_seconds: float) -> None:
        if len(check_widths(self.hidden)) < 2:
            raise ValueError(
                f"a deep Boltzmann machine has at least two hidden layers, got {check_widths(self.hidden)}"
            )
        self.energy_ = DBMEnergy(self._units(), check_widths(self.hidden))
        with torch.no_grad():
            self.energy_.biases[0].copy_(self.base_bias_)
        first = self._plan(self.max_epochs_pretraining, 1 / 3, checkpoint_seconds)
        parts = pretrain(
            self.energy_, rows, first, Moments(persistent=False), **self._how(run_dir, "pretraining", resume)
        )
        how = self._how(run_dir, "joint", resume)
        trainer = Trainer(
            self._plan(self.max_epochs, 1.0, checkpoint_seconds), how["fabric"], how["run_dir"], how["progress"]
        )
        moments = Moments(n_gibbs=self.n_gibbs, n_temperatures=self._suitable_levels())
        step = MomentStep(self.energy_, moments, base_bias=self.base_bias_)
        joint = trainer.run(step, Batch(None, rows), resume=resume)
        self._chains = [x.cpu().double() for x in step.chains]
        self.history_ = History.joined({**layers_of(parts), "the whole": joint})

    @property
    def _normalised(self) -> Any:
        return self.energy_

    @property
    def _annealing_bias(self) -> Tensor:
        return self.base_bias_

    def _odd_states(self, rows: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed)
        means = self.energy_.mean_field(rows)
        odd = self.energy_.parity(1)
        drawn = torch.cat([binary_draws(means[number], generator) for number in odd], -1)
        return torch.cat([torch.cat([self._chains[number] for number in odd], -1), drawn])

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

    def reconstruct(self, X: Any, *, encoded: bool = False) -> np.ndarray:
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
        *,
        random_state: RandomState = None,
        n_steps: int = 1000,
    ) -> np.ndarray:
        """Draws ``[n_samples, columns]``, each by a chain of its own of n_steps sweeps."""
        check_is_fitted(self, "energy_")
        check_count("n_samples", n_samples)
        return self._decoded(self._drawn_states(n_samples, n_steps, generator_of(random_state)), draws=True)

    @torch.no_grad()
    def _drawn_states(self, n: int, n_steps: int, generator: torch.Generator) -> Tensor:
        machine = self.energy_
        layers = [
            unit.sample(bias.expand(n, -1).clone(), generator)
            for unit, bias in zip(machine.units, machine.biases, strict=True)
        ]
        for _ in range(n_steps):
            layers = machine.resample(machine.resample(layers, 1, generator), 0, generator)
        return layers[0]

    def impute(
        self,
        X: Any,
        *,
        n_draws: int | None = None,
        random_state: RandomState = None,
        n_chains: int = 32,
        n_steps: int = 200,
    ) -> np.ndarray:
        """Fill gaps (NaN) by block Gibbs over all layers with all known entries held fast.

        Args, Returns: as :meth:`RestrictedBoltzmannMachine.impute`.
        """
        check_is_fitted(self, "energy_")
        return self._filled(self.energy_, self.base_bias_, X, n_draws, n_chains, n_steps, random_state)

    def _empty(self) -> DBMEnergy:
        return DBMEnergy(self._units(), check_widths(self.hidden))
