"""Thalweg: energy-based models. One energy function, any objective, answers you can trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.estimators.deep import DeepBeliefClassifier, DeepBeliefNetwork, DeepBoltzmannMachine
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
    "__version__",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand, so that ``thalweg --help`` need not wait for PyTorch.
    if name.startswith("Deep") and name in __all__:
        from thalweg.estimators import deep

        return getattr(deep, name)
    if name == "EnergyDensity":
        from thalweg.estimators.density import EnergyDensity

        return EnergyDensity
    if name == "EnergyRegressor":
        from thalweg.estimators.regressor import EnergyRegressor

        return EnergyRegressor
    if name == "ImageEBM":
        from thalweg.estimators.images import ImageEBM

        return ImageEBM
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
