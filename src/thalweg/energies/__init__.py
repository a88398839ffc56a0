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
from thalweg.energies.densities.gaussian import GaussianEnergy
from thalweg.energies.densities.tilted import MixtureDensity, TiltedEnergy, TiltedMixtureEnsemble
from thalweg.energies.discrete import BINARY, OneHotGroups, all_states
from thalweg.energies.machines.belief import DeepBeliefNetwork
from thalweg.energies.machines.experts import StudentExperts
from thalweg.energies.machines.fully_connected import BoltzmannMachine
from thalweg.energies.machines.layered import DBMEnergy, LayeredMachine, RBMEnergy
from thalweg.energies.machines.units import Binary, Categorical, Gaussian, Mixed
from thalweg.energies.networks import ModuleEnergy, NetworkEnergy, PointNet, convnet, mlp, source_network
from thalweg.energies.networks.perceptron import PerceptronEnergy

__all__ = [
    "BINARY",
    "BernoulliEnergy",
    "Binary",
    "BoltzmannMachine",
    "Categorical",
    "CategoricalEnergy",
    "ConditionalEnergy",
    "Conditioned",
    "DBMEnergy",
    "DeepBeliefNetwork",
    "Density",
    "Disjunction",
    "Energy",
    "FlowEnergy",
    "Gaussian",
    "GaussianEnergy",
    "GaussianMixtureEnergy",
    "LayeredMachine",
    "Mixed",
    "MixtureDensity",
    "ModuleEnergy",
    "NetworkEnergy",
    "OneHotGroups",
    "PerceptronEnergy",
    "PointNet",
    "RBMEnergy",
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
