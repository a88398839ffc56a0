"""Thalweg: energy-based models. One energy function, any objective, answers you can trust."""

from __future__ import annotations

from importlib.metadata import version

from thalweg._lazy import lazily

__version__ = version("thalweg")

_load, __dir__, __all__ = lazily(
    __name__,
    {
        "estimators.belief": ["DeepBeliefClassifier", "DeepBeliefNetwork"],
        "estimators.boltzmann": ["RestrictedBoltzmannMachine"],
        "estimators.classifier": ["EnergyClassifier"],
        "estimators.deep": ["DeepBoltzmannMachine"],
        "estimators.density": ["EnergyDensity"],
        "estimators.detector": ["EnergyDetector"],
        "estimators.forecaster": ["EnergyForecaster"],
        "estimators.gan": ["EnergyGAN"],
        "estimators.images": ["ImageEBM"],
        "estimators.incremental": ["IncrementalClassifier"],
        "estimators.ranker": ["EnergyRanker"],
        "estimators.regressor": ["EnergyRegressor"],
        "estimators.sequence": ["EnergySequenceTagger"],
        "estimators.vae": ["EnergyVAE"],
        "data": [],
        "energies": [],
        "estimators": [],
        "evaluation": [],
        "inference": [],
        "objectives": [],
        "sampling": [],
        "training": [],
    },
)
# On demand, so that ``thalweg --help`` need not wait for PyTorch.
__getattr__ = _load
