"""What has an energy."""

from thalweg.energies.base import ConditionalEnergy, Conditioned, Energy, check_energy
from thalweg.energies.composition import Disjunction, WeightedSum
from thalweg.energies.mixture import MixtureDensity, TiltedEnergy, TiltedMixtureEnsemble
from thalweg.energies.networks import ModuleEnergy, NetworkEnergy, PointNet, convnet, mlp, source_network
from thalweg.energies.targets import GaussianEnergy, GaussianMixtureEnergy

__all__ = [
    "ConditionalEnergy",
    "Conditioned",
    "Disjunction",
    "Energy",
    "GaussianEnergy",
    "GaussianMixtureEnergy",
    "MixtureDensity",
    "ModuleEnergy",
    "NetworkEnergy",
    "PointNet",
    "TiltedEnergy",
    "TiltedMixtureEnsemble",
    "WeightedSum",
    "check_energy",
    "convnet",
    "mlp",
    "source_network",
]
