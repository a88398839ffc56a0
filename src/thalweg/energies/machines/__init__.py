"""Boltzmann machines, restricted, deep and fully connected; belief networks; products of experts."""

from thalweg.energies.machines.belief import DeepBeliefNetwork
from thalweg.energies.machines.experts import StudentExperts
from thalweg.energies.machines.fully_connected import BoltzmannMachine
from thalweg.energies.machines.layered import DBMEnergy, LayeredMachine, RBMEnergy
from thalweg.energies.machines.units import Binary, Categorical, Gaussian, Mixed, Units

__all__ = [
    "Binary",
    "BoltzmannMachine",
    "Categorical",
    "DBMEnergy",
    "DeepBeliefNetwork",
    "Gaussian",
    "LayeredMachine",
    "Mixed",
    "RBMEnergy",
    "StudentExperts",
    "Units",
]
