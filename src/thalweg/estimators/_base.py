"""What all estimators share: parameters kept and checked, devices, threads, seeds, saved models."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from thalweg._torch_state import keeping_own_settings, seeded, using_threads, with_own_settings
from thalweg.evaluation.verdict import Check, FailedModelWarning, Verdict
from thalweg.training.history import History
from thalweg.training.loop import one_cpu_process
from thalweg.training.saving import load_model, rebuilding, refuse_infinite, save_model, tensors_of

RandomState = int | np.random.RandomState | None


class Estimator(BaseEstimator):
    """The base of all estimators.

    A subclass lists its parameters in ``__init__``, keeps them by :meth:`_keep`, and says in :meth:`_config`,
    :meth:`_modules` and :meth:`_rebuild` what a saved model of it holds.

    Attributes:
        energy_: the trained energy.
        history_: the :class:`~thalweg.training.history.History` of the training.
        verdict_: the :class:`~thalweg.evaluation.verdict.Verdict` on the model: whether it can be trusted.
    """

    device: str
    devices: int
    num_nodes: int
    strategy: str
    precision: str
    n_threads: int | None
    verbose: bool
    random_state: RandomState

    energy_: Any
    history_: History
    verdict_: Verdict
    # Parameters that are no part of a saved model.
    _not_saved: ClassVar[tuple[str, ...]] = ("random_state",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keeping_own_settings(cls)

    def _keep(self, values: dict[str, Any]) -> None:
        """Keep the parameters as they were given, as scikit-learn asks."""
        for name in self._get_param_names():
            setattr(self, name, values[name])

    # -- how it is trained ---------------------------------------------------------------------------

    def _check_training(self, *, several_processes: bool = True) -> None:
        """Refuse parameters of the training that can't be used."""
        check_counts(self, "devices", "num_nodes")
        if self.n_threads is not None:
            check_counts(self, "n_threads")
        if self.precision.startswith("64"):
            raise ValueError(f"precision {self.precision!r} is of no use here: the data are kept in 32 bits")
        if not several_processes:
            if self.devices * self.num_nodes > 1:
                raise ValueError(
                    f"{type(self).__name__} is trained by one process: take devices=1 and num_nodes=1"
                )
            if self.precision != "32-true":
                raise ValueError(f"{type(self).__name__} is trained in full precision: take precision='32-true'")

    def _make_fabric(self) -> Fabric:
        """The devices and processes of a training; several processes are started here.

        As with Lightning Fabric in general, a script then runs in every process.
        """
        asked = (self.device, self.devices, self.num_nodes, self.strategy, self.precision)
        if asked == ("cpu", 1, 1, "auto", "32-true"):
            return one_cpu_process()
        strategy = self.strategy
        if strategy == "auto" and self.devices * self.num_nodes > 1:
            strategy = "ddp"
        fabric = Fabric(
            accelerator=self.device,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=strategy,
            precision=self.precision,  # type: ignore[arg-type]
        )
        if fabric.world_size > 1:
            fabric.launch()
        return fabric

    def _draw_seed(self) -> int:
        return draw_seed(check_random_state(self.random_state))

    def _threads(self, batch_size: int, n_weights: int) -> contextlib.AbstractContextManager[None]:
        return using_threads(self.n_threads or suitable_threads(batch_size, n_weights))

    def _conclude(self, checks: Iterable[Check]) -> None:
        """Keep the verdict on a model that has just been fitted; a failed one is warned of."""
        self.verdict_ = Verdict(checks)
        if failure := self.verdict_.failure():
            warnings.warn(failure, FailedModelWarning, stacklevel=3)

    # -- saving --------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], *, extra: dict[str, Any] | None = None) -> None:
        """Write the model as a folder with ``config.json`` and ``model.safetensors``.

        Args:
            folder: where to; it is made if it is not there.
            extra: anything for JSON, kept beside the model and given back by :meth:`load` as ``extra_``.

        Raises:
            ValueError: if the model has an energy of the user's own: save that with torch instead.
            OSError: if it can't be written.
        """
        check_is_fitted(self, "energy_")
        if getattr(self, "energy", None) is not None:
            raise ValueError(
                "a model with an energy of your own can't be rebuilt from a file: save its state_dict"
            )
        params = {k: _plain(v) for k, v in self.get_params().items() if k not in self._not_saved}
        config = {
            "params": params,
            "n_features_in": getattr(self, "n_features_in_", None),
            "feature_names_in": [str(c) for c in getattr(self, "feature_names_in_", [])],
            "history": self.history_.to_dict(),
            "verdict": getattr(self, "verdict_", Verdict()).to_list(),
            "extra": extra or {},
            **self._config(),
        }
        modules = self._modules().items()
        tensors = {f"{name}.{k}": v for name, module in modules for k, v in module.state_dict().items()}
        save_model(Path(folder), type(self).__name__, config, {**tensors, **self._tensors()})

    @classmethod
    @with_own_settings
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a saved model. Nothing in the folder is run; ``extra_`` holds what was kept beside it.

        Raises:
            ValueError: if the folder is missing, damaged, foreign, or of a newer version.

        Warns:
            FailedModelWarning: if the model had failed a check when it was saved.
        """
        config, tensors = load_model(Path(folder), cls.__name__)
        with rebuilding(folder):
            model = cls(**config["params"])
            if config["n_features_in"] is not None:
                model.n_features_in_ = config["n_features_in"]
            if config["feature_names_in"]:
                model.feature_names_in_ = np.array(config["feature_names_in"], dtype=object)
            model.history_ = History.from_dict(config["history"])
            model.extra_ = config["extra"]
            model.verdict_ = Verdict.from_list(config.get("verdict", []))
            # First weights, which the saved ones replace, take none of the caller's random numbers.
            with seeded(0):
                model._rebuild(config, tensors)
            for name, module in model._modules().items():
                module.load_state_dict(tensors_of(name, tensors))
                module.eval()
        refuse_infinite(folder, model._modules().values())
        if failure := model.verdict_.failure():
            warnings.warn(f"{folder}: {failure}", FailedModelWarning, stacklevel=2)
        return model

    def _config(self) -> dict[str, Any]:
        """What is needed beside the parameters to rebuild the modules, fit for JSON."""
        return {}

    def _modules(self) -> dict[str, nn.Module]:
        """The modules whose weights are saved, by name."""
        return {"energy": self.energy_}

    def _tensors(self) -> dict[str, Tensor]:
        """Tensors that are saved beside those of the modules."""
        return {}

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Make modules of the right shapes, and set all other attributes of a fitted model."""
        raise NotImplementedError


