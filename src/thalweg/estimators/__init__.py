"""The scikit-learn face."""

from thalweg.estimators.belief import DeepBeliefClassifier, DeepBeliefNetwork
from thalweg.estimators.boltzmann import LogLikelihood, RestrictedBoltzmannMachine
from thalweg.estimators.deep import DeepBoltzmannMachine
from thalweg.estimators.density import EnergyDensity
from thalweg.estimators.distribution import MultivariateDistribution, PredictiveDistribution
from thalweg.estimators.images import ImageEBM
from thalweg.estimators.regressor import EnergyRegressor

__all__ = [
    "DeepBeliefClassifier",
    "DeepBeliefNetwork",
    "DeepBoltzmannMachine",
    "EnergyDensity",
    "EnergyRegressor",
    "ImageEBM",
    "LogLikelihood",
    "MultivariateDistribution",
    "PredictiveDistribution",
    "RestrictedBoltzmannMachine",
]
