"""What deep models of rows have in common: settings, parts of the training, features, bounds of the likelihood."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from thalweg._torch_state import seeded
from thalweg.data.states import StateEncoder
from thalweg.estimators._base import RandomState, check_counts, check_widths, clear_parts
from thalweg.estimators._normaliser import Normalised, Normaliser
from thalweg.estimators._states import IMPOSSIBLE, StateRows
from thalweg.evaluation.row_checks import check_modes, check_units, check_variety
from thalweg.evaluation.verdict import check_rows, check_training
from thalweg.sampling.layered_annealing import bracket_machine
from thalweg.training.history import History
from thalweg.training.moments import machine_plan
from thalweg.training.plan import Plan
from thalweg.training.progress import BarProgress

# Up to here enumeration takes about a second.
_MOST_ENUMERATED = 18
# Rows from which chains of the annealing back start.
_N_STARTS = 64
# Draws that are compared with the rows, and the sweeps behind each.
_N_JUDGED, _N_SWEEPS_JUDGED = 200, 200
# Folders of a run.
PARTS = ("pretraining", "joint", "up-down", "labels")
_BINARY_RATE, _GAUSSIAN_RATE = 0.3, 0.02


def layers_of(histories: Sequence[History]) -> dict[str, History]:
    """Histories of layers, from below, by name."""
    return {f"layer {k + 1}": history for k, history in enumerate(histories)}


class Deep(StateRows):
    """What deep models of rows have in common: columns, settings, runs, files."""

    def __init__(
        self,
        hidden: Sequence[int] = (128, 64),
        *,
        visible: str = "auto",
        max_epochs_pretraining: int = 50,
        max_epochs: int = 100,
        learning_rate: float | None = None,
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

    def _check_settings(self) -> None:
        check_counts(self, "max_epochs_pretraining", "max_epochs", "batch_size", "n_gibbs")
        check_widths(self.hidden)
        self._check_training(several_processes=False)

    def _prepared(self, X: np.ndarray) -> Tensor:
        """Draws the seed: the rows as states of the visible units."""
        self._seed = self._draw_seed()
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

    def _own_threads(self, rows: Tensor) -> contextlib.AbstractContextManager[None]:
        sizes = [a * b for a, b in itertools.pairwise([rows.shape[1], *check_widths(self.hidden)])]
        return self._threads(self.batch_size, sum(sizes))

    def _how(self, run_dir: str | os.PathLike[str] | None, part: str, resume: bool) -> dict[str, Any]:
        return {
            "run_dir": None if run_dir is None else Path(run_dir) / part,
            "progress": BarProgress(label=part) if self.verbose else None,
            "resume": resume,
            "fabric": self._make_fabric(),
        }

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        return {"encoder": self.encoder_.state(), "seed": self._seed}

    def _tensors(self) -> dict[str, Tensor]:
        return {"base_bias": self.base_bias_}

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.encoder_, self._seed = StateEncoder.from_state(config["encoder"]), config["seed"]
        self.base_bias_ = tensors["base_bias"]


class DeepDensity(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Normalised, Deep):
    """A deep model whose top layer makes features and whose log p has a lower bound."""

    # States of the odd layers of the normalised machine, known from the data and the training ``[n, units]``.
    _starts: Tensor

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
        self._log_z = None
        clear_parts(run_dir, resume, PARTS)
        with self._own_threads(rows), seeded(self._seed):
            self._learn(rows, run_dir, resume, checkpoint_seconds)
        with torch.no_grad():
            # Categories that a column does not have have learned that they are rare, not that there are none.
            self._visible_bias[torch.from_numpy(self.encoder_.impossible())] = IMPOSSIBLE
        # In double precision a row's figures do not depend on the rows beside it.
        self.energy_.cpu().double()
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self._seed))[:_N_STARTS]
        self._starts = self._odd_states(rows[chosen].double())
        generator = torch.Generator().manual_seed(self._seed)
        pair = self._drawn_states(_N_JUDGED, _N_SWEEPS_JUDGED, generator).numpy(), rows.numpy()
        self._conclude(
            [
                check_rows(len(rows), self._n_free_columns),
                check_training(self.history_.parts or {"training": self.history_}, by_held_out=False),
                check_units(self.components_),
                check_variety(*pair),
                check_modes(*pair),
            ]
        )
        return self

    def _drawn_states(self, n: int, n_steps: int, generator: torch.Generator) -> Tensor:
        """States of the visible units ``[n, width]``, each at the end of a chain."""
        raise NotImplementedError

    def _learn(self, rows: Tensor, run_dir: Any, resume: bool, checkpoint_seconds: float) -> None:
        raise NotImplementedError

    @property
    def _normalised(self) -> Any:
        """The machine whose log Z is that of the model."""
        raise NotImplementedError

    @property
    def _annealing_bias(self) -> Tensor:
        """Bias of its lowest layer where annealing starts: that of the data's means."""
        raise NotImplementedError

    def _odd_states(self, rows: Tensor) -> Tensor:
        """Where the annealing back starts: states of its odd layers that go with rows, and those of its chains."""
        raise NotImplementedError

    @property
    def _visible_bias(self) -> Tensor:
        raise NotImplementedError

    def _bound(self, rows: Tensor) -> Tensor:
        """Estimates of log p + log Z."""
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
        return int(check_widths(self.hidden)[-1])

    def _normaliser(self) -> Normaliser:
        check_is_fitted(self, "energy_")
        if self._log_z is None:
            machine = self._normalised
            if machine.n_enumerated <= _MOST_ENUMERATED:
                self._log_z = Normaliser(float(machine.log_normaliser()))
            else:
                base, generator = self._annealing_bias, torch.Generator().manual_seed(self._seed)
                self._log_z = Normaliser.of(
                    bracket_machine(machine, base, samples=self._starts, generator=generator)
                )
        return self._log_z

    def score_samples(self, X: Any) -> np.ndarray:
        """A lower bound of log p of every row ``[rows]``, in nats; all off alike by ``log_normaliser_error_``.

        Where log Z is annealed it is a bound only as far as that error holds (see ``log_normaliser_warning_``).
        """
        rows = self._rows(X)
        bound = torch.cat([self._bound(part) for part in rows.split(4096)]).numpy()
        return bound - self.log_normaliser_ - self._log_volume()

    def score(self, X: Any, y: Any = None) -> float:
        """The sum of ``score_samples``, as in scikit-learn's ``KernelDensity``."""
        return float(self.score_samples(X).sum())

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "log_normaliser": list(self._normaliser())}

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super()._rebuild(config, tensors)
        self._log_z = Normaliser.from_saved(config["log_normaliser"])
        self.energy_ = self._empty().double()

    def _empty(self) -> Any:
        """The model, to be filled with tensors."""
        raise NotImplementedError
