"""Thalweg: energy-based models. One energy function, any objective, answers you can trust."""

from thalweg.estimators import EnergyRegressor

__all__ = ["EnergyRegressor", "__version__"]

__version__ = "0.1.0"
