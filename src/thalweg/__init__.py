"""Thalweg: energy-based models. One energy function, any objective, answers you can trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.estimators.boltzmann import RestrictedBoltzmannMachine
    from thalweg.estimators.density import EnergyDensity
    from thalweg.estimators.images import ImageEBM
    from thalweg.estimators.regressor import EnergyRegressor

__all__ = ["EnergyDensity", "EnergyRegressor", "ImageEBM", "RestrictedBoltzmannMachine", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand, so that ``thalweg --help`` need not wait for PyTorch.
    if name == "EnergyDensity":
        from thalweg.estimators.density import EnergyDensity

        return EnergyDensity
    if name == "EnergyRegressor":
        from thalweg.estimators.regressor import EnergyRegressor

        return EnergyRegressor
    if name == "ImageEBM":
        from thalweg.estimators.images import ImageEBM

        return ImageEBM
    if name == "RestrictedBoltzmannMachine":
        from thalweg.estimators.boltzmann import RestrictedBoltzmannMachine

        return RestrictedBoltzmannMachine
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
