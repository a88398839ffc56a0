"""The scikit-learn face."""

from thalweg._lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "belief": ["DeepBeliefClassifier", "DeepBeliefNetwork"],
        "boltzmann": ["LogLikelihood", "RestrictedBoltzmannMachine"],
        "classifier": ["EnergyClassifier"],
        "deep": ["DeepBoltzmannMachine"],
        "density": ["EnergyDensity"],
        "detector": ["EnergyDetector"],
        "distribution": ["MultivariateDistribution", "PredictiveDistribution"],
        "forecaster": ["EnergyForecaster"],
        "gan": ["EnergyGAN"],
        "images": ["ImageEBM"],
        "incremental": ["IncrementalClassifier"],
        "ranker": ["EnergyRanker"],
        "regressor": ["EnergyRegressor"],
        "sequence": ["EnergySequenceTagger"],
        "vae": ["EnergyVAE"],
    },
)
