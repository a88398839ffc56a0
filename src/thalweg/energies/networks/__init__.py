"""Networks that make energies: of vectors, of images, of a y given an x."""

from thalweg.energies.networks.autoencoder import AutoencoderEnergy, autoencoder_energy, encoding_network
from thalweg.energies.networks.conditional import DirectRegression, NetworkEnergy, source_network
from thalweg.energies.networks.dropout import Dropout
from thalweg.energies.networks.features import PointNet, convnet, mlp
from thalweg.energies.networks.generator import Generator, generating_network
from thalweg.energies.networks.image import ImageEnergy, MultiscaleEnergy
from thalweg.energies.networks.module import ConditionalModuleEnergy, ModuleEnergy
from thalweg.energies.networks.perceptron import FixedPerceptron, PerceptronEnergy
from thalweg.energies.networks.reconstruction import ReconstructionEnergy
from thalweg.energies.networks.residual import residual_network

__all__ = [
    "AutoencoderEnergy",
    "ConditionalModuleEnergy",
    "DirectRegression",
    "Dropout",
    "FixedPerceptron",
    "Generator",
    "ImageEnergy",
    "ModuleEnergy",
    "MultiscaleEnergy",
    "NetworkEnergy",
    "PerceptronEnergy",
    "PointNet",
    "ReconstructionEnergy",
    "autoencoder_energy",
    "convnet",
    "encoding_network",
    "generating_network",
    "mlp",
    "residual_network",
    "source_network",
]
