"""The scikit-learn face."""

from thalweg.estimators.distribution import MultivariateDistribution, PredictiveDistribution
from thalweg.estimators.regressor import EnergyRegressor

__all__ = ["EnergyRegressor", "MultivariateDistribution", "PredictiveDistribution"]