def _plain(value: Any) -> Any:
    """A parameter as JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(v) for v in value] if isinstance(value, list | tuple | np.ndarray) else value


def clear_parts(run_dir: str | os.PathLike[str] | None, resume: bool, parts: Iterable[str]) -> None:
    """Remove what an earlier run left of these parts of a training: a new one would take them for its own."""
    if run_dir is not None and not resume:
        for part in parts:
            shutil.rmtree(Path(run_dir) / part, ignore_errors=True)


def generator_of(random_state: Any, device: Any = "cpu") -> torch.Generator:
    """A generator of PyTorch whose seed is drawn from scikit-learn's ``random_state``."""
    return torch.Generator(device).manual_seed(draw_seed(check_random_state(random_state)))


def draw_seed(rng: np.random.RandomState) -> int:
    """A seed for PyTorch."""
    return int(rng.randint(2**31 - 1))


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is a whole number of at least this."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least this."""
    if not is_count(value, least):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def which_known(values: np.ndarray, known: Any) -> np.ndarray:
    """Which of the values are known, bool of their shape: as is said, or with None those that are not NaN.

    Raises:
        ValueError: if what is said is not bool, or does not broadcast to the shape of the values.
    """
    found = ~np.isnan(values) if known is None else np.asarray(known)
    if found.dtype != bool:
        raise ValueError(f"known must be True or False for each entry, got {found.dtype}")
    try:
        return np.broadcast_to(found, values.shape)
    except ValueError:
        shapes = f"{list(found.shape)} and {list(values.shape)}"
        raise ValueError(f"known must broadcast to the shape of X, got the shapes {shapes}") from None


def check_counts(estimator: Any, *names: str, least: int = 1) -> None:
    """Refuse parameters that are no whole numbers of at least this."""
    for name in names:
        check_count(name, getattr(estimator, name), least)


def check_widths(widths: Any) -> list[int]:
    """The widths of hidden layers as a list; one number is one layer.

    Raises:
        ValueError: if they are no whole numbers of at least 1.
    """
    found = [widths] if is_count(widths) else list(widths) if isinstance(widths, Sequence | np.ndarray) else []
    if not found or not all(is_count(w) for w in found):
        raise ValueError(
            f"hidden must be a whole number of at least 1, or one for each layer, as (128, 128); got {widths!r}"
        )
    return [int(w) for w in found]


def count_weights(*modules: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(p.numel() for module in modules for p in module.parameters())


def check_names(X: pd.DataFrame) -> None:
    """Refuse a table with two columns of one name.

    Raises:
        ValueError: naming the column.
    """
    twice = X.columns[X.columns.duplicated()]
    if len(twice):
        n = int((X.columns == twice[0]).sum())
        raise ValueError(f"{n} columns are named {twice[0]!r}: give each column a name of its own")


def suitable_threads(batch_size: int, n_weights: int) -> int:
    """One thread for small work, all of PyTorch's for large.

    Two threads save a third of the time of a fit of a table while both cores are idle, and take two to nine times
    as long as one where other work runs beside them: threads that wait for one another lose their turns.
    """
    return 1 if batch_size * n_weights < 200_000_000 else torch.get_num_threads()
