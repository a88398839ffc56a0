"""Energies whose normaliser is known: log Z is 0 or in closed form, and one can draw from them."""

from thalweg.energies.densities.any_order import AnyOrderDensity, ConditionalBlock
from thalweg.energies.densities.basic import (
    BernoulliEnergy,
    CategoricalEnergy,
    ConditionalDensity,
    Density,
    FlowEnergy,
    GaussianMixtureEnergy,
    GivenDensity,
    UniformEnergy,
    choose_gaussian_mixture,
    fit_gaussian_mixture,
)
from thalweg.energies.densities.class_gaussians import ClassGaussians
from thalweg.energies.densities.gaussian import GaussianEnergy
from thalweg.energies.densities.kernel import KernelDensity
from thalweg.energies.densities.running import RunningGaussian
from thalweg.energies.densities.shaped import ShapedDensity, gaussian_of_classes
from thalweg.energies.densities.stretch import StretchDensity
from thalweg.energies.densities.tilted import MixtureDensity, TiltedEnergy, TiltedMixtureEnsemble

__all__ = [
    "AnyOrderDensity",
    "BernoulliEnergy",
    "CategoricalEnergy",
    "ClassGaussians",
    "ConditionalBlock",
    "ConditionalDensity",
    "Density",
    "FlowEnergy",
    "GaussianEnergy",
    "GaussianMixtureEnergy",
    "GivenDensity",
    "KernelDensity",
    "MixtureDensity",
    "RunningGaussian",
    "ShapedDensity",
    "StretchDensity",
    "TiltedEnergy",
    "TiltedMixtureEnsemble",
    "UniformEnergy",
    "choose_gaussian_mixture",
    "fit_gaussian_mixture",
    "gaussian_of_classes",
]
