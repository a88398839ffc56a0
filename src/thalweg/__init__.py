"""Thalweg: energy-based models. One energy function, any objective, answers you can trust."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.estimators.belief import DeepBeliefClassifier, DeepBeliefNetwork
    from thalweg.estimators.boltzmann import RestrictedBoltzmannMachine
    from thalweg.estimators.deep import DeepBoltzmannMachine
    from thalweg.estimators.density import EnergyDensity
    from thalweg.estimators.images import ImageEBM
    from thalweg.estimators.regressor import EnergyRegressor

__all__ = [
    "DeepBeliefClassifier",
    "DeepBeliefNetwork",
    "DeepBoltzmannMachine",
    "EnergyDensity",
    "EnergyRegressor",
    "ImageEBM",
    "RestrictedBoltzmannMachine",
    "__version__",
]

__version__ = "0.1.0"


_HOMES = {
    "DeepBeliefClassifier": "belief",
    "DeepBeliefNetwork": "belief",
    "DeepBoltzmannMachine": "deep",
    "EnergyDensity": "density",
    "EnergyRegressor": "regressor",
    "ImageEBM": "images",
    "RestrictedBoltzmannMachine": "boltzmann",
}


def __getattr__(name: str) -> Any:
    # On demand, so that ``thalweg --help`` need not wait for PyTorch.
    if name in _HOMES:
        return getattr(importlib.import_module(f"thalweg.estimators.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
