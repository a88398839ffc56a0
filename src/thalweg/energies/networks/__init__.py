"""Networks that make energies: of vectors, of images, of a y given an x."""

from thalweg.energies.networks.conditional import (
    ModuleEnergy,
    NetworkEnergy,
    PointNet,
    convnet,
    mlp,
    source_network,
)
from thalweg.energies.networks.image import ImageEnergy, MultiscaleEnergy, residual_network
from thalweg.energies.networks.perceptron import FixedPerceptron, LabelledPerceptron, PerceptronEnergy

__all__ = [
    "FixedPerceptron",
    "ImageEnergy",
    "LabelledPerceptron",
    "ModuleEnergy",
    "MultiscaleEnergy",
    "NetworkEnergy",
    "PerceptronEnergy",
    "PointNet",
    "convnet",
    "mlp",
    "residual_network",
    "source_network",
]
