"""What has an energy."""

from thalweg.energies.base import ConditionalEnergy, Conditioned, Energy, check_energy
from thalweg.energies.composition import Disjunction, WeightedSum
from thalweg.energies.densities import (
    BernoulliEnergy,
    CategoricalEnergy,
    Density,
    FlowEnergy,
    GaussianMixtureEnergy,
    UniformEnergy,
)
from thalweg.energies.discrete import BINARY, OneHotGroups, all_states
from thalweg.energies.experts import StudentExperts
from thalweg.energies.fully_connected import BoltzmannMachine
from thalweg.energies.mixture import MixtureDensity, TiltedEnergy, TiltedMixtureEnsemble
from thalweg.energies.networks import ModuleEnergy, NetworkEnergy, PointNet, convnet, mlp, source_network
from thalweg.energies.perceptron import PerceptronEnergy
from thalweg.energies.targets import GaussianEnergy

__all__ = [
    "BINARY",
    "BernoulliEnergy",
    "BoltzmannMachine",
    "CategoricalEnergy",
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
    "OneHotGroups",
    "PerceptronEnergy",
    "PointNet",
    "StudentExperts",
    "TiltedEnergy",
    "TiltedMixtureEnsemble",
    "UniformEnergy",
    "WeightedSum",
    "all_states",
    "check_energy",
    "convnet",
    "mlp",
    "source_network",
]
