"""What has an energy."""

from thalweg.energies.base import ConditionalEnergy, Conditioned, Energy, check_energy
from thalweg.energies.composition import Disjunction, WeightedSum
from thalweg.energies.densities import Density, FlowEnergy, GaussianMixtureEnergy, UniformEnergy
from thalweg.energies.mixture import MixtureDensity, TiltedEnergy, TiltedMixtureEnsemble
from thalweg.energies.networks import ModuleEnergy, NetworkEnergy, PointNet, convnet, mlp, source_network
from thalweg.energies.perceptron import PerceptronEnergy
from thalweg.energies.targets import GaussianEnergy

__all__ = [
    "ConditionalEnergy",
    "Conditioned",
    "Density",
    "Disjunction",
    "Energy",
    "FlowEnergy",
    "GaussianEnergy",
    "GaussianMixtureEnergy",
    "MixtureDensity",
    "ModuleEnergy",
    "NetworkEnergy",
    "PerceptronEnergy",
    "PointNet",
    "TiltedEnergy",
    "TiltedMixtureEnsemble",
    "UniformEnergy",
    "WeightedSum",
    "check_energy",
    "convnet",
    "mlp",
    "source_network",
]
